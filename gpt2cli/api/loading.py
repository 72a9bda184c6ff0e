"""What the functions that load a model share: checks of their arguments, and warnings."""

import warnings
from collections.abc import Sequence

from gpt2cli.errors import UsageError
from gpt2cli.generation.sampling import is_whole

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DECODING_PRECISIONS = (*PRECISIONS, "int8")


def require_hardware(precision: str, known: Sequence[str], threads: int) -> None:
    """What the command line's own parser refuses there."""
    if precision not in known:
        raise UsageError(f"precision is {precision!r}", f"it must be one of {', '.join(known)}")
    if not is_whole(threads) or threads < 0:
        raise UsageError(
            f"threads is {threads!r}", "it must be a positive whole number, or 0 to have it chosen"
        )


def notice(sentence: str, kind: str) -> None:
    """Warnings become Python's; hints are for a command line."""
    if kind == "warning":
        warnings.warn(sentence, stacklevel=5)  # past the decorator, at the caller's line
