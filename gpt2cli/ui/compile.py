"""What a person sees while a decode step is compiled: one line, and how long it took."""

import time
from pathlib import Path

from gpt2cli.generation.cpu import aot_packages
from gpt2cli.model.config import GPT2Config, size_of
from gpt2cli.ui.console import err, is_terminal
from gpt2cli.ui.spinner import waiting


def show_compiling(config: GPT2Config, precision: str, way_out: str = "") -> Path:
    """Build a package, with a line on stderr before and after. Raises what `build_package` raises."""
    aot_packages.require_compiler()
    console, start = err(), time.monotonic()
    shape = size_of(config) or f"{config.n_layer} blocks of {config.n_embd}"
    seconds = aot_packages.build_seconds(config)
    line = f"compiling the step of {shape} in {precision}, once, about {seconds:.0f} s{way_out}"
    if is_terminal(console):
        with waiting(console, line, delay=0):
            package = aot_packages.build_package(config, precision)
    else:
        console.print(line, style="faint")
        package = aot_packages.build_package(config, precision)
    console.print(f"compiled {shape} in {precision}: {time.monotonic() - start:.0f} s", style="faint")
    return package
