"""The model that a name means, and a model ready to decode: on its device, in its precision, with a compiled
step if that pays off.

Torch is imported in bodies: while it loads, the command line reads ahead the weights of the folder that was
found here. Whether to use a compiled step (cpu/aot_packages.py), to build one, or to say how to get one is
decided here too. Messages go through callbacks; nothing is printed here.
"""

import contextlib
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gpt2cli.cores import forward_seconds
from gpt2cli.errors import InputError, ResourceError, UsageError
from gpt2cli.paths import (
    canonical_size,
    expand,
    find_model,
    has_home,
    is_adapter,
    is_checkpoint,
    is_classifier,
    is_model,
    is_run,
    models_newest_first,
)

if TYPE_CHECKING:
    from gpt2cli.checkpoints.classifier import LoadedClassifier
    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.model.config import GPT2Config
    from gpt2cli.runtime import Runtime

Notice = Callable[[str, Literal["warning", "hint"]], None]  # a sentence for the user
Build = Callable[["GPT2Config", str], Path]  # aot_packages.build_package, perhaps with a spinner

COMPILE = ("auto", "on", "off")
NEW_TOKENS, REPLY_TOKENS = 100, 256  # at most, of a continuation and of a reply, by default


def find_folder(name: str | None) -> Path:
    """The folder of the model called `name`; None is the newest model, before a classifier any other.

    Raises InputError, for the name of a file too.
    """
    try:
        found = models_newest_first() if name is None else ()
        return next(filter(_writes, found), None) or find_model(name, _writes)
    except InputError:
        _refuse_file(name or "")
        raise


def _writes(folder: Path) -> bool:
    return not is_classifier(folder)


def find_with_adapters(name: str | None, adapters: Sequence[str] | None) -> tuple[Path, list[Path]]:
    """The folder of the model called `name`, and those of the adapters to add to its weights.

    A model that is an adapter itself is one of these. Without a name the first adapter brings its
    base; of a run it is the checkpoint that this adapter was trained over, if it has that. Raises
    UsageError for a folder that is no adapter or is given twice, InputError as `find_folder`.
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
) -> "LoadedModel":
    """The model of a folder, ready to generate about `n_tokens` in each of `n_rows` together. `adapters`
    are folders, added into its weights.

    For one row "auto" uses an existing compiled step, and builds one if that saves more time than it takes.
    If it fails, a notice says why, and the model decodes without.
    Raises UsageError for an unknown device or value of `compile`, and what `open_model` raises.
    """
    from gpt2cli.convert.open_model import open_model
    from gpt2cli.generation.cpu import aot_packages
    from gpt2cli.generation.cpu.swap_linears import swap_for_decoding

    if compile not in COMPILE:
        raise UsageError(f"--compile is {compile!r}", "it must be auto, on or off")
    loaded = open_model(folder, adapters, remembered=True)
    runtime = _runtime(loaded.config, n_rows, device, precision, threads, notice, decoding=True)
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
    package = _package(folder, model.config, runtime.precision, threads, compile, n_tokens, notice, build)
    swap_for_decoding(model, runtime.precision, "row" if package is None else "compiled")
    if package is not None:
        try:
            aot_packages.use_package(model, runtime.precision, package)
        except aot_packages.BuildError as error:
            notice(f"{error}; going on without it", "warning")
    return loaded


def load_for_scoring(
    folder: Path, adapters: Sequence[Path], device: str, precision: str, threads: int, notice: Notice
) -> "tuple[LoadedModel, Runtime]":
    """The model of a folder, ready for the log-probabilities of texts. Raises as `load_for_decoding`."""
    from gpt2cli.convert.open_model import open_model
    from gpt2cli.generation.cpu.swap_linears import swap_for_many_rows

    loaded = open_model(folder, adapters, remembered=True)
    runtime = _runtime(loaded.config, loaded.config.n_positions, device, precision, threads, notice)
    loaded.model.to(runtime.device)
    swap_for_many_rows(loaded.model.transformer, runtime.precision)
    return loaded, runtime


def load_for_classifying(
    name: str, device: str, precision: str, threads: int, notice: Notice
) -> "LoadedClassifier":
    """The classifier that `name` means, on its device. Raises as `load_for_decoding`."""
    from gpt2cli.checkpoints.classifier import load_classifier
    from gpt2cli.generation.cpu.swap_linears import swap_for_many_rows

    folder = find_model(name, is_classifier)
    loaded = load_classifier(folder, remembered=True)
    config = loaded.model.config
    runtime = _runtime(config, config.n_positions, device, precision, threads, notice)
    loaded.model.to(device=runtime.device, dtype=runtime.dtype)
    swap_for_many_rows(loaded.model.transformer, runtime.precision)
    return loaded


def _runtime(
    config: "GPT2Config",
    n_rows: int,
    device: str,
    precision: str,
    threads: int,
    notice: Notice,
    *,
    decoding: bool = False,
) -> "Runtime":
    """The runtime for a model that computes `n_rows` positions per forward; `notice` gets its notices."""
    from gpt2cli.runtime import choose_runtime

    forward = forward_seconds(config.n_parameters, n_rows)
    runtime = choose_runtime(device, precision, threads, decoding=decoding, forward=forward)
    for sentence in runtime.notices:
        notice(sentence, "warning")
    return runtime


def _refuse_file(name: str) -> None:
    path = expand(name)
    if not name or canonical_size(name) or not os.path.isfile(path):
        return
    if around := [folder for folder in path.parents if is_run(folder) or is_model(folder)]:
        raise InputError(f"{path}: is a file", "a model is the whole folder", f"did you mean {around[0]}?")
    if path.suffix in (".txt", ".md", ".jsonl", ".csv"):
        raise InputError(
            f"{path}: is a text",
            "a model is a folder; evaluate measures one on a text",
            f"gpt2 evaluate --on {shlex.quote(str(path))}",
        )
    raise InputError(
        f"{path}: is a file", "a model is a folder; convert makes one from a file", f"gpt2 convert {path}"
    )


def _package(
    folder: Path,
    config: "GPT2Config",
    precision: str,
    threads: int,
    compile: str,
    n_tokens: int,
    notice: Notice,
    build: Build,
) -> Path | None:
    """The compiled step to use, built first if that pays off. `threads` is the number that was asked for."""
    from gpt2cli.generation.cpu import aot_packages

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
                asked = f" --threads {threads}" if threads else ""
                command = f"gpt2 compile {shlex.quote(str(folder))} --precision {precision}{asked}"
                notice(f"faster after: {command}", "hint")
            return None
    try:
        return build(config, precision)
    except (aot_packages.BuildError, ResourceError) as error:
        notice(f"{error}; going on without a compiled step", "warning")
        return None
