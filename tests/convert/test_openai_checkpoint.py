"""OpenAI's checkpoint, which TensorFlow wrote, against transformers; written, and read back by TensorFlow."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from bundle_writer import write_bundle
from openai_checkpoint import COMMITTED, SMALLEST, TINY, TRUTH, imitate_checkpoint, weights
from words import BYTES

from gpt2cli.checkpoints.folder import TRANSPOSED, stored_shapes
from gpt2cli.convert.foreign_model import ForeignModel
from gpt2cli.convert.openai_checkpoint import open_openai, require_expressible, write_openai
from gpt2cli.errors import InputError, UsageError
from gpt2cli.model.gpt2 import empty_model
from gpt2cli.tokenizer.base import AddedToken
from gpt2cli.tokenizer.chars import Chars

INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00002"
MADE = COMMITTED / "gpt2"  # by TensorFlow, in two data files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(MADE, tmp_path / "copy", ignore=shutil.ignore_patterns(TRUTH)))


@pytest.fixture(scope="module")
def opened() -> Iterator[ForeignModel]:
    with open_openai(MADE) as source:
        yield source


def truth_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / TRUTH) as arrays:
        return dict(arrays)


def reference_of(truth: dict[str, np.ndarray], hparams: dict[str, int]) -> transformers.GPT2LMHeadModel:
    """transformers' model, filled by a rule of our own: model/h0/attn/c_attn/w -> h.0.attn.c_attn.weight."""
    config = transformers.GPT2Config(
        vocab_size=hparams["n_vocab"],
        n_positions=hparams["n_ctx"],
        **{name: hparams[name] for name in ("n_embd", "n_head", "n_layer")},
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    ends = {"w": "weight", "g": "weight", "b": "bias"}
    state = {"lm_head.weight": torch.from_numpy(truth["model/wte"])}
    for name, array in truth.items():
        parts = name.split("/")[1:]
        if parts[0][1:].isdigit():
            parts[0] = f"h.{parts[0][1:]}"
        parts = [*parts[:-1], ends[parts[-1]]] if parts[-1] in ends else [*parts, "weight"]
        state["transformer." + ".".join(parts)] = torch.from_numpy(array if array.shape[0] > 1 else array[0])
    model.load_state_dict(state)
    return model


@torch.no_grad()
def require_same_logits(source: ForeignModel, truth: dict[str, np.ndarray], hparams: dict[str, int]) -> None:
    state = {name: tensor.load() for name, tensor in source.tensors.items()}
    model = empty_model(source.config)
    turned = {name: t.T if name.endswith(TRANSPOSED) else t for name, t in state.items()}
    model.load_state_dict(turned | {"lm_head.weight": state["transformer.wte.weight"]}, assign=True)
    n_ctx, n_vocab = hparams["n_ctx"], hparams["n_vocab"]
    ids = torch.randint(0, n_vocab, (2, min(n_ctx, 64)), generator=torch.Generator().manual_seed(3))
    wanted = reference_of(truth, hparams)(ids).logits
    assert wanted.std() > 0.5, "weights this small would hide mistakes"
    torch.testing.assert_close(model.eval()(ids), wanted, atol=1e-4, rtol=0)


def test_logits_are_those_of_transformers_filled_independently(tmp_path: Path) -> None:
    with open_openai(imitate_checkpoint(tmp_path, TINY)) as source:
        require_same_logits(source, dict(weights(TINY)), TINY)


def test_every_tensor_is_read_bit_for_bit_by_both_names(opened: ForeignModel) -> None:
    truth = truth_of(MADE)
    assert dict(opened.raw).keys() == truth.keys() and len(opened.raw) == 4 + 12 * SMALLEST["n_layer"]
    shapes = {name: tensor.shape for name, tensor in opened.tensors.items()}
    assert list(shapes.items()) == list(stored_shapes(opened.config).items())
    assert opened.raw["model/h0/attn/c_attn/w"].shape == (1, 4, 12)
    for name, tensor in opened.tensors.items():
        array = truth[tensor.source]
        assert not tensor.transposed
        assert np.array_equal(opened.raw[tensor.source], array), name
        assert np.array_equal(tensor.load().numpy(), array.reshape(tensor.shape)), name
        assert tensor.load().is_contiguous() and tensor.load().dtype == torch.float32
    data = (DATA, DATA.replace("00000", "00001"))
    texts = ("hparams.json", "encoder.json", "vocab.bpe")
    assert {path.name for path in opened.files} == {INDEX, *data, *texts}
    assert (opened.format, opened.tokenizer.n_vocab, opened.notes) == ("openai-tf", 257, ())
    with pytest.raises(KeyError):
        opened.raw["model/h0/attn/c_attn"]


def test_a_strange_place_and_what_lies_around_do_no_harm(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    strange = folder.rename(tmp_path / "a [x]*?  b")
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    (strange / "checkpoint").write_text('model_checkpoint_path: "/nowhere/model.ckpt"\n')
    for path in list(strange.glob("model.ckpt.*")):  # as fine-tuning programs call them
        path.rename(path.with_name(path.name.replace("model.ckpt", "model-1000")))
    (strange / "model-1000").mkdir()  # tf.train.load_checkpoint would look into it
    (strange / "model-1000" / "checkpoint").write_text('model_checkpoint_path: "/nowhere/model.ckpt"\n')
    monkeypatch.chdir(tmp_path)
    with open_openai(Path(strange.name)) as source:
        assert source.tensors["transformer.wte.weight"].load().shape == (257, 4)
    assert capfd.readouterr() == ("", "")


def test_of_several_checkpoints_the_one_that_the_pointer_names_is_read(folder: Path) -> None:
    for path in list(folder.glob("model.ckpt.*")):
        for step in (500, 1000):
            shutil.copy(path, path.with_name(path.name.replace("model.ckpt", f"model-{step}")))
        path.unlink()
    pointer = folder / "checkpoint"
    pointer.write_text(
        'model_checkpoint_path: "/content/checkpoint/run1/model-1000"\n'
        'all_model_checkpoint_paths: "model-500"\nall_model_checkpoint_paths: "model-1000"\n'
    )
    with open_openai(folder) as source:
        assert {path.name for path in source.files if path.suffix == ".index"} == {"model-1000.index"}
        assert "model-1000 is read" in source.notes[0] and "not model-500" in source.notes[0]
    for text in (None, "", 'model_checkpoint_path: "model-1500"\n', "\0\xff"):
        pointer.unlink(missing_ok=True)
        if text is not None:
            pointer.write_text(text)
        with pytest.raises(InputError, match="model-1000, model-500") as caught, open_openai(folder):
            pass
    subprocess.run(caught.value.fix, shell=True, check=True)
    with open_openai(folder) as source:
        assert "model-1000 is read" in source.notes[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_head": 5}, "n_head 5 does not divide n_embd 4"),
        ({"n_head": 0}, "n_head is 0"),
        ({"n_embd": "32"}, "n_embd is '32'"),
        ({"n_layer": True}, "n_layer is True"),
        ({"n_ctx": 2**40}, "n_ctx is 1099511627776"),
        ({"n_vocab": None}, "n_vocab is None"),
        ({"n_layer": 10**9}, "n_layer is 1000000000"),
        ({"n_embd": 2**20}, "model/wte has shape [257, 4]"),
        ({"n_ctx": 2**31}, "model/wpe has shape [8, 4]"),
        ({"n_vocab": 258}, "the tokenizer has 257 tokens, the model 258"),
    ],
)
def test_hparams_that_cannot_be_are_refused(changes: dict[str, object], said: str, folder: Path) -> None:
    (folder / "hparams.json").write_text(json.dumps(SMALLEST | changes))
    with pytest.raises(InputError) as caught, open_openai(folder):
        pass
    assert said in caught.value.what


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"n_vocab": 257}', "[" * 50_000, "\x00\xff"])
def test_hparams_that_are_no_table_of_numbers_are_refused(text: str, folder: Path) -> None:
    (folder / "hparams.json").write_text(text)
    with pytest.raises(InputError, match=r"hparams\.json"), open_openai(folder):
        pass


@pytest.mark.parametrize("name", [INDEX, DATA, "hparams.json", "encoder.json", "vocab.bpe"])
@pytest.mark.parametrize("kind", ["missing", "fifo"])  # test_files.py has what else is no file
def test_files_that_are_missing_or_no_files_are_refused(name: str, kind: str, folder: Path) -> None:
    path = folder / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(InputError) as caught, open_openai(folder):
        pass
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("start", "n_bytes", "said"),
    [(1_000, 1, "is damaged"), (-2_000, 2_000, f"is shorter than {INDEX} says")],
    ids=["one byte changed", "cut short"],
)
def test_damaged_data_is_refused(start: int, n_bytes: int, said: str, folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / DATA).read_bytes())
    if start < 0:
        del data[start:]
    else:
        data[start] ^= 1
    (folder / DATA).write_bytes(data)
    with pytest.raises(InputError) as caught, open_openai(folder) as source:
        for tensor in source.tensors.values():
            tensor.load()
    assert caught.value.what.startswith(f"{folder / DATA}: ") and said in caught.value.what


def test_tensors_that_are_no_gpt2s_are_named(folder: Path) -> None:
    arrays = truth_of(MADE)

    def refused(changed: dict[str, np.ndarray]) -> str:
        write_bundle(folder / "model.ckpt", changed)
        with pytest.raises(InputError) as caught, open_openai(folder):
            pass
        return str(caught.value)

    adam = {f"{name}/Adam": array for name, array in arrays.items()}
    said = refused(arrays | adam | {"global_step": np.zeros((), np.int64)})
    assert "unknown: global_step []" in said and "and 25 more" in said
    said = refused({name: array for name, array in arrays.items() if name != "model/h1/ln_2/g"})
    assert "missing: model/h1/ln_2/g [4]" in said
    said = refused(arrays | {"model/h0/mlp/c_fc/w": np.zeros((1, 16, 4), np.float32)})
    assert "model/h0/mlp/c_fc/w has shape [1, 16, 4]" in said and "[1, 4, 16] is needed" in said
    said = refused(arrays | {"model/wpe": np.zeros((9, 4), np.float32)})
    assert "model/wpe has shape [9, 4]" in said and "[8, 4]" in said
    said = refused({name: array for name, array in arrays.items() if "/h1/" not in name})
    assert "n_layer is 2" in said and "1 blocks" in said
    assert "model/wte is of type int32" in refused(arrays | {"model/wte": np.zeros((257, 4), np.int32)})


def test_other_precisions_are_kept(folder: Path) -> None:
    halves = {name: array.astype(np.float16) for name, array in truth_of(MADE).items()}
    write_bundle(folder / "model.ckpt", halves)
    with open_openai(folder) as source:
        for tensor in source.tensors.values():
            array = halves[tensor.source]
            assert np.array_equal(tensor.load().numpy(), array.reshape(tensor.shape))
            assert source.raw[tensor.source].dtype == np.float16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tie_word_embeddings": False}, "the output layer is a matrix of its own"),
        ({"n_inner": 100}, "the MLP has 100 channels"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"tokenizer": Chars.from_text(["abc"])}, "the vocabulary is 'chars'"),
        ({"tokenizer": "more"}, "tokens beside its merges"),
    ],
)
def test_what_the_format_cannot_say_is_refused(
    changes: dict[str, object],
    said: str,
    opened: ForeignModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = changes.pop("tokenizer", opened.tokenizer)
    if tokenizer == "more":
        vocab = json.loads(BYTES.vocab_json)
        tokenizer = type(BYTES).from_vocabulary(vocab, [], [AddedToken(257, "<|more|>")], "more")
    source = replace(opened, config=replace(opened.config, **changes), tokenizer=tokenizer)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for refuse in (
        lambda: require_expressible(source.config, tokenizer, "f32"),
        lambda: write_openai(tmp_path, source),
    ):
        with pytest.raises(InputError, match=said) as caught:  # even where TensorFlow is missing, too
            refuse()
        assert "--to folder" in caught.value.fix
    assert not list(tmp_path.glob("model.ckpt*"))


def test_what_the_format_can_say_needs_fp32_and_tensorflow(
    opened: ForeignModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="bf16 is wanted"):
        require_expressible(opened.config, opened.tokenizer, "bf16")
    with pytest.raises(InputError, match="the tokenizer has 257 tokens, the model 300"):
        require_expressible(replace(opened.config, vocab_size=300), opened.tokenizer, "f32")
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "tensorflow", None)  # as where it is not installed
        with pytest.raises(UsageError, match="not installed") as caught:
            require_expressible(opened.config, opened.tokenizer, "f32")
        assert caught.value.fix == "pip install tensorflow"
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    (tmp_path / "tensorflow").mkdir()  # a mere folder of that name
    importlib.invalidate_caches()
    with pytest.raises(UsageError, match="not installed"):
        require_expressible(opened.config, opened.tokenizer, "f32")
    (tmp_path / "tensorflow/__init__.py").write_text("raise ImportError('libcuda is broken\\nat line 2')")
    importlib.invalidate_caches()
    require_expressible(opened.config, opened.tokenizer, "f32")
    with pytest.raises(UsageError, match=r"does not start: ImportError: libcuda is broken$"):
        write_openai(tmp_path, opened)
