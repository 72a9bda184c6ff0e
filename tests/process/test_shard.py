"""`run.shard: on`: processes that each hold a part of the model train it as one that holds all. Over gloo."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranked import are_gone, children_of, environment_of, finished, of_run, recipe_of, running, until_step
from runs import losses
from transformers import AutoModelForCausalLM

from gpt2cli.checkpoints.folder import load_model

PARTS = ("--processes", "2", "run.shard=on")
PROBE = """
import json, torch
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.recipe.sections import OptimConfig
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum
from gpt2cli.training.ranks import join
from gpt2cli.training.shard import ShardedStep

def loss_sum(model, ids, dtype):
    hidden = model.transformer(ids[:, :-1]).flatten(0, 1)
    return cross_entropy_sum(hidden, model.lm_head.weight, ids[:, 1:].flatten(), dtype)

ranks = join()
config = GPT2Config(n_layer=2, n_head=2, n_embd=6, n_positions=8, vocab_size=11)  # 11 and 6 split unevenly
whole, model = new_model(config, 1), new_model(config, 1)
ids = torch.randint(11, (2, 4, 9), generator=torch.Generator().manual_seed(1))
sum(loss_sum(whole, some, torch.float32) for some in ids).backward()
norm = torch.nn.utils.get_total_norm([p.grad for p in whole.parameters()]).item()

cpu = torch.device("cpu")
step = ShardedStep(model, OptimConfig(steps=1), torch.amp.GradScaler("cpu", enabled=False), ranks, cpu)
loss = step.forward(loss_sum, ids[ranks.rank], torch.float32)
step.backward(loss)
parts = dict(model.named_parameters())
found = {name: p.grad.full_tensor() for name, p in parts.items()}
_, norm_found = step.losses_and_norm([loss.detach()])
facts = {
    "gradient": max((found[n] - p.grad).abs().max().item() for n, p in whole.named_parameters()),
    "norm": abs(norm_found - norm),
    "tied": model.lm_head.weight is model.transformer.wte.weight,
    "share": sum(p.to_local().numel() for p in parts.values()) / sum(p.numel() for p in parts.values()),
}
with step.whole_tensors():
    if ranks.is_first:
        read, wanted = step.whole_model.state_dict(), whole.state_dict()
        facts["same"] = all(torch.equal(read[name] + 0, tensor) for name, tensor in wanted.items())
        turned = read["transformer.h.0.mlp.c_fc.weight"].T
        facts["turned"] = torch.equal(turned + 0, whole.transformer.h[0].mlp.c_fc.weight.T)
print(json.dumps(facts))
ranks.close()
"""


@pytest.mark.peers
def test_gradients_are_summed_and_each_has_its_part(tmp_path: Path) -> None:
    """Against a whole model that sees both batches. gloo summed where it should average, and an average
    would be half of it.
    """
    place = {"GPT2_RANKS_STORE": str(tmp_path / "store"), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROBE], env=os.environ | place | {"RANK": rank}, stdout=subprocess.PIPE
        )
        for rank in "01"
    ]
    for number, process in enumerate(both):
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0
        facts = json.loads(out)
        assert facts["gradient"] < 1e-6 and facts["norm"] < 1e-5 and facts["tied"]
        assert 0.4 < facts["share"] < 0.6
        assert number or (facts["same"] and facts["turned"])


@pytest.mark.peers
@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("pretrain", ()),
        ("pretrain bf16", ("run.activation_checkpointing=on",)),
        ("classify", ()),
        ("classify lora", ()),
        ("instruct packed", ("run.activation_checkpointing=on",)),
        ("instruct lora", ()),
    ],
)
def test_parts_train_as_the_whole(kind: str, asked: tuple[str, ...], tmp_path: Path) -> None:
    task, recipe = recipe_of(kind, tmp_path)
    finished(task, recipe, "--name", "whole", *asked)
    finished(task, recipe, "--name", "parts", *PARTS, *asked)
    near = 1e-5 if "bf16" in kind else 1e-6  # a weight's last bit may round to another bf16 number
    assert losses(Path("runs/parts")) == pytest.approx(losses(Path("runs/whole")), abs=near)
    (first, _), (second, _) = of_run("whole"), of_run("parts")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if name.endswith("attn.c_attn.bias"):  # a key's bias has a gradient of rounding errors alone
            width = len(tensor) // 3
            tensor, second[name] = tensor.clone(), second[name].clone()
            tensor[width : 2 * width] = second[name][width : 2 * width] = 0
        torch.testing.assert_close(second[name], tensor, atol=2 * near, rtol=0)
    files = [
        {path.relative_to(f"runs/{name}/last") for path in Path(f"runs/{name}/last/").rglob("*")}
        for name in ("whole", "parts")
    ]
    assert files[0] == files[1]
    if kind == "pretrain":
        folder = Path("runs/parts/last").resolve()
        theirs, ours = AutoModelForCausalLM.from_pretrained(folder), load_model(folder).model
        ids = torch.arange(8)[None]
        torch.testing.assert_close(theirs(ids).logits, ours(ids), atol=1e-4, rtol=0)
        assert theirs.lm_head.weight is theirs.transformer.wte.weight


@pytest.mark.peers
@pytest.mark.parametrize("worlds", [(-2, 1), (1, -2), (-2, -4, 2)], ids=str)
def test_a_run_goes_on_in_parts_or_whole(worlds: tuple[int, ...], tmp_path: Path) -> None:
    """A negative number is of processes with a part each."""
    task, recipe = recipe_of("pretrain", tmp_path)
    same = ("model.dropout=0", "optim.schedule=constant", "eval.sample_tokens=0")
    finished(task, recipe, "--name", "whole", "optim.steps=6", *same)
    for number, world in enumerate(worlds, 1):
        steps = f"optim.steps={6 * number // len(worlds)}"
        more = [f"run.shard={'on' if world < 0 else 'off'}", *(["--resume"] if number > 1 else [])]
        finished(task, recipe, "--name", "cut", "--processes", str(abs(world)), steps, *more, *same)
    found, whole = losses(Path("runs/cut")), losses(Path("runs/whole"))
    assert found.keys() == whole.keys() and found == pytest.approx(whole, abs=1e-6)


@pytest.mark.peers
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGKILL, 137)])
def test_a_signal_to_one_part(number: signal.Signals, code: int, tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    long = ("optim.steps=100000", "eval.every=3", "checkpoint.every=50000", "eval.sample_tokens=0")
    with running(task, recipe, "--name", "cut", *PARTS, *long) as process:
        until_step(Path("runs/cut"), 5)
        pids = children_of(process.pid)
        (second,) = [pid for pid in pids if "RANK=1" in environment_of(pid)]
        os.kill(second, number)
        _, err = process.communicate(timeout=240)
    assert process.returncode == code and are_gone(pids), err
    assert "Traceback" not in err and "bug" not in err
    assert ("--resume --processes 2" if code == 130 else "rank 1 was killed") in err


def test_one_process_holds_the_whole(tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    err = finished(task, recipe, "run.shard=on", "optim.steps=1", "eval.sample_tokens=0")
    assert "run.shard is on, but one process" in err
