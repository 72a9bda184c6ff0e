"""`gpt2 compile`: builds machine code for a model's decode step ahead of time."""

from typing import Annotated

import typer

from gpt2cli.cli.choose_model import find_folder
from gpt2cli.cli.options import ModelArgument, ThreadsOption
from gpt2cli.cores import forward_seconds
from gpt2cli.errors import ResourceError, UsageError
from gpt2cli.paths import is_adapter


def compile(
    model: ModelArgument = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", help="fp32, bf16 or int8; repeatable.", show_default="fp32"),
    ] = None,
    threads: ThreadsOption = 0,
    force: Annotated[bool, typer.Option("--force", help="Rebuild even if it exists.")] = False,
) -> None:
    """Make generate and chat faster: compile a decode step.

    Needs a C++ compiler and about a minute per precision.
    Works for all models of the same shape with the same --threads.
    Compile again after a change of torch, compiler, CPU or gpt2cli.
    Prints the path of the compiled step to stdout.
    """
    from gpt2cli.checkpoints.folder import read_config
    from gpt2cli.convert.merge_lora import find_base
    from gpt2cli.generation.cpu.aot_packages import BuildError, find_package
    from gpt2cli.generation.cpu.swap_linears import LAYERS
    from gpt2cli.runtime import choose_runtime
    from gpt2cli.ui.progress import show_compiling

    wanted = list(dict.fromkeys(precision or ["fp32"]))  # what generate takes by itself
    for name in wanted:
        if name not in LAYERS["compiled"]:
            raise UsageError(f"--precision is {name!r}", "it must be fp32, bf16 or int8", "--precision int8")
    folder = find_folder(model)
    config = read_config(find_base(folder) if is_adapter(folder) else folder)
    choose_runtime("cpu", threads=threads, decoding=True, forward=forward_seconds(config.n_parameters, 1))
    for name in wanted:
        package = None if force else find_package(config, name)
        try:
            print(package or show_compiling(config, name), flush=True)  # noqa: T201
        except BuildError as error:
            fix = error.fix or "gpt2 generate --compile off, which needs none"
            raise ResourceError(error.what, error.why, fix) from error
