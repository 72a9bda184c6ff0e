"""Format detection: a file or folder, recognised by its content and opened as a ForeignModel.

Names are only a hint: a checkpoint may be called anything. Each format has a file of its own.
"""

import contextlib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2cli.checkpoints.folder import CONFIG
from gpt2cli.checkpoints.safetensors_file import open_tensors, read_tensors
from gpt2cli.convert import llm_c, llms_from_scratch, nanogpt
from gpt2cli.convert.foreign_model import ForeignModel, fold_scales
from gpt2cli.convert.hf_folder import OTHERS, PLACES, open_hugging_face, unread_weights
from gpt2cli.convert.merge_lora import open_adapter
from gpt2cli.convert.openai_checkpoint import open_openai
from gpt2cli.convert.state_dict import HUGGING_FACE, StateDictFormat, open_bare
from gpt2cli.convert.torch_file import is_torch_file, read_torch_file
from gpt2cli.convert.unwrap_checkpoint import bare_names, unwrap_table
from gpt2cli.convert.zip_folder import unpacked
from gpt2cli.errors import Gpt2Error, InputError, UsageError
from gpt2cli.files import open_regular
from gpt2cli.paths import best_checkpoint, is_adapter, is_run

KNOWN = (
    "OpenAI's TensorFlow files, a Hugging Face folder, nanoGPT's ckpt.pt, LLMs-from-scratch's .pth or"
    " .safetensors, llm.c's model .bin, a run or folder of gpt2cli, or a zip of one of them"
)
_MAX_DEPTH = 3  # folders in folders; Kaggle's downloads need two
_OPENAI_INDEX, _OPENAI_SIZES = "model.ckpt.index", "hparams.json"
_STATE_DICTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
# What training programs save beside a model.
_BESIDE = re.compile(
    r"(?:adapter_|optimizer|scheduler|scaler|rng_state|training_args|train_state|state_).*|.*optim_states.*"
)
# DeepSpeed's folder of weights, as its own trainers and accelerate call it, inside of that with the config.
_DEEPSPEED = re.compile(r"global_step\d+|pytorch_model")
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.\w+")
_STEP = re.compile(r".*[-_=](\d+)(?:\.\w+)?")  # of checkpoint-500, or model_00000500.bin
# Files that are one part of a model, which is recognised by its folder.
_PARTS = (CONFIG, _OPENAI_SIZES, "encoder.json", "vocab.bpe", "vocab.json", "merges.txt", "checkpoint")
_PREFIXES = ("model.ckpt", "model.safetensors.", "pytorch_model.bin.")
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
        yield fold_scales(source)  # after an adapter was added


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
    if llm_c.is_llm_c(start):
        return llm_c.open_llm_c(path)
    if path.name in OTHERS:
        raise unread_weights(path, path.parent)
    if _is_safetensors(start):
        with open_tensors(path) as tensors:
            shapes = {name: entry.shape for name, entry in tensors.entries.items()}
        return _open_state_dict(path, shapes, lambda: read_tensors(path), n_head)
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
        f"gpt2 pretrain gpt2-mini data.source={path}" if path.suffix == ".txt" else "gpt2 convert --help",
    )


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32


def _open_pickled(path: Path, n_head: int | None) -> AbstractContextManager[ForeignModel]:
    loaded = read_torch_file(path)
    if nanogpt.is_nanogpt(loaded):
        return nanogpt.nanogpt_source(path, loaded)
    state = unwrap_table(loaded)
    if "_parameters" in getattr(state, "__dict__", ()):
        raise InputError(
            f"{path}: is a whole module, of a class that is not known here",
            "its code belongs to it, and is not run",
            "where it was made: torch.save(model.state_dict(), 'weights.pt')",
        )
    if not isinstance(state, Mapping):
        raise _unknown(path, f"a {type(state).__name__}")
    shapes = {str(name): tuple(tensor.shape) for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not shapes:
        raise _unknown(path, _some(state))
    if "ds_version" in loaded and any(0 in shape for shape in shapes.values()):
        place = path.parent.parent
        raise InputError(
            f"{path}: is one part of a checkpoint of DeepSpeed's ZeRO stage 3",
            "each process has saved its own part of every tensor; DeepSpeed's script beside it joins them",
            shlex.join(["python", f"{place}/zero_to_fp32.py", str(place), f"{place}/joined"])
            + f" && {shlex.join(['gpt2', 'convert', f'{place}/joined'])}",
        )
    return _open_state_dict(path, shapes, lambda: state, n_head)


def _open_state_dict(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    load: Callable[[], Mapping[str, Any]],
    n_head: int | None,
) -> AbstractContextManager[ForeignModel]:
    """Tensors by name: whose names they are, and what else is known of the model."""
    folder = path.parent.parent if _DEEPSPEED.fullmatch(path.parent.name) else path.parent
    has_config = (folder / CONFIG).is_file()
    if _SHARD.fullmatch(path.name) and has_config:
        return open_hugging_face(folder)
    names = bare_names(path, shapes)
    layout = _layout_of({name: shapes[original] for name, original in names.items()})
    if layout is None:
        raise _unknown(path, _some(shapes))
    if layout is HUGGING_FACE and has_config:
        return open_hugging_face(folder, str(path.relative_to(folder)))
    return open_bare(path, layout, load(), n_head, list(_ASSUMED[layout.format]))


# What is not in a state dict, and is taken to be so.
_ASSUMED = {
    HUGGING_FACE.format: (f"no {CONFIG} is beside the file: GPT-2's tanh GELU and epsilon are assumed",),
    nanogpt.LAYOUT.format: (nanogpt.GELU_NOTE,),
    llms_from_scratch.LAYOUT.format: (),
}


def _layout_of(shapes: Mapping[str, tuple[int, ...]]) -> StateDictFormat | None:
    """The format with these bare names. nanoGPT's are Hugging Face's; only their matrices differ."""
    if llms_from_scratch.TOKENS in shapes:
        return llms_from_scratch.LAYOUT
    match shapes.get("transformer.h.0.attn.c_attn.weight"):
        case (rows, columns) if rows == 3 * columns:
            return nanogpt.LAYOUT
        case (rows, columns) if columns == 3 * rows:
            return HUGGING_FACE
    return None


def _unknown(path: Path, holds: str) -> InputError:
    return InputError(
        f"{path}: torch or safetensors wrote it, but not as a GPT-2",
        f"it holds {holds}; known are the names of Hugging Face, nanoGPT and LLMs-from-scratch",
        f"gpt2 pretrain gpt2-mini data.source={path}" if path.suffix == ".txt" else "gpt2 convert --help",
    )


def _some(names: Iterable[Any]) -> str:
    return ", ".join([str(name)[:60] for name in names][:6]) or "nothing"


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
    if not found and any((folder / name).is_file() for name in (CONFIG, *OTHERS)):
        return open_hugging_face(folder)  # which says what is missing
    if not found and (parts := next(folder.glob("**/*.distcp"), None)):
        joined = f"{folder}.pt"
        module = "torch.distributed.checkpoint.format_utils"
        raise InputError(
            f"{parts.parent}: is a checkpoint of torch.distributed, in parts",
            "torch itself joins them",
            shlex.join(["python", "-m", module, "dcp_to_torch", str(parts.parent), joined])
            + f" && {shlex.join(['gpt2', 'convert', joined])}",
        )
    if not found:
        raise InputError(f"{folder}: holds no known model", f"known are {KNOWN}", f"ls {folder}")
    if len(found) > 1:
        names = _newest_first([str(model.relative_to(folder)) for model, _ in found])
        place = "FOLDER" if zipped else str(folder)
        raise InputError(
            f"{folder}: holds several models",
            ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else ""),
            (f"unzip {zipped} -d FOLDER, then " if zipped else "") + f"gpt2 convert {place}/{names[0]}",
        )
    ((model, open_model),) = found
    return open_model(model)


def _newest_first(names: list[str]) -> list[str]:
    """Checkpoints by their step, the last one first; other names by the alphabet."""
    steps = {name: int(match[1]) for name in names if (match := _STEP.fullmatch(name))}
    if len(steps) < len(names):
        return sorted(names)
    return sorted(names, key=lambda name: -steps[name])


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
    weights = [folder / name for name in PLACES if (folder / name).is_file()]
    if weights and ((folder / CONFIG).is_file() or weights[0].suffix == ".json"):
        return [(folder, open_hugging_face)]
    if (folder / _OPENAI_SIZES).is_file():
        return [(folder, open_openai)]
    files = weights[:1] or [path for path in folder.iterdir() if _is_state_dict(path)]
    return [(path, lambda path: _open_file(path, n_head)) for path in files]


def _is_state_dict(path: Path) -> bool:
    """Whether it may be a model's file, by its name; anything may be called .bin, so by its content too."""
    if path.suffix not in _STATE_DICTS or _BESIDE.fullmatch(path.name) or not path.is_file():
        return False
    if path.suffix != ".bin":
        return True
    with open_regular(path) as file:
        start = file.peek(4)
    return llm_c.is_llm_c(start) or start.startswith((_ZIP, b"\x80\x02"))
