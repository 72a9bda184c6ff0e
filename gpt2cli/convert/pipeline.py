"""Owns `convert`: a model in any known format in, a proved model in ours, or in somebody else's, out.

The order of things: refuse what cannot work, open the source, write tensor by tensor, compare what
was written with what was read, write the receipt, and only then let the result have its name.
The formats themselves are in files of their own.
"""

import contextlib
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2cli import __version__
from gpt2cli import files as disk
from gpt2cli.checkpoints import provenance
from gpt2cli.checkpoints.folder import (
    CONFIG,
    RECEIPT,
    RECIPE,
    WEIGHTS,
    load_model,
    model_of,
    read_manifest,
    write_manifest,
)
from gpt2cli.checkpoints.safetensors_file import TensorWriter
from gpt2cli.checkpoints.template_file import PROMPT
from gpt2cli.convert import gguf, nanogpt, openai_checkpoint
from gpt2cli.convert.detect_format import open_source
from gpt2cli.convert.foreign_model import Source, SourceTensor
from gpt2cli.convert.gguf import write_gguf
from gpt2cli.convert.nanogpt import write_nanogpt
from gpt2cli.convert.openai_checkpoint import write_openai
from gpt2cli.convert.placing import check_place, check_room
from gpt2cli.convert.read_back import require_written
from gpt2cli.convert.verify import Expected, compare, expect
from gpt2cli.errors import InputError, UsageError
from gpt2cli.model.config import PRESETS, size_of, to_hugging_face
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.tokenizer.bpe import read_json
from gpt2cli.tokenizer.files import save_tokenizer

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# What each target can hold, and how the name of what is made ends.
TARGETS: dict[str, tuple[tuple[str, ...], str]] = {
    "folder": (("f32", "f16", "bf16"), ""),
    "gguf": (("f32", "f16", "bf16", "q8_0"), ".gguf"),
    "nanogpt": (("f32",), ".pt"),
    "tensorflow": (("f32",), "-tensorflow"),
}

# Raise for a model that the target cannot hold, and where the package that writes it is missing.
EXPRESSIBLE = {
    "gguf": gguf.require_expressible,
    "nanogpt": nanogpt.require_expressible,
    "tensorflow": openai_checkpoint.require_expressible,
}


@dataclass(frozen=True)
class Wish:
    """What somebody asked for. `verify` None means: for sources that are not ours."""

    to: str = "folder"
    dtype: str = "f32"
    force: bool = False
    verify: bool | None = None
    allow_nonfinite: bool = False
    n_head: int | None = None  # for formats that do not store it
    merge: bool = False  # whether an adapter is added into its base

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
    out = check_place(path, out, wish.to, force=wish.force)
    yield Converting("reading")
    # Leaving it closes files, ends a child process, deletes what was unzipped.
    with contextlib.ExitStack() as opened:
        source = opened.enter_context(open_source(path, n_head=wish.n_head, merge=wish.merge))
        _check_heads(source, wish)
        source, wish = _tolerated(source, wish) if wish.allow_nonfinite else (_guarded(source), wish)
        check_room(out, source.config, wish.dtype)
        if check := EXPRESSIBLE.get(wish.to):  # before the work of a proof
            check(source.config, source.tokenizer, wish.dtype)
        receipt = _receipt_of(source)
        export = _to_folder if wish.to == "folder" else _to_others
        yield from export(source, out, wish, receipt, opened.close)
    yield Converting("done", len(source.tensors), len(source.tensors), receipt)


def _to_folder(
    source: Source, out: Path, wish: Wish, receipt: dict[str, Any], let_go: Callable[[], None]
) -> Iterator[Converting]:
    dtype = DTYPES[wish.dtype]
    with disk.new_folder(out, replace=wish.force) as folder:
        written = yield from _write_folder(source, folder, dtype, wish)
        if _wants_proof(source, wish):
            yield Converting("verifying")
            expected = expect(source, dtype)
            let_go()  # the converted model needs the memory
            _prove(expected, load_model(folder).model, source, receipt)
        receipt["output"] = {"dtype": wish.dtype, "files": written}
        disk.write_json(folder / RECEIPT, receipt)
        write_manifest(folder, {**written, RECEIPT: disk.sha256_of(folder / RECEIPT)})


def _write_folder(
    source: Source, folder: Path, dtype: torch.dtype, wish: Wish
) -> Generator[Converting, None, dict[str, str]]:
    layout = {name: (dtype, tensor.shape) for name, tensor in source.tensors.items()}
    with TensorWriter(folder / WEIGHTS, layout, {"format": "pt"}) as writer:
        for n_done, tensor in enumerate(source.tensors.values()):
            yield Converting("writing", n_done, len(layout))
            writer.write(_cast(source, tensor, dtype, wish))
    config = to_hugging_face(source.config, source.tokenizer.end_of_text)
    disk.write_json(folder / CONFIG, {**config, "torch_dtype": str(dtype).removeprefix("torch.")})
    names = [CONFIG, *save_tokenizer(source.tokenizer, folder)]
    for name in _taught_with(source):
        disk.write_file(folder / name, (source.path / name).read_bytes())
        names.append(name)
    return {WEIGHTS: writer.sha256, **{name: disk.sha256_of(folder / name) for name in names}}


def _taught_with(source: Source) -> list[str]:
    """The recipe and the prompt template of a model that was made here, wherever it lies now."""
    with contextlib.suppress(InputError, NotADirectoryError):  # somebody else's manifest lists neither
        hashes_of = read_manifest(source.path)
        return [
            name
            for name in (RECIPE, PROMPT)
            if name in hashes_of and disk.sha256_of(source.path / name) == hashes_of[name]
        ]
    return []


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
            with disk.new_folder(out, replace=wish.force) as folder:
                write_openai(folder, source)
    yield Converting("verifying")
    receipt["read_back"] = require_written(out, wish.to, source)
    let_go()
    files = [out] if out.is_file() else sorted(out.iterdir())
    receipt["output"] = {"dtype": wish.dtype, "files": {p.name: disk.sha256_of(p) for p in files}}
    disk.write_json(out / RECEIPT if out.is_dir() else out.with_name(f"{out.name}.{RECEIPT}"), receipt)


def _cast(source: Source, tensor: SourceTensor, dtype: torch.dtype, wish: Wish) -> Tensor:
    """The tensor in the precision that is written, which must have room for it."""
    values = tensor.load().to(dtype)
    if not wish.allow_nonfinite and _not_finite(values):
        raise InputError(
            f"{source.path}: {tensor.source} has values beyond the range of {wish.dtype}",
            "they would become infinite",
            "--dtype bf16, which has the range of f32" if wish.dtype == "f16" else "keep a wider --dtype",
        )
    return values


def _check_heads(source: Source, wish: Wish) -> None:
    if wish.n_head not in (None, source.config.n_head):
        raise UsageError(
            f"--n-head is {wish.n_head}, but {source.path} says that it has {source.config.n_head} heads",
            "the option is for formats that do not say it",
            "leave out --n-head",
        )


def _guarded(source: Source) -> Source:
    """The same source, whose tensors refuse to be read where they are not finite."""

    def load(tensor: SourceTensor) -> Tensor:
        values = tensor.load()
        # float64 is nowhere kept: what does not fit float32 is lost.
        if n_wrong := _not_finite(values.float() if values.dtype == torch.float64 else values):
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
        overflow = not math.isfinite(verification.max_difference_fp32)
        raise InputError(
            f"{source.path}: the converted model is not the source's model",
            "its logits are not finite in fp32: some weight is absurd"
            if overflow
            else f"their logits differ by up to {verification.max_difference:.3g}; {verification.tolerance:g}"
            " is allowed",
            "report it, with the file's origin; --no-verify converts without the comparison",
        )


def _receipt_of(source: Source) -> dict[str, Any]:
    """What is known before anything is written: where each tensor comes from, and the bytes read."""
    size = size_of(source.config)
    return {
        "format": 1,
        "written_by": f"gpt2cli {__version__}",
        "source": {
            "path": str(source.path.absolute()),
            "format": source.format,
            "made_from": _origin(source),
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


def _origin(source: Source) -> dict[str, Any] | None:
    """What is known of the source's own past: its receipt, or where it was downloaded from."""
    if not source.path.is_dir():
        return None
    known = {}
    for name in (RECEIPT, provenance.NAME):
        if (source.path / name).is_file():
            with contextlib.suppress(InputError):  # somebody else's file of that name proves nothing
                known[name.removesuffix(".json")] = read_json(source.path / name)
    return known or None
