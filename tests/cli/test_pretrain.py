"""`gpt2 pretrain` as a person meets it: the first run, the second, the stop, the full disk."""

import errno
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import command, losses, write_recipe

from gpt2cli import files, locks, paths
from gpt2cli.checkpoints.folder import load_model, verify
from gpt2cli.training import loop, run_dir
from gpt2cli.training.pretrain_task import PretrainTask
from gpt2cli.training.run_dir import RunDir, newest_valid_checkpoint

Gpt2 = Callable[..., Any]
SHORT = ("optim.steps=6",)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def test_a_run_leaves_everything_that_was_promised(gpt2: Gpt2, recipe: Path) -> None:
    done = gpt2("pretrain", recipe, *SHORT, "eval.every=3", "eval.sample_tokens=5", "eval.prompt=The ")
    assert done.code == 0, done.err
    run = Path("runs/tiny")
    assert done.out == "runs/tiny\n", "stdout is data: the run's folder"
    kinds = [json.loads(line)["event"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("StepDone") == 6 and kinds.count("EvalDone") == 3 and kinds[-1] == "Stopped"
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "samples.txt").read_text().count("--- step") == 3
    record = json.loads((run / "run.json").read_text())["sessions"][0]
    assert record["machine"]["threads"] == 2 and record["data"]["origin"] == "path"
    verify((run / "last").resolve())
    loaded = load_model(paths.find_model("tiny"))
    assert loaded.tokenizer.name == "chars" and loaded.config.n_positions == 24
    assert "val loss" in done.err and "tok/s" in done.err and "\x1b" not in done.err
    assert "gpt2 generate --model runs/tiny" in done.err


def test_a_second_run_of_the_name_is_refused_and_a_finished_one_has_nothing_to_do(
    gpt2: Gpt2, recipe: Path
) -> None:
    assert gpt2("pretrain", recipe, *SHORT).code == 0
    second = gpt2("pretrain", recipe, *SHORT)
    assert second.code == 2 and "--resume" in second.err and "--name tiny-2" in second.err
    again = gpt2("pretrain", recipe, "--resume")
    assert again.code == 0 and "nothing to do" in again.err
    by_its_own_recipe = gpt2("pretrain", "runs/tiny/recipe.yaml", "--resume")
    assert by_its_own_recipe.code == 0 and "nothing to do" in by_its_own_recipe.err


def test_a_resume_repeats_the_overrides_and_says_what_changed(gpt2: Gpt2, recipe: Path) -> None:
    assert gpt2("pretrain", recipe, *SHORT, "optim.lr=1e-3").code == 0
    more = gpt2("pretrain", recipe, "--resume", "optim.steps=9")
    assert more.code == 0 and "changed since the run began: steps: 9" in more.err
    assert "resuming after step 6" in more.err and "lr" not in more.err.split("resuming")[0]
    assert sorted(losses(Path("runs/tiny"))) == list(range(1, 10))
    third = gpt2("pretrain", "runs/tiny/recipe.yaml", "--resume")
    assert third.code == 0 and "finished its 9 steps" in third.err, "the second session's overrides count"


def full_disk(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_new_start_forgets_what_an_unsaved_one_wrote(
    gpt2: Gpt2, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that died before its first save: the same command, with or without --resume, begins anew."""
    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "save_checkpoint", full_disk)
        assert gpt2("pretrain", recipe, *SHORT, "eval.sample_tokens=3").code == 4
    for again in ([], ["--resume"]):
        assert gpt2("pretrain", recipe, *SHORT, "eval.sample_tokens=3", *again).code == 0
        run = Path("runs/tiny")
        assert sorted(losses(run)) == list(range(1, 7))
        assert (run / "samples.txt").read_text().count("--- step 0 ---") == 1
        assert len(json.loads((run / "run.json").read_text())["sessions"]) == 1
        if not again:
            shutil.rmtree(run / "checkpoints")


def test_nothing_to_resume(gpt2: Gpt2, recipe: Path) -> None:
    done = gpt2("pretrain", recipe, "--resume")
    assert done.code == 3 and "no run to resume" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optim.learnign_rate=1"], "optim.lr"),
        (["optim.lr=.nan"], "optim.lr"),
        (["optim.lr=-1"], "must be > 0"),
        (["run.device=tpu"], "run.device"),
        (["run.device=mps"], "mps is not available"),
        (["model.context=100000"], "model.context="),
    ],
)
def test_mistakes_are_named_before_any_training(
    gpt2: Gpt2, recipe: Path, arguments: list[str], said: str
) -> None:
    done = gpt2("pretrain", recipe, *arguments)
    assert done.code in (2, 3) and said in done.err, done
    assert done.err.count("\n") <= 4 and "Traceback" not in done.err
    assert not Path("runs/tiny/last").exists()
    corrected = gpt2("pretrain", recipe, *SHORT)
    assert corrected.code == 0, "a refused command must not stand in the way of the right one"


def test_dry_run_shows_the_plan_and_writes_no_run(gpt2: Gpt2, recipe: Path) -> None:
    done = gpt2("pretrain", recipe, "optim.lr=1e-3", "--dry-run")
    assert done.code == 0, done.err
    for said in (
        "\noverride: optim.lr=0.001\n",
        "\nrecipe: task=pretrain seed=",
        "\ndefault: ",
        "parameters from random weights",
        "memory",
        "tokens/s",
        "epochs",
        "first batch",
        "run.attention=auto (formula)",
    ):
        assert said in done.out, said
    assert not any(sign in done.out for sign in ("None", "True", "('", "-> ", "0 MiB, ", "yaml:"))
    samples = done.out[done.out.index("first batch") :].splitlines()
    assert len(samples) <= 4
    assert not Path("runs").exists()
    assert gpt2("pretrain", recipe, *SHORT).code == 0
    assert gpt2("pretrain", recipe, "--dry-run").code == 0, "a run of the name is no obstacle"


def test_tensorboard_is_written_when_asked(gpt2: Gpt2, recipe: Path) -> None:
    assert gpt2("pretrain", recipe, *SHORT, "log.tensorboard=true").code == 0
    assert list(Path("runs/tiny/tensorboard").glob("events.out.tfevents.*"))


def tell(monkeypatch: pytest.MonkeyPatch, place: object, name: str, number: int, when: int = 1) -> None:
    """Send this process a signal as the `when`-th call of `place.name` begins."""
    original, calls = getattr(place, name), [0]

    def wrapped(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == when:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(place, name, wrapped)


@pytest.mark.parametrize(
    ("place", "name", "when"),
    [
        (PretrainTask, "fresh_model", 1),  # load
        (loop, "train_step", 4),  # step
        (PretrainTask, "evaluation_batches", 2),  # evaluation
        (run_dir, "save_checkpoint", 1),  # save
        ("gpt2cli.generation.engine", "generate", 1),  # sampling
    ],
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_any_phase_saves_and_ends(
    gpt2: Gpt2,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    when: int,
    number: int,
    code: int,
) -> None:
    if isinstance(place, str):
        place = importlib.import_module(place)
    tell(monkeypatch, place, name, number, when)
    done = gpt2("pretrain", recipe, "eval.sample_tokens=5")
    assert done.code == code, done.err
    run = RunDir(Path("runs/tiny"))
    checkpoint, problems = newest_valid_checkpoint(run)
    assert checkpoint is not None and not problems
    assert "--resume" in done.err
    monkeypatch.undo()


def test_ctrl_c_twice_leaves_at_once(recipe: Path, tmp_path: Path) -> None:
    process = command("pretrain", recipe, "batch.accumulation=20000", "--name", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and "EvalDone" in metrics.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)  # the first step, which takes minutes, is under way
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    # Two signals before Python looks at the first one are one signal.
    assert any("again to leave at once" in line for line in process.stderr)
    assert process.poll() is None, "the first one waits for the step"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130


def two_starts(gpt2: Gpt2, recipe: Path) -> Path:
    """A run that has saved step 6 and is about to go on to step 12."""
    assert gpt2("pretrain", recipe, *SHORT).code == 0
    return Path("runs/tiny").resolve()


def checked_end(process: subprocess.Popen[str], run: Path) -> str:
    _, said = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert "Traceback" not in (said or "")
    checkpoint, problems = newest_valid_checkpoint(RunDir(run))
    assert checkpoint is not None and checkpoint.name == "step-000006" and not problems
    return said or ""


def test_a_file_size_limit_keeps_the_checkpoint_before(gpt2: Gpt2, recipe: Path) -> None:
    run = two_starts(gpt2, recipe)
    limit = (run / "last" / "train_state.safetensors").stat().st_size - 1000
    process = command(
        *("pretrain", recipe, "--resume", "optim.steps=12"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "larger than this system allows" in checked_end(process, run)
    assert not list(run.rglob(f"{files.TEMPORARY}*"))


def test_a_full_disk_keeps_the_checkpoint_before(gpt2: Gpt2, recipe: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        run = small / "run"
        assert gpt2("pretrain", recipe, *SHORT, "--name", run).code == 0
        filler = small / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError as error:
                assert error.errno == errno.ENOSPC
        with open(filler, "r+b") as file:
            file.truncate(filler.stat().st_size - 40_000)  # room for records, not for a checkpoint
        process = command("pretrain", recipe, "--resume", "--name", run, "optim.steps=12")
        said = checked_end(process, run)
        assert "too little room" in said and f"{run}/recipe.yaml --resume" in said
    finally:
        subprocess.run(["umount", small], check=True)


def test_messages_to_a_full_device_cost_no_step(gpt2: Gpt2, recipe: Path) -> None:
    run = two_starts(gpt2, recipe)
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [*_program(), "pretrain", str(recipe), "--resume", "optim.steps=12"],
            stdout=subprocess.DEVNULL,
            stderr=full,
        )
        assert process.wait(60) == 0
    checkpoint, _ = newest_valid_checkpoint(RunDir(run))
    assert checkpoint and checkpoint.name == "step-000012"


def test_an_unwritable_place_is_refused_before_any_work(gpt2: Gpt2, recipe: Path) -> None:
    done = gpt2("pretrain", recipe, "--name", "/proc/run")
    assert done.code == 4 and "cannot write here" in done.err


def test_a_second_run_in_the_folder_is_refused_and_a_dead_holder_is_not_feared(
    gpt2: Gpt2, recipe: Path
) -> None:
    folder = Path("runs/tiny")
    folder.mkdir(parents=True)
    with locks.lock(folder):
        done = gpt2("pretrain", recipe, *SHORT)
    assert done.code == 4 and "in use by this process" in done.err
    child = os.fork()
    if child == 0:
        with locks.lock(folder):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (folder / ".lock").read_text().strip() == str(child)
    assert gpt2("pretrain", recipe, *SHORT).code == 0


def test_orphans_of_a_killed_save_are_swept_at_the_start(gpt2: Gpt2, recipe: Path) -> None:
    run = two_starts(gpt2, recipe)
    orphans = [run / f"{files.TEMPORARY}run.json-1", run / "checkpoints" / f"{files.TEMPORARY}step-000009-1"]
    orphans[0].write_text("{")
    orphans[1].mkdir()
    assert gpt2("pretrain", recipe, "--resume").code == 0
    assert not any(orphan.exists() for orphan in orphans)


def test_changed_data_is_refused_with_the_difference(gpt2: Gpt2, recipe: Path, tmp_path: Path) -> None:
    two_starts(gpt2, recipe)
    (tmp_path / "story.txt").write_text((tmp_path / "story.txt").read_text() + "One more line.\n")
    done = gpt2("pretrain", recipe, "--resume", "optim.steps=9")
    assert done.code == 3 and "data:" in done.err and "train tokens:" in done.err


def prepare_story(gpt2: Gpt2, folder: Path) -> None:
    """The recipe's text as the prepared folder tokens, with the recipe's split."""
    out = ("--out", "tokens", "--tokenizer", "chars", "--block", "25", "--validation", "0.1")
    assert gpt2("prepare", folder / "story.txt", *out).code == 0


def test_data_that_shrinks_during_the_run_is_an_error_and_no_crash(
    gpt2: Gpt2, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_story(gpt2, tmp_path)
    step = loop.train_step

    def shrink(*arguments: Any) -> Any:
        os.truncate(next(Path("tokens").glob("train-*.bin")), 100)
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", shrink)
    done = gpt2("pretrain", recipe, "data.source=tokens")
    assert done.code == 3 and "train-00000.bin" in done.err


def test_truncated_tokens_are_refused_before_the_first_step(gpt2: Gpt2, recipe: Path, tmp_path: Path) -> None:
    prepare_story(gpt2, tmp_path)
    shard = next(Path("tokens").glob("train-*.bin"))
    shard.write_bytes(shard.read_bytes()[:-1])
    done = gpt2("pretrain", recipe, "data.source=tokens")
    assert done.code == 3 and "train-00000.bin" in done.err and "step 1" not in done.err


def test_divergence_exits_6_and_names_a_smaller_rate(
    gpt2: Gpt2, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PretrainTask.loss_sum

    def nan_in_training(*arguments: Any) -> torch.Tensor:
        return original(*arguments) * (float("nan") if torch.is_grad_enabled() else 1.0)

    monkeypatch.setattr(PretrainTask, "loss_sum", nan_in_training)
    done = gpt2("pretrain", recipe, "run.max_skipped_steps=2")
    assert done.code == 6 and "optim.lr=0.001" in done.err and "skipped" in done.err


def test_out_of_memory_proposes_a_batch_that_keeps_the_product(
    gpt2: Gpt2, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_gpu(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def on_a_cpu(*arguments: object) -> None:
        torch.empty(1 << 50)  # what torch's own allocator says

    for burst in (on_a_gpu, on_a_cpu):
        monkeypatch.setattr(PretrainTask, "loss_sum", burst)
        done = gpt2("pretrain", recipe, "batch.micro_batch=12", "--name", burst.__name__)
        assert done.code == 4 and "batch.micro_batch=6 batch.accumulation=4" in done.err


@pytest.mark.proofs
def test_an_address_space_limit_is_one_message(recipe: Path, tmp_path: Path) -> None:
    limit = 5 << 30
    process = command(
        *(
            "pretrain",
            recipe,
            "batch.micro_batch=4000",
            "model.n_embd=1024",
            "model.n_head=1",
            "eval.tokens=1",
        ),
        *("--name", tmp_path / "run"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    _, said = process.communicate(timeout=120)
    assert process.returncode == 4, said
    assert "batch.micro_batch=2000 batch.accumulation=4" in said and "Traceback" not in said


def _program() -> list[str]:
    import sys

    return [sys.executable, "-m", "gpt2cli"]
