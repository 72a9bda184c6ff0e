"""An overview of what is on the disk: runs and models, each read from its records, without torch.

Whatever a folder holds, reading it raises nothing: what cannot be read is the entry's `problem`, and
a folder that gpt2 did not write is no entry.
"""

import contextlib
import difflib
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpt2cli import paths
from gpt2cli.checkpoints.provenance import RECEIPT
from gpt2cli.errors import Gpt2Error, InputError, NewerFormatError
from gpt2cli.json_files import read_json_object
from gpt2cli.locks import LOCK, is_locked
from gpt2cli.paths import ADAPTER, BASE, MANIFEST, METRICS, RECIPE, RUN_RECORD, STATE, TENSORS
from gpt2cli.training.lineage import attempt, value_at
from gpt2cli.training.metrics_log import last_records
from gpt2cli.training.run_json import read_sessions

# What a start that failed, or was killed before its first save, leaves behind.
OF_A_START = {
    *(LOCK, RECIPE, RUN_RECORD, METRICS, paths.CHECKPOINTS),
    *(paths.SAMPLES, paths.PLOT, paths.TENSORBOARD),
}
Kind = Literal["run", "model"]
State = Literal[
    "running",
    "finished",
    "stopped",
    "diverged",
    "failed start",
    "ready",  # of a model
    "damaged",
    "newer version",
    "unreadable",
]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run."""

    path: Path
    step: int
    n_bytes: int
    is_resumable: bool  # it has its optimizer state
    pointers: tuple[str, ...]  # of best and last, those that lead here


@dataclass(frozen=True)
class RunEntry:
    """A run or a model. Empty fields are unknown, or do not apply."""

    name: str
    folder: Path
    kind: Kind
    state: State
    task: str = ""  # the command that trains it, or what kind of model it is
    base: str = ""  # what the recipe's init names, or an adapter's base
    data: str = ""  # what was trained on, or converted
    step: int | None = None
    n_steps: int | None = None
    best_loss: float | None = None  # of validation, in nats per token
    best_step: int | None = None
    n_bytes: int = 0
    changed: float = 0.0  # seconds since 1970
    checkpoints: tuple[Checkpoint, ...] = ()
    problem: str = ""
    bases: tuple[Path, ...] = field(default=(), repr=False)  # the folders of its adapters' bases
    starts: tuple[Path, ...] = field(default=(), repr=False)  # where the run that init names may be
    tokens: Path | None = field(default=None, repr=False)  # the prepared text that it trains on

    @property
    def is_ours(self) -> bool:
        """Whether gpt2 wrote it, so that gpt2 may delete it."""
        if self.kind == "run":
            return self.state != "unreadable"
        return any((self.folder / name).is_file() for name in (MANIFEST, RECEIPT))


def find_entries(*roots: Path) -> list[RunEntry]:
    """The runs and models in these folders, those that changed last first."""
    found = (read_entry(folder) for root in roots for folder in _folders_in(root))
    return sorted((entry for entry in found if entry), key=lambda entry: -entry.changed)


def read_entry(folder: Path) -> RunEntry | None:
    """The run or the model in a folder; None for anything else."""
    try:
        names = set(os.listdir(folder))
    except PermissionError as error:
        return RunEntry(folder.name, folder, "run", "unreadable", problem=_words(error))
    except OSError:  # a file, or gone meanwhile
        return None
    try:
        if RUN_RECORD in names or paths.CHECKPOINTS in names or (LOCK in names and names <= OF_A_START):
            return _read_run(folder)
        return _read_model(folder) if paths.is_model(folder) else None
    except OSError as error:  # a folder in it that may not be read
        return RunEntry(folder.name, folder, "run", "unreadable", problem=_words(error))


def find_entry(name: str) -> RunEntry:
    """The run or model that a user names: a folder, a name under ./runs, or one under GPT2_HOME/models.

    Raises InputError that says what is there.
    """
    for place in paths.places(name):
        if paths.is_checkpoint(place.resolve()) and place.is_dir():
            run = place.resolve().parent.parent
            fix = f"gpt2 runs show {shlex.quote(str(run))}"
            raise InputError(f"{name}: is a checkpoint of a run", "a run is named as a whole", fix)
        if entry := read_entry(place):
            return entry
        if os.path.lexists(place):
            raise InputError(
                f"{place}: is no run and no model",
                "it has neither run.json nor checkpoints nor config.json; gpt2 did not write it",
                "gpt2 runs",
            )
    roots = [paths.runs(), *([paths.models()] if paths.has_home() else [])]
    near = difflib.get_close_matches(name, [folder.name for root in roots for folder in _folders_in(root)], 1)
    raise InputError(
        f"{name}: no such run or model",
        f"looked for a folder of that name, in {paths.shown_places('and')}",
        f"did you mean {near[0]}?" if near else "gpt2 runs",
    )


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder, links not followed."""
    n_bytes = 0
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            n_bytes += size_of(Path(entry.path))
        elif not entry.is_symlink():
            n_bytes += entry.stat().st_size
    return n_bytes


def _folders_in(root: Path) -> list[Path]:
    """Hidden folders are unfinished or put aside."""
    try:
        return [Path(one.path) for one in os.scandir(root) if one.name[0] != "." and one.is_dir()]
    except OSError:  # there is none, or it may not be read
        return []


def _read_run(folder: Path) -> RunEntry:
    problems: list[Gpt2Error] = []
    sessions = attempt(problems, list[dict[str, Any]](), lambda: read_sessions(folder))
    checkpoints = _checkpoints(folder)
    recipe = attempt(problems, dict[str, Any](), lambda: _read_recipe(folder / RECIPE))
    records = attempt(problems, list[dict[str, Any]](), lambda: last_records(folder / METRICS))
    progress = dict[str, Any]()
    if checkpoints:
        state = attempt(problems, dict[str, Any](), lambda: _read_if_there(checkpoints[-1].path / STATE))
        progress = _mapping(state.get("progress"))
    best_loss, best_step = _best(progress, records)
    steps = [record["step"] for record in records] or [checkpoint.step for checkpoint in checkpoints[-1:]]
    steps_asked = _text(value_at(recipe, "optim.steps")).replace("_", "")
    base, session = _text(recipe.get("init")), sessions[-1] if sessions else {}
    tokens = _text(value_at(session, "data.tokens"))
    return RunEntry(
        name=folder.name,
        folder=folder,
        kind="run",
        state=_state(folder, sessions, records, checkpoints, problems),
        task=_text(recipe.get("task")),
        base=base,
        data=_text(value_at(recipe, "data.source")),
        step=steps[-1] if steps else 0,
        n_steps=int(steps_asked) if steps_asked.isdecimal() else None,
        best_loss=best_loss,
        best_step=best_step,
        n_bytes=size_of(folder),
        changed=_changed(folder, RUN_RECORD, METRICS, paths.CHECKPOINTS),
        checkpoints=tuple(checkpoints),
        problem=str(problems[0]) if problems else "",
        bases=tuple(base for checkpoint in checkpoints for base in _bases(checkpoint.path)),
        starts=_starts(base, folder, _text(session.get("folder"))),
        tokens=Path(tokens) if tokens else None,
    )


def _read_model(folder: Path) -> RunEntry:
    problems: list[Gpt2Error] = []
    attempt(problems, dict[str, Any](), lambda: _read_if_there(folder / "config.json"))
    receipt = attempt(problems, dict[str, Any](), lambda: _read_if_there(folder / RECEIPT))
    bases = _bases(folder)
    kind = "classifier" if paths.is_classifier(folder) else "language model"
    return RunEntry(
        name=folder.name,
        folder=folder,
        kind="model",
        state="damaged" if problems else "ready",
        task="adapter" if paths.is_adapter(folder) else kind,
        base=str(bases[0]) if bases else "",
        data=_text(value_at(receipt, "source.path")),
        n_bytes=size_of(folder),
        changed=_changed(folder, MANIFEST, "config.json"),
        problem=str(problems[0]) if problems else "",
        bases=bases,
    )


def _state(
    folder: Path,
    sessions: list[dict[str, Any]],
    records: list[dict[str, Any]],
    checkpoints: list[Checkpoint],
    problems: list[Gpt2Error],
) -> State:
    if is_locked(folder):
        return "running"
    if problems:
        return "newer version" if isinstance(problems[0], NewerFormatError) else "damaged"
    if not sessions and not checkpoints:
        return "failed start"
    if sessions and isinstance(sessions[-1].get("diverged_at"), int):
        return "diverged"
    is_over = bool(records) and records[-1].get("reason") in ("finished", "patience")
    return "finished" if is_over else "stopped"


def _checkpoints(folder: Path) -> list[Checkpoint]:
    """Oldest first."""
    pointed = {name: (folder / name).resolve() for name in paths.POINTERS if (folder / name).is_dir()}
    return [
        Checkpoint(
            path=path,
            step=int(path.name.removeprefix("step-")),
            n_bytes=size_of(path),
            is_resumable=(path / TENSORS).is_file(),
            pointers=tuple(name for name, target in pointed.items() if target == path.resolve()),
        )
        for path in paths.checkpoints(folder)
    ]


def _best(progress: dict[str, Any], records: list[dict[str, Any]]) -> tuple[float | None, int | None]:
    """The loss and step of the best evaluation: in the newest checkpoint, or made since then."""
    best: tuple[float | None, int | None] = (
        _number(progress.get("best_loss")),
        _whole(progress.get("best_step")),
    )
    since = _whole(progress.get("step"))
    for record in records:
        is_new = since is None or record["step"] > since
        if record.get("event") == "EvalDone" and record.get("is_best") and is_new:
            best = _number(record.get("loss")), record["step"]
    return best


def _bases(folder: Path) -> tuple[Path, ...]:
    """The folder of the base of an adapter, here or beside a classifier."""
    found = []
    for place in (folder / BASE, folder / ADAPTER / BASE):
        with contextlib.suppress(Gpt2Error):  # a damaged one names nothing
            if path := _text(_read_if_there(place).get("path")):
                found.append(Path(path))
    return tuple(found)


def _starts(base: str, folder: Path, began_in: str) -> tuple[Path, ...]:
    """The folders that an `init` may name: in the folder where its run began, or beside that run."""
    if not base or base in ("scratch", paths.NEWEST) or paths.canonical_size(base):
        return ()
    places = [Path(began_in) / paths.expand(base)] if began_in else []
    return tuple(place.resolve() for place in (*places, paths.expand(base), folder.parent / base))


def _read_recipe(path: Path) -> dict[str, Any]:
    """The values of a resolved recipe, as text. PyYAML's C parser is some 40 times faster than `yaml_lines`,
    which knows lines and types. Empty without the file.
    """
    if not path.exists():
        return {}
    import yaml

    from gpt2cli.recipe.yaml_lines import read_text

    try:
        return _mapping(yaml.load(read_text(path, str(path)), getattr(yaml, "CBaseLoader", yaml.BaseLoader)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: is not YAML", why) from None


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _changed(folder: Path, *names: str) -> float:
    """When the newest of these files, or else the folder, was written."""
    found = [(folder / name).stat().st_mtime for name in names if (folder / name).exists()]
    return max(found) if found else folder.stat().st_mtime


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e18 else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _words(error: OSError) -> str:
    return f"{error.filename}: {(error.strerror or str(error)).lower()}"
