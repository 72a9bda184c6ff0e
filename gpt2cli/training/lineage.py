"""The lineage of a model: the recipe, training state, run and conversion record beside its weights.

Each file may be missing, and files that another program wrote may hold anything: what cannot be
read is listed as a problem and raises nothing.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from gpt2cli.checkpoints.provenance import RECEIPT
from gpt2cli.errors import Gpt2Error
from gpt2cli.json_files import read_json_object, read_own_json
from gpt2cli.paths import CHECKPOINTS, RECIPE, RUN_RECORD, STATE
from gpt2cli.recipe import yaml_lines
from gpt2cli.training.run_json import RECORD_FORMAT

T = TypeVar("T")
Value: TypeAlias = str | int | float | bool
Facts: TypeAlias = dict[str, Value]  # by dotted path; paths that a file lacks are left out

_PROGRESS = (
    *("progress.step", "progress.best_loss", "progress.best_step"),
    *("progress.best_by", "progress.best_value"),
    *("identity.data", "identity.train tokens", "identity.vocabulary"),
)
_SESSION = (
    *("started", "from_step", "gpt2cli"),
    *("machine.device", "machine.precision", "machine.threads", "machine.torch", "machine.python"),
    *("data.source", "data.origin", "data.sha256"),
)
_CONVERSION = (
    *("written_by", "source.path", "source.format", "parameters.count", "parameters.size"),
    *("verification.passed", "verification.max_difference", "verification.perplexity"),
)


@dataclass(frozen=True)
class Lineage:
    """The files found around a model. A field is empty if its file is missing."""

    recipe: dict[str, Any]  # the recipe's own sections and values
    progress: Facts  # of training when this checkpoint was saved
    run: Path | None  # the folder of the run in which the model lies
    sessions: tuple[Facts, ...]  # the start of the run, and its resumes
    conversion: Facts
    sources: tuple[str, ...]  # names of the files that were converted
    notes: tuple[str, ...]  # what the conversion left out, assumed or filled in
    problems: tuple[str, ...]  # a sentence per file that exists and cannot be read


def read_lineage(folder: Path) -> Lineage:
    """The origin of the model in `folder`, from its files and those of its run."""
    problems: list[Gpt2Error] = []
    above = folder.resolve().parent
    run = above.parent if above.name == CHECKPOINTS else None
    read_record = partial(read_own_json, newest=RECORD_FORMAT)
    record = _read(run / RUN_RECORD, problems, read_record) if run else {}
    receipt = _read(folder / RECEIPT, problems)
    sessions = record.get("sessions")
    return Lineage(
        recipe=_read(folder / RECIPE, problems, _recipe_values),
        progress=_pick(_read(folder / STATE, problems), _PROGRESS),
        run=run,
        sessions=tuple(_pick(s, _SESSION) for s in sessions) if isinstance(sessions, list) else (),
        conversion=_pick(receipt, _CONVERSION),
        sources=_texts(value_at(receipt, "source.files")),
        notes=_texts(receipt.get("notes")),
        problems=tuple(map(str, problems)),
    )


def attempt(problems: list[Gpt2Error], otherwise: T, read: Callable[[], T]) -> T:
    """What `read` returns; after an error, which joins the problems, `otherwise`."""
    try:
        return read()
    except Gpt2Error as error:
        problems.append(error)
        return otherwise


def value_at(values: Any, path: str) -> Any:
    """The value at a dotted path of objects within objects; None where there is none."""
    for key in path.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _recipe_values(path: Path) -> dict[str, Any]:
    return yaml_lines.parse(yaml_lines.read_text(path, path.name), path.name).values


def _read(
    path: Path, problems: list[Gpt2Error], read: Callable[[Path], dict[str, Any]] = read_json_object
) -> dict[str, Any]:
    """The content of a file; empty if there is no such file."""
    return attempt(problems, {}, lambda: read(path)) if os.path.lexists(path) else {}


def _pick(values: Any, paths: Sequence[str]) -> Facts:
    found = {path: value_at(values, path) for path in paths}
    return {path: value for path, value in found.items() if isinstance(value, str | int | float | bool)}


def _texts(values: Any) -> tuple[str, ...]:
    """All strings in a list, or the keys of a dict."""
    return tuple(v for v in values if isinstance(v, str)) if isinstance(values, list | dict) else ()
