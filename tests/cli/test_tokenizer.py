"""`gpt2 tokenizer train` and `gpt2 tokenizer show` as a person meets them."""

import gzip
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_texts import russian
from runs import write_recipe
from transformers import AutoTokenizer

from gpt2cli.tokenizer.bpe import gpt2 as gpt2_tokenizer
from gpt2cli.tokenizer.files import load_tokenizer

Gpt2 = Callable[..., Any]
TEXT = russian(120, 1)


@pytest.fixture
def books(gpt2: Gpt2) -> Path:
    """The text in a folder: two files, one of them packed."""
    folder, lines = Path("books"), TEXT.splitlines(keepends=True)
    folder.mkdir()
    (folder / "a.txt").write_text("".join(lines[:60]), encoding="utf-8")
    (folder / "b.txt.gz").write_bytes(gzip.compress("".join(lines[60:]).encode()))
    return folder


def test_a_folder_of_books_becomes_a_hugging_face_tokenizer(gpt2: Gpt2, books: Path) -> None:
    done = gpt2("tokenizer", "train", "books/", "--size", "350", "--out", "tokenizers/mine", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["tokens"] == 350 and facts["merges"] == 93 and facts["out"] == "tokenizers/mine"
    assert facts["bytes"] == len(TEXT.encode()) and "350 tokens, 93 of them merges" in done.err
    opened, ours = AutoTokenizer.from_pretrained("tokenizers/mine"), load_tokenizer(Path("tokenizers/mine"))
    assert opened.encode(TEXT[:300]) == ours.encode(TEXT[:300]) and opened.eos_token_id == 349
    again = gpt2("tokenizer", "train", "books/*.txt", "books/b.txt.gz", "--size", "350", "--out", "again")
    assert again.out == "again\n" and "\x1b" not in again.err
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
        assert Path("again", name).read_bytes() == Path("tokenizers/mine", name).read_bytes()


def test_records_and_stdin_are_sources_too(gpt2: Gpt2, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("r.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in TEXT.split("\n")))
    Path("t.txt").write_text(TEXT.replace("\n", ""), encoding="utf-8")
    assert (
        gpt2("tokenizer", "train", "r.jsonl", "--text-field", "body", "--size", "300", "--out", "r").code == 0
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert gpt2("tokenizer", "train", "-", "--size", "300", "--out", "s").code == 0
    merges = [load_tokenizer(Path(name)).merges for name in ("r", "s")]  # type: ignore[attr-defined]
    assert len(merges[0]) == 43 and merges[0] == merges[1], "a line feed between records merges with nothing"


def test_files_are_read_as_prepare_reads_them(gpt2: Gpt2) -> None:
    Path("a.txt").write_bytes("café<|endoftext|>naïve thé ".encode("latin-1") * 20)
    refused = gpt2("tokenizer", "train", "a.txt", "--size", "280", "--out", "t")
    assert refused.code == 3 and "--encoding latin-1" in refused.err
    warned = gpt2("tokenizer", "train", "a.txt", "--size", "280", "--out", "t", "--encoding", "latin-1")
    assert warned.code == 0 and "--split-on '<|endoftext|>'" in warned.err
    options = ("--encoding", "latin-1", "--split-on", "<|endoftext|>", "--force")
    split = gpt2("tokenizer", "train", "a.txt", "--size", "280", "--out", "t", *options)
    assert split.code == 0 and "ordinary text" not in split.err
    assert not any("|" in token for token in json.loads(Path("t/vocab.json").read_text()) if len(token) == 2)
    Path("b.jsonl").write_text('{"text": "hello hello"}\n' * 3 + "bad\n" * 2)
    refused = gpt2("tokenizer", "train", "b.jsonl", "--size", "260", "--out", "u")
    assert refused.code == 3 and "--max-bad 0.4" in refused.err
    done = gpt2("tokenizer", "train", "b.jsonl", "--size", "260", "--out", "u", "--max-bad", "0.4")
    assert done.code == 0 and "b.jsonl:4" in done.err


def test_a_text_without_an_end_of_a_word_takes_seconds(gpt2: Gpt2) -> None:
    Path("dna.txt").write_text("a" * 100_000)
    done = gpt2("tokenizer", "train", "dna.txt", "--size", "300", "--out", "t")
    assert done.code == 0 and "no other pair occurs twice" in done.err
    lengths = [len(load_tokenizer(Path("t")).decode_bytes([id])) for id in range(256, 260)]
    assert lengths == [2, 4, 8, 16]


REFUSED = {
    "no room for the bytes": (["books", "--size", "256"], 2, "--size 256", "--size 8192"),
    "no such text": (["nowhere.txt"], 3, "nowhere.txt", ""),
    "an empty text": (["empty.txt"], 3, "no text", ""),
    "a stranger's folder": (["books", "--out", "books", "--force"], 2, "books: is not empty", "--out"),
    "an earlier vocabulary": (["books", "--out", "made"], 2, "made", "--force"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_nothing_is_lost(case: str, gpt2: Gpt2, books: Path) -> None:
    Path("empty.txt").touch()
    assert gpt2("tokenizer", "train", "books", "--size", "257", "--out", "made").code == 0
    before = {path: path.read_bytes() for path in Path().glob("*/*")}
    arguments, code, subject, fix = REFUSED[case]
    out = [] if "--out" in arguments else ["--out", "new"]
    outcome = gpt2("tokenizer", "train", *arguments, *out)
    assert outcome.code == code and subject in outcome.err and fix in outcome.err
    assert {path: path.read_bytes() for path in Path().glob("*/*")} == before and not Path("new").exists()


def test_force_replaces_an_earlier_vocabulary(gpt2: Gpt2, books: Path) -> None:
    assert gpt2("tokenizer", "train", "books", "--size", "257", "--out", "made").code == 0
    assert gpt2("tokenizer", "train", "books", "--size", "280", "--out", "made", "--force").code == 0
    assert load_tokenizer(Path("made")).n_vocab == 280


def test_a_text_that_is_too_small_is_said(gpt2: Gpt2) -> None:
    Path("t.txt").write_text("ab ab ab", encoding="utf-8")
    done = gpt2("tokenizer", "train", "t.txt", "--out", "made")
    assert done.code == 0 and "the vocabulary has 259 tokens, not 8,192" in done.err  # "ab", " ab"


def test_show_prints_pieces_and_both_rates(gpt2: Gpt2) -> None:
    text = "Every effort \n☃ x"
    shown = gpt2("tokenizer", "show", text, "--json")
    facts, ids = json.loads(shown.out), gpt2_tokenizer().encode(text)
    assert [token["id"] for token in facts["tokens"]] == ids
    assert bytes(byte for token in facts["tokens"] for byte in token["bytes"]) == text.encode()
    assert facts["tokens_per_word"] == facts["gpt2"]["tokens_per_word"] == len(ids) / 4
    table = gpt2("tokenizer", "show", "Every effort", "--tokenizer", "gpt2").out.splitlines()
    assert table[0].split() == ["id", "token", "bytes"] and len(table) == 4
    assert table[1].split() == ["6109", "'Every'", "45", "76", "65", "72", "79"]
    assert "2 tokens for 2 words" in table[-1] and "GPT-2: 2 tokens, 1.00 per word" in table[-1]


def test_show_takes_a_folder_a_file_and_a_pipe(
    gpt2: Gpt2, books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpt2("tokenizer", "train", "books", "--size", "300", "--out", "made").code == 0
    Path("t.txt").write_text("Анна пишет", encoding="utf-8")
    one = gpt2("tokenizer", "show", "--file", "t.txt", "--tokenizer", "made", "--json")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Анна пишет\n".encode())))
    two = gpt2("tokenizer", "show", "--tokenizer", "made", "--json")
    assert one.code == 0 and one.out == two.out
    facts = json.loads(one.out)
    assert facts["n_tokens"] == len(load_tokenizer(Path("made")).encode("Анна пишет"))
    assert facts["gpt2"]["n_tokens"] == len(gpt2_tokenizer().encode("Анна пишет"))


def test_a_folder_without_a_tokenizer_hides_no_run(gpt2: Gpt2) -> None:
    run = write_recipe(Path.cwd())
    assert gpt2("pretrain", run, "optim.steps=3").code == 0
    Path("tiny").mkdir()
    shown = gpt2("tokenizer", "show", "abc", "--tokenizer", "tiny")
    assert shown.code == 0 and "3 tokens for 1 words" in shown.out


@pytest.mark.parametrize("name", ["chars", "bpe-400", "nothing-here"])
def test_show_of_no_tokenizer_is_refused(name: str, gpt2: Gpt2) -> None:
    outcome = gpt2("tokenizer", "show", "x", "--tokenizer", name)
    assert outcome.code in (2, 3) and name in outcome.err and "fix: " in outcome.err


def test_the_fix_for_a_text_in_another_encoding_makes_one_that_is_shown(gpt2: Gpt2) -> None:
    Path("a b.txt").write_bytes("café".encode("latin-1"))
    refused = gpt2("tokenizer", "show", "--file", "a b.txt")
    (fix,) = re.findall("fix: (.*)", refused.err)
    assert refused.code == 3 and fix.startswith("iconv -f LATIN1")
    subprocess.run(fix, shell=True, check=True, timeout=20)
    assert gpt2("tokenizer", "show", "--file", "a b.utf8.txt").code == 0
