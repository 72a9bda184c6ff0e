"""OpenAI's checkpoint, read and written: a folder of seven files, its names of tensors, and hparams.json.

OpenAI's matrices are (1, in, out), kernels of a convolution of width 1 (openai/gpt-2, src/model.py);
without the 1 they are Hugging Face's. How tensors lie in TensorFlow's files is in tensorflow_bundle.py.
"""

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from gpt2cli.checkpoints.folder import TRANSPOSED, require_matching_vocabulary, require_tensors, stored_shapes
from gpt2cli.convert.foreign_model import (
    ForeignModel,
    ForeignTensor,
    RawTensors,
    as_array,
    expand_blocks,
    require_standard_gpt2,
)
from gpt2cli.convert.tensorflow_bundle import (
    DTYPES,
    Entry,
    read_index,
    read_tensor,
    require_tensorflow,
    write_checkpoint,
)
from gpt2cli.errors import InputError
from gpt2cli.files import flush, open_regular, write_file
from gpt2cli.json_files import read_json_object
from gpt2cli.model.config import GPT2Config
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import BPE, usual_special
from gpt2cli.tokenizer.files import load_tokenizer

HPARAMS, PREFIX = "hparams.json", "model.ckpt"
POINTER = "checkpoint"  # TensorFlow's name of the file that names the last of several checkpoints
_LARGEST_POINTER = 1 << 20
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


@contextlib.contextmanager
def open_openai(folder: Path) -> Iterator[ForeignModel]:
    """The checkpoint in `folder`, each tensor read when it is asked for.

    Where a fine-tuning left several, the one that the file `checkpoint` names is read; a place elsewhere
    on the disk that it may name is not. Raises InputError if files are missing, damaged or disagree.
    """
    config = read_hparams(folder / HPARAMS)
    prefix, notes = _prefix(folder)
    tokenizer = load_tokenizer(folder)
    copy = f"copy {VOCABULARY} and {MERGES} from where the checkpoint came from"
    require_matching_vocabulary(folder, tokenizer, config.vocab_size, copy)
    index = prefix.with_name(f"{prefix.name}.index")
    entries = read_index(prefix)
    shapes = _checked_shapes(folder, index, config, entries)
    names = expand_blocks(NAMES, config.n_layer)
    texts = [folder / name for name in (VOCABULARY, MERGES) if (folder / name).exists()]
    yield ForeignModel(
        path=folder,
        format="openai-tf",
        config=config,
        tokenizer=tokenizer,
        tensors={name: _source_tensor(entries[names[name]], shape) for name, shape in shapes.items()},
        raw=RawTensors(entries.keys(), lambda name: as_array(read_tensor(entries[name]))),
        files=(folder / HPARAMS, index, *sorted({entry.path for entry in entries.values()}), *texts),
        notes=notes,
    )


def write_openai(out: Path, source: ForeignModel) -> None:
    """Write OpenAI's seven files into the empty folder `out`, in float32, flushed to the device.

    Raises InputError for what the format has no place for, UsageError without TensorFlow.
    """
    require_expressible(source.config, source.tokenizer, "f32")
    assert isinstance(source.tokenizer, BPE)
    names = expand_blocks(NAMES, source.config.n_layer)
    shapes = {names[name]: _openai_shape(name, tensor.shape) for name, tensor in source.tensors.items()}
    write_checkpoint(out / PREFIX, shapes, (tensor.load() for tensor in source.tensors.values()))
    for path in out.iterdir():
        with open_regular(path) as file:
            flush(file)
    numbers = {theirs: getattr(source.config, ours) for ours, theirs in FIELDS.items()}
    write_file(out / HPARAMS, json.dumps(numbers, indent=2) + "\n")
    write_file(out / VOCABULARY, source.tokenizer.vocab_json)
    write_file(out / MERGES, source.tokenizer.merges_txt)


def require_expressible(config: GPT2Config, tokenizer: Tokenizer, dtype: str) -> None:
    """Checks that need no tensor: the five numbers, the names and the two vocabulary files describe the
    whole model, and TensorFlow is installed.

    Raises InputError for what the format has no place for, UsageError without TensorFlow.
    """
    others = {
        "its activation is the exact GELU": config.activation_function != "gelu_new",
        f"the vocabulary is {tokenizer.name!r}": not isinstance(tokenizer, BPE),
        "the vocabulary has tokens beside its merges": (
            isinstance(tokenizer, BPE) and len(tokenizer.added) > 1
        ),
        "its texts begin or end with a token of their own": (
            isinstance(tokenizer, BPE) and tokenizer.special != usual_special(tokenizer.added)
        ),
    }
    why = "the format has a place for five sizes, tied byte-pair embeddings and nothing else"
    require_standard_gpt2(config, dtype, "an OpenAI checkpoint", others, why)
    require_matching_vocabulary("this model", tokenizer, config.vocab_size)
    require_tensorflow()


def read_hparams(path: Path) -> GPT2Config:
    """Raises InputError if a size is missing, or no GPT-2 has it."""
    values = read_json_object(path)
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


def _prefix(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """model.ckpt, or what a fine-tuning program called it, if that is clear; and a note about others."""
    found = {path.name.removesuffix(".index") for path in folder.iterdir() if path.suffix == ".index"}
    newest = sorted(found, key=lambda name: [int(n) for n in re.findall(r"\d+", name)], reverse=True)
    if not newest:
        raise InputError(f"{folder}: there is no {PREFIX}.index", "nor any other index", "gpt2 download 124M")
    if len(newest) == 1:
        return folder / newest[0], ()
    named = _named_checkpoint(folder)
    if named not in found:
        raise InputError(
            f"{folder}: holds several checkpoints: {', '.join(newest[:4])}",
            f"the file {POINTER}, which would name the last one, "
            + (f"names {named}" if named else "is missing or says nothing"),
            f"""echo 'model_checkpoint_path: "{newest[0]}"' > {shlex.quote(str(folder / POINTER))}""",
        )
    others = ", ".join(name for name in newest if name != named)
    return folder / named, (
        f"of several checkpoints {named} is read, as the file {POINTER} says, not {others}",
    )


def _named_checkpoint(folder: Path) -> str:
    """The last part of the path in TensorFlow's file `checkpoint`; "" if there is none."""
    try:
        with open_regular(folder / POINTER) as file:
            text = file.read(_LARGEST_POINTER).decode("utf-8", "replace")
    except InputError:
        return ""
    match = re.search(r'^model_checkpoint_path: "([^"\n]+)"', text, re.MULTILINE)
    return Path(match[1]).name if match else ""


def _checked_shapes(
    folder: Path, index: Path, config: GPT2Config, entries: Mapping[str, Entry]
) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names and shapes, after making sure that the checkpoint has just these tensors."""
    blocks = {match[1] for name in entries if (match := re.match(r"model/h(\d+)/", name))}
    if len(blocks) != config.n_layer:
        raise InputError(
            f"{folder / HPARAMS}: n_layer is {config.n_layer}", f"the checkpoint has {len(blocks)} blocks"
        )
    shapes = stored_shapes(config)
    names = expand_blocks(NAMES, config.n_layer)
    wanted = {names[name]: _openai_shape(name, shape) for name, shape in shapes.items()}
    require_tensors(index, wanted, {name: entry.shape for name, entry in entries.items()})
    for entry in entries.values():
        if entry.dtype not in DTYPES:
            raise InputError(
                f"{index}: {entry.name} is of type {entry.dtype}", "GPT-2's are floating-point numbers"
            )
    return shapes


def _openai_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, *shape) if name.endswith(TRANSPOSED) else shape


def _source_tensor(entry: Entry, shape: tuple[int, ...]) -> ForeignTensor:
    return ForeignTensor(entry.name, shape, False, lambda: read_tensor(entry).view(shape))
