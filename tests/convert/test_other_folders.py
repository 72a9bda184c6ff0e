"""Models as other people's programs leave them: each is read, and writes what its source does, or is refused.

The sources are made by transformers, safetensors and torch; what Lightning, DeepSpeed and trl would
write has their tables and names around transformers' tensors.
"""

import copy
import json
import runpy
import shlex
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from foreign import BookGPT, fill
from hugging_face_folders import (
    BIN,
    SHAPE,
    THEIRS,
    WEIGHTS,
    Tensors,
    bare,
    logits,
    model_of_theirs,
    named,
    padded,
    state_of,
    with_masks,
)
from openai_checkpoint import SMALLEST, imitate_checkpoint
from words import BYTES

from gpt2cli.checkpoints.folder import load_model
from gpt2cli.tokenizer.files import save_tokenizer

Gpt2 = Callable[..., Any]


class AttributeDict(dict[str, Any]):
    """As Lightning keeps hyperparameters: a table of a class that no other program has."""


def lightning(prefix: str) -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 500,
        "pytorch-lightning_version": "2.5.1",
        "state_dict": OrderedDict(named(lambda name: prefix + name)),
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_path": "a.ckpt"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(lr=1e-3, model="gpt2"),
    }


def deepspeed() -> dict[str, Any]:
    return {
        "module": OrderedDict(named(lambda name: f"module.{name}")),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [OrderedDict({"wte": torch.Size([257, 32])})],
        "sparse_tensor_module_names": set(),
        "ds_config": {"zero_optimization": {"stage": 1}},
        "ds_version": "0.16.4",
    }


VALUE_HEAD = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}


def save(state: Any, name: str = BIN, **options: Any) -> Callable[[Path], Any]:
    return lambda folder: torch.save(state, folder / name, **options)


def tensors(state: Tensors) -> Callable[[Path], Any]:
    return lambda folder: safetensors.torch.save_file(state, folder / WEIGHTS)


def pretrained(model: Any, **changes: Any) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | changes))

    return write


def padded_to(n_rows: int) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        pretrained(THEIRS, vocab_size=n_rows)(folder)
        tensors(padded(state_of(), n_rows))(folder)

    return write


DOUBLE = transformers.GPT2DoubleHeadsModel(transformers.GPT2Config(**SHAPE, num_labels=1)).eval()
DOUBLE.load_state_dict(state_of(), strict=False)
FSDP = "_fsdp_wrapped_module."
# What lies in the folder beside config.json and the tokenizer; the model that it is; a note about it.
READ: dict[str, tuple[Callable[[Path], Any], Any, str]] = {
    "tanh": (pretrained(m := model_of_theirs(activation_function="gelu_pytorch_tanh")), m, "another name"),
    "exact gelu": (pretrained(m := model_of_theirs(activation_function="gelu")), m, ""),
    "gelu_python": (pretrained(m, activation_function="gelu_python"), m, "gelu_python is gelu"),
    "mistral": (
        pretrained(m := model_of_theirs(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True)),
        m,
        "multiplied into the query's weights",
    ),
    "unscaled": (pretrained(m := model_of_theirs(scale_attn_weights=False)), m, "multiplied into"),
    "neither": (
        pretrained(m := model_of_theirs(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True)),
        m,
        "multiplied into",
    ),
    "harmless keys": (
        pretrained(THEIRS, n_ctx=24, summary_type="mean", use_cache=False, gradient=1),
        THEIRS,
        "",
    ),
    "sizes under their other names": (
        pretrained(THEIRS, n_head=None, n_embd=64, hidden_size=32, num_attention_heads=4),
        THEIRS,
        "",
    ),
    "padded": (padded_to(320), THEIRS, "63 rows of the embedding"),
    "save_model": (lambda folder: safetensors.torch.save_model(THEIRS, folder / WEIGHTS), THEIRS, ""),
    "double_heads": (pretrained(DOUBLE), THEIRS, "multiple-choice head"),
    "trl": (tensors(state_of() | VALUE_HEAD), THEIRS, "trl's value head was left out, 2 of the tensors"),
    "trl in a bin": (
        save(named(lambda n: n if n.startswith("v_") else f"pretrained_model.{n}", state_of() | VALUE_HEAD)),
        THEIRS,
        "trl's value head",
    ),
    "ddp": (save(named(lambda name: f"module._orig_mod.{name}")), THEIRS, ""),
    "compiled, then ddp": (tensors(named(lambda name: f"_orig_mod.module.{name}")), THEIRS, ""),
    "model.": (tensors(named(lambda name: f"model.{name}")), THEIRS, ""),
    "base_model.": (save(named(lambda name: f"base_model.{name}")), THEIRS, ""),
    "body_below": (tensors(named(lambda name: f"model.{name}", bare(state_of()))), THEIRS, ""),
    "fsdp": (
        save(named(lambda n: FSDP + n.replace(".attn.", f".{FSDP}attn._checkpoint_wrapped_module."))),
        THEIRS,
        "",
    ),
    "old layout in a wrapper": (
        save(
            {"model": named(lambda n: f"module.{n}", with_masks(bare(state_of()), "", torch.uint8))},
            _use_new_zipfile_serialization=False,
        ),
        THEIRS,
        "4 mask buffers",
    ),
    "Lightning": (save(lightning("model."), "epoch=3-step=500.ckpt"), THEIRS, ""),
    "Lightning's own attribute": (save(lightning("gpt._orig_mod."), "last.ckpt"), THEIRS, ""),
    "DeepSpeed": (save(deepspeed(), "mp_rank_00_model_states.pt"), THEIRS, ""),
    "an epoch's loop": (save({"model_state_dict": state_of(), "epoch": 3}, "model.pt"), THEIRS, ""),
    "half": (tensors({name: t.half() for name, t in state_of().items()}), copy.deepcopy(THEIRS).half(), ""),
}


@pytest.mark.parametrize("name", READ)
def test_what_others_save_is_read_and_writes_the_same(name: str, gpt2: Gpt2, tmp_path: Path) -> None:
    write, model, note = READ[name]
    folder = tmp_path / "theirs"
    folder.mkdir()
    model.config.save_pretrained(folder)
    save_tokenizer(BYTES, folder)
    write(folder)
    done = gpt2("convert", folder, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    receipt = json.loads(done.out)
    assert receipt["verification"]["passed"] and note in " ".join(receipt["notes"])
    wanted = logits(model.float())
    torch.testing.assert_close(logits(load_model(tmp_path / "out").model), wanted, atol=1e-4, rtol=0)
    back = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(back), wanted, atol=1e-4, rtol=0)


def test_dropouts_and_the_activation_stay_what_they_were(gpt2: Gpt2, tmp_path: Path) -> None:
    rates = {"resid_pdrop": 0.1, "embd_pdrop": 0.0, "attn_pdrop": 0.3}
    pretrained(model_of_theirs(activation_function="gelu", **rates))(tmp_path / "theirs")
    save_tokenizer(BYTES, tmp_path / "theirs")
    assert gpt2("convert", "theirs", "--out", "one").code == 0
    assert gpt2("convert", "one", "--out", "two").code == 0
    values = json.loads((tmp_path / "two/config.json").read_text())
    assert {name: values[name] for name in rates} == rates and values["activation_function"] == "gelu"
    model = load_model(tmp_path / "two").model.train()
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "two")
    ours = (
        model.transformer.dropout,
        model.transformer.h[1].attn.dropout,
        model.transformer.h[1].mlp.dropout,
    )
    block = theirs.transformer.h[1]
    wanted = (theirs.transformer.drop, block.attn.resid_dropout, block.mlp.dropout)
    assert [module.rate for module in ours] == [module.p for module in wanted]
    assert model.transformer.h[1].attn.score_dropout.rate == block.attn.attn_dropout.p == 0.3


def test_an_adapter_over_scaled_attention_is_scaled_with_it(gpt2: Gpt2, tmp_path: Path) -> None:
    model = model_of_theirs(scale_attn_by_inverse_layer_idx=True)
    pretrained(model)(tmp_path / "base")
    save_tokenizer(BYTES, tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    done = gpt2("convert", "adapter", "--merge", "--out", "out")
    assert done.code == 0 and "PASS" in done.err, done.err
    torch.testing.assert_close(logits(load_model(tmp_path / "out").model), logits(adapted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("to", ["gguf", "tensorflow"])
def test_the_exact_gelu_is_refused_where_the_other_would_be_computed(
    to: str, gpt2: Gpt2, tmp_path: Path
) -> None:
    pretrained(model_of_theirs(activation_function="gelu"))(tmp_path / "theirs")
    save_tokenizer(BYTES, tmp_path / "theirs")
    done = gpt2("convert", "theirs", "--to", to)
    assert done.code == 3 and "exact GELU" in done.err and "--to folder" in done.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("theirs")) == ["theirs"]


def test_the_books_safetensors_are_read(gpt2: Gpt2, tmp_path: Path) -> None:
    model = fill(BookGPT(vocab_size=257, emb_dim=32, context=24, qkv_bias=True))
    save_tokenizer(BYTES, tmp_path)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "gpt2-small-124M.safetensors")
    done = gpt2("convert", "gpt2-small-124M.safetensors", "--n-head", "2", "--out", "out")
    assert done.code == 0 and "PASS" in done.err
    torch.testing.assert_close(logits(load_model(tmp_path / "out").model), logits(model), atol=1e-4, rtol=0)


def test_a_checkpoint_without_a_config_needs_the_number_of_heads(gpt2: Gpt2, tmp_path: Path) -> None:
    save_tokenizer(BYTES, tmp_path)
    torch.save(lightning("model."), tmp_path / "last.ckpt")
    refused = gpt2("convert", "last.ckpt", "--out", "out")
    assert refused.code == 3 and "--n-head" in refused.err
    assert gpt2("convert", "last.ckpt", "--n-head", "4", "--out", "out").code == 0
    torch.testing.assert_close(logits(load_model(tmp_path / "out").model), logits(THEIRS), atol=1e-4, rtol=0)


def trainer(folder: Path, *steps: int) -> Path:
    """What transformers' Trainer leaves: the last save of each step, with what a resume needs."""
    for step in steps:
        place = folder / f"checkpoint-{step}"
        THEIRS.save_pretrained(place)
        save_tokenizer(BYTES, place)
        torch.save({"state": {}, "param_groups": []}, place / "optimizer.pt")
        torch.save({"last_epoch": step}, place / "scheduler.pt")
        torch.save({"cpu": torch.zeros(5, dtype=torch.uint8)}, place / "rng_state.pth")
        (place / "training_args.bin").write_bytes(b"PK\x03\x04 any code at all")
        (place / "trainer_state.json").write_text("{}")
    return folder


def test_of_a_trainers_checkpoints_the_newest_is_proposed(gpt2: Gpt2, tmp_path: Path) -> None:
    trainer(tmp_path / "out", 500, 1500, 1000)
    THEIRS.config.save_pretrained(tmp_path / "out")  # some write it there as well
    done = gpt2("convert", "out", "--out", "x")
    assert done.code == 3 and "checkpoint-1500, checkpoint-1000, checkpoint-500" in done.err
    assert "fix: gpt2 convert out/checkpoint-1500\n" in done.err
    assert gpt2("convert", "out/checkpoint-1500").code == 0
    (tmp_path / "out/checkpoint-1500/config.json").unlink()  # of a model that is no PreTrainedModel
    assert gpt2("convert", "out/checkpoint-1500", "--n-head", "4", "--out", "y").code == 0


def test_deepspeeds_weights_lie_a_folder_below_the_config(gpt2: Gpt2, tmp_path: Path) -> None:
    place = tmp_path / "checkpoint-500"
    (place / "global_step500").mkdir(parents=True)
    THEIRS.config.save_pretrained(place)
    save_tokenizer(BYTES, place)
    part = place / "global_step500/mp_rank_00_model_states.pt"
    torch.save(deepspeed(), part)
    torch.save({"optimizer_state_dict": {}}, part.with_name("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"))
    for typed in (place, part):
        assert gpt2("convert", typed, "--out", "out", "--force").code == 0
        found = logits(load_model(tmp_path / "out").model)
        torch.testing.assert_close(found, logits(THEIRS), atol=1e-4, rtol=0)
    state = {name: torch.zeros(0) for name in deepspeed()["module"]}  # as each process has it in stage 3
    torch.save(deepspeed() | {"module": state}, part)
    done = gpt2("convert", place, "--out", "x")
    assert done.code == 3 and f"python {place}/zero_to_fp32.py {place} {place}/joined &&" in done.err


@pytest.mark.filterwarnings("ignore")
def test_parts_of_torch_distributed_are_joined_by_the_line_that_is_said(
    gpt2: Gpt2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed import checkpoint

    checkpoint.save({"model": state_of()}, checkpoint_id=tmp_path / "a b", no_dist=True)
    save_tokenizer(BYTES, tmp_path)
    done = gpt2("convert", "a b", "--out", "out")
    assert done.code == 3 and "in parts" in done.err
    join, convert = (shlex.split(line) for line in done.err.partition("fix: ")[2].split("&&"))
    monkeypatch.setattr(sys, "argv", ["format_utils.py", *join[3:]])
    runpy.run_module(join[2], run_name="__main__")
    assert gpt2(*convert[1:], "--n-head", "4", "--out", "out").code == 0
    torch.testing.assert_close(logits(load_model(tmp_path / "out").model), logits(THEIRS), atol=1e-4, rtol=0)


def test_a_whole_module_is_named(gpt2: Gpt2, tmp_path: Path) -> None:
    torch.save(THEIRS, tmp_path / "model.pt")
    done = gpt2("convert", "model.pt", "--out", "out")
    assert done.code == 3 and "is a whole module" in done.err
    assert "torch.save(model.state_dict(), 'weights.pt')" in done.err


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n"


@pytest.mark.parametrize("name", [WEIGHTS, BIN, "config.json", "merges.txt"])
def test_a_git_lfs_pointer_is_named(name: str, gpt2: Gpt2, tmp_path: Path) -> None:
    pretrained(THEIRS)(tmp_path / "a b")
    save_tokenizer(BYTES, tmp_path / "a b")
    (tmp_path / "a b" / WEIGHTS).unlink()
    (tmp_path / "a b" / name).write_text(POINTER)
    for typed in ("a b", f"a b/{name}"):
        done = gpt2("convert", typed, "--out", "out")
        assert done.code == 3 and f"a b/{name}: is a Git LFS pointer" in done.err
        assert "fix: git -C 'a b' lfs pull" in done.err


def test_a_pointer_in_place_of_openais_data_is_named(gpt2: Gpt2, tmp_path: Path) -> None:
    folder = imitate_checkpoint(tmp_path / "124M", SMALLEST)
    (folder / "model.ckpt.index").write_text(POINTER)
    done = gpt2("convert", folder, "--out", "out")
    assert done.code == 3 and "is a Git LFS pointer" in done.err


@pytest.mark.parametrize(("name", "package"), [("tf_model.h5", "tf-keras"), ("flax_model.msgpack", "flax")])
def test_weights_that_transformers_dropped_are_refused_with_the_line_that_converts_them(
    name: str, package: str, gpt2: Gpt2, tmp_path: Path
) -> None:
    THEIRS.config.save_pretrained(tmp_path / "a b")
    save_tokenizer(BYTES, tmp_path / "a b")
    (tmp_path / "a b" / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    for typed in ("a b", f"a b/{name}"):
        done = gpt2("convert", typed, "--out", "out")
        assert done.code == 3 and f"a b/{name}: these are weights of" in done.err
        assert f"'transformers<5' {package}" in done.err
    program, option, code = shlex.split(done.err.partition("fix: ")[2])
    # transformers 5 has no such module; that version 4 does what the line says was tried by hand.
    with pytest.raises(ModuleNotFoundError, match=r"transformers\.modeling_\w+_pytorch_utils"):
        exec(compile(code, program, "exec"))
    assert option == "-c"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (named(lambda n: f"model.{n}") | {"score.weight": torch.ones(2, 32)}, "unknown: score.weight"),
        (named(lambda n: f"module.{n}") | {"lm_head.weight": torch.ones(257, 32)}, "the same tensor's name"),
        (named(lambda n: f"a.{n}") | named(lambda n: f"b.{n}"), "unknown: b."),
        ({**state_of(), "transformer.h.0.attn.c_attn.lora_A": torch.ones(8, 32)}, "lora_A"),
        (padded(state_of(), 258), "wte.weight has shape [258, 32]"),
    ],
    ids=["score", "twice", "two models", "lora", "a row more"],
)
def test_what_is_not_accounted_for_is_refused(state: Tensors, said: str, gpt2: Gpt2, tmp_path: Path) -> None:
    THEIRS.config.save_pretrained(tmp_path / "x")
    save_tokenizer(BYTES, tmp_path / "x")
    tensors(state)(tmp_path / "x")
    done = gpt2("convert", "x", "--out", "out")
    assert done.code == 3 and said in " ".join(done.err.split()), done.err
    assert not (tmp_path / "out").exists()


def test_what_must_be_converted_first_says_so(gpt2: Gpt2, tmp_path: Path) -> None:
    for name in ("mistral", "padded", "save_model", "double_heads", "trl", "model.", "body_below"):
        THEIRS.config.save_pretrained(tmp_path / name)
        save_tokenizer(BYTES, tmp_path / name)
        READ[name][0](tmp_path / name)
        done = gpt2("generate", "Hello", "--model", tmp_path / name, "-n", "2")
        assert done.code == 3 and f"fix: gpt2 convert {tmp_path / name}" in done.err, name
