"""Owns how a prompt comes in: from an argument, a file or a pipe, and as at most a context of tokens."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2cli.checkpoints.folder import LoadedModel

LONGEST_PROMPT = 1 << 26  # bytes; no context is near it, and a pipe may never end


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from where it was put. One line feed at the end of a file or pipe is not part of it.

    A file must be UTF-8, as every file; in a pipe what is not becomes U+FFFD.
    """
    import sys

    from gpt2cli.errors import InputError, UsageError
    from gpt2cli.files import open_regular

    if file is not None:
        if prompt is not None:
            raise UsageError("there are two prompts", f"{file} and the argument", "give one of them")
        with open_regular(file) as opened:
            data = opened.read(LONGEST_PROMPT + 1)
        _check_text(data, str(file))
        text = data.decode("utf-8-sig")
    elif prompt == "-" or (prompt is None and sys.stdin is not None and not sys.stdin.isatty()):
        data = sys.stdin.buffer.read(LONGEST_PROMPT + 1)
        text = data.decode("utf-8", "replace")
    else:
        return prompt or ""
    if len(data) > LONGEST_PROMPT:
        raise InputError("the prompt is longer than 64 MiB", "no context is near that", "give its end alone")
    return text.removesuffix("\n").removesuffix("\r")


def _check_text(data: bytes, name: str) -> None:
    from gpt2cli.errors import InputError

    try:
        data.decode("utf-8")
        place = data.find(b"\0")
        what = "a NUL byte"
    except UnicodeDecodeError as error:
        place, what = error.start, "not UTF-8"
    # A read that was cut short may end inside a character; its length is an error of its own.
    if 0 <= place < LONGEST_PROMPT - 4:
        raise InputError(
            f"{name}: {what} at byte {place}", "a prompt is UTF-8 text", f"iconv -f LATIN1 -t UTF-8 {name}"
        )


def prompt_ids(text: str, loaded: "LoadedModel", fix: str | None) -> list[int]:
    """The prompt's tokens, at most a context of them and at least one.

    `fix` is what helps against an over-long prompt; None cuts it to its last tokens and says so.
    """
    from gpt2cli.errors import InputError
    from gpt2cli.ui.console import err

    ids, limit = loaded.tokenizer.encode(text), loaded.config.n_positions
    if not ids:
        err().print("the prompt is empty: starting from the end-of-text token", style="faint")
        return [loaded.tokenizer.end_of_text]
    if len(ids) <= limit:
        return ids
    if fix is not None:
        raise InputError(f"the prompt has {len(ids)} tokens", f"this model's context holds {limit}", fix)
    err().print(f"the prompt has {len(ids)} tokens: the first {len(ids) - limit} are dropped", style="warn")
    return ids[-limit:]
