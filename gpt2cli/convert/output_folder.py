"""The place of a converted model: its name, what it may replace, and whether there is room.

A folder is replaced only if it is empty, or if gpt2 wrote everything in it.
"""

import os
import shlex
from pathlib import Path

from gpt2cli import files, paths
from gpt2cli.checkpoints.folder import CONFIG, MANIFEST, WEIGHTS, read_manifest
from gpt2cli.checkpoints.provenance import RECEIPT, RECEIPT_FORMAT
from gpt2cli.convert.kept_files import MODEL_CARD
from gpt2cli.convert.openai_checkpoint import HPARAMS, PREFIX, read_hparams
from gpt2cli.disk_space import require_room
from gpt2cli.errors import InputError, UsageError
from gpt2cli.json_files import read_json_object, read_own_json
from gpt2cli.model.config import GPT2Config, from_hugging_face, size_of

_FOLDERS = ("folder", "tensorflow")  # targets that are folders
_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}  # a parameter; in q8_0 32 share a scale


def check_place(path: Path, out: Path, to: str, *, force: bool) -> Path:
    """Resolve links in `out`; check that it is free or replaceable, and writable.

    Raises UsageError if something is in the way, ResourceError if nothing can be written.
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
    if place.exists():
        kinds = {True: "a folder", False: "a file"}
        if place.is_dir() != (to in _FOLDERS):
            makes = f"--to {to} makes {kinds[to in _FOLDERS]}"
            raise UsageError(f"{out}: is {kinds[place.is_dir()]}", makes, "choose another --out")
        if not force:
            raise UsageError(
                f"{out}: exists already", "", "add --force to replace it, or choose another --out"
            )
        if to in _FOLDERS and (reason := _reason_to_keep(place)):
            raise UsageError(
                f"{out}: --force does not replace this folder",
                f"{reason}; all of it would be deleted",
                shlex.join(["mv", str(out), f"{out}.old"]),
            )
    is_in_home = paths.has_home() and paths.gpt2_home() in place.parents
    (paths.require_writable_home if is_in_home else files.require_writable)(place.parent)
    return place


def check_room(out: Path, config: GPT2Config, dtype: str) -> None:
    """Raise ResourceError if the disk cannot take the converted model."""
    require_room(out, model_bytes(config, dtype), "free some space, or choose another --out")


def model_bytes(config: GPT2Config, dtype: str = "f32") -> int:
    """About the size of a converted model, tokenizer included."""
    return int(config.n_parameters * _BYTES[dtype] * 1.01) + (4 << 20)


def default_name(path: Path) -> str:
    """The name of a model made from `path`: that of its source, or of the run around it.

    Only a model of the same shape gets the name of one of OpenAI's models, and a run never does.
    """
    path = Path(os.path.realpath(path))
    if path.parent.name == paths.CHECKPOINTS:
        path = path.parent.parent  # the run's name says more than the step's
    # A leading dot would hide it.
    name = (path.name if path.is_dir() else path.stem).lstrip(".") or "model"
    size = paths.canonical_size(name)
    if size is None or _size_of(path) == size:  # a run's own folder has no numbers
        return name
    return f"{name}-converted"


def _run_around(target: Path) -> Path | None:
    """The run among whose checkpoints `target` lies or would lie."""
    for parent in target.parents:
        run = parent.parent
        if parent.name == paths.CHECKPOINTS and ((run / "run.json").exists() or paths.checkpoints(run)):
            return run
    return None


def _reason_to_keep(folder: Path) -> str:
    """Why a folder must not be deleted; "" if it is empty, or a model that gpt2 wrote."""
    names = {path.name for path in folder.iterdir()}
    if not names:
        return ""
    try:
        listed = _listed(folder)
    except InputError as error:
        return error.what
    if not {WEIGHTS, f"{PREFIX}.index"} & listed:
        return "it is not a model that gpt2 wrote"
    strangers = sorted(names - listed)
    return f"{', '.join(strangers[:3])} is none of its model's files" if strangers else ""


def _listed(folder: Path) -> set[str]:
    """The files of a model that gpt2 wrote, by its manifest, or by the receipt of a conversion. Files that
    a resume needs are not among them.
    """
    if (folder / MANIFEST).exists():
        return {
            MANIFEST,
            MODEL_CARD,
            *(name for name in read_manifest(folder) if not name.startswith("train_state")),
        }
    if not (folder / RECEIPT).exists():
        return set()
    output = read_own_json(folder / RECEIPT, RECEIPT_FORMAT, is_numbered=False).get("output")
    written = output.get("files") if isinstance(output, dict) else None
    return {RECEIPT, *written} if isinstance(written, dict) else set()


def _size_of(folder: Path) -> str | None:
    """OpenAI's size whose numbers a folder has, said in OpenAI's way or in Hugging Face's."""
    try:
        if (folder / HPARAMS).is_file():
            return size_of(read_hparams(folder / HPARAMS))
        return size_of(from_hugging_face(read_json_object(folder / CONFIG)))
    except InputError:
        return None
