"""`gpt2 generate --prompts`: a file of prompts, one per line, continued in batches."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.options import arriving_lines, lines_of
from gpt2cli.errors import Gpt2Error, UsageError
from gpt2cli.ui.console import err, out, print_json, printable, shortened

if TYPE_CHECKING:
    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.generation.sampling import SamplingOptions
    from gpt2cli.generation.stop_text import Continuation

STDIN = Path("-")
N_ROWS = 16  # continuations that are decoded together
CHUNK = 256  # lines whose prompts are sorted by length; what comes first is printed first
LONGEST_HEADING = 60  # characters of a prompt above its text


def prompt_lines(file: Path) -> tuple[Iterable[tuple[list[str], int]], str]:
    """Groups of lines, each with the number of lines before it, and how a message calls a line."""
    if file == STDIN:
        if sys.stdin is None:  # closed by the parent process
            raise UsageError("-: standard input is closed", fix="gpt2 generate --prompts FILE")
        return arriving_lines(), "line "
    lines = lines_of(file)
    return [(lines[start : start + CHUNK], start) for start in range(0, len(lines), CHUNK)], f"{file}:"


def continue_lines(
    groups: Iterable[tuple[list[str], int]],
    name: str,
    loaded: "LoadedModel",
    encode: Callable[[str], list[int]],
    *,
    n_samples: int,
    stops: Sequence[str],
    sampling: "SamplingOptions",
    max_new_tokens: int,
    as_json: bool,
) -> None:
    """Print the continuations of each line, in the order of the lines.

    Raises what `encode` raises, with the line's number, before anything of its group is generated.
    """
    from gpt2cli.generation.batch import continue_prompts
    from gpt2cli.ui.progress import counting, track

    facts: dict[str, Any] = {"model": str(loaded.folder), "seed": sampling.seed}
    for texts, n_before in groups:
        prompts = [_encoded(text, encode, f"{name}{n}") for n, text in enumerate(texts, n_before + 1)]
        found: Iterable[tuple[int, list[Any]]] = continue_prompts(
            *(loaded.model, loaded.tokenizer, prompts),
            n_samples=n_samples,
            stops=stops,
            options=sampling,
            max_new_tokens=max_new_tokens,
            n_rows=N_ROWS,
        )
        if not out().is_terminal:
            found = track(found, err(), counting("generating", len(texts)))
        for number, replies in found:
            if as_json:
                about = {"line": n_before + number + 1, "prompt": texts[number]}
                _print_json(about, replies, facts | {"prompt_tokens": len(prompts[number])})
            else:
                _print_texts(n_before + number + 1, texts[number], replies)


def _encoded(text: str, encode: Callable[[str], list[int]], place: str) -> list[int]:
    try:
        return encode(text)
    except Gpt2Error as error:
        raise type(error)(f"{place}: {error.what}", error.why, error.fix) from None


def _print_json(about: dict[str, Any], replies: "Sequence[Continuation]", facts: dict[str, Any]) -> None:
    texts = {
        "texts": [reply.text for reply in replies],
        "finish_reasons": [reply.finish_reason for reply in replies],
        "new_tokens": [len(reply.ids) for reply in replies],
    }
    print_json(about | texts | facts)


def _print_texts(line: int, prompt: str, replies: "Sequence[Continuation]") -> None:
    """Each under a heading with the number and the beginning of its line; a text may be of many lines."""
    shown = printable(shortened(prompt, LONGEST_HEADING))
    for number, reply in enumerate(replies, 1):
        sample = f" ({number}/{len(replies)})" if len(replies) > 1 else ""
        out().print(f"--- {line}{sample}: {shown}", style="faint")
        out().print(printable(reply.text))
    sys.stdout.flush()
