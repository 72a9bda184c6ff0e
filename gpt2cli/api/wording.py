"""Errors in Python's words: the library names its options as they are typed on the command line."""

import contextlib
import re
from collections.abc import Iterator

from gpt2cli.errors import Gpt2Error, UsageError

# The parameters of the functions here; the value that follows one in a fix is its argument.
OPTION = re.compile(
    r"--(device|precision|threads|compile|adapter|model|name|resume|offline|seed|stop|temperature|top-k|top-p"
    r"|min-p|repetition-penalty|max-new-tokens)(?![\w-])"
)
SWITCHES = ("resume", "offline")
OPTION_WITH_VALUE = re.compile(OPTION.pattern + r" ([^\s,;]+)")
KEY = re.compile(r"(did you mean )?[a-z_]+(\.\w+)+(=.*|\?)?")  # a fix that is a key of a recipe


@contextlib.contextmanager
def python_words() -> Iterator[None]:
    """Within it, and in what it decorates, a Gpt2Error speaks of arguments: `--top-p` is `top_p`, and
    `--device cpu` in a fix `device="cpu"`. A command to type stays as it is.
    """
    try:
        yield
    except Gpt2Error as error:
        reword(error)
        raise


def reword(error: Exception) -> None:
    """The same for one error; another's stays as it is."""
    if isinstance(error, Gpt2Error):
        error.what, error.why, error.fix = _bare(error.what), _bare(error.why), _argument(error.fix)
        error.args = (error.what, error.why, error.fix)


def require_text(value: object, what: str = "the text") -> None:
    """Raise UsageError unless it is a str, which a command line has alone."""
    if not isinstance(value, str):
        raise UsageError(f"{what} is {value!r:.40}", f"it must be a str, not {type(value).__name__}")


def _bare(text: str) -> str:
    return OPTION.sub(lambda found: found[1].replace("-", "_"), text)


def _argument(fix: str) -> str:
    if "gpt2 " in fix:
        return fix
    if KEY.fullmatch(fix):
        key, equals, value = fix.partition("=")
        return key.replace(".", "__") + equals + value

    def written(found: re.Match[str]) -> str:
        name, value = found[1].replace("-", "_"), found[2]
        return f"{name}=True {value}" if name in SWITCHES else f'{name}="{value}"'

    fix = OPTION_WITH_VALUE.sub(written, fix)
    if fix.removeprefix("--") in SWITCHES:
        return f"{fix.removeprefix('--')}=True"
    return _bare(fix)
