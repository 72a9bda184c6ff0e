"""Owns OpenAI's checkpoint: a folder of seven files, its names of tensors, and hparams.json, both ways.

OpenAI's matrices are (1, in, out), kernels of a convolution of width 1 (openai/gpt-2, src/model.py);
without the 1 they are Hugging Face's. TensorFlow itself reads and writes, in tf_process.py's child.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gpt2cli.checkpoints.folder import TRANSPOSED, require_exactly, require_fitting, stored_shapes
from gpt2cli.convert.foreign_model import RawTensors, Source, SourceTensor, as_array, expand, require_plain
from gpt2cli.convert.tf_process import AGAIN, Checkpoint, reading, require_tensorflow, write
from gpt2cli.errors import InputError
from gpt2cli.files import flush, open_regular, write_file
from gpt2cli.model.config import GPT2Config, size_of
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import BPE, read_table
from gpt2cli.tokenizer.files import load_tokenizer

HPARAMS, PREFIX = "hparams.json", "model.ckpt"
VOCABULARY, MERGES = "encoder.json", "vocab.bpe"
# GPT2Config's fields and OpenAI's names of them.
FIELDS = {
    "vocab_size": "n_vocab",
    "n_positions": "n_ctx",
    "n_embd": "n_embd",
    "n_head": "n_head",
    "n_layer": "n_layer",
}
NAMES = {
    "transformer.wte.weight": "model/wte",
    "transformer.wpe.weight": "model/wpe",
    "transformer.h.{}.ln_1.weight": "model/h{}/ln_1/g",
    "transformer.h.{}.ln_1.bias": "model/h{}/ln_1/b",
    "transformer.h.{}.attn.c_attn.weight": "model/h{}/attn/c_attn/w",
    "transformer.h.{}.attn.c_attn.bias": "model/h{}/attn/c_attn/b",
    "transformer.h.{}.attn.c_proj.weight": "model/h{}/attn/c_proj/w",
    "transformer.h.{}.attn.c_proj.bias": "model/h{}/attn/c_proj/b",
    "transformer.h.{}.ln_2.weight": "model/h{}/ln_2/g",
    "transformer.h.{}.ln_2.bias": "model/h{}/ln_2/b",
    "transformer.h.{}.mlp.c_fc.weight": "model/h{}/mlp/c_fc/w",
    "transformer.h.{}.mlp.c_fc.bias": "model/h{}/mlp/c_fc/b",
    "transformer.h.{}.mlp.c_proj.weight": "model/h{}/mlp/c_proj/w",
    "transformer.h.{}.mlp.c_proj.bias": "model/h{}/mlp/c_proj/b",
    "transformer.ln_f.weight": "model/ln_f/g",
    "transformer.ln_f.bias": "model/ln_f/b",
}
DTYPES = {
    "float32": torch.float32,  # OpenAI's
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_LARGEST_INDEX = 16 << 20  # bytes; GPT-2 XL's has 15 KB


@contextlib.contextmanager
def open_openai(folder: Path) -> Iterator[Source]:
    """The checkpoint in `folder`, each tensor read when it is asked for.

    The file called `checkpoint` is not read: it may name a place anywhere on the disk.
    Raises InputError where files are missing, damaged or disagree; UsageError without TensorFlow.
    """
    config = _read_hparams(folder / HPARAMS)
    prefix = _prefix(folder)
    files = [folder / HPARAMS, prefix.with_name(f"{prefix.name}.index"), *_data_files(prefix, config)]
    tokenizer = load_tokenizer(folder)
    files += [folder / name for name in (VOCABULARY, MERGES) if (folder / name).exists()]
    copy = f"copy {VOCABULARY} and {MERGES} from where the checkpoint came from"
    require_fitting(folder, tokenizer, config.vocab_size, copy)
    require_tensorflow(f"gpt2 download {size_of(config) or '124M'} --source hf")
    with reading(prefix) as checkpoint:
        shapes = _checked_shapes(folder, prefix, config, checkpoint)
        names = expand(NAMES, config.n_layer)
        yield Source(
            path=folder,
            format="openai-tf",
            config=config,
            tokenizer=tokenizer,
            tensors={name: _source_tensor(checkpoint, names[name], shape) for name, shape in shapes.items()},
            raw=RawTensors(checkpoint.entries.keys(), lambda name: as_array(_read(checkpoint, name))),
            files=tuple(files),
        )


def write_openai(out: Path, source: Source) -> None:
    """Write OpenAI's seven files into the empty folder `out`, in float32, flushed to the device.

    Raises InputError for what the format has no place for, UsageError without TensorFlow.
    """
    require_expressible(source.config, source.tokenizer, "f32")
    assert isinstance(source.tokenizer, BPE)
    names = expand(NAMES, source.config.n_layer)
    # The largest first: TensorFlow holds what it was given and needs two more copies of the next.
    order = sorted(source.tensors.items(), key=lambda item: -math.prod(item[1].shape))
    shapes = {names[name]: _openai_shape(name, tensor.shape) for name, tensor in order}
    write(out / PREFIX, shapes, (_float32_bytes(tensor.load()) for _, tensor in order))
    for path in out.iterdir():
        with open_regular(path) as file:
            flush(file)
    numbers = {theirs: getattr(source.config, ours) for ours, theirs in FIELDS.items()}
    write_file(out / HPARAMS, json.dumps(numbers, indent=2) + "\n")
    write_file(out / VOCABULARY, source.tokenizer.vocab_json)
    write_file(out / MERGES, source.tokenizer.merges_txt)


def require_expressible(config: GPT2Config, tokenizer: Tokenizer, dtype: str) -> None:
    """What can be known before a tensor is read: the five numbers, the names and the two vocabulary
    files must say all of the model, and TensorFlow must be there.

    Raises InputError for what the format has no place for, UsageError without TensorFlow.
    """
    others = {
        f"the vocabulary is {tokenizer.name!r}": not isinstance(tokenizer, BPE),
        "the vocabulary has further control tokens": (
            isinstance(tokenizer, BPE) and len(tokenizer.specials) > 1
        ),
    }
    why = "the format has a place for five sizes, tied byte-pair embeddings and nothing else"
    require_plain(config, dtype, "an OpenAI checkpoint", others, why)
    require_fitting("this model", tokenizer, config.vocab_size)
    require_tensorflow()


def _read_hparams(path: Path) -> GPT2Config:
    values = read_table(path)
    for name in FIELDS.values():
        value = values.get(name)
        if type(value) is not int or not 1 <= value <= 2**31:
            found = "is missing" if name not in values else f"is {value!r}"[:80]
            raise InputError(f"{path}: {name} {found}", "a whole number from 1 on is needed here")
    numbers = {ours: values[theirs] for ours, theirs in FIELDS.items()}
    try:
        return GPT2Config(**numbers)
    except InputError as error:
        raise InputError(f"{path}: {error.what.removeprefix('config: ')}", error.why) from None


def _prefix(folder: Path) -> Path:
    """model.ckpt, or what a fine-tuning program called it, if that is clear."""
    if os.path.lexists(folder / f"{PREFIX}.index"):
        return folder / PREFIX
    found = sorted(path.name.removesuffix(".index") for path in folder.iterdir() if path.suffix == ".index")
    if len(found) != 1:
        raise InputError(
            f"{folder}: there is no {PREFIX}.index",
            f"there are several checkpoints: {', '.join(found[:4])}" if found else "nor any other index",
            f"mkdir one && cp {folder}/{{*.json,*.bpe,{found[-1]}.*}} one" if found else "gpt2 download 124M",
        )
    return folder / found[0]


def _data_files(prefix: Path, config: GPT2Config) -> list[Path]:
    """The files beside the index, which are regular and can hold such a model."""
    index_bytes = _regular_size(prefix.with_name(f"{prefix.name}.index"))
    if index_bytes > _LARGEST_INDEX:
        raise InputError(f"{prefix}.index: has {index_bytes} bytes", "an index of a GPT-2 has about 15,000")
    first = f"{prefix.name}.data-"
    files = sorted(path for path in prefix.parent.iterdir() if path.name.startswith(first))
    if not files:
        raise InputError(f"{prefix}.data-00000-of-00001: no such file", fix=f"ls -l {prefix.parent}")
    n_bytes = sum(_regular_size(path) for path in files)
    if n_bytes < config.n_parameters * torch.float16.itemsize:
        raise InputError(
            f"{files[0]}: {n_bytes:,} bytes are too few",
            f"{HPARAMS} describes {config.n_parameters:,} parameters of 4 bytes",
            AGAIN,
        )
    return files


def _regular_size(path: Path) -> int:
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def _checked_shapes(
    folder: Path, prefix: Path, config: GPT2Config, checkpoint: Checkpoint
) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names and shapes, after making sure that the checkpoint has just these tensors."""
    blocks = {match[1] for name in checkpoint.entries if (match := re.match(r"model/h(\d+)/", name))}
    if len(blocks) != config.n_layer:
        raise InputError(
            f"{folder / HPARAMS}: n_layer is {config.n_layer}", f"the checkpoint has {len(blocks)} blocks"
        )
    shapes = stored_shapes(config)
    names = expand(NAMES, config.n_layer)
    wanted = {names[name]: _openai_shape(name, shape) for name, shape in shapes.items()}
    require_exactly(prefix, wanted, {name: shape for name, (_, shape) in checkpoint.entries.items()})
    for name, (dtype, _) in checkpoint.entries.items():
        if dtype not in DTYPES:
            raise InputError(f"{prefix}: {name} is of type {dtype}", "GPT-2's are floating-point numbers")
    return shapes


def _openai_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, *shape) if name.endswith(TRANSPOSED) else shape


def _source_tensor(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> SourceTensor:
    return SourceTensor(name, shape, False, lambda: _read(checkpoint, name).view(shape))


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    """The tensor as TensorFlow has it; its memory is what came through the pipe."""
    dtype, shape = checkpoint.entries[name]
    data = checkpoint.read(name, math.prod(shape) * DTYPES[dtype].itemsize)
    return torch.frombuffer(data, dtype=DTYPES[dtype]).view(shape)


def _float32_bytes(tensor: Tensor) -> memoryview:
    return tensor.to(torch.float32).contiguous().flatten().view(torch.uint8).numpy().data
