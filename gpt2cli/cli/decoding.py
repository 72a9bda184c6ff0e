"""Owns how a loaded model is made ready to decode: packed for its precision, with a compiled step or without.

What a compiled step is, and what it saves, is `generation/compiled.py`'s. Here is decided whether to
take one, to build one, or to say how one is had.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2cli.model.config import GPT2Config
    from gpt2cli.model.gpt2 import GPT2LMHead
    from gpt2cli.runtime import Runtime

WORDS = ("auto", "on", "off")


def require_compile_word(compile: str) -> None:
    """Raises UsageError for a word that --compile does not know; before any work."""
    from gpt2cli.errors import UsageError

    if compile not in WORDS:
        raise UsageError(f"--compile is {compile!r}", "it must be auto, on or off")


def make_ready(
    model: "GPT2LMHead",
    runtime: "Runtime",
    compile: str,
    n_rows: int,
    n_tokens: int,
    folder: Path,
    before_build: Callable[[], None],
) -> None:
    """Move the model of `folder` to its device and precision and exchange what makes it fast, in place.

    `n_rows` are written together, about `n_tokens` each. For one row "auto" takes a compiled step
    that is there, and builds one where that takes less time than it saves. Whatever goes wrong with
    it is said in a sentence, and the model decodes without. `before_build` is called before a build,
    which has a line of its own on the terminal.
    """
    from gpt2cli.generation.cpu.aot_packages import BuildError, use_package
    from gpt2cli.generation.cpu.swap_linears import pack_for_decoding
    from gpt2cli.ui.console import err, printable

    model.to(device=runtime.device)
    if runtime.device.type != "cpu" or runtime.precision == "fp16":
        model.to(dtype=runtime.dtype)
        if compile == "on":
            err().print(
                "compiled steps are for the CPU in fp32, bf16 or int8; going on without", style="warn"
            )
        return
    if n_rows > 1:
        if compile == "on":
            err().print("a compiled step writes one continuation at a time; going on without", style="warn")
        pack_for_decoding(model, runtime.precision, "rows")
        return
    package = _package(model.config, runtime, compile, n_tokens, folder, before_build)
    pack_for_decoding(model, runtime.precision, "row" if package is None else "compiled")
    if package is not None:
        try:
            use_package(model, runtime.precision, package)
        except BuildError as error:
            err().print(printable(f"{error}; going on without it"), style="warn")


def _package(
    config: "GPT2Config",
    runtime: "Runtime",
    compile: str,
    n_tokens: int,
    folder: Path,
    before_build: Callable[[], None],
) -> Path | None:
    import shlex

    from gpt2cli.errors import ResourceError
    from gpt2cli.generation.cpu import aot_packages
    from gpt2cli.runtime import default_threads
    from gpt2cli.ui.console import err, printable

    precision = runtime.precision
    if compile == "off":
        return None
    if package := aot_packages.find_package(config, precision):
        return package
    if compile == "auto":
        if not aot_packages.can_build() or aot_packages.has_failed(config, precision):
            return None
        saved = aot_packages.saved_seconds(config, n_tokens)
        if saved < aot_packages.PAYS * aot_packages.build_seconds(config):
            if saved >= aot_packages.WORTH_SAYING:
                threads = "" if runtime.threads == default_threads() else f" --threads {runtime.threads}"
                say = f"gpt2 compile {shlex.quote(str(folder))} --precision {precision}{threads}"
                err().print(printable(f"faster after: {say}"), style="faint")
            return None
    before_build()
    try:
        return build_with_a_line(config, precision, "; --compile off starts without")
    except (aot_packages.BuildError, ResourceError) as error:
        err().print(printable(f"{error}; going on without a compiled step"), style="warn")
        return None


def build_with_a_line(config: "GPT2Config", precision: str, way_out: str = "") -> Path:
    """Build a package, with one line on stderr that says so and how long it takes."""
    import time

    from gpt2cli.generation.cpu.aot_packages import build_package, build_seconds, require_compiler
    from gpt2cli.model.config import size_of
    from gpt2cli.ui.console import err, is_terminal
    from gpt2cli.ui.spinner import waiting

    require_compiler()
    console, start = err(), time.monotonic()
    shape = size_of(config) or f"{config.n_layer} blocks of {config.n_embd}"
    line = f"compiling the step of {shape} in {precision}, once, about {build_seconds(config):.0f} s{way_out}"
    if is_terminal(console):
        with waiting(console, line, delay=0):
            package = build_package(config, precision)
    else:
        console.print(line, style="faint")
        package = build_package(config, precision)
    console.print(f"compiled {shape} in {precision}: {time.monotonic() - start:.0f} s", style="faint")
    return package
