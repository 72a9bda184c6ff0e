"""Everything that is read from the disk: how it is made, and how another program reads it."""

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
from gpt2cli.data.record_files import read_records
from gpt2cli.data.token_dataset import open_dataset
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.paths import STATE, TENSORS
from gpt2cli.recipe.loader import load_recipe
from gpt2cli.recipe.shipped import shipped_recipes
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.tokenizer.files import load_tokenizer, save_tokenizer
from gpt2cli.training.train_state import TrainState, moments_of, read_state, write_state

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


def make_ours(place: Path) -> None:
    write_manifest(place, write_model(place, loud(new_model(CONFIG, 1)), TOKENIZER, "task: pretrain\n"))


def make_folder(place: Path) -> None:
    make_ours(place)
    (place / "manifest.json").unlink()


def make_bare(place: Path) -> None:
    """As transformers before 4.30: names without "transformer.", and the mask buffers."""
    make_folder(place)
    tensors = read_tensors(place / SAFE)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{n}.attn.bias": torch.ones(1, 1, 12, 12).tril() for n in range(CONFIG.n_layer)}
    safetensors.torch.save_file(masks | tensors, place / SAFE)


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
        for name, tensor in safetensors.torch.load_file(path).items()
    }


def read_bare(place: Path) -> dict[str, Tensor]:
    return {f"transformer.{name}": tensor for name, tensor in read_safetensors(place).items()}


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
    hashes |= write_state(
        place, moments_of(optimizer, names), TrainState(step=7, updates=7), {"a": 1, "b": "x"}, {}
    )
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
    Kind("bare", make_bare, (SAFE,), model(""), read_bare),
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
