"""The machine and its settings: device, precision, threads, compiler.

`choose_runtime` resolves "auto" from a recipe or a flag into a frozen Runtime; every other
module receives one and never queries the machine.
"""

import ctypes
import hashlib
import math
import os
import platform
import resource
import shutil
import sys
from dataclasses import dataclass

import torch

from gpt2cli.cores import PER_CORE, busy_cores, choose_threads, crowded, named_threads
from gpt2cli.errors import UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8 = "int8"  # of decoding's weights on a CPU, which are rounded from fp32
# Building kernels costs 10 to 40 s; below this many floating-point operations, by device, it never pays back.
COMPILE_FROM_FLOPS = {"cpu": 2e13, "cuda": 1e16}
# Positions; at 2 x 256 in bf16 a forward takes 1.7 ms a block written out, 2.9 ms fused.
FORMULA_UP_TO = 256
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h


@dataclass(frozen=True)
class Runtime:
    """Where and how to compute. Matmuls run in `dtype`; weights stay fp32 in training."""

    device: torch.device
    precision: str  # "fp32", "bf16" or "fp16"; decoding also "int8"
    threads: int
    compile: bool
    notices: tuple[str, ...] = ()  # what was asked for and is not available, one sentence each

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES["fp32" if self.precision == INT8 else self.precision]

    def autocast(self) -> torch.autocast:
        """A context in which matmuls over fp32 weights run in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.precision != "fp32")


def choose_runtime(
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    compile: str = "off",
    *,
    training: bool = False,
    decoding: bool = False,
    flops: float = 0.0,
    forward: float = math.inf,
    processes: int = 1,
) -> Runtime:
    """Resolve "auto" for this machine and set torch's thread count.

    `flops` is the work ahead: with compile "auto" the compiler is used where that is worth it. `forward`
    is what `cores.forward_seconds` gives, by which the threads of each of `processes` are chosen. Neither
    `training` nor `decoding` is measuring, in fp32 unless another precision is named.
    Raises UsageError for a device that is not there. A precision or a compiler that the
    machine lacks becomes a notice, never a failure.
    """
    chosen = require_device(device)
    notices: list[str] = []
    if precision == INT8 and decoding and chosen.type != "cpu":
        notices.append("int8 is for decoding on a CPU; the precision is chosen as if none were named")
        precision = "auto"
    is_int8 = precision == INT8 and decoding
    name = INT8 if is_int8 else _choose_precision(precision, chosen, training, decoding, notices)
    count = choose_threads(threads, forward, processes)
    if threads > count:
        notices.append(f"{threads} threads are more than {PER_CORE} per core; {count} are used")
    is_own_choice = not threads and not named_threads() and chosen.type == "cpu"
    if is_own_choice and (
        notice := crowded(count, busy_cores(), "run.threads=" if training else "--threads ")
    ):
        notices.append(notice)
    torch.set_num_threads(count)
    return Runtime(chosen, name, count, _choose_compile(compile, chosen, flops, notices), tuple(notices))


def find_compiler() -> str | None:
    """The path of a C++ compiler: the one that CXX names, or else the first there is."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (named,) if named else ("g++", "clang++", "c++"))), None)


def choose_attention(attention: str, device: torch.device, context: int, *, compiled: bool = False) -> str:
    """Resolve "auto": on a CPU, plain matmuls beat torch's fused kernel where rows are short, and
    compiled ones everywhere. On an Apple GPU torch's kernel is never used.
    """
    if attention != "auto":
        return attention
    if device.type == "cuda":
        return "sdpa"
    if device.type == "mps":  # its fused kernel was silently wrong in several releases
        return "blocks"
    return "blocks" if compiled else "formula" if context <= FORMULA_UP_TO else "sdpa"


def describe_machine(runtime: Runtime) -> dict[str, str | int]:
    """The machine's facts for run.json, needed to interpret the speed and reproduce the numbers."""
    accelerator = torch.cuda.get_device_name() if runtime.device.type == "cuda" else ""
    return {
        "device": str(runtime.device),
        "accelerator": accelerator,
        "precision": runtime.precision,
        "threads": runtime.threads,
        "compile": "on" if runtime.compile else "off",
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor_digest() -> str:
    """A digest of the processor's features, by which compiled code and measured choices are known again."""
    lines = []
    if os.path.exists("/proc/cpuinfo"):
        wanted = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU implementer", "CPU part")
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = sorted({line for line in file if line.startswith(wanted)})
    name = "\n".join([os.uname().machine, torch.backends.cpu.get_cpu_capability(), *lines])
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def peak_memory(device: torch.device) -> tuple[int, str]:
    """The most bytes that were in use so far, and of what: torch's tensors on a GPU, or this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "on the GPU"
    if device.type == "mps":
        return torch.mps.driver_allocated_memory(), "on the GPU"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), "of this process"


def require_device(device: str) -> torch.device:
    """The device that a name means; raises UsageError for one that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
    if not there.get(device):
        raise UsageError(
            f"device {device} is not available",
            "torch does not see one on this machine",
            "--device cpu",
        )
    return torch.device(device)


def _choose_precision(
    precision: str, device: torch.device, training: bool, decoding: bool, notices: list[str]
) -> str:
    if precision == "auto":
        # Training keeps fp32 weights beside the bf16 matmuls. Decoding would round the weights
        # themselves: on a CPU that nearly doubles the speed and changes some texts, so the user asks for it.
        # Measurements are worth the time of fp32.
        is_fast = has_fast_bf16(device) and (training or (decoding and device.type != "cpu"))
        return "bf16" if is_fast else "fp32"
    if precision == "fp16" and device.type != "cuda" and training:
        notices.append("fp16 training needs a CUDA device for its loss scaling; fp32 is used instead")
        return "fp32"
    if precision == "bf16" and device.type == "cuda" and not has_fast_bf16(device):
        notices.append("this GPU has no bf16; fp16 is used instead")
        return "fp16"
    if precision == "bf16" and device.type == "mps" and training:
        notices.append("bf16 training is not for Apple GPUs; fp32 is used instead")
        return "fp32"
    return precision


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks for the next step of a training.

    By default each goes back to the kernel and returns page by page, zeroed: a quarter of the time
    of a 124M training step. Other C libraries have no such switch and need none.
    """
    _mallopt(M_MMAP_MAX, 0)
    _mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Tell glibc to give each large block back to the kernel once it is freed, for a model in parts.

    By default it learns to keep blocks of up to 32 MB, and the weights that are gathered and freed block by
    block leave holes: a 124M step then takes 3.3 GiB of two processes each, and so 2.1.
    """
    _mallopt(M_MMAP_THRESHOLD, 4 << 20)


def _mallopt(option: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(option, value)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether there is bf16 in hardware; emulated, as on a T4, it is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def _choose_compile(compile: str, device: torch.device, flops: float, notices: list[str]) -> bool:
    if compile == "off" or (compile == "auto" and flops < COMPILE_FROM_FLOPS.get(device.type, math.inf)):
        return False
    if device.type == "mps":
        notices.append("compile is on, but is not for Apple GPUs; running without it")
        return False
    if device.type == "cpu" and not find_compiler():
        if compile == "on":
            notices.append("compile is on, but there is no C++ compiler; running without it")
        return False
    return True
