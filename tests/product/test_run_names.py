"""Names and numbers that a run does not take, and what is said instead."""

from pathlib import Path

import pytest
from tiny_run import PRETRAIN, Call, random_text, train, write_tokens

NAMES = {
    **{".": "my-run", "..": "my-run", "runs/..": "my-run", ".hidden": "hidden", "deep/.x": "x"},
    **{"124M": "my-124M", "gpt2": "my-gpt2", "GPT2-XL": "my-GPT2-XL", "runs/1.5B": "my-1.5B"},
    **{"newest": "my-newest", "scratch": "my-scratch", "checkpoints": "my-checkpoints"},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_means_something_else(name: str, gpt2: Call) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    train(gpt2, PRETRAIN, "run", "optim.steps=3")
    before = sorted(Path().rglob("*"))
    done = gpt2("pretrain", "run.yaml", "--name", name)
    assert done.code == 2 and f"fix: gpt2 pretrain run.yaml --name {NAMES[name]}\n" in done.err, done.err
    assert sorted(Path().rglob("*")) == before


def test_the_name_of_a_corpus_is_one(gpt2: Call) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    train(gpt2, PRETRAIN, "the-verdict", "optim.steps=3")
    assert gpt2("generate", "-m", "the-verdict", "a").code == 0


def test_a_home_is_meant_by_a_tilde(gpt2: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = tmp_path / "home"
    home.mkdir()
    (home / "text.txt").write_text(random_text(400, seed=1), encoding="utf-8")
    (home / "prompt.txt").write_text("a", encoding="utf-8")
    prepare = ("prepare", "~/text.txt", "--out=~/tokens", "--tokenizer", "chars", "--block", "8")
    assert gpt2(*prepare).code == 0
    train(gpt2, PRETRAIN, "run", "--name=~/run", "data.source=~/tokens")
    Path("run.yaml").rename(home / "run.yaml")
    for command in (
        ("pretrain", "~/run.yaml", "--name=~/run", "--resume", "optim.steps=12", "data.source=~/tokens"),
        ("generate", "-m", "~/run", "--file=~/prompt.txt"),
        ("inspect", "~/run", "--prompt", "ab", "--attention=~/map.png"),
        ("evaluate", "~/run", "--on=~/text.txt"),
        ("convert", "~/run", "--out=~/model"),
        ("recipes", "copy", "verdict", "~/mine.yaml"),
        ("recipes", "check", "~/mine.yaml"),
    ):
        done = gpt2(*command)
        assert done.code == 0, done.err
    assert {"run", "tokens", "map.png", "model", "mine.yaml"} <= {path.name for path in home.iterdir()}
    assert not list(tmp_path.glob("~*"))


@pytest.mark.parametrize("threads", ["-1", "1025", "100000", "3000000000", "99999999999999999999"])
def test_threads_beyond_any_machine(threads: str, gpt2: Call) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    train(gpt2, PRETRAIN, "run", "optim.steps=3")
    for command in (
        ("pretrain", "run.yaml", f"run.threads={threads}", "--name", "new"),
        ("generate", "-m", "run", "a", f"--threads={threads}"),
        ("evaluate", "run", "--on", "tokens", f"--threads={threads}"),
        ("compile", "run", f"--threads={threads}"),
        ("prepare", "text.txt", "--out", "new", f"--workers={threads}"),
    ):
        done = gpt2(*command)
        assert done.code == 2 and ("threads" in done.err or "--workers" in done.err), done.err
    assert not Path("runs/new").exists() and not Path("new").exists()


def test_fewer_steps_than_are_done(gpt2: Call) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    train(gpt2, PRETRAIN, "run")
    done = gpt2("pretrain", "run.yaml", "--resume", "optim.steps=7")
    assert done.code == 0 and "is at step 10, beyond optim.steps=7" in done.err
    assert "optim.steps=20 continues it" in done.err


def test_a_damaged_cache_is_prepared_again(gpt2: Call, tmp_path: Path) -> None:
    Path("text.txt").write_text(random_text(400, seed=1), encoding="utf-8")
    recipe = {**PRETRAIN, "data": {"source": "text.txt", "tokenizer": "chars", "validation": 0.2}}
    run = train(gpt2, recipe, "run")
    (cache,) = (tmp_path / "gpt2-home/prepared").iterdir()
    tokens = (cache / "train-00000.bin").read_bytes()
    steps = 12
    for name in ("train-00000.bin", "manifest.json"):
        (cache / name).write_bytes((cache / name).read_bytes()[:-2])
        done = gpt2("pretrain", "run.yaml", "--resume", f"optim.steps={steps}")
        assert done.code == 0 and name in done.err and "prepared again" in done.err, done.err
        assert (cache / "train-00000.bin").read_bytes() == tokens
        assert (run / f"checkpoints/step-{steps:06d}").is_dir()
        steps += 2


def test_a_damaged_folder_of_the_users_own_is_prepared_by_the_command_that_is_printed(gpt2: Call) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    path = Path("tokens/train-00000.bin")
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    Path("run.yaml").write_text(str(PRETRAIN).replace("'", '"'), encoding="utf-8")
    done = gpt2("pretrain", "run.yaml")
    assert done.code == 3
    command = next(line for line in done.err.splitlines() if line.startswith("fix: gpt2 prepare"))
    assert gpt2(*command.removeprefix("fix: gpt2 ").split()).code == 0
    assert path.read_bytes() == whole and gpt2("pretrain", "run.yaml").code == 0
