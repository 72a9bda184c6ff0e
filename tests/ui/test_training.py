"""What a person sees of a run, event by event, on a terminal and off it."""

import io
import math
import re
import signal
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from gpt2cli.training.events import (
    CheckpointSaved,
    EvalDone,
    Event,
    SpikeSeen,
    StepDone,
    StepSkipped,
    Stopped,
)
from gpt2cli.ui import training
from gpt2cli.ui.console import theme
from gpt2cli.ui.training import TrainingView


def view_on(
    n_steps: int, *, log_every: int = 1, width: int = 100, terminal: bool = False, first_step: int = 0
) -> TrainingView:
    console = Console(
        file=io.StringIO(), width=width, height=30, force_terminal=terminal, theme=theme(), markup=False,
        highlight=False, color_system=None, legacy_windows=False, _environ={"TERM": "xterm"},
    )  # fmt: skip
    return TrainingView(n_steps, console, log_every=log_every, first_step=first_step)


def told(view: TrainingView) -> list[str]:
    """The lines that stay, without the redrawn bar and its cursor movements."""
    text = view.console.file.getvalue()  # type: ignore[attr-defined]
    text = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", text).replace("\r", "\n")
    return [line for line in text.splitlines() if line.strip() and "━" not in line and "--" not in line]


def step(
    number: int, *, n_steps: int = 90, loss: float = 4.1234, n_tokens: int = 512, seconds: float = 2.0
) -> StepDone:
    return StepDone(number, n_steps, loss, 4e-4, 1.234, n_tokens, seconds)


def test_plain_lines() -> None:
    with view_on(90) as view:
        view.show(step(10, loss=4.1234, n_tokens=842))
        view.show(EvalDone(10, 4.5, math.exp(4.5), 1000, True, 1.0))
        view.show(CheckpointSaved(10, Path("runs/x/checkpoints/step-000010"), True, 0.44))
        view.show(EvalDone(20, 9.9, math.exp(9.9), 1000, False, 1.0))
        view.show(StepSkipped(21, math.nan, math.inf, 2, 10))
        view.show(SpikeSeen(22, 93.0, 4.1))
        view.show(Stopped(90, "finished", best_step=10, best=4.5, kept_step=10, kept=4.5))
    assert told(view) == [
        "step 10/90  loss 4.123  lr 4.0e-04  norm 1.23  421 tok/s",
        "step 10/90  val loss 4.500  perplexity 90.0  over 1,000 tokens  best",
        "saved step-000010 in 0.4 s",
        "step 20/90  val loss 9.900  perplexity 19,930.4  over 1,000 tokens",
        "warning: step 21 was skipped: loss nan, gradient norm inf (2 in a row; the run stops after 10)",
        "warning: the loss at step 22 is 93.000, far above its recent 4.100",
        "finished at step 90 of 90; best validation loss 4.500 at step 10",
    ]


def test_the_headings_stand_over_the_rows_and_below_what_is_said_of_the_run() -> None:
    with view_on(90, terminal=True) as view:
        view.note("tiny: 1,000 parameters")
        view.show(EvalDone(0, 4.5, 90.0, 1000, True, 1.0))
        view.show(step(1))
    assert [line.split()[0] for line in told(view)] == ["tiny:", "step", "0/90", "1/90"]


def test_a_narrow_terminal_breaks_no_line_of_an_evaluation_and_no_word() -> None:
    with view_on(330, terminal=True, width=80) as view:
        metrics = {"accuracy": 0.953, "macro_f1": 0.953}
        view.show(EvalDone(33, 0.181, 1.2, 150, True, 1.0, metrics))
        view.show(EvalDone(66, 0.181, 1.2, 150, False, 1.0, metrics))
        view.note("tiny: 25,584 parameters, 5,646 training and 627 validation tokens, cpu fp32, 1 thread")
    assert told(view) == [
        "step 33/330  val loss 0.181  accuracy 0.953  macro f1 0.953  best",
        "step 66/330  val loss 0.181  accuracy 0.953  macro f1 0.953  over 150 texts",
        "tiny: 25,584 parameters, 5,646 training and 627 validation tokens, cpu fp32, 1",
        "thread",
    ]


def test_a_line_every_so_many_steps_and_the_first_and_the_last() -> None:
    with view_on(25, log_every=10) as view:
        for number in range(1, 26):
            view.show(step(number, n_steps=25))
    assert [line.split()[1] for line in told(view)] == ["1/25", "10/25", "20/25", "25/25"]


def test_a_resumed_run_tells_its_first_step_at_once() -> None:
    with view_on(90, log_every=10, first_step=34) as view:
        view.show(step(35))
        view.show(step(36))
    assert [line.split()[1] for line in told(view)] == ["35/90"]


def test_the_rate_is_that_of_the_interval_without_evaluations() -> None:
    with view_on(90, log_every=2) as view:
        view.show(step(2, n_tokens=100, seconds=1.0))
        view.show(step(3, n_tokens=100, seconds=1.0))
        view.show(EvalDone(3, 4.5, 90.0, 1000, True, seconds=500.0))
        view.show(step(4, n_tokens=500, seconds=2.0))
    lines = [line for line in told(view) if "tok/s" in line]
    assert [line.split()[-2] for line in lines] == ["100", "200"]


def test_a_step_that_took_no_time_has_no_rate() -> None:
    with view_on(90) as view:
        view.show(step(1, seconds=0.0))
    assert told(view) == ["step 1/90  loss 4.123  lr 4.0e-04  norm 1.23"]


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            Stopped(9, "patience"),
            "stopped early because the validation loss no longer falls, at step 9 of 90",
        ),
        (Stopped(9, "signal", signal.SIGTERM), "stopped by SIGTERM at step 9 of 90"),
    ],
)
def test_why_it_stopped(event: Stopped, words: str) -> None:
    view = view_on(90)
    view.show(event)
    assert told(view) == [words]


@pytest.mark.parametrize("terminal", [False, True])
def test_notes_are_text_and_nothing_else(terminal: bool) -> None:
    with view_on(90, terminal=terminal) as view:
        view.note("[/x] [bold]\x1b[31m\x07 {signal}")
    assert "[/x] [bold]␛[31m␇ {signal}" in told(view)


def test_every_event_is_shown() -> None:
    assert set(training._SHOW) == set(get_args(Event))


def test_the_table_on_a_terminal() -> None:
    with view_on(90, terminal=True) as view:
        view.show(step(10, n_tokens=842))
        view.show(EvalDone(10, 4.5, 90.017, 1000, True, 1.0))
        view.show(EvalDone(20, 4.6, 1e9, 1000, False, 1.0))
    heading, *rows = told(view)[:4]
    assert heading.split("  ")[-1] == "perplexity"
    assert rows[0].split() == ["10/90", "4.123", "4.0e-04", "1.23", "421"]
    assert rows[1].split() == ["10/90", "4.500", "90.0", *["over", "1,000", "tokens", "best"]]
    assert rows[2].split() == ["20/90", "4.600", "1.0e+09", *["over", "1,000", "tokens"]]
    # Cells end where their headings end.
    assert rows[0].index("4.123") + 5 == heading.index("train loss") + len("train loss")
    assert rows[1].index("4.500") + 5 == heading.index("val loss") + len("val loss")


def test_the_bar_shows_steps_left_and_rate_and_ends() -> None:
    with view_on(90, terminal=True) as view:
        for number in range(1, 91):
            view.show(step(number, n_tokens=842))
    text = view.console.file.getvalue()  # type: ignore[attr-defined]
    assert "90/90" in text and "421 tok/s" in text and "left" in text
    assert "\x1b[?25h" in text.rpartition("\x1b[?25l")[2]  # the cursor is back


def test_the_bar_goes_away_with_an_exception() -> None:
    view = view_on(90, terminal=True)
    with pytest.raises(KeyboardInterrupt), view:
        raise KeyboardInterrupt
    assert view.console.file.getvalue().rstrip().endswith("\x1b[2K")  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [1, 20, 45, 65])
def test_narrow_terminals_get_lines_over_a_shorter_bar(width: int) -> None:
    with view_on(90, terminal=True, width=width) as view:
        view.show(step(10, n_tokens=842))
        view.note("a sample that is longer than twenty columns are wide")
    lines = told(view)
    assert "step 10/90  loss 4.123  lr 4.0e-04  norm 1.23  421 tok/s" in lines
    assert "a sample that is longer than twenty columns are wide" in " ".join(lines)


def test_what_a_task_measures_takes_the_place_of_the_perplexity() -> None:
    event = EvalDone(10, 0.25, math.exp(0.25), 150, True, 1.0, {"accuracy": 0.96, "macro_f1": 0.9571})
    with view_on(90) as view:
        view.show(event)
    assert told(view) == ["step 10/90  val loss 0.250  accuracy 0.960  macro f1 0.957  over 150 texts  best"]
    with view_on(90, terminal=True) as view:
        view.show(event)
    row = told(view)[-1]
    assert (
        "0.250" in row and "accuracy 0.960  macro f1 0.957  over 150 texts  best" in row and "1.28" not in row
    )
