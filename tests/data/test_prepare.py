"""`prepare`: the right ids in the right split, nothing wrapped, refusals, the cache."""

import gzip
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpt2cli import files, locks, paths
from gpt2cli.data import tokenize as tasks_module
from gpt2cli.data.manifest import PrepareSettings
from gpt2cli.data.prepare import prepare_cached
from gpt2cli.data.prepare_pipeline import PrepareProgress
from gpt2cli.data.shards import dtype_for, to_shard_dtype
from gpt2cli.data.token_dataset import TokenSplit, open_dataset
from gpt2cli.errors import InputError, ResourceError, UsageError
from gpt2cli.tokenizer.bpe import BPE, gpt2

Run = Callable[..., list[PrepareProgress]]
Words = Callable[..., str]
SETTINGS = PrepareSettings("gpt2", ("text",), 0.1, 1337, 100_000)


def all_of(tokens: TokenSplit) -> list[int]:
    return tokens.read(0, tokens.n_tokens).tolist()  # type: ignore[no-any-return]


def documents_of(tokens: TokenSplit, end_of_text: int) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for i in all_of(tokens):
        found[-1].append(i) if i != end_of_text else found.append([])
    assert found.pop() == []  # each document is closed by the marker
    return found


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_every_document_lands_whole_in_one_split_in_order(tmp_path: Path, run: Run, words: Words) -> None:
    texts = [words(30, i) + f" number {i}" for i in range(400)]
    steps = run([jsonl(tmp_path / "a.jsonl", texts)], tmp_path / "out", shard_tokens=777, seed=3)
    assert steps[-1].phase == "done"
    with open_dataset(tmp_path / "out") as data:
        train = documents_of(data.train, data.tokenizer.end_of_text)
        validation = documents_of(data.validation, data.tokenizer.end_of_text)
        assert data.manifest.n_documents == 400 == len(train) + len(validation)
        assert data.manifest.n_bytes == sum(len(text.encode()) for text in texts)
        assert data.manifest.n_tokens == steps[-1].n_tokens
        assert 20 <= len(validation) <= 60  # a tenth, give or take
    expected = [gpt2().encode(text) for text in texts]
    assert train == [ids for ids in expected if ids in train]
    assert validation == [ids for ids in expected if ids in validation]
    assert sorted(train + validation) == sorted(expected)


def test_another_seed_draws_other_documents_and_workers_change_nothing(
    tmp_path: Path, run: Run, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks_module, "CHUNK_CHARACTERS", 500)
    source = jsonl(tmp_path / "a.jsonl", [words(20, i) for i in range(100)])
    run([source], tmp_path / "one", workers=1)
    run([source], tmp_path / "three", workers=3)
    run([source], tmp_path / "seed", seed=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")
    assert files_of(tmp_path / "one")["train-00000.bin"] != files_of(tmp_path / "seed")["train-00000.bin"]


def test_a_single_document_is_split_by_its_tail(tmp_path: Path, run: Run, words: Words) -> None:
    (tmp_path / "a.txt").write_text(words(3000), encoding="utf-8", newline="")
    run([tmp_path / "a.txt"], tmp_path / "out", validation=0.25, shard_tokens=1000)
    whole = [*gpt2().encode(words(3000)), gpt2().end_of_text]
    n = round(len(whole) * 0.25)
    with open_dataset(tmp_path / "out") as data:
        assert all_of(data.train) == whole[:-n]
        assert all_of(data.validation) == whole[-n:]


def test_no_validation_when_none_is_wanted(tmp_path: Path, run: Run) -> None:
    run([jsonl(tmp_path / "a.jsonl", ["one", "two"])], tmp_path / "out", validation=0)
    with open_dataset(tmp_path / "out") as data:
        assert data.validation.n_tokens == 0
        assert data.validation.read(0, 0).tolist() == []


def test_the_marker_typed_in_a_text_is_plain_text(tmp_path: Path, run: Run) -> None:
    texts = ["before", "a <|endoftext|> b", "<|endoftext|>", "<|endof", "text|>", "after"]
    run([jsonl(tmp_path / "a.jsonl", texts)], tmp_path / "out", validation=0)
    with open_dataset(tmp_path / "out") as data:
        assert documents_of(data.train, 50256) == [gpt2().encode(text) for text in texts]
        assert all_of(data.train).count(50256) == len(texts)


def test_characters_take_their_vocabulary_from_all_of_the_text(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.txt").write_text("abc é\n", encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("🚢!".encode()))
    steps = run([tmp_path], tmp_path / "out", tokenizer="chars", validation=0)
    assert {step.phase for step in steps} == {"vocabulary", "tokens", "finishing", "done"}
    with open_dataset(tmp_path / "out") as data:
        assert data.tokenizer.name == "chars"
        assert data.tokenizer.n_vocab == len(set("abc é\n🚢!")) + 1
        assert data.tokenizer.decode(all_of(data.train)) == "abc é\n<|endoftext|>🚢!<|endoftext|>"


@pytest.mark.parametrize("tokenizer", ["gpt2", "chars"])
def test_standard_input(tokenizer: str, tmp_path: Path, words: Words) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from gpt2cli.data.manifest import PrepareSettings as Settings\n"
        "from gpt2cli.data.prepare import prepare\n"
        "steps = list(prepare(['-'], Path(sys.argv[1]), Settings(sys.argv[2], ('text',), 0, 1, 10**6)))\n"
        "print(steps[-1].phase)"
    )
    for phase in ("done", "nothing to do"):
        text = words(300_000)  # more than a pipe holds
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "out", tokenizer],
            input=text.encode(),
            capture_output=True,
        )
        assert (done.returncode, done.stdout.decode().strip()) == (0, phase), done.stderr.decode()
    with open_dataset(tmp_path / "out") as data:
        assert data.tokenizer.decode(all_of(data.train)) == text + "<|endoftext|>"
        assert data.manifest.sources[0].sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert not list((tmp_path / "out").glob(".partial*"))


def test_ids_never_wrap(tmp_path: Path, run: Run) -> None:
    """A vocabulary over 65,535 is stored in four bytes; two could not even be asked for it."""
    characters = "".join(chr(code) for code in range(0x10000, 0x10000 + 70_000))
    (tmp_path / "a.txt").write_text(characters, encoding="utf-8")
    run([tmp_path / "a.txt"], tmp_path / "out", tokenizer="chars", validation=0)
    with open_dataset(tmp_path / "out") as data:
        assert data.manifest.dtype == "uint32"
        assert all_of(data.train) == list(range(70_001))
    assert (dtype_for(65_536), dtype_for(65_537)) == ("uint16", "uint32")
    assert to_shard_dtype(np.array([65_535]), "uint16", 65_536).tolist() == [65_535]
    with pytest.raises(InputError, match="token id 70000 is not below"):
        to_shard_dtype(np.array([70_000]), "uint16", 65_536)


def test_a_tokenizer_folder_and_one_whose_files_do_not_belong_together(tmp_path: Path, run: Run) -> None:
    files.write_file(tmp_path / "vocab.json", gpt2().vocab_json)
    files.write_file(tmp_path / "merges.txt", gpt2().merges_txt)
    source = jsonl(tmp_path / "a.jsonl", ["one", "two"])
    run([source], tmp_path / "out", tokenizer=str(tmp_path))
    assert isinstance(open_dataset(tmp_path / "out").tokenizer, BPE)
    files.write_file(tmp_path / "merges.txt", gpt2().merges_txt.replace(b"h e\n", b"e h\n", 1))
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt"):
        run([source], tmp_path / "out2", tokenizer=str(tmp_path))
    with pytest.raises(UsageError, match="no such tokenizer"):
        run([source], tmp_path / "out3", tokenizer="gpt3")


@pytest.mark.parametrize("text", ["", "\ufeff", "too short"])
def test_too_little_text_is_an_error_with_counts_and_leaves_no_trace(
    text: str, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="fewer than one block of 64") as caught:
        run([tmp_path / "a.txt"], tmp_path / "out", block=64)
    counts = "1 document, 9 bytes, 3 tokens" if text == "too short" else "0 documents, 0 bytes, 0 tokens"
    assert counts in caught.value.why
    assert files_of(tmp_path / "out") == {}


def test_characters_of_an_empty_text(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match="no characters"):
        run([tmp_path / "a.txt"], tmp_path / "out", tokenizer="chars")


def test_little_validation_and_forced_cuts_are_warned_of(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.txt").write_text("a" * 1_200_000)
    warnings = [
        step.warning for step in run([tmp_path / "a.txt"], tmp_path / "out", validation=0.01, block=4000)
    ]
    assert sum("fewer than one block" in text for text in warnings) == 1
    assert sum("2 cuts in text without a space" in text for text in warnings) == 1


def test_a_second_call_has_nothing_to_do_wherever_the_text_lies_now(tmp_path: Path, run: Run) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["one", "two"])
    first = run([source], tmp_path / "out", validation=0.5)[-1]
    before = files_of(tmp_path / "out")
    moved = source.rename(tmp_path / "b.jsonl")
    (again,) = run([moved], tmp_path / "out", validation=0.5)
    assert (again.phase, again.n_tokens, again.n_bytes) == ("nothing to do", first.n_tokens, first.n_bytes)
    assert files_of(tmp_path / "out") == before


def test_changed_text_is_refused_and_redone_with_force(tmp_path: Path, run: Run) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["one", "two"])
    run([source], tmp_path / "out")
    before = files_of(tmp_path / "out")
    jsonl(source, ["one", "other"])
    with pytest.raises(InputError, match=r"a\.jsonl: changed since it was prepared"):
        run([source], tmp_path / "out")
    with pytest.raises(InputError, match=r"b\.jsonl: is a new source"):
        jsonl(source, ["one", "two"])
        run([source, jsonl(tmp_path / "b.jsonl", ["x"])], tmp_path / "out")
    with pytest.raises(InputError, match=r"b\.jsonl: is missing"):
        run([source, tmp_path / "b.jsonl"], tmp_path / "both")
        run([source], tmp_path / "both")
    assert files_of(tmp_path / "out") == before
    jsonl(source, ["one", "other"])
    assert run([source], tmp_path / "out", force=True)[-1].phase == "done"
    run([source], tmp_path / "fresh")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_other_settings_are_refused_and_force_leaves_nothing_of_the_old(tmp_path: Path, run: Run) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["one two three four", "two"])
    run([source], tmp_path / "out", tokenizer="chars", shard_tokens=3)
    with pytest.raises(UsageError, match="other settings") as caught:
        run([source], tmp_path / "out")
    assert caught.value.why == "tokenizer was chars and is now gpt2; shard_tokens was 3 and is now 100000"
    run([source], tmp_path / "out", force=True)
    run([source], tmp_path / "fresh")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_a_damaged_folder_is_not_called_done(tmp_path: Path, run: Run) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["one", "two"])
    run([source], tmp_path / "out")
    (tmp_path / "out" / "train-00000.bin").write_bytes(b"\1\0\2")
    with pytest.raises(InputError, match=r"train-00000\.bin: damaged"):
        run([source], tmp_path / "out")


def test_a_folder_of_someone_else_is_never_touched(tmp_path: Path, run: Run) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["one", "two"])
    model = tmp_path / "model"
    model.mkdir()
    (model / "manifest.json").write_text('{"format": "a model"}')
    (model / "merges.txt").write_text("mine")
    before = files_of(model)
    for force in (False, True):
        with pytest.raises(UsageError, match="is not empty, and was not made by"):
            run([source], model, force=force)
    assert files_of(model) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": 1.0}, "validation is 1.0"),
        ({"validation": float("nan")}, "validation is nan"),
        ({"shard_tokens": 0}, "shard-tokens is 0"),
        ({"text_fields": ()}, "no text field"),
    ],
)
def test_settings_out_of_range(changes: dict[str, object], message: str, tmp_path: Path, run: Run) -> None:
    with pytest.raises(UsageError, match=message):
        run([tmp_path / "a.txt"], tmp_path / "out", **changes)


def test_one_writer_at_a_time(tmp_path: Path, run: Run) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["one", "two"])
    (tmp_path / "out").mkdir()
    with locks.lock(tmp_path / "out"), pytest.raises(ResourceError, match="in use by this process"):
        run([source], tmp_path / "out")
    assert run([source], tmp_path / "out")[-1].phase == "done"


def test_the_cache_is_made_once_and_named_by_content(tmp_path: Path, words: Words) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text(words(500), encoding="utf-8")
    b.write_bytes(a.read_bytes())
    first, second = (list(prepare_cached([path], SETTINGS))[-1] for path in (a, b))
    assert (first.phase, second.phase) == ("done", "nothing to do")
    assert first.out == second.out
    assert first.out.parent == paths.prepared()
    other = list(prepare_cached([a], replace(SETTINGS, validation=0.2)))[-1]
    assert other.out != first.out
    assert list(prepare_cached([first.out], SETTINGS))[-1].out == first.out  # a prepared folder is itself
    with pytest.raises(UsageError, match="standard input"):
        list(prepare_cached(["-"], SETTINGS))


def test_two_at_once_share_the_cache(tmp_path: Path, words: Words) -> None:
    source = tmp_path / "a.txt"
    source.write_text(words(2000), encoding="utf-8")
    first = prepare_cached([source], SETTINGS)
    assert next(first).phase == "tokens"  # holds the lock from here on
    seen: list[PrepareProgress] = []
    waits = threading.Event()

    def ask() -> None:
        for step in prepare_cached([source], SETTINGS):
            seen.append(step)
            waits.set()

    second = threading.Thread(target=ask)
    second.start()
    assert waits.wait(20)
    done = list(first)[-1]
    second.join(20)
    assert (seen[0].phase, seen[-1].phase, done.phase) == ("waiting", "nothing to do", "done")
    assert seen[-1].out == done.out
