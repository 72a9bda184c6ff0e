"""Owns the conversation with TensorFlow, which lives in a process of its own: both ends of its pipes.

TensorFlow takes half a gigabyte, talks on stderr, and dies of some damaged checkpoints; none of that
reaches the program that asks. `python -m gpt2cli.convert.tf_process read PREFIX` (or `write`) is the
child, the only code that imports it. What the tensors mean is known to openai_tf.py.

A message is 8 bytes of length and that many bytes. The child says "ready" once TensorFlow is imported.
Reading: it sends {name: [dtype, shape]}, then the bytes of each tensor that is asked for by name.
Writing: it is sent {name: shape}, then the bytes of each tensor in that order, and says "saved".
"""

import contextlib
import importlib.util
import io
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from gpt2cli.errors import Gpt2Error, InputError, ResourceError, UsageError

INSTALL = "pip install 'gpt2cli[tensorflow]'"
AGAIN = "fetch the checkpoint's files again"
SILENCE = 300.0  # seconds without a byte until the child counts as hung; an import over NFS takes minutes
SLOWEST_DISK = 5e6  # bytes a second; writing is silent until all is on the disk
_LENGTH = 8  # bytes
_LARGEST_HEADER = 64 << 20
_KEPT = 8192  # bytes of the child's last words
# -P: a file called numpy.py in the present folder is no part of this.
# -u: what is printed last is what went wrong, only if nothing waits in a buffer.
_FLAGS = ("-u", "-P", "-W", "ignore", "-m", "gpt2cli.convert.tf_process")
_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",  # else it announces them
    "CUDA_VISIBLE_DEVICES": "-1",  # a checkpoint needs no GPU, and TensorFlow would take all its memory
}


def require_tensorflow(otherwise: str = "") -> None:
    """Raises UsageError where TensorFlow is not installed; `otherwise` is a way that needs none."""
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.origin is None:  # a mere folder of that name has no origin
        fix = f"{INSTALL}, or without it: {otherwise}" if otherwise else INSTALL
        raise UsageError("OpenAI's checkpoint format needs TensorFlow", "it is not installed here", fix)


class Checkpoint:
    """An open checkpoint: `entries` is {name: (dtype, shape)}."""

    def __init__(self, child: "_Child") -> None:
        header = json.loads(child.receive(at_most=_LARGEST_HEADER))
        self.entries = {name: (str(dtype), tuple(shape)) for name, (dtype, shape) in header.items()}
        self._child = child

    def read(self, name: str, n_bytes: int) -> bytearray:
        """The bytes of one tensor, little-endian, in C order; TensorFlow has checked their CRC-32C."""
        self._child.send(name.encode())
        data = self._child.receive(at_most=n_bytes)
        if len(data) < n_bytes:
            said = f"{len(data)} of {n_bytes} bytes came"
            raise InputError(f"{self._child.prefix}: {name} is cut short", said, AGAIN)
        return data


@contextlib.contextmanager
def reading(prefix: Path) -> Iterator[Checkpoint]:
    """The checkpoint PREFIX.index and PREFIX.data-*. Raises InputError where it is damaged.

    Nobody but the index says how large a tensor is: compare `entries` with what you expect first.
    """
    with _Child("read", prefix) as child:
        yield Checkpoint(child)


def write(prefix: Path, shapes: Mapping[str, Sequence[int]], tensors: Iterable[memoryview]) -> None:
    """Write a checkpoint of float32 variables; `tensors` has their bytes in the order of `shapes`.

    Raises ResourceError where TensorFlow cannot write there.
    """
    with _Child("write", prefix) as child:
        child.send(json.dumps(shapes).encode())
        for data, shape in zip(tensors, shapes.values(), strict=True):
            assert data.nbytes == 4 * math.prod(shape)
            child.send(data)
        n_bytes = sum(4 * math.prod(shape) for shape in shapes.values())
        child.receive(at_most=_LENGTH, extra=n_bytes / SLOWEST_DISK)


class _Child:
    """The process, seen from the program that needs it. Whatever ends it ends in a Gpt2Error."""

    def __init__(self, task: str, prefix: Path) -> None:
        self.task, self.prefix, self.ready, self._said = task, prefix, False, bytearray()
        path = filter(None, sys.path)  # what is found here is found there, wherever it goes
        self._process = subprocess.Popen(
            [sys.executable, *_FLAGS, task, prefix.absolute()],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, path))},
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    def __enter__(self) -> "_Child":
        try:
            self.receive(at_most=_LENGTH)
        except BaseException:
            self._end()
            raise
        self.ready = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def send(self, data: bytes | memoryview) -> None:
        for part in (len(data).to_bytes(_LENGTH, "little"), data):
            left = memoryview(part).cast("B")
            while left:
                self._await(self._in, select.POLLOUT)
                try:
                    left = left[os.write(self._in, left) :]
                except BrokenPipeError:
                    raise self._failure() from None

    def receive(self, at_most: int, extra: float = 0.0) -> bytearray:
        length = int.from_bytes(self._read(_LENGTH, extra), "little")
        if length > at_most:
            raise InputError(
                f"{self.prefix}: is no checkpoint of a GPT-2",
                f"{length} bytes came where {at_most} would do",
                AGAIN,
            )
        return self._read(length)

    def _read(self, length: int, extra: float = 0.0) -> bytearray:
        data = bytearray(length)  # filled in place: the token embedding of 1558M takes 322 MB
        left = memoryview(data)
        while left:
            self._await(self._out, select.POLLIN, extra)
            n = os.readv(self._out, [left])
            if not n:
                raise self._failure()
            left = left[n:]
        return data

    def _await(self, pipe: int, event: int, extra: float = 0.0) -> None:
        patience = SILENCE + extra
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(patience * 1000):
            kind = ResourceError if self.task == "write" else InputError
            raise kind(
                f"{self.prefix}: TensorFlow does not answer",
                f"nothing came from it for {patience:.0f} seconds",
                f"try again, then {AGAIN}",
            )

    def _listen(self, stderr: IO[bytes]) -> None:
        """Keep the end of what the child says; read all of it, for a full pipe would stop the child."""
        while block := stderr.read(_KEPT):
            self._said = (self._said + block)[-_KEPT:]

    def _failure(self) -> Gpt2Error:
        """Why the child's pipe has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._listener.join(10)
        lines = [line for line in self._said.decode("utf-8", "replace").splitlines() if line.strip()]
        said, code = (lines[-1][:300] if lines else "it said nothing"), self._process.poll()
        if code == -signal.SIGKILL:
            return ResourceError(
                f"{self.prefix}: TensorFlow was killed",
                "by the system, which does so when memory has run out, or by someone",
                "close other programs and try again",
            )
        if not self.ready:
            return UsageError(
                "TensorFlow does not start", said, f"python -c 'import tensorflow', or again: {INSTALL}"
            )
        died = f"TensorFlow died of {signal.strsignal(-code)}: " if code is not None and code < 0 else ""
        if self.task == "write":
            return ResourceError(
                f"{self.prefix}: TensorFlow cannot write the checkpoint",
                died + said,
                "free some space, or choose another place",
            )
        return InputError(
            f"{self.prefix}: the checkpoint is damaged",
            died + said,
            AGAIN,
        )

    def _end(self) -> None:
        """Nothing is lost: a reader has no state, and a writer has said that all is saved."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()


def _main(task: str, prefix: str) -> None:
    """The child. It ends when its stdin does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent decides
    sys.excepthook = _last_words
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what TensorFlow prints is no reply
    import tensorflow as tf

    _send(replies, b"ready")
    folder, name = os.path.split(prefix)
    os.chdir(folder)  # TensorFlow takes a path for a pattern: a folder called [x] would not be found
    with contextlib.suppress(BrokenPipeError):  # the parent has gone
        (_read if task == "read" else _write)(tf.compat.v1, f"./{name}", requests, replies)


def _read(tf: Any, prefix: str, requests: io.BufferedReader, replies: io.BufferedWriter) -> None:
    # Not tf.train.load_checkpoint, which goes where a file called "checkpoint" sends it.
    reader = tf.train.NewCheckpointReader(prefix)
    dtypes = reader.get_variable_to_dtype_map()
    entries = {name: [dtypes[name].name, shape] for name, shape in reader.get_variable_to_shape_map().items()}
    _send(replies, json.dumps(entries).encode())
    while (request := _receive(requests)) is not None:
        array = reader.get_tensor(request.decode())
        _send(replies, array.reshape(-1).view("u1").data)
        del array  # before the next one is made


def _write(tf: Any, prefix: str, requests: io.BufferedReader, replies: io.BufferedWriter) -> None:
    import numpy as np

    shapes = json.loads(_receive(requests) or b"{}")
    with tf.Graph().as_default(), tf.Session() as session:
        slots = {}
        for name, shape in shapes.items():
            # Set through a placeholder: a constant would become a part of the graph, and of .meta.
            variable = tf.get_variable(name, shape, tf.float32, tf.zeros_initializer(), use_resource=False)
            value = tf.placeholder(tf.float32, shape)
            slots[name] = value, tf.assign(variable, value).op
        saver = tf.train.Saver(save_relative_paths=True)
        for name, (value, assign) in slots.items():
            data = _receive(requests)
            if data is None:
                return
            session.run(assign, {value: np.frombuffer(data, "<f4").reshape(shapes[name])})
            del data
        saver.save(session, prefix)
    _send(replies, b"saved")


def _send(pipe: io.BufferedWriter, data: bytes | memoryview) -> None:
    pipe.write(len(data).to_bytes(_LENGTH, "little"))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: io.BufferedReader) -> bytearray | None:
    """A message; None where the parent has closed the pipe, or died in the middle of one."""
    data = bytearray(int.from_bytes(pipe.read(_LENGTH), "little"))
    left = memoryview(data)
    while left and (n := pipe.readinto(left)):
        left = left[n:]
    return None if left or not data else data


def _last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One line for the parent, which shows the last one."""
    first = (str(error).splitlines() or [""])[0]
    sys.stderr.write(f"\n{kind.__name__}: {first}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
