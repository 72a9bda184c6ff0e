"""Compiled decode steps: the packages under GPT2_HOME/compiled, when one is worth building, and its use.

A package is machine code for one config, precision, thread count, processor and torch, without weights.
Because it is code, its folder is private to the user, and it runs only if its SHA-256 is the one stored
when it was built here. export_step.py says what is compiled.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2cli import paths
from gpt2cli.errors import Gpt2Error
from gpt2cli.files import flush, new_folder, sha256_of, sweep, write_file, write_json
from gpt2cli.generation.cpu import export_step, linear, swap_linears
from gpt2cli.locks import lock
from gpt2cli.model import cpu_ops, gpt2, layers
from gpt2cli.model.config import GPT2Config, size_of
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.model.layers import KVCache
from gpt2cli.runtime import find_compiler, processor_digest

PACKAGE, FACTS = "step.pt2", "facts.json"
# Seconds per parameter that a compiled token saves: 4 to 6 ms at 124M. Smaller models are fast enough.
SAVED, SMALL = 4e-11, 20_000_000
BUILD_SECONDS, BUILD_SECONDS_PER_BLOCK = 15.0, 3.0  # 50 s for 124M on two cores
PAYS = 2  # how many times its own time a build must save: most texts end before their limit
WORTH_SAYING = 0.25  # seconds


class BuildError(Gpt2Error):
    """The compiler is missing or failed; the caller continues without. `what` is a sentence."""


def build_seconds(config: GPT2Config) -> float:
    """About how long a build takes."""
    return BUILD_SECONDS + BUILD_SECONDS_PER_BLOCK * config.n_layer


def saved_seconds(config: GPT2Config, n_tokens: int) -> float:
    """About how much time a compiled step saves over that many tokens."""
    return n_tokens * config.n_parameters * SAVED if config.n_parameters >= SMALL else 0.0


def can_build() -> bool:
    """Whether there is a compiler."""
    return bool(_compiler())


def require_compiler() -> None:
    """Raises BuildError where there is none."""
    if not can_build():
        raise BuildError("there is no C++ compiler", fix="install g++ or clang++")


def find_package(config: GPT2Config, precision: str) -> Path | None:
    """The package for this config, precision, machine and thread count, if it is intact."""
    try:
        folder = _folder(config, precision)
        stored = json.loads((folder / FACTS).read_bytes())
        package = folder / PACKAGE
        wanted = {"facts": _facts(config, precision), "sha256": sha256_of(package)}
        return package if _is_private(folder.parent) and stored == wanted else None
    except (OSError, ValueError, Gpt2Error):  # missing or damaged: as if it were not there
        return None


def build_package(config: GPT2Config, precision: str) -> Path:
    """Build the package, replacing an older one. Takes about `build_seconds`.

    Raises BuildError if it cannot be built or stored, ResourceError while another process builds.
    """
    require_compiler()
    folder = _folder(config, precision)
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder.parent):
            fix = f"chmod 700 {shlex.quote(str(folder.parent))}"
            raise BuildError(f"{folder.parent}: is not private", "compiled code is run from it", fix)
        with lock(folder.parent):
            sweep(folder.parent)
            _failure(folder).unlink(missing_ok=True)
            _build(config, precision, folder)
    except OSError as error:
        what = f"the compiled step cannot be kept ({_first_line(error)}); GPT2_HOME may name another place"
        raise BuildError(what) from error
    return folder / PACKAGE


def has_failed(config: GPT2Config, precision: str) -> bool:
    """Whether the last build of this package failed: with the same facts it would again."""
    failure = _failure(_folder(config, precision))
    return os.path.isfile(failure) and failure.read_text() == json.dumps(_facts(config, precision))


def _build(config: GPT2Config, precision: str, folder: Path) -> None:
    with new_folder(folder) as temporary:
        scratch = temporary / "scratch"
        scratch.mkdir()
        try:
            _compile(config, precision, temporary / PACKAGE, scratch)
        except BuildError:
            write_file(_failure(folder), json.dumps(_facts(config, precision)))
            raise
        shutil.rmtree(scratch)
        with open(temporary / PACKAGE, "rb") as file:
            flush(file)
        facts = {"facts": _facts(config, precision), "sha256": sha256_of(temporary / PACKAGE)}
        write_json(temporary / FACTS, facts)


def _failure(folder: Path) -> Path:
    return folder.with_name(folder.name + ".failed")


def use_package(model: GPT2LMHead, precision: str, package: Path) -> None:
    """Let a model, swapped for "compiled", decode with a package from `find_package`.

    Raises BuildError if torch cannot open it.
    """
    try:
        step = CompiledStep(model, precision, package)
    except (RuntimeError, OSError, ImportError, AttributeError) as error:
        raise BuildError(f"the compiled step does not open ({_first_line(error)})") from error
    model.extend = step  # type: ignore[method-assign]
    model.new_cache = step.new_cache  # type: ignore[method-assign]


class CompiledStep:
    """`GPT2LMHead.extend` through a package, for one id in one row at places 1 to n_positions - 2."""

    def __init__(self, model: GPT2LMHead, precision: str, package: Path) -> None:
        # Not torch's public loader: importing it imports the whole compiler, 2.5 s.
        from torch._C._aoti import AOTIModelPackageLoader  # type: ignore[import-not-found, unused-ignore]

        self._config = config = model.config
        self._precision = precision
        self._eager, self._other_cache = model.extend, model.new_cache
        self._weights = [parameter.detach() for parameter in model.parameters()]
        assert export_step.signature(model) == export_step.signature(export_step.swapped(config, precision))
        assert all(weight.is_contiguous() for weight in self._weights)
        self._shape = (1, config.n_head, config.n_positions, config.head_width)
        self._dtype = export_step.cache_dtype(precision)
        self._places = torch.arange(config.n_positions)
        # torch unpacks it into TMPDIR and deletes that in a destructor, which may never run. Once opened, the
        # code is in memory.
        before = os.environ.get("TMPDIR")
        with tempfile.TemporaryDirectory() as unpacked:
            os.environ["TMPDIR"] = unpacked
            try:
                try:
                    self._run = AOTIModelPackageLoader(str(package), "model", False, 1, -1).run
                except TypeError:  # torch 2.7
                    old: Any = AOTIModelPackageLoader
                    self._run = old(str(package), "model", False).run
            finally:
                os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)

    def __call__(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        S = cache.length + 1
        keys = cache.keys[0]
        fits = keys.shape == self._shape and keys.dtype is self._dtype and keys.is_contiguous()
        if not fits or input_ids.shape != (1, 1) or not export_step.SHORTEST <= S < self._config.n_positions:
            return self._eager(input_ids, cache)
        inputs = [input_ids, self._places[:S], *self._weights, *cache.keys, *cache.values]
        logits: Tensor = self._run(inputs)[0]  # (1, V)
        cache.length = S
        return logits

    def new_cache(self, n_rows: int, n_positions: int) -> KVCache:
        """For one row always full length: its strides are part of the code."""
        if n_rows == 1:
            return export_step.full_cache(self._config, self._precision, n_positions)
        return self._other_cache(n_rows, n_positions)


def _compile(config: GPT2Config, precision: str, path: Path, scratch: Path) -> None:
    """Build in a process of its own, with its own caches."""
    request = {
        "config": asdict(config),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "path": str(path),
    }
    places = {"TMPDIR": str(scratch), "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor")}
    places["CXX"] = find_compiler() or ""  # torch by itself would only look for g++
    package_root = str(Path(__file__).parents[3])
    search = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", export_step.__name__],
            env=os.environ | places | {"PYTHONPATH": search},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=scratch,
            process_group=0,
        )
        try:
            _, errors = process.communicate(json.dumps(request), timeout=3600)
        finally:  # the compiler that it started, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"the compiler does not run ({_first_line(error)})") from error
    if process.returncode or not path.is_file():
        lines = errors.strip().splitlines() or [f"exit code {process.returncode}"]
        told = next((line for line in reversed(lines) if "rror" in line), lines[-1])
        raise BuildError(f"the compiler failed ({told.strip()[:160]})")


def _folder(config: GPT2Config, precision: str) -> Path:
    """Named by what a user chooses; other versions of torch, the compiler or this code replace it."""
    chosen = json.dumps([_decoding_config(config), torch.get_num_threads()])
    digest = hashlib.sha256(chosen.encode()).hexdigest()[:16]
    name = size_of(config) or f"{config.n_layer}x{config.n_embd}"
    return paths.compiled() / f"{name}-{precision}-{digest}"


def _decoding_config(config: GPT2Config) -> dict[str, Any]:
    return asdict(config.with_dropout(0.0)) | {"initializer_range": 0.0}  # these matter in training only


def _facts(config: GPT2Config, precision: str) -> dict[str, Any]:
    """Everything that the machine code depends on."""
    modules = (export_step, swap_linears, linear, gpt2, layers, cpu_ops)
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    return {
        "torch": torch.__version__,
        "processor": processor_digest(),
        "compiler": _compiler(),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "config": _decoding_config(config),
        "code": hashlib.sha256(code).hexdigest(),
    }


def _compiler() -> str:
    """The compiler's path, size and time, which identify its version; "" if there is none."""
    found = find_compiler()
    if found is None:
        return ""
    file = os.stat(found)
    return f"{os.path.realpath(found)} {file.st_size} {file.st_mtime_ns}"


def _is_private(folder: Path) -> bool:
    found = folder.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
