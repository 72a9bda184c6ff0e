"""Owns how a model that somebody names on the command line is found and made ready to write, and the
settings with which it does; `home.py` knows where models live, `weights/` what is in them.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.generation.sampling import Decoding


def find(name: str | None) -> Path:
    """The folder of the model called `name`; None is the newest there is, and stderr says which.

    Raises InputError with a way on: where a file is named, which no model is, too.
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
def found(name: str | None) -> Iterator[Path]:
    """The folder that `find` gives, for a block that imports torch and then loads from it.

    The weights are read meanwhile. Python's garbage collector rests: it would look through all that
    torch brings with it a hundred times, 0.2 s, and finds nothing in modules that stay.
    """
    import gc

    from gpt2cli.checkpoints.read_ahead import reading_ahead

    folder = find(name)
    was_on = gc.isenabled()
    gc.disable()
    try:
        with reading_ahead(folder / "model.safetensors"):
            yield folder
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def load(
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
    """The model, in its place and precision, made ready to write about `n_tokens` in each of `n_rows`."""
    from gpt2cli.cli.decoding import make_ready, require_compile_word
    from gpt2cli.convert.open_model import open_model
    from gpt2cli.runtime import choose_runtime
    from gpt2cli.ui.console import err

    require_compile_word(compile)
    runtime = choose_runtime(device, precision, threads, decoding=True)
    for notice in runtime.notices:
        err().print(notice, style="warn")
    loaded = open_model(folder, remembered=True)
    make_ready(loaded.model, runtime, compile, n_rows, n_tokens, folder, before_build)
    return loaded


def decoding_of(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
) -> "Decoding":
    """What was given on the command line, for the rest the defaults, and a seed by chance."""
    import secrets

    from gpt2cli.generation.sampling import Decoding

    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": secrets.randbelow(2**31) if seed is None else seed,
    }
    return Decoding(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _refuse_file(name: str) -> None:
    import os

    from gpt2cli.errors import InputError
    from gpt2cli.paths import canonical_size, is_model

    path = Path(os.path.expanduser(name))
    if canonical_size(name) or not os.path.isfile(path):
        return
    if is_model(path.parent):
        raise InputError(f"{path}: is a file", "a model is its whole folder", f"name that: {path.parent}")
    raise InputError(
        f"{path}: is a file", "a model is a folder here, which is made of one", f"gpt2 convert {path}"
    )
