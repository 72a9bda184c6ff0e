"""Format detection: a file or folder, recognised by its content and opened as a ForeignModel.

Names are only a hint: a checkpoint may be called anything. Each format has a file of its own.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2cli.checkpoints.folder import CONFIG, EMBEDDING
from gpt2cli.convert.foreign_model import ForeignModel
from gpt2cli.convert.hf_folder import PLACES, open_hugging_face
from gpt2cli.convert.llms_from_scratch import is_llms_from_scratch, llms_from_scratch_source
from gpt2cli.convert.merge_lora import open_adapter
from gpt2cli.convert.nanogpt import is_nanogpt, nanogpt_source
from gpt2cli.convert.openai_checkpoint import open_openai
from gpt2cli.convert.state_dict import strip_prefix
from gpt2cli.convert.torch_file import is_torch_file, read_torch_file
from gpt2cli.convert.zip_folder import unpacked
from gpt2cli.errors import Gpt2Error, InputError, UsageError
from gpt2cli.files import open_regular
from gpt2cli.paths import best_checkpoint, is_adapter, is_run

KNOWN = (
    "OpenAI's TensorFlow files, a Hugging Face folder, nanoGPT's ckpt.pt, a .pth of LLMs-from-scratch,"
    " a run or folder of gpt2cli, or a zip of one of them"
)
_MAX_DEPTH = 3  # folders in folders; Kaggle's downloads need two
_OPENAI_INDEX, _OPENAI_SIZES = "model.ckpt.index", "hparams.json"
_PICKLES = (".pt", ".pth")
# Files that are one part of a model, which is recognised by its folder.
_PARTS = (CONFIG, _OPENAI_SIZES, "encoder.json", "vocab.bpe", "vocab.json", "merges.txt", "checkpoint")
_PREFIXES = ("model.ckpt", "model.safetensors", "pytorch_model")
_ZIP, _EMPTY_ZIP, _GGUF = b"PK\x03\x04", b"PK\x05\x06", b"GGUF"


# A model in a folder, and how it is opened.
Found = tuple[Path, Callable[[Path], AbstractContextManager[ForeignModel]]]


@contextlib.contextmanager
def open_foreign(path: Path, *, n_head: int | None = None, merge: bool = False) -> Iterator[ForeignModel]:
    """The model at `path`, whatever its format. `n_head` is for formats that do not store it; an
    adapter needs `merge`, which adds it into its base.

    Raises InputError if there is no known model, or several, or it is damaged;
    UsageError for an adapter alone.
    """
    adapter = _adapter_at(path)
    if adapter and not merge:
        raise UsageError(
            f"{path}: is an adapter, which has no weights of its own",
            "merged into its base it is a whole model",
            f"gpt2 convert {path} --merge",
        )
    opening: AbstractContextManager[ForeignModel]
    if adapter:
        opening = open_adapter(adapter)
    else:
        opening = _open_folder(path, n_head) if path.is_dir() else _open_file(path, n_head)
    with opening as source:
        yield source


def _adapter_at(path: Path) -> Path | None:
    folder = best_checkpoint(path) if is_run(path) else path
    return folder if is_adapter(folder) else None


def _open_file(path: Path, n_head: int | None) -> AbstractContextManager[ForeignModel]:
    with open_regular(path) as file:
        start = file.peek(16)
        pickled = is_torch_file(path, file)
    if pickled:
        return _open_pickled(path, n_head)
    if start.startswith((_ZIP, _EMPTY_ZIP)):
        return _open_zip(path, n_head)
    if start.startswith(_GGUF):
        raise InputError(
            f"{path}: is a GGUF file",
            "GGUF is an export only: its numbers may have been rounded",
            "convert the model that it was made from",
        )
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32:  # safetensors
        return _open_beside(path)
    if start.startswith(b"\x80"):
        raise InputError(
            f"{path}: is a pickle that torch.save did not write",
            "such a file can run any code when it is opened, so it is not",
            "where it was made: torch.save(model.state_dict(), 'weights.pt')",
        )
    if path.name in _PARTS or path.name.startswith(_PREFIXES):
        raise InputError(
            f"{path}: is one part of a model", "its folder is needed whole", f"gpt2 convert {path.parent}"
        )
    raise InputError(
        f"{path}: is not a known model format",
        f"it begins with {start[:8].hex(' ') or 'nothing'}; known are {KNOWN}",
        "gpt2 convert --help",
    )


def _open_pickled(path: Path, n_head: int | None) -> AbstractContextManager[ForeignModel]:
    loaded = read_torch_file(path)
    if is_nanogpt(loaded):
        return nanogpt_source(path, loaded, n_head)
    if is_llms_from_scratch(loaded):
        return llms_from_scratch_source(path, loaded, n_head)
    if _has_hugging_face_names(loaded):
        del loaded
        return _open_beside(path)
    names = [str(name)[:60] for name in loaded][:6] if isinstance(loaded, dict) else []
    raise InputError(
        f"{path}: torch.save wrote it, but not as a GPT-2",
        f"it holds {', '.join(names) if names else f'a {type(loaded).__name__}'}; known are nanoGPT's and"
        " LLMs-from-scratch's checkpoints, and Hugging Face's in their folder",
    )


def _has_hugging_face_names(loaded: Any) -> bool:
    names = (
        {strip_prefix(name) for name in loaded if isinstance(name, str)}
        if isinstance(loaded, dict)
        else set()
    )
    return EMBEDDING in names or EMBEDDING.removeprefix("transformer.") in names


def _open_beside(path: Path) -> AbstractContextManager[ForeignModel]:
    """A Hugging Face weights file: config.json beside it says what it is."""
    if path.name.startswith(_PREFIXES) and (path.parent / CONFIG).is_file():
        return open_hugging_face(path.parent)
    raise InputError(
        f"{path}: holds weights under Hugging Face's names, without the rest of their folder",
        f"sizes and the number of heads are in {CONFIG}, which belongs beside a model.safetensors or a"
        " pytorch_model.bin",
        "put both into one folder, then: gpt2 convert FOLDER",
    )


@contextlib.contextmanager
def _open_zip(path: Path, n_head: int | None) -> Iterator[ForeignModel]:
    """The model in the zip, unpacked while the block lasts; errors name the zip."""
    with unpacked(path) as folder:
        try:
            with _open_folder(folder, n_head, zipped=path) as source:
                yield replace(source, path=path, files=(path, *source.files))
        except Gpt2Error as error:
            what, why, fix = (
                text.replace(str(folder), str(path)) for text in (error.what, error.why, error.fix)
            )
            raise type(error)(what, why, fix) from None


def _open_folder(
    folder: Path, n_head: int | None, zipped: Path | None = None
) -> AbstractContextManager[ForeignModel]:
    if is_run(folder):
        return open_hugging_face(best_checkpoint(folder))
    found = _models(folder, n_head)
    if not found:
        raise InputError(f"{folder}: holds no known model", f"known are {KNOWN}", f"ls {folder}")
    if len(found) > 1:
        names = sorted(str(model.relative_to(folder)) for model, _ in found)
        place = "FOLDER" if zipped else str(folder)
        raise InputError(
            f"{folder}: holds several models",
            ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else ""),
            (f"unzip {zipped} -d FOLDER, then " if zipped else "") + f"gpt2 convert {place}/{names[0]}",
        )
    ((model, open_model),) = found
    return open_model(model)


def _models(folder: Path, n_head: int | None) -> list[Found]:
    """The models in `folder`, at most three levels below it; nothing is looked for inside a model."""
    found: list[Found] = []
    level = [folder]
    for _ in range(_MAX_DEPTH + 1):
        below: list[Path] = []
        for place in level:
            here = _models_here(place, n_head)
            found += here
            if not here:
                below += [
                    path
                    for path in place.iterdir()
                    if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
                ]
        level = below
    return found


def _models_here(folder: Path, n_head: int | None) -> list[Found]:
    """The model whose files lie in `folder` itself, or several checkpoints that do."""
    if (folder / _OPENAI_INDEX).is_file():
        return [(folder, open_openai)]
    if any((folder / name).is_file() for name in (CONFIG, *PLACES)):
        return [(folder, open_hugging_face)]
    if (folder / _OPENAI_SIZES).is_file():
        return [(folder, open_openai)]
    pickles = [path for path in folder.iterdir() if path.suffix in _PICKLES and path.is_file()]
    return [(path, lambda path: _open_pickled(path, n_head)) for path in pickles]
