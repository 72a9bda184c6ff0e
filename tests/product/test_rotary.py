"""`model.positions=rotary` from a recipe to a folder: trained, resumed, used, refused where it cannot go."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lessons import write_lesson
from loud import loud
from rotary_reference import reference_logits
from teaching import teaching, write_teaching
from tiny_base import save_base
from tiny_run import PRETRAIN, Call, all_events, column, random_text, rewound, train, write_tokens
from transformers import AutoConfig, AutoModelForCausalLM
from words import WORDS

import gpt2cli
from gpt2cli.checkpoints.folder import load_model, read_config, write_manifest, write_model
from gpt2cli.convert.verify import TOLERANCE
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.training.sft_task import collate

ROTARY = {
    **PRETRAIN,
    "model": {**PRETRAIN["model"], "positions": "rotary", "dropout": 0.1},
    "checkpoint": {"every": 1, "keep": 99},
}


@pytest.fixture
def run(gpt2: Call) -> Path:
    """Ten steps from random weights."""
    write_tokens(gpt2, random_text(260, seed=8))
    return train(gpt2, ROTARY, "turned")


def test_a_run_is_trained_used_and_resumed_to_the_bit(run: Path, gpt2: Call) -> None:
    stored = json.loads((run / "last/config.json").read_text(encoding="utf-8"))
    assert (stored["model_type"], stored["rope_theta"]) == ("gpt2cli-rotary", 10000.0)
    model = load_model(run / "last").model
    assert model.config.positions == "rotary" and not [n for n in model.state_dict() if "wpe" in n]
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).double(), reference_logits(model, ids), atol=1e-5, rtol=0)

    cut = rewound(run, "cut", 4)
    done = gpt2("pretrain", "turned.yaml", "--name", "cut", "--resume")
    assert done.code == 0, done.err
    assert all_events(cut) == all_events(run)
    for file in ("model.safetensors", "train_state.safetensors"):
        assert (cut / "last" / file).read_bytes() == (run / "last" / file).read_bytes()

    asked = ("abc", "--model", run, "-n", "40", "--temperature", "0", "--json")
    done = gpt2("generate", *asked)  # beyond its 8 positions
    assert done.code == 0 and "last half" not in done.err, done.err
    text = json.loads(done.out)["text"]
    assert (
        gpt2cli.load(run, device="cpu", precision="fp32").generate("abc", max_new_tokens=40, temperature=0)
        == text
    )


def test_learned_ones_of_the_same_seed_are_another_run(run: Path, gpt2: Call) -> None:
    learned = gpt2(
        "pretrain", "turned.yaml", "--name", "turned", "--resume", "model.positions=learned", "optim.steps=12"
    )
    assert learned.code == 3 and "model.positions: rotary -> learned" in learned.err
    other = train(gpt2, {**ROTARY, "model": PRETRAIN["model"]}, "learned")
    assert column(other, "loss") != column(run, "loss")
    assert json.loads((other / "last/config.json").read_text())["model_type"] == "gpt2"


def test_what_has_no_such_positions_refuses_it(run: Path, gpt2: Call) -> None:
    for factory in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="gpt2cli-rotary"):
            factory.from_pretrained(run / "last")
    for to in ("gguf", "nanogpt", "tensorflow"):
        done = gpt2("convert", run / "last", "--to", to, "--out", "out")
        assert done.code == 3 and "rotary" in done.err and "--to folder" in done.err
        assert not Path("out").exists()


def test_a_converted_folder_is_verified_and_is_the_same_model(run: Path, gpt2: Call) -> None:
    shutil.copytree(run / "last", "theirs")  # elsewhere, so that it is compared with NumPy's forward pass
    done = gpt2("convert", "theirs", "--out", "again", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["verification"]["max_difference"] < TOLERANCE / 1e4
    ours, again = load_model(run / "last").model.state_dict(), load_model(Path("again")).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in ours.items())
    read = gpt2("inspect", "again", "--prompt", "abcd")
    assert read.code == 0 and "wpe" not in read.out


def test_a_base_hands_its_positions_on(run: Path, gpt2: Call) -> None:
    Path("own.txt").write_text(random_text(260, seed=11), encoding="utf-8")
    further = {
        **{key: value for key, value in ROTARY.items() if key not in ("data", "model")},
        **{"data": {"source": "own.txt", "validation": 0.2}, "init": str(run / "last")},
    }
    more = train(gpt2, further, "further", "model.context=6")
    config = load_model(more / "last").config
    assert (config.positions, config.n_positions) == ("rotary", 6)
    refused = gpt2("pretrain", "further.yaml", "--name", "x", "model.positions=learned")
    assert refused.code == 2 and "--name x model.positions=rotary" in refused.err
    save_base(gpt2, Path("base"))
    learned = gpt2("pretrain", "further.yaml", "--name", "x", "init=base", "model.positions=rotary")
    assert learned.code == 2 and learned.err.endswith("model.positions=learned\n")


def save_rotary(folder: Path) -> Path:
    """Random weights of a small model over words."""
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, n_positions=96, vocab_size=WORDS.n_vocab, positions="rotary"
    )
    folder.mkdir()
    model = loud(new_model(config, 3))
    write_manifest(folder, write_model(folder, model, WORDS, "task: pretrain\n"))
    return folder


@torch.no_grad()
def test_packed_records_have_the_loss_that_they_have_apart(tmp_path: Path) -> None:
    save_rotary(tmp_path / "base")
    _, task = teaching(tmp_path)
    model, examples = task.fresh_model("formula").eval(), task.examples.train[:6]
    assert model.config.positions == "rotary"
    packed = collate([examples[:3], examples[3:]])
    assert packed.positions is not None and int(packed.positions.max()) < packed.input_ids.shape[1] - 1
    losses = [
        task.loss_sum(model, batch, torch.float32).item()
        for batch in (packed, collate([(e,) for e in examples]))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_fine_tunes_and_their_commands_take_it(gpt2: Call, tmp_path: Path) -> None:
    base, few = save_rotary(tmp_path / "base"), ("optim.steps=2", "eval.every=2")
    done = gpt2("finetune-instruct", write_teaching(tmp_path), "packing=true", *few, "--name", "chatty")
    assert done.code == 0, done.err
    assert read_config(Path("runs/chatty/last")).positions == "rotary"
    lora = gpt2("finetune-instruct", write_teaching(tmp_path), "train=lora", *few, "--name", "adapted")
    assert lora.code == 0, lora.err
    done = gpt2("finetune-classify", write_lesson(tmp_path), f"init={base}", *few, "--name", "sorting")
    assert done.code == 0, done.err
    labels = gpt2("classify", "runs/sorting", "win cash", "--json")
    assert labels.code == 0, labels.err
    with pytest.raises(ValueError, match="gpt2cli-rotary"):
        AutoConfig.from_pretrained("runs/sorting/last")
