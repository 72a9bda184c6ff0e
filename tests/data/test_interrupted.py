"""Killed at any moment, `prepare` goes on, and the result is the same to the byte."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2cli.data import prepare_pipeline, text_reader, tokenize
from gpt2cli.data.manifest import PrepareSettings
from gpt2cli.data.prepare import prepare
from gpt2cli.data.prepare_pipeline import PrepareProgress
from gpt2cli.errors import InputError, UsageError

# Small tasks, a journal after each, and small files: hundreds of moments that differ.
SCRIPT = """
import sys
from pathlib import Path
from gpt2cli.data import text_reader as pieces
from gpt2cli.data import tokenize as chunks
from gpt2cli.data.manifest import PrepareSettings
from gpt2cli.data.prepare import prepare
chunks.CHUNK_CHARACTERS, pieces.PIECE_CHARACTERS, pieces.MAX_PIECE_CHARACTERS = 3000, 2000, 8000
settings = PrepareSettings(sys.argv[2], ("text",), 0.1, 5, 4000)
steps = prepare(sys.argv[3:], Path(sys.argv[1]), settings, journal_seconds=0)
print("go", flush=True)
for step in steps:
    pass
print(step.phase, step.n_continued, flush=True)
"""
Run = Callable[..., list[PrepareProgress]]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def sources(tmp_path: Path, words: Callable[..., str]) -> list[str]:
    (tmp_path / "a.txt").write_text(words(25_000, 1), encoding="utf-8")
    records = (json.dumps({"text": words(60, i)}) + "\n" for i in range(400))
    (tmp_path / "b.jsonl").write_text("".join(records))
    (tmp_path / "c.txt").write_text(words(3000, 2), encoding="utf-8")
    return [str(tmp_path / name) for name in ("a.txt", "b.jsonl", "c.txt")]


def start(out: Path, tokenizer: str, sources: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(out), tokenizer, *sources]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()  # imports are done
    return process


def n_chunks_done(out: Path) -> int:
    """As the journal says; 0 before it does, and after the end."""
    try:
        return int(json.loads((out / "journal.json").read_text())["position"]["n_chunks"])
    except FileNotFoundError:
        return 0


def kill_until_done(out: Path, tokenizer: str, sources: list[str], n_kills: int, seed: int) -> int:
    """Kill and restart, each time a few chunks further; returns how often work was there to continue from."""
    draw = random.Random(seed)
    start(out.with_name("reference"), tokenizer, sources).communicate(timeout=60)
    n_continued = 0
    for _ in range(n_kills):
        n_wanted = n_chunks_done(out) + draw.randint(1, 10)
        process = start(out, tokenizer, sources)
        while process.poll() is None and n_chunks_done(out) < n_wanted:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        n_continued += n_chunks_done(out) > 0
    end, error = start(out, tokenizer, sources).communicate(timeout=60)
    assert end.startswith(("done", "nothing to do")), error
    assert files_of(out) == files_of(out.with_name("reference"))
    return n_continued


@pytest.mark.parametrize("tokenizer", ["gpt2", "chars"])
def test_sigkill_at_random_moments(tokenizer: str, tmp_path: Path, sources: list[str]) -> None:
    assert kill_until_done(tmp_path / "out", tokenizer, sources, 4, seed=1) >= 2


@pytest.mark.proofs
def test_sigkill_at_many_random_moments(tmp_path: Path, sources: list[str]) -> None:
    for round_ in range(20):
        kill_until_done(tmp_path / f"{round_}" / "out", "gpt2", sources, 5, seed=round_)


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "CHUNK_CHARACTERS", 3000)
    monkeypatch.setattr(text_reader, "PIECE_CHARACTERS", 2000)
    monkeypatch.setattr(text_reader, "MAX_PIECE_CHARACTERS", 8000)


SETTINGS = PrepareSettings("gpt2", ("text",), 0.1, 1337, 4000)


def stop_after(n: int, sources: list[str], out: Path, **options: bool) -> None:
    steps = prepare(sources, out, SETTINGS, journal_seconds=0, **options)
    while n:
        n -= next(steps).phase == "tokens"
    steps.close()
    assert not (out / "manifest.json").exists()


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_closing_the_generator_leaves_a_folder_to_continue(
    n: int, tmp_path: Path, sources: list[str], run: Run
) -> None:
    stop_after(n, sources, tmp_path / "out")
    steps = run(sources, tmp_path / "out", workers=1, shard_tokens=4000)
    assert steps[-1].n_continued > 0
    assert [step.phase for step in steps[: n + 1]] == ["continuing"] * n + ["tokens"]
    run(sources, tmp_path / "whole", shard_tokens=4000)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("to", ["validation", "train"])
def test_interrupted_while_the_tail_moves(
    to: str, tmp_path: Path, sources: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the journal's last word and the manifest the files are cut; twice is as good as once."""
    # Of the small document and the large one, seed 21 draws the second, which is nearly all of the text.
    some, seed = (sources[:1], 1337) if to == "validation" else ([sources[2], sources[0]], 21)
    how = {"shard_tokens": 4000, "seed": seed, "journal_seconds": 0}
    run(some, tmp_path / "whole", **how)
    for place in ("move_tail", "save_tokenizer", "write_manifest"):
        out = tmp_path / place
        with monkeypatch.context() as patch:
            real = getattr(prepare_pipeline, place)

            def fail(*arguments: object, real: Callable[..., object] = real) -> None:
                real(*arguments)
                raise KeyboardInterrupt

            patch.setattr(prepare_pipeline, place, fail)
            with pytest.raises(KeyboardInterrupt):
                run(some, out, **how)
        assert (out / "journal.json").exists()
        assert run(some, out, **how)[-1].phase == "done"
        assert files_of(out) == files_of(tmp_path / "whole"), place


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("changed", [0, 1])
def test_text_that_changed_since_the_interruption(
    changed: int, tmp_path: Path, sources: list[str], run: Run
) -> None:
    stop_after(60, sources, tmp_path / "out")
    path = Path(sources[changed])
    path.write_text(path.read_text(encoding="utf-8").replace("boat", "goat", 1), encoding="utf-8")
    with pytest.raises(InputError, match="changed since the preparation was interrupted"):
        run(sources, tmp_path / "out", shard_tokens=4000)
    path.write_text('{"text": "x"}')
    with pytest.raises(InputError, match="changed since the preparation was interrupted"):
        run(sources[: changed + 1], tmp_path / "out", shard_tokens=4000)
    # With --force it is redone, and an interruption of that continues as well.
    path.write_text('{"text": "other text"}\n' * 3000)
    stop_after(5, sources, tmp_path / "out", force=True)
    assert run(sources, tmp_path / "out", shard_tokens=4000, force=True)[-1].n_continued > 0
    run(sources, tmp_path / "whole", shard_tokens=4000)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.usefixtures("fine")
def test_other_settings_or_damage_since_the_interruption(
    tmp_path: Path, sources: list[str], run: Run
) -> None:
    stop_after(40, sources, tmp_path / "out")
    with pytest.raises(UsageError, match="other settings"):
        run(sources, tmp_path / "out", shard_tokens=4001)
    (tmp_path / "out" / "train-00000.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"train-00000\.bin: shorter than the journal says"):
        run(sources, tmp_path / "out", shard_tokens=4000)
    (tmp_path / "out" / "journal.json").write_text("{")
    with pytest.raises(InputError, match=r"journal\.json:1: is not JSON"):
        run(sources, tmp_path / "out", shard_tokens=4000)
    assert run(sources, tmp_path / "out", shard_tokens=4000, force=True)[-1].phase == "done"


@pytest.mark.usefixtures("fine")
def test_damage_is_redone_with_force(tmp_path: Path, sources: list[str], run: Run) -> None:
    stop_after(40, sources, tmp_path / "out")
    (tmp_path / "out" / "train-00001.bin").unlink()
    assert run(sources, tmp_path / "out", shard_tokens=4000, force=True)[-1].n_continued == 0


def test_a_start_that_did_nothing_binds_nobody(tmp_path: Path, run: Run) -> None:
    """A wrong field is found after the folder was begun; the right one must not be refused."""
    (tmp_path / "a.jsonl").write_text('{"body": "one two"}\n{"body": "three"}\n')
    with pytest.raises(InputError, match="field 'text' is missing"):
        run([tmp_path / "a.jsonl"], tmp_path / "out")
    assert run([tmp_path / "a.jsonl"], tmp_path / "out", text_fields=("body",))[-1].phase == "done"
