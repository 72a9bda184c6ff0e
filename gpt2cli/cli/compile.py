"""Owns `gpt2 compile`: machine code for one model's decode step, built before it is needed."""

from typing import Annotated

import typer

from gpt2cli.cli.choose_model import find
from gpt2cli.cli.options import ThreadsOption


def compile_step(
    model: Annotated[
        str | None,
        typer.Argument(help="A run, a model folder or a name; otherwise the newest.", show_default=False),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", help="fp32, bf16 or int8; repeatable.", show_default="fp32"),
    ] = None,
    threads: ThreadsOption = 0,
    force: Annotated[bool, typer.Option("--force", help="Build it also where it is there.")] = False,
) -> None:
    """Compile a model's decode step for this CPU, so that generate and chat write faster.

    Takes a C++ compiler and about a minute a precision.
    The result serves every model of this shape, on as many threads.
    A new torch, compiler, processor or version of gpt2cli needs another.
    stdout gets its path.
    """
    from gpt2cli.checkpoints.folder import read_config
    from gpt2cli.convert.merge_lora import find_base
    from gpt2cli.errors import ResourceError, UsageError
    from gpt2cli.generation.cpu.aot_packages import BuildError, find_package
    from gpt2cli.generation.cpu.swap_linears import LAYERS
    from gpt2cli.paths import is_adapter
    from gpt2cli.runtime import choose_runtime
    from gpt2cli.ui.compile import show_compiling

    wanted = list(dict.fromkeys(precision or ["fp32"]))  # what generate takes by itself
    for name in wanted:
        if name not in LAYERS["compiled"]:
            raise UsageError(f"--precision is {name!r}", "it must be fp32, bf16 or int8")
    folder = find(model)
    choose_runtime("cpu", threads=threads)
    config = read_config(find_base(folder) if is_adapter(folder) else folder)
    for name in wanted:
        package = None if force else find_package(config, name)
        try:
            print(package or show_compiling(config, name), flush=True)  # noqa: T201
        except BuildError as error:
            fix = error.fix or "gpt2 generate --compile off, which needs none"
            raise ResourceError(error.what, error.why, fix) from error
