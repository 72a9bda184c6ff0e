"""The model that a command line names: its folder, and the model loaded and ready to decode."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.generation.sampling import SamplingOptions
    from gpt2cli.model.config import GPT2Config


def find_folder(name: str | None) -> Path:
    """The folder of the model called `name`; None is the newest model, and stderr says which.

    Raises InputError, for the name of a file too.
    """
    from gpt2cli.errors import InputError
    from gpt2cli.paths import find_model
    from gpt2cli.ui.console import err, printable

    if name is None:
        folder = find_model(None)
        err().print(printable(f"model: {folder}"), style="faint")
        return folder
    try:
        return find_model(name)
    except InputError:
        _refuse_file(name)
        raise


@contextlib.contextmanager
def preloading(name: str | None) -> Iterator[Path]:
    """The folder of `find_folder`, for a block that imports torch and then loads the model.

    Meanwhile another thread reads the weights into the page cache, and Python's garbage collector is
    off: it would scan all that torch imports a hundred times, 0.2 s, and find nothing to free.
    """
    import gc

    from gpt2cli.checkpoints.safetensors_bytes import reading_ahead

    folder = find_folder(name)
    was_on = gc.isenabled()
    gc.disable()
    try:
        with reading_ahead(folder / "model.safetensors"):
            yield folder
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def load_for_decoding(
    folder: Path,
    device: str,
    precision: str,
    threads: int,
    compile: str,
    *,
    n_rows: int = 1,
    n_tokens: int,
    before_build: Callable[[], None] = lambda: None,
) -> "LoadedModel":
    """The model, ready to write about `n_tokens` in each of `n_rows`; notices go to stderr.

    `before_build` is called before a build, which has a line of its own on the terminal.
    """
    from gpt2cli.generation.load import load_for_decoding
    from gpt2cli.ui.console import err, printable
    from gpt2cli.ui.progress import show_compiling

    def notice(sentence: str, kind: str) -> None:
        err().print(printable(sentence), style="warn" if kind == "warning" else "faint")

    def build(config: "GPT2Config", precision: str) -> Path:
        before_build()
        return show_compiling(config, precision, "; --compile off starts without")

    return load_for_decoding(
        *(folder, device, precision, threads, compile),
        n_rows=n_rows,
        n_tokens=n_tokens,
        notice=notice,
        build=build,
    )


def sampling_options(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
) -> "SamplingOptions":
    """What was given on the command line, for the rest the defaults, and a seed by chance."""
    import secrets

    from gpt2cli.generation.sampling import SamplingOptions

    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": secrets.randbelow(2**31) if seed is None else seed,
    }
    return SamplingOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _refuse_file(name: str) -> None:
    import os

    from gpt2cli.errors import InputError
    from gpt2cli.paths import canonical_size, is_model

    path = Path(os.path.expanduser(name))
    if canonical_size(name) or not os.path.isfile(path):
        return
    if is_model(path.parent):
        raise InputError(f"{path}: is a file", "a model is the whole folder", f"use {path.parent}")
    raise InputError(
        f"{path}: is a file", "a model is a folder; convert makes one from a file", f"gpt2 convert {path}"
    )
