"""The model that a command line names: its folder, and the model loaded and ready to decode."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2cli.paths import shown_path
from gpt2cli.ui.console import say

if TYPE_CHECKING:
    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.model.config import GPT2Config


def find_folder(name: str | None) -> Path:
    """The folder of the model called `name`; None is the newest model, and stderr says which.

    Raises InputError, for the name of a file too.
    """
    return find_with_adapters(name, None)[0]


def find_with_adapters(name: str | None, adapters: Sequence[str] | None) -> tuple[Path, list[Path]]:
    """`load.find_with_adapters`; stderr says which model is the newest."""
    from gpt2cli.generation import load

    folder, folders = load.find_with_adapters(name, adapters)
    if name is None and not adapters:
        say(f"model: {shown_path(folder)}", "faint")
    return folder, folders


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
