"""The pipeline of `gpt2 convert`: a model in any known format in, a verified model in another out.

The order: refuse what cannot work, open the source, write tensor by tensor, compare the result with
the source, write the receipt, and only then rename the result. Each format has a file of its own.
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
from gpt2cli.checkpoints.finite import is_finite, require_finite
from gpt2cli.checkpoints.folder import CONFIG, WEIGHTS, write_manifest
from gpt2cli.checkpoints.provenance import RECEIPT, RECEIPT_FORMAT
from gpt2cli.checkpoints.safetensors_file import TensorWriter
from gpt2cli.convert import gguf, nanogpt, openai_checkpoint
from gpt2cli.convert.detect_format import open_foreign
from gpt2cli.convert.foreign_model import ForeignModel, ForeignTensor
from gpt2cli.convert.gguf import write_gguf
from gpt2cli.convert.hf_folder import open_hugging_face
from gpt2cli.convert.kept_files import keep_files
from gpt2cli.convert.modelfile import modelfile
from gpt2cli.convert.nanogpt import write_nanogpt
from gpt2cli.convert.openai_checkpoint import write_openai
from gpt2cli.convert.output_folder import check_place, check_room
from gpt2cli.convert.verify import ExpectedLogits, compare_logits, expected_logits, verify_export
from gpt2cli.errors import InputError, UsageError
from gpt2cli.json_files import read_json
from gpt2cli.model.config import PRESETS, size_of, to_hugging_face
from gpt2cli.tokenizer.files import save_tokenizer

MODELFILE = ".Modelfile"
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# What each target can hold, and how the name of the output ends.
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
class ConvertOptions:
    """The command's options. `verify` None: verify unless gpt2cli wrote the source."""

    to: str = "folder"
    dtype: str = "f32"
    force: bool = False
    verify: bool | None = None
    allow_nonfinite: bool = False
    n_head: int | None = None  # for formats that do not store it
    merge: bool = False  # whether an adapter is added into its base
    card: str = ""  # README.md of a folder, unless the source has one

    def __post_init__(self) -> None:
        dtypes, _ = TARGETS[self.to]
        if self.dtype not in dtypes:
            raise UsageError(
                f"--dtype {self.dtype} does not go with --to {self.to}",
                f"it can hold {', '.join(dtypes)}",
                f"--dtype {dtypes[0]}",
            )


@dataclass(frozen=True)
class ConvertProgress:
    """Progress, in tensors. The last event holds the receipt."""

    phase: str  # "reading", "writing", "verifying" or "done"
    n_done: int = 0
    n_total: int = 0
    receipt: dict[str, Any] = field(default_factory=dict)


def convert(path: Path, out: Path, options: ConvertOptions) -> Iterator[ConvertProgress]:
    """Convert the model at `path` to `out`, and verify it.

    Raises UsageError if `out` exists, InputError for a source that is damaged or not a GPT-2, or
    whose converted model computes something else, ResourceError if the disk is full.
    If anything fails, `out` is unchanged.
    """
    out = check_place(path, out, options.to, force=options.force)
    yield ConvertProgress("reading")
    # Leaving it closes files and deletes what was unzipped.
    with contextlib.ExitStack() as opened:
        source = opened.enter_context(open_foreign(path, n_head=options.n_head, merge=options.merge))
        if options.n_head not in (None, source.config.n_head):
            raise UsageError(
                f"--n-head is {options.n_head}, but {source.path} says it has {source.config.n_head} heads",
                "the option is for formats that do not store it",
                "leave out --n-head",
            )
        source, options = (
            _tolerated(source, options) if options.allow_nonfinite else (_guarded(source), options)
        )
        check_room(out, source.config, options.dtype)
        if check := EXPRESSIBLE.get(options.to):  # before the work of verifying
            check(source.config, source.tokenizer, options.dtype)
        receipt = _receipt_of(source)
        if options.verify is None:
            options = replace(options, verify=source.format != "gpt2cli")
        export = _to_folder if options.to == "folder" else _to_others
        yield from export(source, out, options, receipt, opened.close)
    yield ConvertProgress("done", len(source.tensors), len(source.tensors), receipt)


def _to_folder(
    source: ForeignModel,
    out: Path,
    options: ConvertOptions,
    receipt: dict[str, Any],
    free: Callable[[], None],
) -> Iterator[ConvertProgress]:
    dtype = DTYPES[options.dtype]
    with disk.new_folder(out, replace=options.force) as folder:
        written, more = yield from _write_folder(source, folder, dtype, options)
        receipt |= more
        if options.verify:
            yield ConvertProgress("verifying")
            expected = expected_logits(source, dtype)
            free()  # some sources are held in memory
            with open_hugging_face(folder) as converted:
                _require_same_logits(expected, converted, source, receipt)
        receipt["output"] = {"dtype": options.dtype, "files": written}
        disk.write_json(folder / RECEIPT, receipt)
        write_manifest(folder, {**written, RECEIPT: disk.sha256_of(folder / RECEIPT)})


def _write_folder(
    source: ForeignModel, folder: Path, dtype: torch.dtype, options: ConvertOptions
) -> Generator[ConvertProgress, None, tuple[dict[str, str], dict[str, list[str]]]]:
    """Returns {file name: SHA-256}, and what the receipt says of the source's other files."""
    layout = {name: (dtype, tensor.shape) for name, tensor in source.tensors.items()}
    with TensorWriter(folder / WEIGHTS, layout, {"format": "pt"}) as writer:
        for n_done, tensor in enumerate(source.tensors.values()):
            yield ConvertProgress("writing", n_done, len(layout))
            writer.write(_cast(source, tensor, dtype, options))
    config = to_hugging_face(source.config) | source.tokenizer.special.as_config()
    disk.write_json(folder / CONFIG, {**config, "torch_dtype": str(dtype).removeprefix("torch.")})
    names = [CONFIG, *save_tokenizer(source.tokenizer, folder)]
    kept, more = keep_files(source, folder, options.card)
    hashes = {name: disk.sha256_of(folder / name) for name in (*names, *kept)}
    return {WEIGHTS: writer.sha256, **hashes}, more


def _to_others(
    source: ForeignModel,
    out: Path,
    options: ConvertOptions,
    receipt: dict[str, Any],
    free: Callable[[], None],
) -> Iterator[ConvertProgress]:
    if options.verify:
        yield ConvertProgress("verifying")
        expected = expected_logits(source, torch.float32)
        _require_same_logits(expected, source, source, receipt)
    yield ConvertProgress("writing", 0, len(source.tensors))
    is_folder = options.to == "tensorflow"
    new = disk.new_folder(out, replace=options.force) if is_folder else disk.replacing_path(out)
    with new as place:  # takes the place of what is there once it has been read back
        match options.to:
            case "gguf":
                write_gguf(place, source, options.dtype, out.stem)
            case "nanogpt":
                write_nanogpt(place, source)
            case "tensorflow":
                write_openai(place, source)
        yield ConvertProgress("verifying")
        receipt["read_back"] = verify_export(place, options.to, source, out)
    if options.to == "gguf":
        receipt["modelfile"] = _write_modelfile(source, out, options)
    free()
    files = [out] if out.is_file() else sorted(out.iterdir())
    receipt["output"] = {"dtype": options.dtype, "files": {p.name: disk.sha256_of(p) for p in files}}
    disk.write_json(out / RECEIPT if out.is_dir() else out.with_name(f"{out.name}.{RECEIPT}"), receipt)


def _write_modelfile(source: ForeignModel, out: Path, options: ConvertOptions) -> str | None:
    """Write Ollama's Modelfile beside the GGUF; returns its path, None where another lies in its place."""
    path = out.with_suffix(MODELFILE)
    if path.exists() and not options.force:
        return None
    text = modelfile(out.name, source.config.n_positions, source.chat_template, source.tokenizer)
    disk.write_file(path, text)
    return str(path)


def _cast(source: ForeignModel, tensor: ForeignTensor, dtype: torch.dtype, options: ConvertOptions) -> Tensor:
    """The tensor in the output precision. Raises InputError if it overflows."""
    values = tensor.load().to(dtype)
    if not options.allow_nonfinite:
        too_large = InputError(
            f"{source.path}: {tensor.source} has values beyond the range of {options.dtype}",
            "they would become infinite",
            "--dtype bf16, which has the range of f32" if options.dtype == "f16" else "keep a wider --dtype",
        )
        require_finite(values, too_large)
    return values


def _guarded(source: ForeignModel) -> ForeignModel:
    """The same source, whose tensors raise on reading if they are not finite."""

    def load(tensor: ForeignTensor) -> Tensor:
        values = tensor.load()
        broken = InputError(
            f"{source.path}: {tensor.source} holds values that are not finite",
            "a model with NaN or infinity in it computes nothing",
            "use another copy, or --allow-nonfinite to convert it all the same",
        )
        # float64 is kept nowhere: what does not fit float32 is lost.
        require_finite(values.float() if values.dtype == torch.float64 else values, broken)
        return values

    guarded = {name: replace(t, load=partial(load, t)) for name, t in source.tensors.items()}
    return replace(source, tensors=guarded)


def _tolerated(source: ForeignModel, options: ConvertOptions) -> tuple[ForeignModel, ConvertOptions]:
    """Say which tensors are not finite, and compare nothing then: NaN equals nothing."""
    broken = [t.source for t in source.tensors.values() if not is_finite(t.load())]
    if not broken:
        return source, options
    note = f"{', '.join(broken)}: not finite in places, so that nothing was compared"
    return replace(source, notes=(*source.notes, note)), replace(options, verify=False)


def _require_same_logits(
    expected: ExpectedLogits, converted: ForeignModel, source: ForeignModel, receipt: dict[str, Any]
) -> None:
    verification = compare_logits(expected, converted)
    receipt["verification"] = verification.as_json()
    if not verification.passed:
        overflow = not math.isfinite(verification.max_difference_fp32)
        raise InputError(
            f"{source.path}: the converted model does not compute what the source computes",
            "its logits are not finite in fp32: some weight is far too large"
            if overflow
            else f"their logits differ by up to {verification.max_difference:.3g}; {verification.tolerance:g}"
            " is allowed",
            "report it, with where the file came from; --no-verify converts without the comparison",
        )


def _receipt_of(source: ForeignModel) -> dict[str, Any]:
    """The part of the receipt known before writing: the source of each tensor, and the bytes read."""
    size = size_of(source.config)
    return {
        "format": RECEIPT_FORMAT,
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


def _origin(source: ForeignModel) -> dict[str, Any] | None:
    """The source's own origin: its receipt, or where it was downloaded from."""
    if not source.path.is_dir():
        return None
    known = {}
    for name in (RECEIPT, provenance.NAME):
        if (source.path / name).is_file():
            with contextlib.suppress(InputError):  # another program's file of that name proves nothing
                known[name.removesuffix(".json")] = read_json(source.path / name)
    return known or None
