"""The progress of a long job: every step passes, a terminal gets a bar, a file gets plain lines."""

import io
import re
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt2cli.checkpoints.provenance import Origin
from gpt2cli.convert.pipeline import ConvertProgress
from gpt2cli.data.prepare_pipeline import PrepareProgress
from gpt2cli.evaluation.perplexity import PerplexityProgress
from gpt2cli.hub.downloads import Downloaded, DownloadProgress
from gpt2cli.ui.console import theme
from gpt2cli.ui.progress import State, converting, counting, downloading, finish, preparing, scoring, track


def screen(terminal: bool) -> Console:
    return Console(
        file=io.StringIO(), width=120, force_terminal=terminal, theme=theme(), markup=False, highlight=False,
        color_system=None, legacy_windows=False, soft_wrap=True, _environ={"TERM": "xterm"},
    )  # fmt: skip


def shown(
    steps: Iterable[Any], state: Callable[[Any], State], *, terminal: bool = False, every: float = 0.0
) -> str:
    """All that is written for steps of which every one passes."""
    console, expected = screen(terminal), list(steps)
    assert list(track(iter(expected), console, state, every)) == expected
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def last_bar(text: str) -> str:
    """The bar as it stands at the end."""
    drawn = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", text).replace("\r", "\n")
    return [line for line in drawn.splitlines() if "━" in line][-1]


def test_counted_items_are_lines_in_a_file_and_a_bar_on_a_terminal() -> None:
    lines = shown("abc", counting("answering", 5, done=2)).splitlines()
    assert lines == ["answering  60%  3 of 5", "answering  80%  4 of 5"]  # the last would say nothing new
    drawn = shown("abc", counting("answering", 5, done=2), terminal=True)
    assert re.fullmatch(r"answering ━+ 100% 5 of 5 [-:0]+ *", last_bar(drawn))


def test_lines_come_now_and_then() -> None:
    assert shown("abc", counting("x", 3), every=1000.0) == ""


def preparation() -> list[PrepareProgress]:
    def step(phase: Any, n: int, total: int | None, **more: Any) -> PrepareProgress:
        return PrepareProgress(phase, Path("out"), n, total, n_bytes=n, **more)

    return [
        step("vocabulary", 0, 8_000_000),
        step("vocabulary", 2_000_000, 8_000_000),
        step("tokens", 4_000_000, 8_000_000, warning="a \x1b in a document"),
        step("tokens", 5_000_000, None),
        step("done", 5_000_000, None),
    ]


def test_preparing_shows_phases_and_warnings() -> None:
    assert shown(preparation(), preparing()).splitlines() == [
        "vocabulary   0%",
        "vocabulary  25%",
        "tokens  50%",
        "warning: a ␛ in a document",
        "tokens  5 MB",  # standard input has no known length
    ]
    assert "warning: a ␛ in a document" in shown(preparation(), preparing(), terminal=True)


def downloads() -> list[DownloadProgress]:
    large = "la\x1brge[/x]"
    return [
        DownloadProgress("vocab.bpe", note="here already: checking"),
        DownloadProgress("small", 10, 10, 10, 1_500_010),
        DownloadProgress(large, 0, 1_500_000, 10, 1_500_010),
        DownloadProgress(large, 750_000, 1_500_000, 750_010, 1_500_010, "connection lost\x1b; again"),
        DownloadProgress(large, 1_500_000, 1_500_000, 1_500_010, 1_500_010, "checking"),
        DownloadProgress(
            all_done=1_500_010,
            all_total=1_500_010,
            result=Downloaded(Path("x"), Origin("openai", "", ""), {}, 0),
        ),
    ]


def test_a_download_names_each_file_once_and_every_trouble() -> None:
    assert shown(downloads(), downloading(), every=1000.0).splitlines() == [
        "small  10 bytes",
        "la␛rge[/x]  1.5 MB",
        "la␛rge[/x]: connection lost␛; again",
    ]
    assert "la␛rge[/x]  50%  750.0 KB of 1.5 MB" in shown(downloads(), downloading()).splitlines()
    drawn = shown(downloads(), downloading(), terminal=True)
    assert "connection lost␛; again" in drawn and "1.5 MB of 1.5 MB" in last_bar(drawn)


def test_a_conversion_and_an_evaluation() -> None:
    steps = [ConvertProgress("reading", 1, 4), ConvertProgress("verifying"), ConvertProgress("done")]
    assert shown(steps, converting).splitlines()[0] == "reading  25%  1 of 4"
    scored = [PerplexityProgress(2.0 * n, n, 1000, n // 100, 2.0) for n in (250, 500, 1000)]
    assert shown(scored, scoring("runs/[/x]\x1b")).splitlines() == [
        "runs/[/x]␛  25%  loss 2.0000, 125 tokens/s",
        "runs/[/x]␛  50%  loss 2.0000, 250 tokens/s",
    ]
    assert "loss 2.0000, 500 tokens/s" in last_bar(shown(scored, scoring("x"), terminal=True))


@pytest.mark.parametrize("terminal", [False, True])
def test_a_job_ends_with_its_last_step_and_is_closed_whatever_happens(terminal: bool) -> None:
    closed = []

    def job(error: BaseException | None) -> Generator[int]:
        try:
            yield from (1, 2)
            if error:
                raise error
        finally:
            closed.append(True)

    assert finish(job(None), screen(terminal), counting("x", 2)) == 2
    with pytest.raises(KeyboardInterrupt):
        finish(job(KeyboardInterrupt()), screen(terminal), counting("x", 2))
    tracked = track(job(None), screen(terminal), counting("x", 2))
    next(tracked)
    tracked.close()
    assert closed == [True] * 3
