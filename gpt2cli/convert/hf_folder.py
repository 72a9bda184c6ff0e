"""Hugging Face GPT-2 folders as a source, from any program and in any of its storage forms.

One file or shards, safetensors or pickles, names in wrappers (`unwrap_checkpoint.py`), old mask buffers,
padded embeddings, and attention scaled otherwise, which is multiplied into the query's weights.
A folder that gpt2cli wrote is one of them; each file read is checked against its manifest.
`checkpoints/folder.py` writes and loads such folders.
"""

import contextlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2cli import paths
from gpt2cli.checkpoints.folder import (
    CONFIG,
    EMBEDDING,
    HEAD,
    MANIFEST,
    MASKS,
    fits_rows,
    read_manifest,
    require_matching_vocabulary,
    require_tensors,
    stored_shapes,
)
from gpt2cli.checkpoints.hf_config import read_gpt2_config
from gpt2cli.checkpoints.safetensors_bytes import require_sha256
from gpt2cli.checkpoints.safetensors_file import open_tensors
from gpt2cli.convert.foreign_model import ForeignModel, ForeignTensor, RawTensors, as_array, same_bits
from gpt2cli.convert.torch_file import FLOATING, floating_tensors, read_torch_file, require_table
from gpt2cli.convert.unwrap_checkpoint import bare_names, drop_heads, unwrap_table
from gpt2cli.convert.vocabulary import cut_note, tokenizer_files
from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of
from gpt2cli.json_files import read_json_object
from gpt2cli.model.config import GPT2Config, score_scales
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import BPE, gpt2
from gpt2cli.tokenizer.files import PAIRS, TOKENIZER_JSON, load_tokenizer

INDEX = ".index.json"
# Where weights may lie, the best first: safetensors are read a tensor at a time and run no code.
PLACES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
# Weights that transformers itself reads no more since version 5: (whose, the package that version 4 needs for
# it, the words of its two names for reading them).
OTHERS = {
    "tf_model.h5": ("TensorFlow", "tf-keras", "tf", "tf2"),
    "flax_model.msgpack": ("Flax", "flax", "flax", "flax"),
}
BLOCK = re.compile(r"transformer\.h\.(\d+)\.")


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file, read on demand."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@contextlib.contextmanager
def open_hugging_face(folder: Path, weights: str | None = None) -> Iterator[ForeignModel]:
    """The GPT-2 in `folder`, its weights in the file of that name if one is given.

    Tensors of safetensors are read one at a time; pickles are held in memory. Raises InputError if it
    is damaged, another model, or its files disagree.
    """
    hashes = _checked_manifest(folder)
    config, tokenizer, notes = read_texts(folder)
    if not hashes and os.path.lexists(folder / MANIFEST):
        notes.append(f"{MANIFEST} belongs to another program and was ignored")
    values = read_json_object(folder / CONFIG)
    scales = score_scales(values, config)
    notes += _about_settings(values, scales)
    with contextlib.ExitStack() as opened:
        places = [weights] if weights else [name for name in PLACES if os.path.lexists(folder / name)]
        if len(places) > 1:
            notes.append(f"{places[0]} is read, {' and '.join(places[1:])} not")
        found = _stored_tensors(folder, places, hashes, opened)
        names = bare_names(folder, found)
        masks = [name for name in names if MASKS.fullmatch(name)]
        for name in masks:
            del found[names.pop(name)]
        if masks:
            notes.append(f"{len(masks)} mask buffers (h.*.attn.bias and the like) were left out")
        notes += drop_heads(names)
        if config.tie_word_embeddings and HEAD in names and EMBEDDING not in names:
            names[EMBEDDING] = names.pop(HEAD)  # safetensors.torch.save_model keeps one name of a matrix
        _check_tensors(folder, config, {name: found[original] for name, original in names.items()})
        config = replace(config, vocab_size=tokenizer.n_vocab)
        indexes = [name for name in places[:1] if name.endswith(INDEX)]
        yield ForeignModel(
            path=folder,
            format="gpt2cli" if hashes and _is_our_place(folder) else "huggingface",
            config=config,
            tokenizer=tokenizer,
            tensors={
                target: _source_tensor(names[target], found[names[target]], shape)
                for target, shape in stored_shapes(config).items()
            },
            raw=RawTensors(found.keys(), lambda name: as_array(found[name].read())),
            files=(
                *(folder / name for name in (CONFIG, *indexes)),
                *tokenizer_files(folder),
                *dict.fromkeys(stored.file for stored in found.values()),
            ),
            notes=tuple(notes),
            score_scales=scales,
        )


def read_texts(folder: Path) -> tuple[GPT2Config, Tokenizer, list[str]]:
    """The config, the tokenizer and notes about it: what tells, before any weights, whether it is readable.

    Raises InputError as `open_hugging_face` does.
    """
    config = read_gpt2_config(folder / CONFIG, folder, to_convert=True)
    return config, *_tokenizer(folder, config)


def _about_settings(values: Mapping[str, Any], scales: tuple[float, ...]) -> Iterator[str]:
    activation = values.get("activation_function")
    if activation not in (None, "gelu_new", "gelu"):
        same = "gelu" if activation == "gelu_python" else "gelu_new"
        yield f"activation_function {activation} is {same} under another name"
    if values.get("reorder_and_upcast_attn"):
        yield "reorder_and_upcast_attn is a matter of precision: attention is computed as in GPT-2"
    if scales:
        yield (
            "attention's scores are scaled by scale_attn_weights and scale_attn_by_inverse_layer_idx: the"
            " factors were multiplied into the query's weights"
        )


def _source_tensor(original: str, stored: _Stored, shape: tuple[int, ...]) -> ForeignTensor:
    """Its rows beyond the vocabulary are padding; elsewhere the slice takes all there is."""
    return ForeignTensor(original, shape, False, lambda: stored.read()[: shape[0]].contiguous())


def _is_our_place(folder: Path) -> bool:
    """Whether it is a model under GPT2_HOME or a checkpoint of a run. Elsewhere a manifest proves nothing:
    anyone can write a matching one."""
    parents = folder.resolve().parents
    is_in_home = paths.has_home() and paths.models().resolve() in parents
    return is_in_home or parents[0].name == paths.CHECKPOINTS


def _checked_manifest(folder: Path) -> dict[str, str]:
    """{file name: SHA-256} of a folder that gpt2cli wrote, its small files verified; else empty.

    Files that the model does not need may be missing, as in a published checkpoint.
    """
    try:
        is_ours = str(read_json_object(folder / MANIFEST).get("written_by")).startswith("gpt2cli ")
    except InputError:
        if _is_our_place(folder) and os.path.lexists(folder / MANIFEST):  # there it is our own, and damaged
            raise
        is_ours = False
    if not is_ours:  # other programs call files manifest.json too
        return {}
    hashes = read_manifest(folder)
    needed = (CONFIG, TOKENIZER_JSON, *(name for pair in PAIRS for name in pair))
    for name, sha256 in hashes.items():
        if name == PLACES[0] or name.startswith("train_state"):  # checked when it is opened; of no use here
            continue
        if name in needed or (folder / name).exists():
            require_sha256(folder / name, sha256_of(folder / name), sha256)
    return hashes


def _tokenizer(folder: Path, config: GPT2Config) -> tuple[Tokenizer, list[str]]:
    """The folder's tokenizer, or GPT-2's if it has none; and the notes about it."""
    n_rows, notes = config.vocab_size, []
    is_plain = fits_rows(gpt2().n_vocab, n_rows) and not tokenizer_files(folder)
    tokenizer = load_tokenizer(folder, gpt2() if is_plain else None)
    if is_plain:
        notes.append(f"no tokenizer files: GPT-2's vocabulary of {tokenizer.n_vocab} is taken")
    if isinstance(tokenizer, BPE) and tokenizer.n_vocab > n_rows:
        tokenizer, without_row = tokenizer.with_rows(n_rows)
        if without_row:
            names = ", ".join(token.content for token in without_row)
            notes.append(f"added tokens without a row in the embedding were left out: {names}")
    if not fits_rows(tokenizer.n_vocab, n_rows):
        require_matching_vocabulary(folder, tokenizer, n_rows)
    return tokenizer, [*notes, *cut_note(tokenizer.n_vocab, n_rows)]


def _stored_tensors(
    folder: Path, places: list[str], hashes: Mapping[str, str], opened: contextlib.ExitStack
) -> dict[str, _Stored]:
    """Every tensor of the file, or of all shards, each of which has what the index says and no more."""
    if not places:
        for name in OTHERS:
            if os.path.lexists(folder / name):
                raise unread_weights(folder / name, folder)
        raise InputError(
            f"{folder}: there are no weights", f"looked for {', '.join(PLACES)}", f"ls -l {folder}"
        )
    path = folder / places[0]
    if not path.name.endswith(INDEX):
        return _open_file(path, hashes, opened)
    weight_map = _read_weight_map(path)
    found: dict[str, _Stored] = {}
    for shard in dict.fromkeys(weight_map.values()):
        for name, stored in _open_file(folder / shard, hashes, opened).items():
            if weight_map.get(name) != shard:
                raise InputError(
                    f"{folder / shard}: holds {name}",
                    f"{path.name} looks for it in {weight_map.get(name, 'no file')}",
                )
            found[name] = stored
    return found


def _read_weight_map(path: Path) -> dict[str, str]:
    """{tensor: file name}; the files lie beside the index and are of its kind."""
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: has no weight_map", "an index says which shard has which tensor")
    suffix = Path(path.name.removesuffix(INDEX)).suffix
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+", shard) or Path(shard).suffix != suffix:
            raise InputError(
                f"{path}: {name} is said to be in {shard!r}"[:200],
                f"a {suffix} file in this folder is needed",
            )
    return weight_map


def _open_file(path: Path, hashes: Mapping[str, str], opened: contextlib.ExitStack) -> dict[str, _Stored]:
    if path.suffix == ".safetensors":
        file = opened.enter_context(open_tensors(path))
        if hashes:
            require_sha256(path, file.sha256, hashes.get(path.name, "none"))
        return {
            name: _Stored(path, entry.dtype, entry.shape, partial(file.read, name))
            for name, entry in file.entries.items()
        }
    state = require_table(path, unwrap_table(read_torch_file(path)))
    bare = {original: name for name, original in bare_names(path, state).items()}
    masks = {name: t for name, t in state.items() if MASKS.fullmatch(bare[name]) and isinstance(t, Tensor)}
    held = masks | floating_tensors(path, {name: t for name, t in state.items() if name not in masks})
    return {
        name: _Stored(path, tensor.dtype, tuple(tensor.shape), partial(held.__getitem__, name))
        for name, tensor in held.items()
    }


def _check_tensors(folder: Path, config: GPT2Config, found: Mapping[str, _Stored]) -> None:
    """The tensors are exactly those of `config`. Raises InputError that names those that are not."""
    blocks = {match[1] for name in found if (match := BLOCK.match(name))}
    if len(blocks) != config.n_layer:
        raise InputError(
            f"{folder / CONFIG}: n_layer is {config.n_layer}", f"the weights have {len(blocks)} blocks"
        )
    shared = {HEAD} & found.keys() if config.tie_word_embeddings else set()
    require_tensors(
        folder,
        stored_shapes(config),
        {name: stored.shape for name, stored in found.items() if name not in shared},
    )
    for name, stored in found.items():
        if stored.dtype not in FLOATING:
            kind = str(stored.dtype).removeprefix("torch.")
            raise InputError(f"{stored.file}: {name} is of type {kind}", "floating-point numbers are needed")
    if shared and not same_bits(found[HEAD].read(), found[EMBEDDING].read()):
        raise InputError(
            f"{found[HEAD].file}: {HEAD} is not {EMBEDDING}",
            f"{CONFIG} says that one matrix reads and writes",
            f'if the head was trained apart: "tie_word_embeddings": false in {CONFIG}',
        )


def unread_weights(path: Path | str, folder: Path | str, fetch: str = "") -> InputError:
    """The refusal of TensorFlow's or Flax's weights at `path`, with the line of Python that makes
    safetensors of them in `folder`, after the command `fetch`.
    """
    name = Path(path).name
    place, file = json.dumps(str(folder)), json.dumps(f"{folder}/{name}")
    whose, package, module, function = OTHERS[name]
    code = (
        "from transformers import GPT2Config, GPT2LMHeadModel as M; from"
        f" transformers.modeling_{module}_pytorch_utils import"
        f" load_{function}_checkpoint_in_pytorch_model as f;"
        f" m = M(GPT2Config.from_pretrained({place})); f(m, {file}); m.save_pretrained({place})"
    )
    return InputError(
        f"{path}: these are weights of {whose}, which are not read",
        "transformers reads them until version 4, and makes safetensors of them; in an environment of its"
        f" own: pip install torch 'transformers<5' {package}",
        (f"{fetch} && " if fetch else "") + shlex.join(["python", "-c", code]),
    )
