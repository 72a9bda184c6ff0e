"""metrics.jsonl of a long run: cut from its end, and read line by line."""

import json
from pathlib import Path

import pytest

from gpt2cli.training.metrics_log import cut_after, records_of
from gpt2cli.ui.plots import MOST_POINTS, read_curves


def line(step: int, event: str = "StepDone", padding: int = 0) -> str:
    return json.dumps({"event": event, "step": step, "loss": 1 + 1 / step, "note": "x" * padding}) + "\n"


@pytest.mark.parametrize("padding", [0, 300, 700_000])  # many lines in a block, some, and lines across blocks
def test_cut_after_any_step(padding: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    n = 8 if padding > 300 else 6000
    lines = [line(step, padding=padding) for step in range(1, n + 1)]
    torn = '{"event": "StepDone", "step": 3'  # a step that is kept, in a line that is not whole
    for step in (n + 5, n, n - 1, n // 2, 1, 0, -1):
        path.write_text("".join(lines) + torn, encoding="utf-8")
        cut_after(path, step)
        assert path.read_text(encoding="utf-8") == "".join(lines[: max(0, step)])


def test_a_missing_file_is_made_and_strange_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    cut_after(path, 5)
    assert path.read_bytes() == b""
    strange = "[" * 100_000 + "\nnot json\n[1]\n" + '{"step": "9"}\n'
    path.write_text(line(1) + strange + line(2) + strange, encoding="utf-8")
    assert [record["step"] for record in records_of(path, "StepDone")] == [1, 2]
    cut_after(path, 1)
    assert path.read_text(encoding="utf-8") == line(1)


def test_a_picture_of_a_long_run_has_points_enough_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    n = 5 * MOST_POINTS
    with open(path, "w", encoding="utf-8") as file:
        for step in range(1, n + 1):
            file.write(line(step))
            if step % 1000 == 0:
                file.write(line(step, "EvalDone"))
    curves = read_curves(path)
    assert MOST_POINTS // 2 <= len(curves.train) <= MOST_POINTS
    steps = [step for step, _ in curves.train]
    assert steps == list(range(1, n + 1, 8))
    assert all(loss == 1 + 1 / step for step, loss in curves.train)
    assert [step for step, _ in curves.validation] == list(range(1000, n + 1, 1000))
