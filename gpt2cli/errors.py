"""Errors that a user can act on, one class per exit code.

Library code raises them; `cli/app.py` alone prints them and exits. An error says what happened
(with file:line or the field), why, and a command that fixes it. Imports nothing of gpt2cli.
"""

import contextlib
from collections.abc import Iterator


class Gpt2Error(Exception):
    """A failure that a user can act on: `what` happened, `why`, and the `fix` to type."""

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(what, why, fix)  # all of them, so that it survives pickling
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" if self.why else self.what


class UsageError(Gpt2Error):
    """The command line or the recipe is wrong."""

    exit_code = 2


class InputError(Gpt2Error):
    """A data file or a model is unreadable, damaged or does not belong here."""

    exit_code = 3


class NewerFormatError(Gpt2Error):
    """A file of a later version of gpt2cli. No InputError, for it is intact: what is done with a damaged
    file, to skip, replace or delete it, must not happen to this one.
    """

    exit_code = 3


class ResourceError(Gpt2Error):
    """Disk space, memory or a lock is not available."""

    exit_code = 4


class LostRankError(Gpt2Error):
    """Another process of the same training is gone. It says why itself, so this is not printed."""

    exit_code = 75


class ServiceError(Gpt2Error):
    """A remote service failed or cannot be reached."""

    exit_code = 5


class DivergedError(Gpt2Error):
    """Training or inference produced NaN or infinity."""

    exit_code = 6


def counted(n: int, noun: str) -> str:
    """The number with its noun, for a message: 1 file, 1,204 files."""
    if n == 1:
        return f"1 {noun}"
    is_y = noun.endswith("y") and noun[-2] not in "aeiou"
    return f"{n:,} {noun[:-1] + 'ies' if is_y else noun + 's'}"


@contextlib.contextmanager
def at_place(place: object) -> Iterator[None]:
    """Put a place in front of what an error says: FILE:LINE, a field of a recipe, a model."""
    try:
        yield
    except Gpt2Error as error:
        raise type(error)(f"{place}: {error.what}", error.why, error.fix) from None


def require_format(where: object, found: object, newest: int, fix: str = "") -> None:
    """`found` is the number of a format that this version reads, 1 to `newest`.

    Raises NewerFormatError for a later one, InputError with `fix` for what is none: a damaged file.
    """
    number = found if isinstance(found, int | float) and not isinstance(found, bool) else None
    if number is not None and 1 <= number <= newest and number == int(number):
        return
    # A later version may number its formats otherwise: 1.5, "2", "v3".
    is_later = isinstance(found, str) and found.removeprefix("v")[:1].isdecimal()
    if is_later or (number is not None and number > 1):
        raise NewerFormatError(
            f"{where}: was written by a newer gpt2cli, in format {str(found)[:40]}",
            f"this version reads formats up to {newest}; nothing was changed",
            "pip install --upgrade gpt2cli",
        )
    raise InputError(
        f"{where}: is damaged, or not a file of gpt2cli",
        f"its format is {str(found)[:40]}, not {newest}",
        fix,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch, Python or the system says that memory has run out."""
    if isinstance(error, OSError) and error.errno:
        return error.errno == 12  # ENOMEM
    says = (
        *("allocate memory", "not enough memory", "out of memory", "failed to map segment", "new thread"),
        # CUDA's libraries: cuBLAS and cuDNN; a handle of cuBLAS needs memory of its own.
        *("_ALLOC_FAILED", "OUT_OF_MEMORY", "cudaErrorMemoryAllocation", "cublasCreate(handle)"),
    )
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError | OSError) and any(words in str(error) for words in says)
    )
