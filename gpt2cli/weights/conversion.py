"""Owns `convert`: a model in any known format in, a proved model in ours, or in somebody else's, out.

The order of things: refuse what cannot work, open the source, write tensor by tensor, compare what
was written with what was read, write the receipt, and only then let the result have its name.
The formats themselves are in files of their own.
"""

import contextlib
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2cli import __version__, disk
from gpt2cli.errors import InputError, ResourceError, UsageError
from gpt2cli.home import is_model
from gpt2cli.model.config import PRESETS, GPT2Config, to_hugging_face
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.tokenizer.folder import save_tokenizer
from gpt2cli.weights.folder import CONFIG, MANIFEST, RECEIPT, WEIGHTS, load_model, model_of, write_manifest
from gpt2cli.weights.gguf import write_gguf
from gpt2cli.weights.nanogpt import write_nanogpt
from gpt2cli.weights.openai_tf import write_openai
from gpt2cli.weights.recognition import open_source
from gpt2cli.weights.source import Source, SourceTensor
from gpt2cli.weights.tensor_file import TensorWriter
from gpt2cli.weights.verification import Expected, compare, expect

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# What each target can hold, and how the name of what is made ends.
TARGETS: dict[str, tuple[tuple[str, ...], str]] = {
    "folder": (("f32", "f16", "bf16"), ""),
    "gguf": (("f32", "f16", "bf16", "q8_0"), ".gguf"),
    "nanogpt": (("f32",), ".pt"),
    "tensorflow": (("f32",), "-tensorflow"),
}
_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}  # a parameter; in q8_0 32 share a scale


@dataclass(frozen=True)
class Wish:
    """What somebody asked for. `verify` None means: for sources that are not ours."""

    to: str = "folder"
    dtype: str = "f32"
    force: bool = False
    verify: bool | None = None
    allow_nonfinite: bool = False
    n_head: int | None = None  # for formats that do not store it

    def __post_init__(self) -> None:
        if self.to not in TARGETS:
            raise UsageError(f"--to {self.to} is unknown", f"there are {', '.join(TARGETS)}")
        dtypes, _ = TARGETS[self.to]
        if self.dtype not in dtypes:
            raise UsageError(
                f"--dtype {self.dtype} does not go with --to {self.to}",
                f"it can hold {', '.join(dtypes)}",
                f"--dtype {dtypes[0]}",
            )


@dataclass(frozen=True)
class Converting:
    """How far it is, in tensors. The last has the receipt."""

    phase: str  # "reading", "writing", "verifying" or "done"
    n_done: int = 0
    n_total: int = 0
    receipt: dict[str, Any] = field(default_factory=dict)


def convert(path: Path, out: Path, wish: Wish) -> Iterator[Converting]:
    """Convert the model at `path` to `out`, and prove it.

    Raises UsageError where `out` exists, InputError for a source that is damaged or no GPT-2, or
    whose converted model computes something else, ResourceError where the disk has no room.
    Whatever goes wrong, what was at `out` before is still there.
    """
    _check_place(path, out, wish)
    yield Converting("reading")
    # Leaving it closes files, ends a child process, deletes what was unzipped.
    with contextlib.ExitStack() as opened:
        source = opened.enter_context(open_source(path, n_head=wish.n_head))
        source, wish = _tolerated(source, wish) if wish.allow_nonfinite else (_guarded(source), wish)
        _check_room(out, source.config, wish.dtype)
        receipt = _receipt_of(source)
        export = _to_folder if wish.to == "folder" else _to_others
        yield from export(source, out, wish, receipt, opened.close)
    yield Converting("done", len(source.tensors), len(source.tensors), receipt)


def _to_folder(
    source: Source, out: Path, wish: Wish, receipt: dict[str, Any], let_go: Callable[[], None]
) -> Iterator[Converting]:
    dtype = DTYPES[wish.dtype]
    with disk.new_folder(out) as folder:
        hashes = yield from _write_folder(source, folder, dtype)
        if _wants_proof(source, wish):
            yield Converting("verifying")
            expected = expect(source, dtype)
            let_go()  # the converted model needs the memory
            _prove(expected, load_model(folder).model, source, receipt)
        receipt["output"] = {"dtype": wish.dtype, "files": hashes}
        disk.write_json(folder / RECEIPT, receipt)
        write_manifest(folder, {**hashes, RECEIPT: disk.sha256_of(folder / RECEIPT)})


def _write_folder(
    source: Source, folder: Path, dtype: torch.dtype
) -> Generator[Converting, None, dict[str, str]]:
    layout = {name: (dtype, tensor.shape) for name, tensor in source.tensors.items()}
    with TensorWriter(folder / WEIGHTS, layout, {"format": "pt"}) as writer:
        for n_done, tensor in enumerate(source.tensors.values()):
            yield Converting("writing", n_done, len(layout))
            writer.write(tensor.load().to(dtype))
    config = to_hugging_face(source.config, source.tokenizer.end_of_text)
    disk.write_json(folder / CONFIG, {**config, "torch_dtype": str(dtype).removeprefix("torch.")})
    names = [CONFIG, *save_tokenizer(source.tokenizer, folder)]
    return {WEIGHTS: writer.sha256, **{name: disk.sha256_of(folder / name) for name in names}}


def _to_others(
    source: Source, out: Path, wish: Wish, receipt: dict[str, Any], let_go: Callable[[], None]
) -> Iterator[Converting]:
    if _wants_proof(source, wish):
        yield Converting("verifying")
        expected = expect(source, torch.float32)
        tensors = {name: tensor.load() for name, tensor in source.tensors.items()}
        _prove(expected, model_of(source.path, source.config, tensors), source, receipt)
        del tensors
    yield Converting("writing", 0, len(source.tensors))
    match wish.to:
        case "gguf":
            write_gguf(out, source, wish.dtype, out.stem)
        case "nanogpt":
            write_nanogpt(out, source)
        case "tensorflow":
            with disk.new_folder(out) as folder:
                write_openai(folder, source)
    let_go()
    files = [out] if out.is_file() else sorted(out.iterdir())
    receipt["output"] = {"dtype": wish.dtype, "files": {p.name: disk.sha256_of(p) for p in files}}


def _guarded(source: Source) -> Source:
    """The same source, whose tensors refuse to be read where they are not finite."""

    def load(tensor: SourceTensor) -> Tensor:
        values = tensor.load()
        if n_wrong := _not_finite(values):
            raise InputError(
                f"{source.path}: {tensor.source} holds {n_wrong} values that are not finite",
                "a model with NaN or infinity in it computes nothing",
                "use another copy, or --allow-nonfinite to convert it all the same",
            )
        return values

    guarded = {name: replace(t, load=partial(load, t)) for name, t in source.tensors.items()}
    return replace(source, tensors=guarded)


def _tolerated(source: Source, wish: Wish) -> tuple[Source, Wish]:
    """Say which tensors are not finite, and compare nothing then: NaN equals nothing."""
    broken = [t.source for t in source.tensors.values() if _not_finite(t.load())]
    if not broken:
        return source, wish
    note = f"{', '.join(broken)}: not finite in places, so that nothing was compared"
    return replace(source, notes=(*source.notes, note)), replace(wish, verify=False)


def _not_finite(values: Tensor) -> int:
    """How many; in parts, for the mask of a whole embedding takes half as much memory as it."""
    return sum(part.numel() - int(part.isfinite().sum()) for part in torch.split(values.flatten(), 1 << 20))


def _wants_proof(source: Source, wish: Wish) -> bool:
    return source.format != "gpt2cli" if wish.verify is None else wish.verify


def _prove(expected: Expected, model: GPT2LMHead, source: Source, receipt: dict[str, Any]) -> None:
    verification = compare(expected, model)
    receipt["verification"] = verification.as_json()
    if not verification.passed:
        raise InputError(
            f"{source.path}: the converted model is not the source's model",
            f"their logits differ by up to {verification.max_difference:.3g}; {verification.tolerance:g} is"
            " allowed",
            "report it, with the file's origin; --no-verify converts without the comparison",
        )


def _receipt_of(source: Source) -> dict[str, Any]:
    """What is known before anything is written: where each tensor comes from, and the bytes read."""
    size = next((name for name, preset in PRESETS.items() if _same_shape(preset, source.config)), None)
    return {
        "format": 1,
        "written_by": f"gpt2cli {__version__}",
        "source": {
            "path": str(source.path.absolute()),
            "format": source.format,
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": disk.sha256_of(path)}
                for path in source.files
            },
        },
        "config": asdict(source.config),
        "parameters": {
            "count": source.config.n_parameters,
            "size": size,
            "expected": PRESETS[size].n_parameters if size else None,
        },
        "tensors": [
            {
                "source": tensor.source,
                "target": name,
                "shape": list(tensor.shape),
                "transposed": tensor.transposed,
            }
            for name, tensor in source.tensors.items()
        ],
        "notes": list(source.notes),
        "verification": None,
    }


def _same_shape(preset: GPT2Config, config: GPT2Config) -> bool:
    names = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "mlp_width", "tie_word_embeddings")
    return all(getattr(preset, name) == getattr(config, name) for name in names)


def _check_place(path: Path, out: Path, wish: Wish) -> None:
    """Before any work: the place is free or may be replaced, and can be written."""
    source, target = path.resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UsageError(
            f"{out}: is the source itself, or one lies inside the other", "", "choose another --out"
        )
    if out.exists() or out.is_symlink():
        if not wish.force:
            raise UsageError(
                f"{out}: exists already", "", "add --force to replace it, or choose another --out"
            )
        if out.is_dir() and not _is_ours_to_replace(out):
            raise UsageError(
                f"{out}: is a folder that holds something else than a model",
                "--force would delete all of it",
                "choose another --out",
            )
    disk.require_writable(out.parent)


def _is_ours_to_replace(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return not names or MANIFEST in names or is_model(folder) or "model.ckpt.index" in names


def _check_room(out: Path, config: GPT2Config, dtype: str) -> None:
    needed = int(config.n_parameters * _BYTES[dtype] * 1.01) + (4 << 20)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise ResourceError(
            f"{out}: {needed:,} bytes are needed and {free:,} are free",
            "the disk has no room for the converted model",
            "free some space, or choose another --out",
        )
