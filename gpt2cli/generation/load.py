"""A model ready to decode: on its device, in its precision, with a compiled step if that pays off.

This file decides whether to use a compiled step (cpu/aot_packages.py), to build one, or to say how to get
one. Messages go through callbacks; nothing is printed here.
"""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from gpt2cli.checkpoints.folder import LoadedModel
from gpt2cli.convert.open_model import open_model
from gpt2cli.errors import ResourceError, UsageError
from gpt2cli.generation.cpu import aot_packages
from gpt2cli.generation.cpu.swap_linears import swap_for_decoding
from gpt2cli.model.config import GPT2Config
from gpt2cli.paths import has_home
from gpt2cli.runtime import Runtime, choose_runtime, default_threads

Notice = Callable[[str, Literal["warning", "hint"]], None]  # a sentence for the user
Build = Callable[[GPT2Config, str], Path]  # aot_packages.build_package, perhaps with a spinner

COMPILE = ("auto", "on", "off")


def load_for_decoding(
    folder: Path,
    device: str,
    precision: str,
    threads: int,
    compile: str,
    *,
    adapters: Sequence[Path] = (),
    n_rows: int,
    n_tokens: int,
    notice: Notice,
    build: Build,
) -> LoadedModel:
    """The model of a folder, ready to generate about `n_tokens` in each of `n_rows` together. `adapters`
    are folders, added into its weights.

    For one row "auto" uses an existing compiled step, and builds one if that saves more time than it takes.
    If it fails, a notice says why, and the model decodes without.
    Raises UsageError for an unknown device or value of `compile`, and what `open_model` raises.
    """
    if compile not in COMPILE:
        raise UsageError(f"--compile is {compile!r}", "it must be auto, on or off")
    runtime = choose_runtime(device, precision, threads, decoding=True)
    for sentence in runtime.notices:
        notice(sentence, "warning")
    loaded = open_model(folder, adapters, remembered=True)
    model = loaded.model.to(device=runtime.device)
    if runtime.device.type != "cpu" or runtime.precision == "fp16":
        model.to(dtype=runtime.dtype)
        if compile == "on":
            notice("compiled steps are for the CPU in fp32, bf16 or int8; going on without", "warning")
        return loaded
    if n_rows > 1:
        if compile == "on":
            notice("a compiled step writes one continuation at a time; going on without", "warning")
        swap_for_decoding(model, runtime.precision, "rows")
        return loaded
    package = _package(folder, model.config, runtime, compile, n_tokens, notice, build)
    swap_for_decoding(model, runtime.precision, "row" if package is None else "compiled")
    if package is not None:
        try:
            aot_packages.use_package(model, runtime.precision, package)
        except aot_packages.BuildError as error:
            notice(f"{error}; going on without it", "warning")
    return loaded


def _package(
    folder: Path,
    config: GPT2Config,
    runtime: Runtime,
    compile: str,
    n_tokens: int,
    notice: Notice,
    build: Build,
) -> Path | None:
    """The compiled step to use, built first if that pays off."""
    precision = runtime.precision
    if compile == "off" or (compile == "auto" and not has_home()):
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
                command = f"gpt2 compile {shlex.quote(str(folder))} --precision {precision}{threads}"
                notice(f"faster after: {command}", "hint")
            return None
    try:
        return build(config, precision)
    except (aot_packages.BuildError, ResourceError) as error:
        notice(f"{error}; going on without a compiled step", "warning")
        return None
