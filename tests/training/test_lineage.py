"""Where a model comes from, from what a real run leaves and from what strangers may leave."""

import json
import os
from pathlib import Path

import pytest
import yaml

from gpt2cli.training.lineage import read_lineage
from gpt2cli.training.run_dir import RunDir, write_record

RECEIPT = {
    "source": {"path": "/models/124M", "format": "openai-tf", "files": {"hparams.json": {}, "vocab.bpe": {}}},
    "parameters": {"count": 124439808, "size": "124M"},
    "verification": {"passed": True, "max_difference": 1.5e-10, "perplexity": 33.25},
    "notes": ["12 mask buffers were left out"],
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mine" / "checkpoints" / "step-000020"
    folder.mkdir(parents=True)
    return folder


def test_nothing_is_known_of_a_bare_folder(tmp_path: Path) -> None:
    found = read_lineage(tmp_path)
    assert (found.recipe, found.progress, found.run, found.sessions) == ({}, {}, None, ())
    assert (found.conversion, found.sources, found.notes, found.problems) == ({}, (), (), ())


def test_a_run_and_its_sessions(checkpoint: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "mine")
    session = {
        "started": "2026-01-01",
        "from_step": 0,
        "machine": {"torch": "2.13.0", "secret": "x"},
        "data": {"source": "the-verdict", "origin": "bundled", "sha256": "ab"},
    }
    write_record(run, session, resumed=False)
    write_record(run, {"from_step": 20}, resumed=True)
    os.symlink(checkpoint, run.folder / "best")
    for folder in (checkpoint, run.folder / "best"):
        found = read_lineage(folder)
        assert found.run == run.folder
        assert found.sessions == (
            {
                "started": "2026-01-01",
                "from_step": 0,
                "machine.torch": "2.13.0",
                "data.source": "the-verdict",
                "data.origin": "bundled",
                "data.sha256": "ab",
            },
            {"from_step": 20},
        )


def test_a_receipt(tmp_path: Path) -> None:
    (tmp_path / "conversion.json").write_text(json.dumps(RECEIPT))
    found = read_lineage(tmp_path)
    assert found.conversion["verification.max_difference"] == 1.5e-10
    assert found.conversion["verification.passed"] is True
    assert found.sources == ("hparams.json", "vocab.bpe")
    assert found.notes == ("12 mask buffers were left out",)


def test_a_recipe_of_any_task(tmp_path: Path) -> None:
    values = {"task": "some later task", "data": {"source": "x"}, "optim": {"lr": 0.5}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert read_lineage(tmp_path).recipe == values


@pytest.mark.parametrize("name", ["recipe.yaml", "train_state.json", "conversion.json", "run.json"])
@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"[1, 2]", b"{", b"[" * 5000, b"!!python/object:os.system {}", None]
)
def test_what_cannot_be_read_is_a_problem_and_no_more(
    name: str, content: bytes | None, checkpoint: Path
) -> None:
    place = checkpoint if name != "run.json" else checkpoint.parent.parent
    if content is None:
        (place / name).symlink_to("/dev/zero")
    else:
        (place / name).write_bytes(content)
    found = read_lineage(checkpoint)
    (problem,) = found.problems
    assert name in problem
    assert (found.recipe, found.progress, found.sessions, found.conversion) == ({}, {}, (), {})


def test_values_of_other_kinds_are_left_out(checkpoint: Path) -> None:
    (checkpoint / "train_state.json").write_text('{"progress": {"step": [[1]], "best_loss": null}}')
    (checkpoint / "conversion.json").write_text(
        json.dumps({"source": {"path": "x" * 5000, "files": 3}, "notes": ["a", 1], "verification": []})
    )
    (checkpoint.parent.parent / "run.json").write_text('{"format": 1, "sessions": [3, {"started": "once"}]}')
    found = read_lineage(checkpoint)
    assert found.progress == {}
    assert found.conversion == {"source.path": "x" * 5000}
    assert (found.sources, found.notes) == ((), ("a",))
    assert found.sessions == ({}, {"started": "once"})
