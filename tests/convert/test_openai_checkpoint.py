"""OpenAI's checkpoint, made and read back by TensorFlow itself, against transformers; and its damages."""

import importlib.util
import json
import os
import random
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from openai_checkpoint import GPT2_124M, TINY, TRUTH, bytes_only, dump_checkpoint, make_checkpoint

from gpt2cli.checkpoints.folder import TRANSPOSED, stored_shapes
from gpt2cli.convert.foreign_model import Source
from gpt2cli.convert.openai_checkpoint import open_openai, require_expressible, write_openai
from gpt2cli.errors import Gpt2Error, InputError, ResourceError, UsageError
from gpt2cli.model.gpt2 import empty_model
from gpt2cli.tokenizer.chars import Chars

INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint for all tests of this file. Do not change it."""
    return make_checkpoint(tmp_path_factory.mktemp("openai") / "tiny")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "copy", ignore=shutil.ignore_patterns(TRUTH)))


@pytest.fixture(scope="module")
def opened(made: Path) -> Iterator[Source]:
    with open_openai(made) as source:
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
def require_same_logits(source: Source, truth: dict[str, np.ndarray], hparams: dict[str, int]) -> None:
    state = {name: tensor.load() for name, tensor in source.tensors.items()}
    model = empty_model(source.config)
    turned = {name: t.T if name.endswith(TRANSPOSED) else t for name, t in state.items()}
    model.load_state_dict(turned | {"lm_head.weight": state["transformer.wte.weight"]}, assign=True)
    n_ctx, n_vocab = hparams["n_ctx"], hparams["n_vocab"]
    ids = torch.randint(0, n_vocab, (2, min(n_ctx, 64)), generator=torch.Generator().manual_seed(3))
    wanted = reference_of(truth, hparams)(ids).logits
    assert wanted.std() > 0.5, "weights this small would hide mistakes"
    torch.testing.assert_close(model.eval()(ids), wanted, atol=1e-4, rtol=0)


def test_logits_are_those_of_transformers_filled_independently(made: Path, opened: Source) -> None:
    require_same_logits(opened, truth_of(made), TINY)


def test_every_tensor_is_read_bit_for_bit_by_both_names(made: Path, opened: Source) -> None:
    truth = truth_of(made)
    assert dict(opened.raw).keys() == truth.keys() and len(opened.raw) == 4 + 12 * TINY["n_layer"]
    shapes = {name: tensor.shape for name, tensor in opened.tensors.items()}
    assert list(shapes.items()) == list(stored_shapes(opened.config).items())
    assert opened.raw["model/h0/attn/c_attn/w"].shape == (1, 32, 96)
    for name, tensor in opened.tensors.items():
        array = truth[tensor.source]
        assert not tensor.transposed
        assert np.array_equal(opened.raw[tensor.source], array), name
        assert np.array_equal(tensor.load().numpy(), array.reshape(tensor.shape)), name
        assert tensor.load().is_contiguous() and tensor.load().dtype == torch.float32
    assert {path.name for path in opened.files} == {INDEX, DATA, "hparams.json", "encoder.json", "vocab.bpe"}
    assert (opened.format, opened.tokenizer.n_vocab, opened.notes) == ("openai-tf", 257, ())
    with pytest.raises(KeyError):
        opened.raw["model/h0/attn/c_attn"]


def test_what_is_written_is_read_back_by_tensorflow_bit_for_bit(
    made: Path, opened: Source, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_openai(out, opened)
    assert {path.name for path in out.iterdir()} == {path.name for path in made.iterdir()} - {TRUTH}
    truth = truth_of(made)
    moved = out.rename(tmp_path / "moved")  # the path in the file called checkpoint is relative
    found = dump_checkpoint(moved, tmp_path / "dump.npz")
    assert found.keys() == truth.keys()
    for name, array in truth.items():
        assert found[name].dtype == np.float32 and np.array_equal(found[name], array), name
    for name in ("encoder.json", "vocab.bpe", DATA):
        assert (moved / name).read_bytes() == (made / name).read_bytes()
    assert json.loads((moved / "hparams.json").read_text()) == TINY
    graph = (moved / "model.ckpt.meta").read_bytes()
    assert truth["model/h0/mlp/c_fc/b"].tobytes() not in graph, "the weights are in the graph as well"


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
        assert source.tensors["transformer.wte.weight"].load().shape == (257, 32)
    assert capfd.readouterr() == ("", "")


def test_of_several_checkpoints_none_is_guessed(folder: Path) -> None:
    for name in ("model-1000.index", "model-2000.index"):
        shutil.copy(folder / INDEX, folder / name)
    (folder / INDEX).unlink()
    with pytest.raises(InputError, match=r"there is no model\.ckpt\.index") as caught, open_openai(folder):
        pass
    assert "model-1000, model-2000" in caught.value.why


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_head": 5}, "n_head 5 does not divide n_embd 32"),
        ({"n_head": 0}, "n_head is 0"),
        ({"n_embd": "32"}, "n_embd is '32'"),
        ({"n_layer": True}, "n_layer is True"),
        ({"n_ctx": 2**40}, "n_ctx is 1099511627776"),
        ({"n_vocab": None}, "n_vocab is None"),
        ({"n_layer": 10**9}, "bytes are too few"),
        ({"n_embd": 2**20}, "bytes are too few"),
        ({"n_vocab": 258}, "the tokenizer has 257 tokens, the model 258"),
    ],
)
def test_hparams_that_cannot_be_are_refused_before_tensorflow_starts(
    changes: dict[str, object], said: str, folder: Path
) -> None:
    (folder / "hparams.json").write_text(json.dumps(TINY | changes))
    with pytest.raises(InputError) as caught, open_openai(folder):
        pass
    assert said in caught.value.what


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"n_vocab": 257}', "[" * 50_000, "\x00\xff"])
def test_hparams_that_are_no_table_of_numbers_are_refused(text: str, folder: Path) -> None:
    (folder / "hparams.json").write_text(text)
    with pytest.raises(InputError, match=r"hparams\.json"), open_openai(folder):
        pass


@pytest.mark.parametrize("name", [INDEX, DATA, "hparams.json", "encoder.json", "vocab.bpe"])
@pytest.mark.parametrize("kind", ["missing", "fifo", "folder", "loop", "endless"])
def test_files_that_are_missing_or_no_files_are_refused(name: str, kind: str, folder: Path) -> None:
    path = folder / name
    path.unlink()
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "endless":
            path.symlink_to("/dev/zero")
    with pytest.raises(InputError) as caught, open_openai(folder):
        pass
    assert name in str(caught.value)


def test_an_index_no_gpt2_needs_is_refused(folder: Path) -> None:
    os.truncate(folder / INDEX, 1 << 30)
    with pytest.raises(InputError, match="an index of a GPT-2 has about"), open_openai(folder):
        pass


@pytest.mark.parametrize(
    ("start", "n_bytes", "said"),
    [(100_000, 1, "hecksum"), (-20_000, 20_000, "Read less bytes than requested")],
    ids=["one byte changed", "cut short"],
)
def test_damaged_data_is_noticed_by_tensorflows_own_checks(
    start: int, n_bytes: int, said: str, folder: Path
) -> None:
    data = bytearray((folder / DATA).read_bytes())
    if start < 0:
        del data[start:]
    else:
        data[start] ^= 1
    (folder / DATA).write_bytes(data)
    with pytest.raises(InputError, match=said), open_openai(folder) as source:
        for tensor in source.tensors.values():
            tensor.load()


def damage(folder: Path, seed: int) -> str:
    """Cut or change one of the binary files at a seeded place; says what was done."""
    rng = random.Random(seed)
    path = folder / rng.choice([INDEX, INDEX, DATA])
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    if rng.random() < 0.25:
        del data[place:]
    else:
        for _ in range(rng.choice([1, 1, 4])):
            data[rng.randrange(len(data))] = rng.choice([0, 0xFF, 0x7F, rng.randrange(256)])
    path.write_bytes(data)
    return f"seed {seed}, {path.name}, byte {place}"


def require_error_or_truth(folder: Path, truth: dict[str, np.ndarray], what: str) -> None:
    try:
        with open_openai(folder) as source:
            arrays = dict(source.raw)
    except Gpt2Error as error:
        assert error.exit_code == 3 and error.why, what
        return
    assert arrays.keys() == truth.keys(), what
    assert all(np.array_equal(arrays[name], truth[name]) for name in truth), what


def test_a_damage_is_an_error_or_none(folder: Path, made: Path) -> None:
    require_error_or_truth(folder, truth_of(made), damage(folder, 0))


@pytest.mark.proofs
@pytest.mark.parametrize("seed", range(100, 160))
def test_any_of_sixty_damages_is_an_error_or_none(seed: int, folder: Path, made: Path) -> None:
    require_error_or_truth(folder, truth_of(made), damage(folder, seed))


@pytest.mark.proofs
def test_a_checkpoint_of_the_shape_of_124m(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "124M", GPT2_124M)
    assert (folder / DATA).stat().st_size == 4 * 124_439_808
    with open_openai(folder) as source:
        require_same_logits(source, truth_of(folder), GPT2_124M)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tie_word_embeddings": False}, "the output layer is a matrix of its own"),
        ({"n_inner": 100}, "the MLP has 100 channels"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"tokenizer": Chars.from_text(["abc"])}, "the vocabulary is 'chars'"),
        ({"tokenizer": "more"}, "further control tokens"),
    ],
)
def test_what_the_format_cannot_say_is_refused(
    changes: dict[str, object],
    said: str,
    opened: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = changes.pop("tokenizer", opened.tokenizer)
    if tokenizer == "more":
        vocab = json.loads(bytes_only().vocab_json)
        tokenizer = type(bytes_only()).from_vocabulary(vocab, [], {"<|more|>": 257}, "more")
    source = replace(opened, config=replace(opened.config, **changes), tokenizer=tokenizer)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for refuse in (
        lambda: require_expressible(source.config, tokenizer, "f32"),
        lambda: write_openai(tmp_path, source),
    ):
        with pytest.raises(InputError, match=said) as caught:  # even where TensorFlow is missing, too
            refuse()
        assert "--to folder" in caught.value.fix
    assert not list(tmp_path.glob("model.ckpt*"))


def test_what_the_format_can_say_needs_fp32_and_tensorflow(
    opened: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_expressible(opened.config, opened.tokenizer, "f32")
    with pytest.raises(InputError, match="bf16 is wanted"):
        require_expressible(opened.config, opened.tokenizer, "bf16")
    with pytest.raises(InputError, match="the tokenizer has 257 tokens, the model 300"):
        require_expressible(replace(opened.config, vocab_size=300), opened.tokenizer, "f32")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs TensorFlow"):
        require_expressible(opened.config, opened.tokenizer, "f32")


def test_a_disk_that_takes_no_more_is_a_matter_of_resources(opened: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the child inherits it
    try:
        with pytest.raises(ResourceError, match="cannot write the checkpoint"):
            write_openai(out, opened)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
