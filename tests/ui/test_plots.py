"""The picture of a run, from whatever a killed run left in its metrics."""

import io
import json
import math
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from gpt2cli.errors import InputError
from gpt2cli.training.events import EvalDone, StepDone, to_json
from gpt2cli.ui import plots
from gpt2cli.ui.plots import plot_losses, read_curves

TRAIN, VALIDATION = 0x3B82B8, 0xD1495B


def lines_of(n_steps: int, every: int = 10) -> list[str]:
    lines = []
    for step in range(1, n_steps + 1):
        loss = 2 + 8 / step
        lines.append(json.dumps(to_json(StepDone(step, n_steps, loss, 1e-4, 1.0, 512, 1.0))))
        if step % every == 0:
            lines.append(json.dumps(to_json(EvalDone(step, loss + 1, math.exp(loss), 99, True, 1.0))))
    return lines


def written(folder: Path, lines: list[str]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def colours(path: Path) -> set[int]:
    """Each colour as 0xRRGGBB."""
    pixels = (matplotlib.image.imread(path)[:, :, :3] * 255).round().astype(int)
    return set(np.unique(pixels @ (1 << 16, 1 << 8, 1)).tolist())


def test_both_curves_are_drawn(tmp_path: Path) -> None:
    out = tmp_path / "loss.png"
    assert plot_losses(written(tmp_path, lines_of(90)), out, title="a $ run {") is True
    assert {TRAIN, VALIDATION} <= colours(out)
    assert matplotlib.image.imread(io.BytesIO(out.read_bytes())).shape[:2] == (720, 1200)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("n_steps", [1, 500])
def test_runs_of_any_length(n_steps: int, tmp_path: Path) -> None:
    out = tmp_path / "loss.png"
    assert plot_losses(written(tmp_path, lines_of(n_steps)), out)
    assert TRAIN in colours(out)
    assert (VALIDATION in colours(out)) == (n_steps >= 10)


def test_validation_alone_is_drawn(tmp_path: Path) -> None:
    out = tmp_path / "loss.png"
    assert plot_losses(written(tmp_path, [line for line in lines_of(90) if "EvalDone" in line]), out)
    assert VALIDATION in colours(out) and TRAIN not in colours(out)


def test_the_tokens_axis_can_be_left_out(tmp_path: Path) -> None:
    metrics, images = written(tmp_path, lines_of(90)), []
    for tokens_axis in (True, False):
        plot_losses(metrics, tmp_path / "loss.png", tokens_axis=tokens_axis)
        images.append((tmp_path / "loss.png").read_bytes())
    assert images[0] != images[1]


def test_curves(tmp_path: Path) -> None:
    curves = read_curves(written(tmp_path, lines_of(20)))
    assert curves.train == [(step, 2 + 8 / step) for step in range(1, 21)]
    assert curves.validation == [(10, 3.8), (20, 3.4)]
    assert curves.tokens_per_step == 512


def test_a_step_done_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    again = json.dumps(to_json(StepDone(5, 20, 7.0, 1e-4, 1.0, 512, 1.0)))
    curves = read_curves(written(tmp_path, [*lines_of(8), again]))
    assert [step for step, _ in curves.train] == list(range(1, 9))
    assert dict(curves.train)[5] == 7.0


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    bad = [
        '{"event": "StepDone", "step": 3, "lo',
        "",
        "null",
        "[]",
        "[" * 100_000,
        "\0\0\0",
        json.dumps(to_json(StepDone(91, 99, math.nan, 1e-4, math.inf, 512, 1.0))),
        '{"event": "StepDone", "step": null, "loss": 1.0}',
        '{"event": "StepDone", "step": 92, "loss": 1e999}',
        '{"event": "StepDone", "step": 92, "loss": "x"}',
        '{"event": "StepDone", "step": 1' + "0" * 400 + ', "loss": 1}',
        '{"event": "Stopped", "step": 92, "loss": 3}',
    ]
    lines = lines_of(20)
    path = written(tmp_path, [*lines[:5], *bad, *lines[5:], bad[0]])
    path.write_bytes(path.read_bytes() + b"\xff\xfe")
    clean = tmp_path / "clean"
    clean.mkdir()
    assert read_curves(path) == read_curves(written(clean, lines))


def test_nothing_to_draw_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "loss.png"
    assert plot_losses(written(tmp_path, ["null"]), out) is False
    assert not out.exists()


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        plot_losses(tmp_path / "none.jsonl", tmp_path / "loss.png")


def test_zero_and_negative_losses_are_drawn_on_a_linear_axis(tmp_path: Path) -> None:
    records = [to_json(StepDone(step, 9, 4.0 - step, 1e-4, 1.0, 512, 1.0)) for step in range(1, 9)]
    assert plot_losses(written(tmp_path, [json.dumps(record) for record in records]), tmp_path / "loss.png")


def test_an_interrupted_drawing_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "loss.png"
    out.write_bytes(b"old")

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plot_losses(written(tmp_path, lines_of(9)), out)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_matplotlib_is_loaded_for_a_picture_only_and_pyplot_never(tmp_path: Path) -> None:
    code = (
        "import sys, gpt2cli.ui.attention_map; from pathlib import Path\n"
        "from gpt2cli.ui.plots import plot_losses\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plot_losses(Path({str(written(tmp_path, lines_of(20)))!r}), Path({str(tmp_path / 'x.png')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    import subprocess

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_smoothing_keeps_a_straight_line_and_the_mean_of_a_flat_one() -> None:
    line = tuple(float(i) for i in range(300))
    assert plots._smooth(line)[:290] == pytest.approx(line[:290])
    assert plots._smooth((3.0,) * 300) == [3.0] * 300


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (600, "600"), (1500, "1.5k"), (2e6, "2M"), (1e10, "10B")]
)
def test_short_counts(count: float, text: str) -> None:
    assert plots._short_count(count) == text
