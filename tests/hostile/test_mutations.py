"""Hundreds of damaged files for every reader: an error of ours, or exactly what another program reads."""

import copy
import csv
import io
import json
import random
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from foreign import BookGPT, NanoGPT, fill, nano_checkpoint
from loud import loud
from openai_checkpoint import COMMITTED, TRUTH
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor

from gpt2cli.checkpoints.folder import read_manifest, verify, write_manifest, write_model
from gpt2cli.checkpoints.safetensors_file import read_tensors
from gpt2cli.convert.detect_format import open_foreign
from gpt2cli.convert.foreign_model import expand_blocks
from gpt2cli.convert.openai_checkpoint import NAMES
from gpt2cli.data.prepare import PrepareSettings, prepare
from gpt2cli.data.records import read_records
from gpt2cli.data.token_dataset import open_dataset
from gpt2cli.errors import Gpt2Error
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.recipe.loader import load_recipe, shipped_recipes
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.tokenizer.files import load_tokenizer, save_tokenizer
from gpt2cli.training.train_state import STATE, TENSORS, TrainState, read_state, write_state

SEED = 20240607
TOKENIZER = Chars.from_text(["abcdefghijk\n"])
V = TOKENIZER.n_vocab
CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=12, vocab_size=V)
NANO = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 12, "vocab_size": V}
MATRICES = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
TEXT = "The quick brown fox's 1234 foxes:\n\n  naïve 😀 jumps over the lazy dog."


@dataclass(frozen=True)
class Kind:
    """Something that is read: how it is made, which of its files are damaged, how we read it and how
    another program does.
    """

    name: str
    make: Callable[[Path], None]  # into an empty folder
    damaged: tuple[str, ...]
    ours: Callable[[Path], Any]
    theirs: Callable[[Path], Any]  # called only for what we have accepted


@pytest.mark.parametrize("n_inputs", [600, pytest.param(5_000, marks=pytest.mark.proofs)])
def test_nothing_wrong_is_accepted_and_nothing_else_breaks(tmp_path: Path, n_inputs: int) -> None:
    generator = random.Random(SEED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {kind.name: [0, 0] for kind in KINDS}
    originals = {kind.name: made(tmp_path / "whole" / kind.name, kind) for kind in KINDS}
    for n in range(n_inputs):
        kind = KINDS[n % len(KINDS)]
        place = tmp_path / "damaged"
        shutil.copytree(originals[kind.name], place)
        how = damage(generator, place / generator.choice(kind.damaged))
        accepted = survives(place, kind, f"seed {SEED}, {kind.name} {n}: {how}")
        outcomes[kind.name][accepted] += 1
        shutil.rmtree(place)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(outcomes, f"{grown >> 10} MiB")
    assert grown < 300 << 10
    assert all(n_refused > 0.2 * n_inputs / len(KINDS) for n_refused, _ in outcomes.values())
    assert sum(n_accepted for _, n_accepted in outcomes.values()) > 0.02 * n_inputs  # both sides are tried


def made(place: Path, kind: Kind) -> Path:
    """The undamaged source, which must be read."""
    place.mkdir(parents=True)
    kind.make(place)
    assert survives(place, kind, f"{kind.name}, whole")
    return place


def survives(place: Path, kind: Kind, what: str) -> bool:
    """Whether the source was accepted; then all that was read is what the other program reads. Any
    error that is not ours fails.
    """
    try:
        found = kind.ours(place)
    except Gpt2Error as error:
        assert error.exit_code in (2, 3, 4), what
        assert 0 < len(error.what) < 5_000, what
        return False
    except Exception as error:
        raise AssertionError(what) from error
    wanted = kind.theirs(place)
    if isinstance(found, Model):
        require_same_tensors(found.tensors, wanted, what)
    else:
        assert found == wanted, what
    return True


@dataclass(frozen=True)
class Model:
    tensors: dict[str, Tensor]


def model(opened: str) -> Callable[[Path], Model]:
    """The reading of a model at `opened` below the folder."""

    def read(place: Path) -> Model:
        with open_foreign(place / opened, n_head=2) as source:
            for array in source.raw.values():
                assert array.dtype.kind == "f"
            return Model({name: tensor.load() for name, tensor in source.tensors.items()})

    return read


def require_same_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    for name, tensor in found.items():
        theirs = wanted.get(name)
        if theirs is None:  # a bias that the file lacks, or rows beyond the vocabulary
            assert name.endswith(".bias") and not tensor.any(), f"{what}: {name}"
            continue
        theirs = theirs[: tensor.shape[0]].contiguous()
        assert (tensor.dtype, tensor.shape) == (theirs.dtype, theirs.shape), f"{what}: {name}"
        assert torch.equal(tensor.view(torch.uint8), theirs.view(torch.uint8)), f"{what}: {name}"


def damage(generator: random.Random, path: Path) -> str:
    """Change the file in one of many ways; returns which."""
    data = path.read_bytes()
    if path.suffix == ".json" and generator.random() < 0.7:
        how, changed = damaged_json(generator, data)
    elif path.suffix == ".safetensors" and generator.random() < 0.5:
        length = int.from_bytes(data[:8], "little")
        how, header = damaged_json(generator, data[8 : 8 + length])
        changed = len(header).to_bytes(8, "little") + header + data[8 + length :]
    else:
        how, changed = damaged_bytes(generator, data)
    path.write_bytes(changed)
    return f"{path.name}, {how}"


def damaged_bytes(generator: random.Random, data: bytes) -> tuple[str, bytes]:
    # Headers, directories and pickles lie at either end.
    at = generator.choice(
        (
            generator.randrange(len(data)),
            generator.randrange(min(2_500, len(data))),
            len(data) - 1 - generator.randrange(min(1_500, len(data))),
        )
    )
    n_bytes = generator.choice((1, 2, 4, 8, 64, 1000))
    noise = generator.randbytes(n_bytes)
    ways = {
        "a bit flipped": data[:at] + bytes([data[at] ^ 1 << generator.randrange(8)]) + data[at + 1 :],
        "overwritten": data[:at] + noise + data[at + n_bytes :],
        "all ones": data[:at] + b"\xff" * n_bytes + data[at + n_bytes :],
        "zeros": data[:at] + bytes(n_bytes) + data[at + n_bytes :],
        "inserted": data[:at] + noise + data[at:],
        "cut out": data[:at] + data[at + n_bytes :],
        "doubled": data[: at + n_bytes] + data[at:],
        "truncated": data[:at],
        "swapped": data[at:] + data[:at],
    }
    how = generator.choice(list(ways))
    return f"{how} at {at}, {n_bytes} bytes", ways[how]


ODD_VALUES = (
    *(0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), 0.5),
    *(None, True, False, "", "x" * 3000, "../model.safetensors", "F64", "BF16", [], [[]], {}, [0, 2**62]),
)


def damaged_json(generator: random.Random, data: bytes) -> tuple[str, bytes]:
    value = json.loads(data)
    places = [(table, key) for table in tables(value) for key in keys(table)]
    table, key = generator.choice(places)
    other, its_key = generator.choice(places)
    match how := generator.choice(("odd", "gone", "swapped", "copied", "nested", "renamed", "doubled")):
        case "odd":
            table[key] = generator.choice(ODD_VALUES)
        case "gone":
            del table[key]
        case "swapped":
            table[key], other[its_key] = copy.deepcopy(other[its_key]), copy.deepcopy(table[key])
        case "copied":
            table[key] = copy.deepcopy(other[its_key])
        case "nested":
            return how, b'{"a":' * 100_000 + b"1" + b"}" * 100_000
        case "renamed" if isinstance(table, dict):
            table[f"{key}x"] = table.pop(key)
        case _:
            text = json.dumps(value)
            return how, (text[:-1] + "," + text[1:]).encode()
    return f"{how}: {key!r}"[:80], json.dumps(value).encode()


def tables(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)) and value:
        yield value
        for child in value.values() if isinstance(value, dict) else value:
            yield from tables(child)


def keys(table: Any) -> list[Any]:
    return list(table) if isinstance(table, dict) else list(range(len(table)))


def make_ours(place: Path) -> None:
    write_manifest(place, write_model(place, loud(new_model(CONFIG, 1)), TOKENIZER, "task: pretrain\n"))


def make_folder(place: Path) -> None:
    make_ours(place)
    (place / "manifest.json").unlink()


def make_shards(place: Path) -> None:
    make_folder(place)
    tensors = read_tensors(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    names = list(tensors)
    weight_map = {name: f"model-{1 + (i > 9)}.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(weight_map.values())):
        some = {name: tensors[name].half() for name in names if weight_map[name] == shard}
        safetensors.torch.save_file(some, place / shard)
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def make_bin(place: Path) -> None:
    make_folder(place)
    torch.save(read_tensors(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()


def make_nano(place: Path, prefix: str = "", *, legacy: bool = False) -> None:
    save_tokenizer(TOKENIZER, place)
    model = fill(NanoGPT(**NANO))
    assert isinstance(model, NanoGPT)
    checkpoint = nano_checkpoint(model, **NANO)
    checkpoint["model"] = {prefix + name: tensor for name, tensor in checkpoint["model"].items()}
    torch.save(checkpoint, place / "ckpt.pt", _use_new_zipfile_serialization=not legacy)


def make_book(place: Path) -> None:
    save_tokenizer(TOKENIZER, place)
    model = fill(BookGPT(emb_dim=8, context=12, vocab_size=V, qkv_bias=True))
    torch.save({"model_state_dict": model.state_dict()}, place / "book.pth")


def zipped(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def make_zip(place: Path) -> None:
        inner = place / "inner"
        inner.mkdir()
        make(inner)
        with zipfile.ZipFile(place / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(inner.iterdir()):
                file.write(path, f"model/{path.name}")

    return make_zip


def make_openai(place: Path) -> None:
    shutil.copytree(COMMITTED / "gpt2", place, dirs_exist_ok=True)


def read_openai(place: Path) -> dict[str, Tensor]:
    """What TensorFlow was given: its checksums let no other number through."""
    with np.load(place / TRUTH) as arrays:
        found = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {
        target: found[source].view(found[source].shape[-2:])
        for target, source in expand_blocks(NAMES, 2).items()
    }


def read_safetensors(place: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for path in sorted(place.glob("*.safetensors"))
        for name, tensor in read_safetensors_file(path).items()
    }


def read_safetensors_file(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)


def read_bin(place: Path) -> dict[str, Tensor]:
    return dict(torch.load(place / "pytorch_model.bin", weights_only=True))


def read_nano(place: Path) -> dict[str, Tensor]:
    state = torch.load(place / "ckpt.pt", weights_only=True)["model"]
    found = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    return {name: t.T if name.endswith(MATRICES) else t for name, t in found.items()}


def read_book(place: Path) -> dict[str, Tensor]:
    state = torch.load(place / "book.pth", weights_only=True)["model_state_dict"]
    found = {"wte.weight": state["tok_emb.weight"], "wpe.weight": state["pos_emb.weight"]}
    for n in range(CONFIG.n_layer):
        block = f"trf_blocks.{n}."
        for part in ("weight", "bias"):
            norm = {"weight": "scale", "bias": "shift"}[part]
            qkv = [state[f"{block}att.W_{name}.{part}"] for name in ("query", "key", "value")]
            found |= {
                f"h.{n}.ln_1.{part}": state[f"{block}norm1.{norm}"],
                f"h.{n}.ln_2.{part}": state[f"{block}norm2.{norm}"],
                f"h.{n}.attn.c_attn.{part}": turned(torch.cat(qkv)),
                f"h.{n}.attn.c_proj.{part}": turned(state[f"{block}att.out_proj.{part}"]),
                f"h.{n}.mlp.c_fc.{part}": turned(state[f"{block}ff.layers.0.{part}"]),
                f"h.{n}.mlp.c_proj.{part}": turned(state[f"{block}ff.layers.2.{part}"]),
            }
    found |= {"ln_f.weight": state["final_norm.scale"], "ln_f.bias": state["final_norm.shift"]}
    return {f"transformer.{name}": tensor for name, tensor in found.items()} | {
        "lm_head.weight": state["out_head.weight"]
    }


def turned(tensor: Tensor) -> Tensor:
    """(in, out) of a matrix; a bias as it is."""
    return tensor.T if tensor.dim() == 2 else tensor


def inside(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """What lies in the zip was read before it was damaged: its checksums let no other number through."""
    return lambda place: read(place / "inner")


def make_recipe(place: Path) -> None:
    (place / "x.yaml").write_bytes(shipped_recipes()["verdict"].read_bytes())


def read_recipe(place: Path) -> dict[str, str]:
    """{key: what the file says}, of the values that the recipe has from there."""
    loaded = load_recipe(str(place / "x.yaml"))
    written = yaml.load((place / "x.yaml").read_bytes(), yaml.BaseLoader)
    values = loaded.recipe.model_dump()
    found = {}
    for key, origin in loaded.origins.items():
        if origin != "default":
            section, _, name = key.rpartition(".")
            value = values[section][name] if section else values[name]
            text = written[section][name] if section else written[name]
            found[key] = text if means(value, text) else repr(value)
    return found


def means(value: Any, text: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return str(text).lower() == {None: "null"}.get(value, str(value).lower()) or (value, text) == (
            None,
            "",
        )
    if isinstance(value, int | float):
        return float(str(text).replace("_", "")) == value
    return list(value) == text if isinstance(value, tuple) else value == text


def base_of_recipe(place: Path) -> dict[str, str]:
    """PyYAML's own reading, all scalars texts."""
    written = yaml.load((place / "x.yaml").read_bytes(), yaml.BaseLoader)
    found = {}
    for key, value in written.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": part for name, part in value.items()}
        elif value != "" or key not in ("data", "model", "batch", "optim", "eval", "checkpoint", "run"):
            found[key] = value
    return found


ROWS = [{"text": f'row {n}, "quoted"\nand é', "label": "ab"[n % 2]} for n in range(20)]


def make_csv(place: Path) -> None:
    with open(place / "x.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)


def csv_rows(place: Path) -> list[dict[str, str]]:
    text = (place / "x.csv").read_bytes().decode("utf-8-sig")
    header, *rows = (row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row)
    return [dict(zip(map(str.strip, header), row, strict=True)) for row in rows]


def make_json_list(place: Path) -> None:
    (place / "x.json").write_text(json.dumps(ROWS, indent=1))


def make_json_lines(place: Path) -> None:
    (place / "x.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))


def records_of(name: str) -> Callable[[Path], Any]:
    return lambda place: [record for _, record in read_records(place / name)[0]]


def make_vocabulary(place: Path) -> None:
    """GPT-2's own first 200 merges, as files of a tokenizer."""
    whole = gpt2()
    words = [*list(json.loads(whole.vocab_json))[: 256 + 200], "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (place / "merges.txt").write_bytes(b"".join(whole.merges_txt.splitlines(keepends=True)[:201]))


def make_prepared(place: Path) -> None:
    (place / "x.txt").write_text("abc def ghi jkl " * 400)
    for _ in prepare([place / "x.txt"], place / "out", PrepareSettings("chars", ("text",), 0.1, 1, 1000)):
        pass
    with open_dataset(place / "out") as data:
        np.save(place / "ids.npy", data.train.read(0, data.train.n_tokens))


def prepared_ids(place: Path) -> list[int]:
    with open_dataset(place / "out") as data:
        return list(data.train.read(0, data.train.n_tokens))


def make_checkpoint(place: Path) -> None:
    new = new_model(CONFIG, 1)
    optimizer = torch.optim.AdamW(new.parameters())
    new(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    names = [name for name, _ in new.named_parameters()]
    hashes = write_model(place, new, TOKENIZER, "task: pretrain\n")
    hashes |= write_state(place, optimizer, names, TrainState(step=7, updates=7), {"a": 1, "b": "x"}, {})
    write_manifest(place, hashes)


def read_checkpoint(place: Path) -> Any:
    verify(place)
    progress, identity, _ = read_state(place)
    moments = read_tensors(place / TENSORS, read_manifest(place)[TENSORS])
    return (progress.step, identity, {name: moment.tolist() for name, moment in moments.items()})


def their_checkpoint(place: Path) -> Any:
    facts = json.loads((place / STATE).read_text())
    moments = safetensors.torch.load_file(place / TENSORS)
    return (
        facts["progress"]["step"],
        facts["identity"],
        {name: moment.tolist() for name, moment in moments.items()},
    )


FOLDER = ("config.json", "tokenizer.json", "tokenizer_config.json")
SAFE = "model.safetensors"
CKPT, BOOK, ZIP = model("ckpt.pt"), model("book.pth"), model("x.zip")
KINDS = (
    Kind("ours", make_ours, (SAFE, SAFE, "manifest.json", *FOLDER), model(""), read_safetensors),
    Kind("folder", make_folder, (SAFE, SAFE, SAFE, *FOLDER), model(""), read_safetensors),
    Kind(
        "shards",
        make_shards,
        ("model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"),
        model(""),
        read_safetensors,
    ),
    Kind(
        "openai",
        make_openai,
        ("model.ckpt.index", *(f"model.ckpt.data-0000{n}-of-00002" for n in (0, 1)), "hparams.json"),
        model(""),
        read_openai,
    ),
    Kind("bin", make_bin, ("pytorch_model.bin",), model(""), read_bin),
    Kind("nanogpt", make_nano, ("ckpt.pt",), CKPT, read_nano),
    Kind("compiled", lambda place: make_nano(place, "_orig_mod."), ("ckpt.pt",), model(""), read_nano),
    Kind("old", lambda place: make_nano(place, legacy=True), ("ckpt.pt",), CKPT, read_nano),
    Kind("book", make_book, ("book.pth",), BOOK, read_book),
    Kind("zipped folder", zipped(make_folder), ("x.zip",), ZIP, inside(read_safetensors)),
    Kind("zipped nanogpt", zipped(make_nano), ("x.zip",), ZIP, inside(read_nano)),
    Kind("recipe", make_recipe, ("x.yaml",), read_recipe, base_of_recipe),
    Kind("csv", make_csv, ("x.csv",), records_of("x.csv"), csv_rows),
    Kind(
        "json list",
        make_json_list,
        ("x.json",),
        records_of("x.json"),
        lambda place: json.loads((place / "x.json").read_bytes()),
    ),
    Kind(
        "json lines",
        make_json_lines,
        ("x.jsonl",),
        records_of("x.jsonl"),
        lambda place: [
            json.loads(line) for line in (place / "x.jsonl").read_text().split("\n") if line.strip()
        ],
    ),
    Kind(
        "vocabulary",
        make_vocabulary,
        ("vocab.json", "merges.txt"),
        lambda place: load_tokenizer(place).encode(TEXT),
        lambda place: (
            ByteLevelBPETokenizer(str(place / "vocab.json"), str(place / "merges.txt")).encode(TEXT).ids
        ),
    ),
    Kind(
        "prepared",
        make_prepared,
        ("out/manifest.json", "out/train-00000.bin", "out/train-00001.bin"),
        prepared_ids,
        lambda place: np.load(place / "ids.npy").tolist(),
    ),
    Kind("checkpoint", make_checkpoint, ("manifest.json", STATE, TENSORS), read_checkpoint, their_checkpoint),
)


@pytest.mark.parametrize(
    "change", ["n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "dropout"]
)
def test_odd_values_among_the_arguments(tmp_path: Path, change: str) -> None:
    make_nano(tmp_path)
    whole = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    kind = next(kind for kind in KINDS if kind.name == "nanogpt")
    for value in (*ODD_VALUES, torch.zeros(2), {"a": {"b": 1}}):
        if isinstance(value, int) and value > 2**100:
            value = 2**500  # as much as this pickle can hold
        torch.save({**whole, "model_args": {**whole["model_args"], change: value}}, tmp_path / "ckpt.pt")
        survives(tmp_path, kind, f"{change}={value!r}"[:80])


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.name in ("bin", "nanogpt", "book")], ids=lambda k: k.name
)
def test_odd_tensors(tmp_path: Path, kind: Kind) -> None:
    kind.make(tmp_path)
    path = tmp_path / kind.damaged[0]
    whole = torch.load(path, weights_only=True)
    state = whole.get("model", whole.get("model_state_dict", whole))
    generator = random.Random(5)
    odd: list[Callable[[Tensor], Any]] = [
        lambda t: t.double(),
        lambda t: t.bfloat16(),
        lambda t: t.int(),
        lambda t: t.bool(),
        lambda t: t.to(torch.complex64),
        lambda t: t.to_sparse(),
        lambda t: t[..., :0],
        lambda t: t[..., None],
        lambda t: t.flatten(),
        lambda t: t.flip(0).T.contiguous().T if t.dim() == 2 else t.flip(0),
        lambda t: torch.zeros(1).expand(t.shape),
        lambda t: torch.zeros(1).expand(*t.shape[:-1], 2**40),
        lambda t: torch.full_like(t, torch.nan),
        lambda t: torch.nn.Parameter(t.clone()),
        lambda t: torch.empty(t.shape, device="meta"),
        lambda t: [1.0],
        lambda t: None,
    ]
    n_accepted = 0
    for n, change in enumerate(odd):
        name = generator.choice([name for name in state if not name.endswith((".attn.bias", "mask"))])
        changed = {**state, name: change(state[name])}
        value = (
            changed if whole is state else {**whole, **{key: changed for key in whole if whole[key] is state}}
        )
        torch.save(value, path)
        n_accepted += survives(tmp_path, kind, f"{kind.name} {n} {name}")
    assert 2 <= n_accepted <= 6
