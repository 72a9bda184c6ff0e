"""Where things live: models, downloads, corpora and caches under GPT2_HOME, runs under ./runs.

Turns what a user typed (a run, a folder, a name, nothing) into the path of one model folder.
`checkpoints/folder.py` reads its content.
"""

import difflib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt2cli import files
from gpt2cli.errors import InputError, ResourceError

CHECKPOINTS = "checkpoints"
RUN_RECORD, METRICS = "run.json", "metrics.jsonl"  # of a run: its sessions, its events
MANIFEST, RECIPE = "manifest.json", "recipe.yaml"  # of a model folder; the second of a run too
# Beside the weights in a checkpoint: the counters of its training, and AdamW's moments.
STATE, TENSORS = "train_state.json", "train_state.safetensors"
# Of an adapter: where its base is, and in a classifier's checkpoint the folder with its adapters.
BASE, ADAPTER = "base.json", "adapter"
SAMPLES, PLOT, TENSORBOARD = "samples.txt", "loss.png", "tensorboard"  # of a run: its texts and pictures
POINTERS = ("best", "last")  # links in a run to two of its checkpoints
RESPONSES = "responses.jsonl"  # in an instruction-tuned run: the model's responses
NEWEST = "newest"  # the name, in a recipe, of the model that changed last
SET_HOME = 'export GPT2_HOME="$PWD/gpt2-home", or another folder that you can write to'
_HOMELESS = "HOME is not set, and this user has no entry in the password file"
# OpenAI's models under each of their names; here they are named by their true parameter counts.
ALIASES = {
    alias: size
    for size, names in {
        "124M": ("gpt2", "gpt2-small", "117M"),
        "355M": ("gpt2-medium", "345M"),
        "774M": ("gpt2-large", "762M"),
        "1558M": ("gpt2-xl", "1542M", "1.5B"),
    }.items()
    for name in (size, *names)
    for alias in (name.lower(), f"openai-community/{name}".lower())
}


def expand(name: str | Path) -> Path:
    """The path that a user typed: a leading ~ or ~user stands for a home. Every path that a command
    takes goes through here.

    Raises ResourceError for ~ where this user has no home.
    """
    path = Path(os.path.expanduser(name))
    if path.parts[:1] == ("~",):
        raise ResourceError(f"{name}: there is no home", _HOMELESS, SET_HOME)
    return path


def gpt2_home() -> Path:
    """GPT2_HOME, or ~/.cache/gpt2cli. Raises ResourceError without either, as in many containers."""
    if named := os.environ.get("GPT2_HOME"):
        return expand(named)
    try:
        return Path.home() / ".cache" / "gpt2cli"
    except RuntimeError:
        what = "there is no home for models, downloads and caches"
        raise ResourceError(what, f"GPT2_HOME is not set, {_HOMELESS}", SET_HOME) from None


def has_home() -> bool:
    """Whether `gpt2_home` is a path. Reading from it is then safe, whether or not it is there."""
    try:
        return bool(gpt2_home())
    except ResourceError:
        return False


def require_writable_home(folder: Path) -> None:
    """Make `folder`, which lies under GPT2_HOME. Raises ResourceError that names GPT2_HOME."""
    try:
        files.require_writable(folder)
    except ResourceError as error:
        raise ResourceError(error.what, error.why, SET_HOME) from None


def models() -> Path:
    return gpt2_home() / "models"


def downloads() -> Path:
    """Downloads as they came: OpenAI's files, one folder per size."""
    return gpt2_home() / "downloads"


def corpora() -> Path:
    return gpt2_home() / "corpora"


def prepared() -> Path:
    """Corpora that `pretrain` tokenised on the fly, one folder per digest."""
    return gpt2_home() / "prepared"


def compiled() -> Path:
    """Machine code of decode steps, one folder per shape, precision and number of threads."""
    return gpt2_home() / "compiled"


def logs() -> Path:
    """Tracebacks of our own bugs."""
    return gpt2_home() / "logs"


def mirror() -> Path | None:
    """GPT2_MIRROR: a folder that holds the public corpora under their own names."""
    value = os.environ.get("GPT2_MIRROR")
    return expand(value) if value else None


def canonical_size(name: str) -> str | None:
    """One of OpenAI's sizes under any of its names as "124M", "355M", "774M" or "1558M"; else None."""
    return ALIASES.get(name.lower())


def runs() -> Path:
    """GPT2_RUNS, or ./runs: a run belongs to the project in which it was started."""
    return expand(os.environ.get("GPT2_RUNS") or "runs")


def model_path(name: str) -> Path:
    """Where a downloaded or converted model of this name lives; "owner/name" becomes one folder."""
    return models() / (canonical_size(name) or name.replace("/", "--"))


def is_model(folder: Path) -> bool:
    """A whole model, or an adapter. False, like `is_run`, for what cannot be a path."""
    return os.path.isfile(folder / "config.json") or is_adapter(folder)


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter alone, without the weights of its base."""
    return os.path.isfile(folder / "adapter_config.json") and not os.path.exists(folder / "model.safetensors")


def is_classifier(folder: Path) -> bool:
    """Whether the config of a model folder says that it is a classifier's."""
    try:
        return b"ForSequenceClassification" in (folder / "config.json").read_bytes()
    except OSError:
        return False


def is_whole_language_model(folder: Path) -> bool:
    return not is_adapter(folder) and not is_classifier(folder)


def shown_path(path: Path) -> str:
    """The path as a user would type it: relative if it is below the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def shown_model(folder: Path) -> str:
    """The name of a model folder for a command: of a checkpoint its run."""
    return shown_path(folder.parent.parent if is_checkpoint(folder) else folder)


def is_run(folder: Path) -> bool:
    return os.path.isdir(folder / CHECKPOINTS)


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder is a checkpoint of a run."""
    return folder.parent.name == CHECKPOINTS and folder.name[:5] == "step-" and folder.name[5:].isdecimal()


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    folders = [path for path in (run / CHECKPOINTS).glob("step-*") if path.is_dir()]
    return sorted(
        (path for path in folders if path.name[5:].isdecimal()), key=lambda path: int(path.name[5:])
    )


def find_model(name: str | None, suits: Callable[[Path], bool] = lambda folder: True) -> Path:
    """The model folder that `name` means: a run (its best checkpoint), a folder, a name under
    ./runs or GPT2_HOME/models (OpenAI's sizes under each of their names); None is the newest of all.

    Raises InputError with what is there instead; folders that `suits` is true for come first.
    """
    if name is None:
        for newest in models_newest_first():
            return newest
        raise InputError(
            "there is no model here yet",
            f"neither {shown_places('nor')} holds one",
            "gpt2 pretrain verdict",
        )
    size = canonical_size(name)
    for place in places(name):
        if is_run(place):
            return best_checkpoint(place)
        if is_model(place):
            return place
    known = [path.name for path, _ in sorted(_newest_first(), key=lambda found: not suits(found[1]))]
    if size:
        raise InputError(
            f"{name}: this model is not here yet",
            f"looked in {shown_places('and')}" + (f"; there are {', '.join(known[:8])}" if known else ""),
            f"gpt2 download {size}",
        )
    if around := [folder for folder in expand(name).parents if is_run(folder) or is_model(folder)]:
        raise InputError(
            f"{name}: is inside of a model", "a model is the whole folder", f"did you mean {around[0]}?"
        )
    near = difflib.get_close_matches(Path(name).name, known, 1, 0.5) or known
    raise InputError(
        f"{name or repr(name)}: no such model",
        f"looked for a folder of that name, in {shown_places('and')}"
        + (f"; there are {', '.join(known[:8])}" if known else ""),
        f"did you mean {near[0]}?" if near else "gpt2 pretrain verdict",
    )


def places(name: str) -> Iterator[Path]:
    """Where a run or a model of this name may be."""
    if name:
        yield expand(name)
    if name and not any(part.startswith(".") for part in Path(name).parts):
        yield runs() / name
        if has_home():
            yield model_path(name)


def shown_places(word: str) -> str:
    """The folders of runs and models, for a message."""
    return f"{runs()} {word} {models() if has_home() else 'GPT2_HOME, which is not set,'}"


def best_checkpoint(run: Path) -> Path:
    """The checkpoint that `best` points to, else that of `last`, else the newest."""
    for pointer in POINTERS:
        target = run / pointer
        if target.is_dir():
            return target.resolve()
    if found := checkpoints(run):
        return found[-1]
    raise InputError(
        f"{run}: the run has no checkpoint yet",
        "it stopped before its first save",
        f"gpt2 pretrain {run / 'recipe.yaml'} --resume --name {run.name}",
    )


def models_newest_first() -> list[Path]:
    """The model folders of every run that has a checkpoint, and of every model, newest first."""
    return [folder for _, folder in _newest_first()]


def _newest_first() -> list[tuple[Path, Path]]:
    """Runs that have a checkpoint, and models, each with its model folder, newest first.

    Hidden ones are unfinished or put aside.
    """
    roots = [runs(), *([models()] if has_home() else [])]
    roots = [root for root in roots if os.path.isdir(root) and os.access(root, os.R_OK | os.X_OK)]
    places = [path for root in roots for path in root.iterdir() if not path.name.startswith(".")]
    found = [path for path in places if (is_run(path) and checkpoints(path)) or is_model(path)]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [(path, best_checkpoint(path) if is_run(path) else path) for path in found]
