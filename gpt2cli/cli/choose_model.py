"""The model that a command line names: its folder, and the model loaded and ready to decode."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import InputError, UsageError
from gpt2cli.paths import canonical_size, expand, find_model, is_adapter, is_checkpoint, is_model
from gpt2cli.ui.console import say

if TYPE_CHECKING:
    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.generation.sampling import SamplingOptions
    from gpt2cli.model.config import GPT2Config


def find_folder(name: str | None) -> Path:
    """The folder of the model called `name`; None is the newest model, and stderr says which.

    Raises InputError, for the name of a file too.
    """
    if name is None:
        folder = find_model(None)
        say(f"model: {folder}", "faint")
        return folder
    try:
        return find_model(name)
    except InputError:
        _refuse_file(name)
        raise


def find_with_adapters(name: str | None, adapters: Sequence[str] | None) -> tuple[Path, list[Path]]:
    """The folder of the model called `name`, and those of the adapters to add to its weights.

    A model that is an adapter itself is one of these. Without a name the first adapter brings its
    base; of a run it is the checkpoint that this adapter was trained over, if it has that. Raises
    UsageError for an adapter that is none or stands there twice, InputError as `find_folder`.
    """
    if not adapters:
        return find_folder(name), []
    from gpt2cli.convert.merge_lora import find_base

    folders = [find_folder(adapter) for adapter in adapters]
    for adapter, folder in zip(adapters, folders, strict=True):
        if not is_adapter(folder):
            raise UsageError(
                f"--adapter {adapter}: {folder} is no adapter",
                "it is a whole model, and only corrections to one can be added up",
                f"--model {adapter}",
            )
    model = find_folder(name) if name else folders[0]
    if is_adapter(model):
        folders = folders if not name else [model, *folders]
        model = find_base(model)
    elif name and is_checkpoint(model) and not is_model(expand(name)):  # a run, whose best step moves on
        with contextlib.suppress(InputError):  # peft may name a base that is not here
            base = find_base(folders[0])
            model = base if base.parent == model.parent else model
    if twice := [str(folder) for n, folder in enumerate(folders) if folder in folders[:n]]:
        raise UsageError(f"the adapter {twice[0]} is given twice", "it is added once", "leave one out")
    return model, folders


@contextlib.contextmanager
def preloading(name: str | None, adapters: Sequence[str] | None = None) -> Iterator[tuple[Path, list[Path]]]:
    """Context manager that yields `find_with_adapters(...)` and prefetches the weights into the page cache.

    For a block that imports torch and then loads the model. The garbage collector is off meanwhile:
    it would scan torch's modules about a hundred times (0.2 s) and free nothing.
    """
    from gpt2cli.checkpoints.safetensors_bytes import reading_ahead

    folder, folders = find_with_adapters(name, adapters)
    was_on = gc.isenabled()
    gc.disable()
    try:
        with reading_ahead(folder / "model.safetensors"):
            yield folder, folders
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
    adapters: Sequence[Path] = (),
    n_rows: int = 1,
    n_tokens: int,
    before_build: Callable[[], None] = lambda: None,
) -> "LoadedModel":
    """The model, ready to generate about `n_tokens` in each of `n_rows`; notices go to stderr.

    `before_build` is called before a build, which draws its own progress line on the terminal.
    """
    from gpt2cli.generation.load import load_for_decoding
    from gpt2cli.ui.progress import show_compiling

    def notice(sentence: str, kind: str) -> None:
        say(sentence, "warn" if kind == "warning" else "faint")

    def build(config: "GPT2Config", precision: str) -> Path:
        before_build()
        return show_compiling(config, precision, "; --compile off starts without")

    return load_for_decoding(
        *(folder, device, precision, threads, compile),
        adapters=adapters,
        n_rows=n_rows,
        n_tokens=n_tokens,
        notice=notice,
        build=build,
    )


def sampling_options(seed: int | None, **given: float | None) -> "SamplingOptions":
    """The options given on the command line, defaults for the rest, and a random seed if none is given."""
    import secrets

    from gpt2cli.generation.sampling import SamplingOptions

    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return SamplingOptions(seed=secrets.randbelow(2**31) if seed is None else seed, **chosen)


def _refuse_file(name: str) -> None:
    path = expand(name)
    if canonical_size(name) or not os.path.isfile(path):
        return
    if is_model(path.parent):
        raise InputError(f"{path}: is a file", "a model is the whole folder", f"use {path.parent}")
    raise InputError(
        f"{path}: is a file", "a model is a folder; convert makes one from a file", f"gpt2 convert {path}"
    )
