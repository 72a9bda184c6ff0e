"""Muon for the blocks' matrices, AdamW for the rest: torch's own two, to the bit; and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import PRETRAIN, Call, all_events, random_text, rewound, train, write_tokens
from torch import Tensor

from gpt2cli.checkpoints.folder import load_model
from gpt2cli.errors import UsageError
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.recipe.sections import OptimConfig
from gpt2cli.training.estimate import count_muon, estimate_memory
from gpt2cli.training.master_weights import MasterWeightsStep
from gpt2cli.training.optimizer_step import OptimizerStep, make_optimizer, parameter_names
from gpt2cli.training.torch_compile import uncompiled

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=31, tie_word_embeddings=False)
OPTIM = OptimConfig(name="muon", steps=9, lr=1e-2, weight_decay=0.3, beta2=0.99)
MUON = {
    **{"model": {**PRETRAIN["model"], "dropout": 0.2}, "optim": {**PRETRAIN["optim"], "name": "muon"}},
    "checkpoint": {"every": 1, "keep": 99},
}


def loss_of(model: GPT2LMHead, ids: Tensor) -> Tensor:
    logits = model(ids[:, :-1])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def batch(step: int) -> Tensor:
    return torch.randint(0, 31, (3, 9), generator=torch.Generator().manual_seed(step))


def plain_step(model: GPT2LMHead) -> OptimizerStep:
    optimizer = make_optimizer(model, OPTIM, torch.device("cpu"))
    return OptimizerStep(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def take(step: OptimizerStep, ids: Tensor, max_norm: float) -> float:
    step.backward(loss_of(step.model, ids))  # type: ignore[arg-type]
    _, norm = step.losses_and_norm([])
    step.update(norm, max_norm)
    step.zero_grad()
    return norm


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_updates_are_those_of_torchs_two_optimizers(max_norm: float) -> None:
    ours, theirs = new_model(CONFIG, 1), new_model(CONFIG, 1)
    names = {
        f"transformer.h.{layer}.{part}.weight"
        for layer in range(2)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    named = dict(theirs.named_parameters())
    others = [(name, p) for name, p in named.items() if name not in names]
    muon = torch.optim.Muon(
        [named[name] for name in sorted(names)], lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [p for _, p in others if p.dim() > 1], "weight_decay": 0.3},
            {"params": [p for _, p in others if p.dim() < 2], "weight_decay": 0.0},
        ],
        **{"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-8, "fused": True},
    )
    step = plain_step(ours)
    for group in step.optimizer.param_groups:  # as the loop sets the rate
        group["lr"] = 0.02
    for n in range(4):
        norm = take(step, batch(n), max_norm)
        loss_of(theirs, batch(n)).backward()
        if max_norm:
            wanted = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
            assert norm == pytest.approx(wanted.item(), rel=1e-6) and norm > max_norm
        for part in (muon, adamw):
            part.step()
            part.zero_grad()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter, named[name], atol=1e-7, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert sorted(parameter_names(ours, step.optimizer)) == sorted(named)
    assert {n for n, p in ours.named_parameters() if "momentum_buffer" in step.optimizer.state[p]} == names


def test_master_weights_move_as_the_plain_ones_but_for_rounding() -> None:
    ours, theirs, begun = (new_model(CONFIG, 1) for _ in range(3))
    slow = plain_step(theirs)
    with uncompiled():
        fast = MasterWeightsStep(ours, make_optimizer(ours, OPTIM, torch.device("cpu")))
        for n in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                take(fast, batch(n), 0.5)
            take(slow, batch(n), 0.5)
    copies = dict(fast.model.named_parameters())
    for (name, a), b, c in zip(ours.named_parameters(), theirs.parameters(), begun.parameters(), strict=True):
        if name.endswith("c_attn.bias"):  # the keys' third moves by noise alone: softmax ignores it
            continue
        assert (b - c).norm() > 0 and (a - b).norm() < 0.4 * (b - c).norm(), name
        assert torch.equal(copies[name], a.to(copies[name].dtype)), f"{name}: the copy is behind"


def test_a_run_resumes_to_the_bit(gpt2: Call) -> None:
    write_tokens(gpt2, random_text(260, seed=8))
    recipe = {**PRETRAIN, **MUON}
    run = train(gpt2, recipe, "whole")
    cut = rewound(run, "cut", 4)
    done = gpt2("pretrain", "whole.yaml", "--name", "cut", "--resume")
    assert done.code == 0, done.err
    assert all_events(cut) == all_events(run)
    for file in ("model.safetensors", "train_state.safetensors"):
        assert (cut / "last" / file).read_bytes() == (run / "last" / file).read_bytes()
    other = gpt2("pretrain", "whole.yaml", "--name", "cut", "--resume", "optim.steps=12", "optim.name=adamw")
    assert other.code == 3 and "optim.name: muon -> adamw" in other.err
    n_matrices = 2 * (3 + 1 + 4 + 4) * 32 * 32
    n_all = sum(tensor.numel() for tensor in load_file(run / "last/model.safetensors").values())
    n_moments = sum(tensor.numel() for tensor in load_file(run / "last/train_state.safetensors").values())
    assert n_moments == 2 * n_all - n_matrices, "one number where AdamW keeps two"
    model = load_model(run / "last").model
    n_muon = count_muon(model, OPTIM)
    parts = estimate_memory(model.config, 3, 4, n_trainable=n_all, n_muon=n_muon, n_outputs=24)
    assert parts["AdamW moments"] + parts["Muon momentum"] == 4 * n_moments
    plan = gpt2("pretrain", "whole.yaml", "--dry-run")
    assert plan.code == 0 and "muon" in plan.out, plan.err
    lora = gpt2("pretrain", "whole.yaml", "--name", "x", f"init={run}", "train=lora")
    assert lora.code == 2 and "optim.name=adamw" in lora.err


def test_a_torch_without_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UsageError, match=r"torch 2\.9|does not have") as refused:
        make_optimizer(new_model(CONFIG, 1), OPTIM, torch.device("cpu"))
    assert "optim.name=adamw" in refused.value.fix
