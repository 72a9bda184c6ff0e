"""The first batch of an instruction run as a dry run shows it: the tokens that the loss counts are marked."""

import collections
import io
from pathlib import Path

import pytest
from lessons import lesson
from rich.console import Console
from teaching import teaching

from gpt2cli.training.setup import set_up_training
from gpt2cli.ui import dry_run
from gpt2cli.ui.console import theme


@pytest.mark.parametrize("colours", [False, True])
def test_the_loss_mask_is_marked_by_colour_or_by_signs(colours: bool, tmp_path: Path) -> None:
    console = Console(
        file=io.StringIO(),
        force_terminal=colours,
        no_color=not colours,
        color_system="standard" if colours else None,
        soft_wrap=True,
        width=200,
        theme=theme(),
        _environ={"TERM": "xterm"},
    )
    talk = [
        {"messages": [{"role": "user", "content": "\x1b[2J"}, {"role": "assistant", "content": "No [/x]"}]}
    ]
    recipe, task = teaching(tmp_path, records=talk * 9)
    origins = collections.defaultdict(lambda: "default")
    dry_run.show_dry_run(set_up_training(task, recipe, None), origins, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    first = shown[shown.index("first batch") :].splitlines()[1]
    answer = "No [/x]<|endoftext|>"
    assert (f"\x1b[32m{answer}\x1b[0m" if colours else f"«{answer}»") in first
    assert ("«" in first) != colours and "\x1b[2J" not in first and "\\x1b[2J" in first


def test_memory_is_told_of_what_learns_and_what_meets_the_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, int]] = []

    def estimate(*_: object, **counts: int) -> dict[str, int]:
        told.append(counts)
        return {"weights": 1}

    monkeypatch.setattr(dry_run, "estimate_memory", estimate)
    recipe, task = teaching(tmp_path, "train=lora", "lora.rank=2")
    dry_run._memory(set_up_training(task, recipe, None))
    n_adapter = 2 * 8 + 24 * 2  # A (2, 8) and B (24, 2) on the one c_attn
    assert told[0] == {
        "n_trainable": n_adapter,
        "n_muon": 0,
        "n_outputs": task.max_targets,
        "activation_checkpointing": False,
        "device": "cpu",
    }
    recipe, classes = lesson(tmp_path, "train=head", "run.activation_checkpointing=on")
    dry_run._memory(set_up_training(classes, recipe, None))
    head = {"n_trainable": 3 * 16, "n_muon": 0, "n_outputs": 0}
    head |= {"activation_checkpointing": True, "device": "cpu"}
    assert told[1] == head
