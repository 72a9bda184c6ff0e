"""CPU cores: how many this process may use, and with how many threads to compute.

The one policy: the number that was asked for; else OMP_NUM_THREADS; else one thread for small work, and
one per core for the rest.
"""

import math
import os
from pathlib import Path

PER_CORE = 4  # threads: more gain nothing, and many thousands end the process
# Of one forward on one core: below that its matmuls are as short as the meetings of threads around them.
ONE_THREAD_BELOW = 4e-3  # seconds
# A core's multiply-adds in fp32 and its reading of weights, in round numbers: laptops and servers have these.
_PER_SECOND, _BYTES_PER_SECOND = 25e9, 10e9
# Turns that a thread waits awake for the others: the gaps between matmuls are that short on idle cores; where
# other programs run, what GNU's OpenMP takes by itself for more threads than cores.
SPINS_IDLE, SPINS_BUSY = "10000", "1000"
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # of cgroup 2, in a container: quota and period, in microseconds


def usable_cores(cpu_max: Path = _CPU_MAX) -> int:
    """The cores that this process may use: its affinity, and a container's quota rounded up."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        return max(1, min(n, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup 2, or "max": no quota
        return n


def forward_seconds(n_parameters: int, n_tokens: float) -> float:
    """About how long a model's forward over that many tokens takes on one core: it multiplies, and it reads
    each weight once, which is most of decoding.
    """
    return n_parameters * max(n_tokens / _PER_SECOND, 4 / _BYTES_PER_SECOND)


def choose_threads(asked: int, forward: float, processes: int = 1) -> int:
    """The number of threads for forwards of so many seconds, in each of `processes`; 0 asks for none.

    Never more than PER_CORE per core.
    """
    most = PER_CORE * usable_cores()
    if named := asked or named_threads():
        return min(named, most)
    return 1 if forward < ONE_THREAD_BELOW else max(1, usable_cores() // processes)


def named_threads() -> int:
    """OMP_NUM_THREADS, whose first number is that of the outermost level; 0 without one."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def let_threads_sleep() -> None:
    """Let idle threads of GNU's OpenMP, which torch brings, give their core away after some microseconds.

    By default one spins 300,000 turns while it waits for the others, and where other programs run, those
    others wait for the core on which it spins. Called before torch is imported; what the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS_BUSY if busy_cores() >= 0.5 else SPINS_IDLE)


def busy_cores() -> float:
    """How many of this machine's cores other programs use, as far as is known: the load of the last minute,
    but no more than runs now, so that what has just ended does not count.
    """
    try:
        load = os.getloadavg()[0]
    except OSError:
        return 0.0
    try:
        now = Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]
        return max(0.0, min(load, int(now) - 1))  # this process runs, too
    except (OSError, ValueError, LookupError):  # no Linux
        return load


def crowded(threads: int, busy: float, option: str) -> str:
    """A sentence where other programs leave fewer cores than threads; `option` is how to ask for fewer."""
    n = os.cpu_count() or 1
    free = n - busy
    if threads < 2 or free > threads - 0.5:
        return ""
    fewer = max(1, math.floor(free))
    return (
        f"other programs use {min(busy, n):.0f} of the {n} cores, and {threads} threads wait for each other:"
        f" {option}{fewer} may be faster"
    )
