"""The bytes of a source: hashed as they lie on disk, then unpacked, then UTF-8 whatever their encoding."""

import bz2
import codecs
import contextlib
import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from gpt2cli import files
from gpt2cli.data.bad_records import MAX_BAD
from gpt2cli.data.file_kinds import HEAD, require_readable
from gpt2cli.data.input_files import TextSource
from gpt2cli.encodings import UTF8, WrongEncodingError, require_encoding
from gpt2cli.errors import InputError, UsageError

BLOCK = 1 << 20


@dataclass(frozen=True)
class ReadOptions:
    """How files are read: `--encoding` and `--max-bad`, `data.encoding` and `data.max_bad`."""

    encoding: str = UTF8
    max_bad: float = MAX_BAD

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad <= 1:
            raise UsageError(
                f"max-bad is {self.max_bad:g}", "it is a share of the records, from 0 to 1", "--max-bad 0.01"
            )
        object.__setattr__(self, "encoding", require_encoding(self.encoding))


def read_options(encoding: str | None = None, max_bad: float | None = None) -> ReadOptions:
    """The options that are given, the others' defaults for None. Raises UsageError."""
    return ReadOptions(encoding or UTF8, MAX_BAD if max_bad is None else max_bad)


STRICT = ReadOptions(max_bad=0)


class ByteSource:
    """A source being read from `stream`. `digest` and `n_read` cover the bytes read so far, as they are on
    disk.

    Raises InputError for a file that is neither text nor records.
    """

    def __init__(self, source: TextSource, encoding: str = UTF8, file: BinaryIO | None = None) -> None:
        """`file` is read instead of the source's path, or standard input."""
        self.source = source
        self._raw = _Hashing(file or (files.open_regular(source.path) if source.path else sys.stdin.buffer))
        self._plain = cast(BinaryIO, io.BufferedReader(self._raw, BLOCK))
        self._encoding = encoding

    @property
    def digest(self) -> str:
        return self._raw.digest.hexdigest()

    @property
    def n_read(self) -> int:
        return self._raw.n_read

    @contextlib.contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        """The content, unpacked, as UTF-8. Raises InputError for damaged data, also while it is read."""
        source, stream = self.source, self._plain
        try:
            if not source.packing:
                require_readable(source.name, source.path, cast(Any, stream).peek(HEAD)[:HEAD])
            elif not cast(Any, stream).peek(1):
                pass  # a file of no bytes is empty, packed or not
            elif source.packing == "gz":
                # With its own buffer: the default one reads 8 KB at a time.
                stream = cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=stream), BLOCK))
            elif source.packing == "bz2":
                stream = cast(BinaryIO, io.BufferedReader(bz2.BZ2File(stream), BLOCK))
            else:
                stream = cast(BinaryIO, io.BufferedReader(_Zstandard(source.name, stream), BLOCK))
            if source.packing:
                require_readable(source.name, None, cast(Any, stream).peek(HEAD)[:HEAD])
            if self._encoding != UTF8:
                stream = cast(
                    BinaryIO, io.BufferedReader(_Transcoded(source.name, stream, self._encoding), BLOCK)
                )
            yield stream
        except (EOFError, OSError, zlib.error) as error:
            name = {"gz": "gzip", "bz2": "bzip2"}.get(source.packing)
            if not name or getattr(error, "errno", None):
                raise
            what = f"{source.name}:1: damaged {name} data"
            raise InputError(what, str(error), "fetch the file again") from None

    def drain(self) -> None:
        """Read to the end, for the digest."""
        while self._raw.read(BLOCK):
            pass

    def close(self) -> None:
        self._raw.close()


class _Hashing(io.RawIOBase):
    """A file that hashes what is read from it, and fills every read, also from a pipe.

    Full reads make the digest at any position a function of the content, not of how it arrives.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.n_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        self.digest.update(block)
        self.n_read += len(block)
        return len(block)

    def close(self) -> None:
        if self._file is not getattr(sys.stdin, "buffer", None):  # None: closed by the parent process
            self._file.close()
        super().close()


class _Blocks(io.RawIOBase):
    """A stream made of blocks of any size."""

    _left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not len(self._left):
            block = self._block()
            if block is None:
                return 0
            self._left = memoryview(block)
        n = min(len(buffer), len(self._left))
        buffer[:n], self._left = self._left[:n], self._left[n:]
        return n

    def _block(self) -> bytes | None:
        """The next block, which may be empty; None at the end."""
        raise NotImplementedError


class _Zstandard(_Blocks):
    def __init__(self, name: str, stream: BinaryIO) -> None:
        try:
            import pyarrow as pa
        except ImportError:
            raise UsageError(
                f"{name}: .zst needs pyarrow", "it is not installed here", "pip install pyarrow"
            ) from None
        self._name = name
        self._unpacked = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")

    def _block(self) -> bytes | None:
        try:
            return self._unpacked.read(BLOCK) or None
        except OSError as error:
            if error.errno:
                raise
            command = f"zstd -dc --long=31 {self._name} | gpt2 prepare -"
            fix = command if "memory" in str(error) else "fetch the file again"
            raise InputError(f"{self._name}:1: damaged Zstandard data", str(error), fix) from None


class _Transcoded(_Blocks):
    """Text of another encoding as UTF-8."""

    def __init__(self, name: str, stream: BinaryIO, encoding: str) -> None:
        self._name, self._stream, self._encoding = name, stream, encoding
        self._decoder: codecs.IncrementalDecoder | None = codecs.getincrementaldecoder(encoding)("strict")
        self._n_read, self._line = 0, 1

    def _block(self) -> bytes | None:
        if self._decoder is None:
            return None
        block = self._stream.read(BLOCK)
        try:
            text = self._decoder.decode(block, final=not block)
            data = text.encode("utf-8")
        except UnicodeError as error:
            start = getattr(error, "start", 0)
            line = self._line + block.count(b"\n", 0, start)
            raise WrongEncodingError(
                f"{self._name}:{line}: not {self._encoding} near byte {self._n_read + start}",
                str(error),
                "name another encoding, such as --encoding latin-1, in a recipe data.encoding=latin-1",
            ) from None
        if not self._n_read:
            data = data.removeprefix(codecs.BOM_UTF8)  # of UTF-16-LE and its like
        self._n_read += len(block)
        self._line += data.count(b"\n")
        if not block:
            self._decoder = None
        return data


def joined_digest(digests: Sequence[str]) -> str:
    """The SHA-256 of a file; of several, that of their hashes in hex, one after another."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
