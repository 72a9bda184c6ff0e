"""The logs of a run elsewhere: what is written, what a resume does, and what a missing package says."""

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import write_recipe
from tiny_run import events

from gpt2cli.ui.log_sinks import SINKS

Gpt2 = Callable[..., Any]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


@pytest.mark.parametrize(("key", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_package_that_is_not_installed_is_named_with_the_line_that_installs_it(
    key: str, module: str, gpt2: Gpt2, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    refused = gpt2("pretrain", recipe, f"log.{key}=true")
    assert refused.code == 2 and f"log.{key} is true, but {key} is not installed" in refused.err
    assert f"pip install {key}" in refused.err and not Path("runs").exists()
    assert gpt2("pretrain", recipe, f"log.{key}=false", "optim.steps=3").code == 0


def test_each_key_of_the_recipe_has_its_sink() -> None:
    from gpt2cli.recipe.sections import LogConfig

    assert set(SINKS) == {name for name, field in LogConfig.model_fields.items() if field.annotation is bool}


def test_tensorboard_has_the_numbers_of_the_metrics_file(gpt2: Gpt2, recipe: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert gpt2("pretrain", recipe, "optim.steps=6", "log.tensorboard=true").code == 0
    assert gpt2("pretrain", recipe, "--resume", "optim.steps=8").code == 0
    run = Path("runs/tiny")
    read = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    for tag, kind, field in (
        ("loss/train", "StepDone", "loss"),
        ("loss/validation", "EvalDone", "loss"),
        ("bits_per_byte", "EvalDone", "bits_per_byte"),
    ):
        found = {scalar.step: scalar.value for scalar in read.Scalars(tag)}
        assert found == pytest.approx({event["step"]: event[field] for event in events(run, kind)})


@pytest.mark.peers
def test_wandb_offline_goes_on_in_the_same_run(
    gpt2: Gpt2, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume has the run's id, and both sessions together have each step's numbers."""
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert gpt2("pretrain", recipe, "optim.steps=6", "log.wandb=true").code == 0
    resumed = gpt2("pretrain", recipe, "--resume", "optim.steps=8")
    assert resumed.code == 0 and resumed.out == "runs/tiny\n", "stdout stays data"
    run = Path("runs/tiny")
    logs = sorted((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(logs) == 2 and len({log.name for log in logs}) == 1
    begun, history = [], dict[tuple[int, str], float]()
    for log in logs:
        for kind, value in _records(log):
            if kind == "run":
                begun.append((value.run_id, value.project, value.display_name))
            else:
                history |= value
    assert len(set(begun)) == 1 and begun[0][1:] == ("mine", "tiny")
    losses = {step: value for (step, key), value in history.items() if key == "loss/train"}
    assert losses == pytest.approx({event["step"]: event["loss"] for event in events(run, "StepDone")})
    again = gpt2("pretrain", recipe, "optim.steps=3", "log.wandb=true", "--name", "other", "--offline")
    assert again.code == 0
    ids = {path.name for path in Path("runs").glob("*/wandb/offline-run-*/*.wandb")}
    assert len(ids) == 2, "another run has an id of its own"


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """The run, and the numbers by (step, tag), of wandb's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in _entries(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            yield "run", record.run
        elif record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            yield "history", {(row["step"], key): value for key, value in row.items() if "step" in row}


def _entries(log: bytes) -> Iterator[bytes]:
    """LevelDB's log format: blocks of 32 KiB, in them parts with a checksum, a length and a type: 1 is
    whole, 2 to 4 begin, continue and end an entry. wandb's first block begins with 7 bytes of its own.
    """
    at, entry = 7, b""
    while at + 7 <= len(log):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", log, at)
        entry += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield entry
            entry = b""
