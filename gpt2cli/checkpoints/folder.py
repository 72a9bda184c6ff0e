"""The model folder: a Hugging Face GPT-2 folder with a manifest that lists the hash of each file.

`config.json`, `model.safetensors` with Hugging Face's names and (in, out) matrices, tokenizer
files, `recipe.yaml`, and `manifest.json` with the SHA-256 of each file, written last.
transformers opens every folder written here; a folder without a manifest comes from another
program and is read without that check. The training state next to the model is in `training/train_state.py`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt2cli import __version__, paths
from gpt2cli.checkpoints.hf_config import read_gpt2_config
from gpt2cli.checkpoints.safetensors_bytes import require_sha256
from gpt2cli.checkpoints.safetensors_file import read_tensors, write_tensors
from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of, write_file, write_json
from gpt2cli.json_files import read_json_object, read_own_json
from gpt2cli.model.config import GPT2Config, to_hugging_face
from gpt2cli.model.gpt2 import GPT2Classifier, GPT2LMHead, empty_model
from gpt2cli.paths import is_adapter
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import BPE
from gpt2cli.tokenizer.files import COPY, load_tokenizer, save_generation_config, save_tokenizer

CONFIG, WEIGHTS, MANIFEST, RECIPE = "config.json", "model.safetensors", paths.MANIFEST, paths.RECIPE
FORMAT = 1
# Hugging Face keeps GPT-2's original Conv1D layout, (in, out); nn.Linear holds (out, in). The four
# matrices of each block are named here and nowhere else. attn.c_proj is square: stored untransposed
# it loads without an error and computes nonsense.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
EMBEDDING = "transformer.wte.weight"
# Embeddings are made larger than the vocabulary because such sizes multiply faster (nanoGPT: 50304).
PADDED_TO = (8, 16, 32, 64, 128, 256, 512, 1024)
HEAD = "lm_head.weight"  # the token embedding under its second name where they are tied; not stored then
# The causal mask, which transformers stored with the weights until version 4.30.
MASKS = re.compile(r"(?:transformer\.)?h\.\d+\.attn\.(?:bias|masked_bias)")
SECOND_HEAD = re.compile(r"(v_head|multiple_choice_head)\.")  # trl's, and GPT2DoubleHeadsModel's
_WRAPPED = re.compile(r"(?!transformer\.).+\.(?:transformer|wte)\.")


@dataclass(frozen=True)
class LoadedModel:
    model: GPT2LMHead
    tokenizer: Tokenizer
    folder: Path

    @property
    def config(self) -> GPT2Config:
        return self.model.config


def write_model(folder: Path, model: GPT2LMHead, tokenizer: Tokenizer, recipe: str) -> dict[str, str]:
    """Write the model's files into an existing folder; returns {file name: SHA-256}.

    The caller completes it: add what else belongs in the folder, then `write_manifest`.
    """
    state = model.state_dict()
    tensors = {name: transposed(name, state[name]) for name in stored_shapes(model.config)}
    hashes = {WEIGHTS: write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})}
    write_json(folder / CONFIG, to_hugging_face(model.config) | tokenizer.special.as_config())
    write_file(folder / RECIPE, recipe)
    names = [CONFIG, RECIPE, *save_tokenizer(tokenizer, folder), save_generation_config(tokenizer, folder)]
    return hashes | {name: sha256_of(folder / name) for name in names}


def stored_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """The tensors of the weights file, in its order: Hugging Face's names and (in, out) shapes."""
    return stored_shapes_of(empty_model(config))


def stored_shapes_of(model: GPT2LMHead | GPT2Classifier) -> dict[str, tuple[int, ...]]:
    """As `stored_shapes`, for an existing model."""
    shapes = {name: tuple(transposed(name, tensor).shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        shapes.pop(HEAD, None)
    return shapes


def transposed(name: str, tensor: Tensor) -> Tensor:
    """A matrix of a block in its other layout, (in, out) or (out, in); any other tensor as it is."""
    return tensor.T if name.endswith(TRANSPOSED) else tensor


def write_manifest(folder: Path, hashes: dict[str, str]) -> None:
    """Write the folder's last file: the size and SHA-256 of each of the others."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256}
        for name, sha256 in sorted(hashes.items())
    }
    write_json(folder / MANIFEST, {"format": FORMAT, "written_by": f"gpt2cli {__version__}", "files": files})


def load_model(
    folder: Path, *, attention: str = "sdpa", dropout: float | None = None, remembered: bool = False
) -> LoadedModel:
    """Load and verify a language model, in fp32 and evaluation mode, on the CPU.

    The transposed matrices are views of what was read: training makes them contiguous first.
    `dropout` replaces the folder's rate, for training. With `remembered`, for generation, weights
    that were hashed before and not touched since are not hashed again.
    Raises InputError if a file is missing, damaged or fits the others badly, and for an adapter,
    whose folder `open_model.py` takes too.
    """
    config = read_config(folder)
    if dropout is not None:
        config = config.with_dropout(dropout)
    hashes = verify_texts(folder)
    tokenizer = load_tokenizer(folder)
    require_matching_vocabulary(folder, tokenizer, config.vocab_size)
    require_weights(folder)
    tensors = read_tensors(folder / WEIGHTS, hashes.get(WEIGHTS), remembered=remembered)
    return LoadedModel(build_model(folder / WEIGHTS, config, tensors, attention), tokenizer, folder)


def build_model(
    path: Path, config: GPT2Config, tensors: dict[str, Tensor], attention: str = "sdpa"
) -> GPT2LMHead:
    """A model in fp32 and evaluation mode with tensors of Hugging Face's names and layout.

    `path` is where they come from. Raises InputError if they are not those of `config`.
    """
    model = empty_model(config, attention)
    model.load_state_dict(_as_modules(path, tensors, model), assign=True)
    model.tie()
    return model.eval()


def read_config(folder: Path) -> GPT2Config:
    """The config of a language model's folder, without its weights."""
    if is_adapter(folder):
        raise InputError(
            f"{folder}: is an adapter, which has no weights of its own",
            "a whole model is needed here",
            f"gpt2 convert {folder} --merge, and take the result",
        )
    read_manifest(folder)  # a later format may have another config
    return read_gpt2_config(folder / CONFIG, folder)


def require_weights(folder: Path) -> None:
    """The weights are in the one form that is loaded. Raises InputError with the command that makes it."""
    if not os.path.lexists(folder / WEIGHTS):
        raise InputError(
            f"{folder}: there is no {WEIGHTS}",
            "weights in another form must be converted first",
            f"gpt2 convert {folder}",
        )


def require_stored(
    path: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """The weights file at `path` has just the wanted tensors, by {name: shape}. A head that is tied may be
    there for a second time.

    Raises InputError, with the command that helps where it is only an older program's file.
    """
    n_masks = sum(MASKS.fullmatch(name) is not None for name in found)
    older = ['its names lack "transformer."'] if "wte.weight" in found else []
    older += [f"{n_masks} causal masks are among its tensors"] if n_masks else []
    older += ["a second head is among its tensors"] if any(map(SECOND_HEAD.match, found)) else []
    older += ["its names have a wrapper's before them"] if any(map(_WRAPPED.match, found)) else []
    older += [f"the embedding is under the name {HEAD}"] if HEAD in found and EMBEDDING not in found else []
    if older:
        raise InputError(
            f"{path}: {', and '.join(older)}", "other programs save it so", f"gpt2 convert {path.parent}"
        )
    tied = {HEAD: wanted[EMBEDDING]} if HEAD in found else {}
    require_tensors(path, {**tied, **wanted}, found)


def require_tensors(
    path: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Every wanted tensor is there in its shape, and no other is. Names are the source's own.

    Raises InputError that names the tensors and both shapes.
    """
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    if missing or extra:
        lists = [
            f"{label}: {', '.join(f'{name} {list(shapes[name])}' for name in names[:4])}"
            + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            for label, names, shapes in (("missing", missing, wanted), ("unknown", extra, found))
            if names
        ]
        raise InputError(f"{path}: the tensors are not those of a GPT-2", "; ".join(lists))
    for name, shape in wanted.items():
        if tuple(found[name]) != tuple(shape):
            turned = tuple(found[name]) == tuple(reversed(shape)) and len(shape) > 1
            raise InputError(
                f"{path}: {name} has shape {list(found[name])}",
                f"{list(shape)} is needed" + ("; it is stored transposed" if turned else ""),
            )


def require_matching_vocabulary(
    where: Path | str, tokenizer: Tokenizer, n_rows: int, fix: str = COPY
) -> None:
    """The tokenizer has one token per row of the embedding. Raises InputError about the model at `where`."""
    n_tokens = tokenizer.n_vocab
    if n_tokens == n_rows:
        return
    why = "they were not made for each other"
    can_convert = fix == COPY and isinstance(where, Path)
    if can_convert and isinstance(tokenizer, BPE) and tokenizer.with_rows(n_rows)[1]:
        why, fix = "added tokens without a row are left out by a conversion", f"gpt2 convert {where}"
    elif n_tokens < n_rows:
        why += ", or rows are padding, which would be generated as tokens without text"
        if can_convert and fits_rows(n_tokens, n_rows):
            why = f"{n_rows - n_tokens} rows up to a round number are padding, which a conversion cuts off"
            fix = f"gpt2 convert {where}"
        else:
            fix += f"; to remove padding, in transformers: model.resize_token_embeddings({n_tokens})"
    raise InputError(f"{where}: the tokenizer has {n_tokens} tokens, the model {n_rows}", why, fix)


def fits_rows(n_tokens: int, n_rows: int) -> bool:
    """Whether an embedding of `n_rows` is that of `n_tokens`, alone or padded to a round number."""
    return n_rows == n_tokens or n_rows in {-(-n_tokens // step) * step for step in PADDED_TO}


def read_manifest(folder: Path) -> dict[str, str]:
    """{file name: SHA-256}; empty for a folder from another program.

    Raises NewerFormatError for a later version's, InputError for a damaged one.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    manifest = read_own_json(path, FORMAT)
    try:
        return {name: str(entry["sha256"]) for name, entry in manifest["files"].items()}
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"{path}: is not a manifest of a model folder") from None


def drop_from_manifest(folder: Path, name: str) -> None:
    """List the file no more: the folder is whole without it. Raises as `read_manifest`."""
    read_manifest(folder)
    manifest = read_json_object(folder / MANIFEST)
    manifest["files"].pop(name, None)
    write_json(folder / MANIFEST, manifest)


def verify(folder: Path) -> None:
    """Check every file against the manifest. Raises InputError for the first that differs, and as
    `read_manifest`.
    """
    hashes = read_manifest(folder)
    if not hashes:
        raise InputError(f"{folder}: has no manifest", "the save that made it was not finished")
    for name, sha256 in hashes.items():
        require_sha256(folder / name, sha256_of(folder / name), sha256)


def verify_texts(folder: Path) -> dict[str, str]:
    """Check the model's small files against the manifest, which is returned. Raises InputError."""
    hashes = read_manifest(folder)
    for name, sha256 in hashes.items():
        if name.endswith((".json", ".txt")) and not name.startswith("train_state"):
            require_sha256(folder / name, sha256_of(folder / name), sha256)
    return hashes


def _as_modules(path: Path, tensors: dict[str, Tensor], model: GPT2LMHead) -> dict[str, Tensor]:
    """Hugging Face's tensors as this model's state dict; every name and shape accounted for."""
    config, stored = model.config, dict(tensors)
    require_stored(path, stored_shapes_of(model), {name: tuple(t.shape) for name, t in stored.items()})
    if config.tie_word_embeddings and HEAD in stored:
        head, embedding = stored.pop(HEAD), stored[EMBEDDING]
        if not torch.equal(head, embedding):
            raise InputError(f"{path}: {HEAD} is not {EMBEDDING}", "config.json says that they are tied")
    # Transposed by their strides alone: a copy would cost a third of the time that reading costs.
    found = {name: transposed(name, tensor.to(torch.float32)) for name, tensor in stored.items()}
    return found | ({HEAD: found[EMBEDDING]} if config.tie_word_embeddings else {})
