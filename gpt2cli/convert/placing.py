"""Owns where a converted model goes: which name it gets, what it may replace, whether there is room.

Nothing is written here, and nothing replaced; `disk.py` does that.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from gpt2cli import files, paths
from gpt2cli.checkpoints.folder import CONFIG, MANIFEST, RECEIPT, RECIPE, WEIGHTS, read_manifest
from gpt2cli.checkpoints.template_file import TEMPLATE_FILE
from gpt2cli.convert.openai_checkpoint import FIELDS, HPARAMS, PREFIX
from gpt2cli.errors import InputError, ResourceError, UsageError
from gpt2cli.model.config import PRESETS, GPT2Config, from_hugging_face
from gpt2cli.tokenizer.bpe import read_table
from gpt2cli.tokenizer.files import CONFIG as TOKENIZER_CONFIG
from gpt2cli.tokenizer.files import PAIRS, TOKENIZER_JSON

# Names of what a model folder holds. A folder with anything else in it is not replaced.
_OURS = {
    *(CONFIG, WEIGHTS, MANIFEST, RECEIPT, RECIPE, TEMPLATE_FILE, "generation_config.json"),
    *(TOKENIZER_JSON, TOKENIZER_CONFIG, *PAIRS[0], "special_tokens_map.json", "added_tokens.json"),
}
_INDEX = f"{PREFIX}.index"
_OPENAI = {
    *("checkpoint", _INDEX, f"{PREFIX}.data-00000-of-00001", f"{PREFIX}.meta"),
    *(HPARAMS, *PAIRS[1], RECEIPT),
}
_FOLDERS = {"folder": (_OURS, (WEIGHTS,)), "tensorflow": (_OURS | _OPENAI, (WEIGHTS, _INDEX))}
_TRAINING = "train_state"  # begins the names of what a resume needs
_RECORD = "run.json"
_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}  # a parameter; in q8_0 32 share a scale


def check_place(path: Path, out: Path, to: str, *, force: bool) -> Path:
    """The place that `out` means, behind any link; before any work, free or replaceable, and writable.

    Raises UsageError where something is in the way, ResourceError where nothing can be written.
    """
    place = files.place_of(out)
    source, target = (Path(os.path.realpath(one)) for one in (path, place))
    if source == target or source in target.parents or target in source.parents:
        raise UsageError(
            f"{out}: is the source itself, or one lies inside the other", "", "choose another --out"
        )
    if run := _run_around(target):
        raise UsageError(
            f"{out}: lies among the checkpoints of the run {run.name}",
            "they are what it is resumed from",
            "choose another --out",
        )
    if to in _FOLDERS:
        files.recover(place)
    if os.path.lexists(place):
        _check_kind(out, place, to)
        if not force:
            raise UsageError(
                f"{out}: exists already", "", "add --force to replace it, or choose another --out"
            )
        if to in _FOLDERS and (reason := _reason_to_keep(place, to)):
            raise UsageError(
                f"{out}: is a folder that holds something else than a model",
                f"{reason}; --force would delete all of it",
                "choose another --out",
            )
    files.require_writable(place.parent)
    return place


def check_room(out: Path, config: GPT2Config, dtype: str) -> None:
    """Raise ResourceError where the disk cannot take the converted model."""
    needed = int(config.n_parameters * _BYTES[dtype] * 1.01) + (4 << 20)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise ResourceError(
            f"{out}: {needed:,} bytes are needed and {free:,} are free",
            "the disk has no room for the converted model",
            "free some space, or choose another --out",
        )


def default_name(path: Path) -> str:
    """What a model made from `path` is called: as its source is, or the run that its source is in.

    Only what has the numbers of one of OpenAI's models gets the name of one, and no run of ours.
    """
    path = Path(os.path.realpath(path))
    if path.parent.name == paths.CHECKPOINTS:
        path = path.parent.parent  # the run's name says more than the step's
    # A leading dot would hide it.
    name = (path.name if path.is_dir() else path.stem).lstrip(".") or "model"
    size = paths.canonical_size(name)
    if size is None or _has_numbers_of(path, size):  # a run's own folder has no numbers
        return name
    return f"{name}-converted"


def _run_around(target: Path) -> Path | None:
    """The run among whose checkpoints `target` lies or would lie."""
    for parent in target.parents:
        run = parent.parent
        if parent.name == paths.CHECKPOINTS and ((run / _RECORD).exists() or paths.checkpoints(run)):
            return run
    return None


def _check_kind(out: Path, place: Path, to: str) -> None:
    """A folder takes the place of a folder, a file of a file."""
    wanted, found = "a folder" if to in _FOLDERS else "a file", "neither a file nor a folder"
    if place.is_dir():
        found = "a folder"
    elif place.is_file():
        found = "a file"
    if found != wanted:
        raise UsageError(f"{out}: is {found}", f"--to {to} makes {wanted}", "choose another --out")


def _reason_to_keep(folder: Path, to: str) -> str:
    """Why a folder is not to be deleted; "" where it is empty, or a model and nothing else."""
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return ""
    if paths.is_run(folder) or _RECORD in names:
        return "it is the folder of a run"
    if any(name.startswith(_TRAINING) for name in names):
        return "it is a checkpoint from which a training can be resumed"
    known, weights = _FOLDERS[to]
    strangers = [name for name in names if name not in known or not (folder / name).is_file()]
    if MANIFEST in names:
        try:
            listed = read_manifest(folder)
        except InputError as error:
            return error.what
        if WEIGHTS not in listed:
            return f"its {MANIFEST} is not that of a model"
        strangers = [name for name in strangers if name not in listed or not (folder / name).is_file()]
    if strangers:
        return f"{', '.join(strangers[:3])} is none of a model's files"
    if not any(name in names for name in weights):
        return f"there is no {' or '.join(weights)} in it"
    return ""


def _has_numbers_of(folder: Path, size: str) -> bool:
    """Whether a folder says in OpenAI's way, or in Hugging Face's, that it holds a model of this size."""
    preset = PRESETS[size]
    try:
        if (folder / HPARAMS).is_file():
            numbers = read_table(folder / HPARAMS)
            return all(numbers.get(theirs) == getattr(preset, ours) for ours, theirs in FIELDS.items())
        config = from_hugging_face(read_table(folder / CONFIG))
    except InputError:
        return False
    return replace(config, dropout=preset.dropout) == preset
