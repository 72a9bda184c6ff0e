"""A disk without room: said before the first step, before a save and when a write fails, with the way on."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import PRETRAIN, Call, random_text, train, write_tokens

GO_ON = "gpt2 pretrain runs/run/recipe.yaml --resume"


def leave(monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    """The disk has so many bytes free, one number per look; the last one stays."""
    left = list(free)

    def usage(path: object) -> Any:
        return type("Usage", (), {"free": left.pop(0) if len(left) > 1 else left[0]})

    monkeypatch.setattr(shutil, "disk_usage", usage)


def numbers(checkpoint: Path) -> int:
    """The bytes of a checkpoint's two large files."""
    return sum((checkpoint / f"{name}.safetensors").stat().st_size for name in ("model", "train_state"))


def test_the_checkpoints_of_the_whole_run_are_counted_before_it(
    gpt2: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    size = numbers(train(gpt2, PRETRAIN, "run") / "last")
    often = ("eval.every=1", "checkpoint.keep=3")  # three, the best one, and the one that is written
    plan = gpt2("pretrain", "run.yaml", "--dry-run", *often).out.splitlines()
    assert "5 checkpoints of" in next(line for line in plan if line.startswith("disk"))
    leave(monkeypatch, 5 * size)
    done = gpt2("pretrain", "run.yaml", "--name", "new", *often)
    assert done.code == 4 and f"{5 * size:,} are free" in done.err and "runs/new/checkpoints" in done.err
    assert not Path("runs/new").exists()
    leave(monkeypatch, 5 * (size + 50_000))
    assert gpt2("pretrain", "run.yaml", "--name", "new", *often).code == 0
    leave(monkeypatch, size + 50_000)  # the default saves once
    assert gpt2("pretrain", "run.yaml", "--name", "once").code == 0


def test_a_resume_without_room_says_how_to_go_on(gpt2: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    run = train(gpt2, PRETRAIN, "run")
    before = (run / "run.json").read_bytes()
    leave(monkeypatch, 12_345)
    done = gpt2("pretrain", "run.yaml", "--resume", "optim.steps=12")
    assert done.code == 4 and "12,345 are free" in done.err and GO_ON in done.err
    assert (run / "run.json").read_bytes() == before


def test_a_disk_that_fills_up_ends_the_run_before_the_save(
    gpt2: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    Path("run.yaml").write_text(yaml.safe_dump(PRETRAIN), encoding="utf-8")
    leave(monkeypatch, 1 << 40, 1 << 40, 77)
    done = gpt2("pretrain", "run.yaml", "checkpoint.every=5")
    assert done.code == 4 and "77 are free" in done.err and GO_ON in done.err
    assert [path.name for path in Path("runs/run/checkpoints").iterdir()] == ["step-000005"]
    leave(monkeypatch, 1 << 40)
    assert gpt2(*GO_ON.split()[1:]).code == 0


@pytest.mark.parametrize("name", ["step-000010", "metrics.jsonl", "loss.png"])
def test_a_write_that_finds_the_disk_full(name: str, gpt2: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    Path("run.yaml").write_text(yaml.safe_dump(PRETRAIN), encoding="utf-8")
    flush = os.fsync

    def full(descriptor: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    done = gpt2("pretrain", "run.yaml")
    assert done.code == 4 and "the disk is full" in done.err and "bytes are free" in done.err, done.err
    assert name in done.err
    if name == "metrics.jsonl":  # the first of the files: nothing has begun
        return
    assert GO_ON in done.err
    monkeypatch.setattr(os, "fsync", flush)
    assert gpt2(*GO_ON.split()[1:]).code == 0
