"""A command in a fork of this process, whose streams break or which a signal hits at a chosen moment.

A fork because a process of its own would import torch for seconds; it runs the program's own `main`.
"""

import contextlib
import fcntl
import os
import pty
import select
import signal
import sys
import termios
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class Moment:
    """The `calls`-th call of a Python function after metrics.jsonl has got its `records`-th line.

    With `in_save`, after a checkpoint was begun after that line.
    """

    records: int
    in_save: bool
    calls: int


@dataclass(frozen=True)
class Interruption:
    """`streams` are files, pipes, tee (both into a pipe), pty (a terminal) or closed.

    `actions`, one or two, come from outside: INT, HUP and TERM are signals, to all processes that a
    terminal would send them to; stdout, stderr, reader and terminal lose the other end of a stream.
    """

    streams: str
    actions: tuple[str, ...]
    ignores_hup: bool = False  # as under nohup


def run_interrupted(arguments: list[str], interruption: Interruption, moment: Moment, log: Path) -> int:
    """The exit code of `gpt2 arguments`. An unforeseen exception is in `log`."""
    ends = _Ends(interruption.streams, log)
    reached, tell_reached = os.pipe()
    go, let_go = os.pipe()
    child = os.fork()
    if child == 0:

        def wait() -> None:
            for _ in interruption.actions:
                os.write(tell_reached, b".")
                os.read(go, 1)

        ends.begin_child(interruption.ignores_hup)
        os.close(reached)
        os.close(let_go)
        _arm(moment, wait)
        _run(arguments, log)
    for descriptor in (tell_reached, go):
        os.close(descriptor)
    try:
        ends.begin_parent(child, {reached, let_go})
        for action in interruption.actions:
            if not ends.await_byte(reached):
                break  # it has ended before the moment: the caller sees its exit code
            ends.act(action)
            os.write(let_go, b".")
        while ends.await_byte(reached):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        ends.close()
        os.close(reached)
        os.close(let_go)


class _Ends:
    """Both ends of the streams of a child."""

    def __init__(self, kind: str, log: Path) -> None:
        self._kind, self._read, self._write = kind, dict[str, int](), dict[str, int]()
        self._child = self._tee = 0
        if kind == "pipes":
            for name in ("stdout", "stderr"):
                self._read[name], self._write[name] = os.pipe()
        elif kind == "tee":
            self._read["reader"], both = os.pipe()
            self._write = {"stdout": both, "stderr": both}
        elif kind == "pty":
            self._read["terminal"], both = pty.openpty()
            self._write = {"stdout": both, "stderr": both}
        elif kind == "files":
            both = os.open(log.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            self._write = {"stdout": both, "stderr": both}

    def begin_child(self, ignores_hup: bool) -> None:
        for descriptor in self._read.values():
            os.close(descriptor)
        if self._kind == "pty":
            os.setsid()
            fcntl.ioctl(self._write["stdout"], termios.TIOCSCTTY, 0)
        else:
            os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignores_hup else signal.SIG_DFL)
        if self._kind == "closed":
            for number in range(3):
                os.close(number)
            sys.stdin = sys.stdout = sys.stderr = None  # type: ignore[assignment]
            return
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(self._write["stdout"], 1)
        os.dup2(self._write["stderr"], 2)
        for descriptor in set(self._write.values()):
            os.close(descriptor)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115

    def begin_parent(self, child: int, others: set[int]) -> None:
        self._child = child
        for descriptor in set(self._write.values()):
            os.close(descriptor)
        if self._kind == "tee":
            with contextlib.suppress(OSError):  # the child has done it, or has ended
                os.setpgid(child, child)
            self._tee = os.fork()
            if self._tee == 0:
                _read_on(self._read["reader"], child, others)
            os.close(self._read.pop("reader"))

    def act(self, action: str) -> None:
        if action in ("INT", "HUP", "TERM"):
            if action == "INT" and self._kind == "pty":
                os.write(self._read["terminal"], b"\x03")
            elif self._tee and action != "TERM":
                os.killpg(self._child, signal.Signals[f"SIG{action}"])
                self._await_tee()
            else:
                os.kill(self._child, signal.Signals[f"SIG{action}"])
        elif action == "reader":
            os.kill(self._tee, signal.SIGKILL)
            self._await_tee()
        else:
            os.close(self._read.pop(action))

    def await_byte(self, control: int) -> bool:
        """Read all streams until the child has written to `control`, or, then False, has ended."""
        while True:
            ready = select.select([control, *self._read.values()], [], [], PATIENCE)[0]
            assert ready, "the child neither goes on nor ends"
            for name, descriptor in [*self._read.items()]:
                if descriptor in ready:
                    try:
                        data = os.read(descriptor, 1 << 16)
                    except OSError:  # so a terminal ends
                        data = b""
                    if not data:
                        os.close(self._read.pop(name))
            if control in ready:
                return os.read(control, 1) != b""

    def close(self) -> None:
        for descriptor in self._read.values():
            os.close(descriptor)
        if self._tee:
            os.kill(self._tee, signal.SIGKILL)
            self._await_tee()

    def _await_tee(self) -> None:
        if self._tee:
            os.waitpid(self._tee, 0)
            self._tee = 0


def _read_on(descriptor: int, group: int, others: set[int]) -> NoReturn:
    """What tee does, in the process group of the program."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.setpgid(0, group)
    for other in others:
        os.close(other)
    while os.read(descriptor, 1 << 16):
        pass
    os._exit(0)


def _arm(moment: Moment, act: Callable[[], None]) -> None:
    """Call `act` at that moment of this process."""
    n_records, left = 0, moment.calls

    def count(frame: FrameType, what: str, value: object) -> None:
        nonlocal left
        if what == "call":
            left -= 1
            if left < 0:
                sys.setprofile(None)
                act()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal n_records
        if event == "open" and arguments[1] == "a" and str(arguments[0]).endswith("metrics.jsonl"):
            n_records += 1
            is_it = not moment.in_save
        else:
            is_it = event == "os.mkdir" and ".partial-step" in str(arguments[0]) and moment.in_save
        if is_it and n_records == moment.records:
            sys.setprofile(count)

    sys.addaudithook(watch)


def _run(arguments: list[str], log: Path) -> NoReturn:
    """Run the program and end as the interpreter would: streams are flushed, and failing is exit code 120."""
    from gpt2cli.cli.app import main

    code: Any = 1
    try:
        main(arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - whatever it is, the parent reports it
        log.write_text(traceback.format_exc(), encoding="utf-8")
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    os._exit(code or 0)
