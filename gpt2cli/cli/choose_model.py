"""The model that a command line names: its folder, and the model loaded and ready to decode."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.generation.sampling import Decoding


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
    """The model on its device, in its precision, ready to decode about `n_tokens` for each of `n_rows`."""
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


def decoding_options(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
) -> "Decoding":
    """The options as given, defaults for the rest, and a random seed where none is given."""
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
        raise InputError(f"{path}: is a file", "a model is the whole folder", f"use {path.parent}")
    raise InputError(
        f"{path}: is a file", "a model is a folder; convert makes one from a file", f"gpt2 convert {path}"
    )
