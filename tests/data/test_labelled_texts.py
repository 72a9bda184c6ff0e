"""Labelled texts: each kind of file, each mistake with its line, and five hundred mutilated files."""

import json
import os
import random
from importlib.resources import files
from pathlib import Path

import pytest

from gpt2cli.data.byte_source import STRICT
from gpt2cli.data.labelled_splits import split_labelled
from gpt2cli.data.labelled_texts import (
    class_weights,
    encode_text,
    pad_right,
    read_labelled,
)
from gpt2cli.data.sft_batches import batches_by_length
from gpt2cli.data.tables import read_table
from gpt2cli.errors import Gpt2Error, InputError, UsageError
from gpt2cli.recipe.data_sections import ClassifyDataConfig
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.chars import Chars

CSV = 'id,text,label\n1,"Win, ""now""\nor never",spam\n2,see you,ham\n\n3,"",ham\n4,cash,spam\n'
TSV = 'label\ttext\nspam\tWin, "now\nham\tsee you\nham\t\n'
JSONL = '{"text": "Win\\u2028now", "label": 1}\n\n{"label": 0, "text": "see", "more": [1]}\n'


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> list[tuple[str, str, int]]:
    data = read_labelled(path, "text", "label", options=STRICT)
    return [
        (t, data.labels[c], line) for t, c, line in zip(data.texts, data.classes, data.lines, strict=True)
    ]


def test_each_kind_of_file_with_its_lines(tmp_path: Path) -> None:
    wanted = [('Win, "now"\nor never', "spam", 2), ("see you", "ham", 4), ("", "ham", 6), ("cash", "spam", 7)]
    for name in ("a.csv", "no-suffix"):
        assert read(write(tmp_path, name, CSV)) == wanted
    assert read(write(tmp_path, "crlf.csv", CSV.replace("\n", "\r\n"))) == [
        (text.replace("\n", "\r\n"), label, line) for text, label, line in wanted
    ]
    for name in ("a.tsv", "plain"):
        assert read(write(tmp_path, name, TSV)) == [
            ('Win, "now', "spam", 2),
            ("see you", "ham", 3),
            ("", "ham", 4),
        ]
    for name in ("a.jsonl", "records"):
        assert read(write(tmp_path, name, JSONL)) == [("Win\u2028now", "1", 1), ("see", "0", 3)]
    assert read(write(tmp_path, "bom.csv", b"\xef\xbb\xbf" + CSV.encode())) == wanted


def test_the_sms_collection_has_no_header_and_lone_quotes(tmp_path: Path) -> None:
    path = write(tmp_path, "SMSSpamCollection", 'ham\t"hello\nspam\tWin £5\nham\tthat\'s "it"\n')
    assert read(path) == [('"hello', "ham", 1), ("Win £5", "spam", 2), ('that\'s "it"', "ham", 3)]
    with pytest.raises(InputError, match=r"other.tsv:1: no column 'text'"):
        read(write(tmp_path, "other.tsv", "category\tmessage\nham\thello\nspam\twin\n"))


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.csv", 'ham,"see, you"\nspam,win\n', ("label", "text")),
        ("a.csv", '"see, you",ham\nwin,spam\n', ("text", "label")),
        ("a.csv", '7,"see, you",ham\n8,win,spam\n', ("id", "text", "label")),
        ("a.tsv", "see, you\tham\nwin\tspam\n", ("text", "label")),
        ("plain", "ham\t1\tsee, you\nspam\t2\twin\n", ("label", "id", "text")),
    ],
)
def test_a_file_without_a_row_of_names(
    tmp_path: Path, name: str, content: str, columns: tuple[str, ...]
) -> None:
    """Its first row is a text like the others: without the names it would be lost, or refused."""
    path = write(tmp_path, name, content)
    data = read_labelled(path, "text", "label", columns)
    assert (data.texts, data.lines, data.labels) == (("see, you", "win"), (1, 2), ("ham", "spam"))
    with pytest.raises(InputError, match=r":1: no column 'text'") as caught:
        read_labelled(path, "text", "label")
    assert "if that is a row of data, data.columns='[" in caught.value.why


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,label\nx,a\ny,b\n", "a.csv:1: the columns are named in this row"),
        ("a.csv", "x,a,1\ny,b,1\n", "a.csv:1: too many fields, 3"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n', "a.jsonl:1: records name their fields"),
        ("a.csv", "", "a.csv:1: there are no rows"),
    ],
)
def test_names_for_a_file_that_does_not_fit_them(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_labelled(write(tmp_path, name, content), "text", "label", ("label", "text"), STRICT)


def test_json_records_are_not_told_of_names_for_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the field 'body' is missing") as caught:
        read_labelled(write(tmp_path, "a.jsonl", JSONL), "body", "label")
    assert caught.value.fix.startswith("data.text=") and "row of data" not in caught.value.why


@pytest.mark.skipif(not os.environ.get("GPT2_MIRROR"), reason="GPT2_MIRROR is not set")
def test_the_real_collection() -> None:
    data = read_labelled(Path(os.environ["GPT2_MIRROR"]) / "SMSSpamCollection.tsv", "text", "label")
    assert (len(data.texts), sum(data.classes), data.labels) == (5574, 747, ("ham", "spam"))


def test_the_bundled_messages() -> None:
    data = read_labelled(Path(str(files("gpt2cli.bundled").joinpath("messages.tsv"))), "text", "label")
    assert len(data.texts) >= 300 and data.labels == ("ham", "spam")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,kind\nx,y\n", "a.csv:1: no column 'label'"),
        ("a.csv", "text;label\nx;y\n", "a.csv:2: only one class, 'y'"),
        ("a.csv", 'text,label\nx,a\n"y,b\nz,a\n', "a.csv:3: a quote that opens in this row is never closed"),
        ("a.csv", 'text,label\n"x"y,a\n', "a.csv:2: is not a row of CSV"),
        ("a.csv", f"text,label\nx,a\n{'y' * 131073},b\n", "a.csv:3: a field of more than 131,072"),
        ("a.csv", 'text,label\nx,a\n"' + "y,b\n" * 40000, "a.csv:3: a field of more than 131,072"),
        ("a.tsv", f"text\tlabel\nx\ta\n{'y' * 131073}\tb\n", "a.tsv:3: a field of more than 131,072"),
        ("a.csv", "text,label\nx,a\ny,a\n", "a.csv:2: only one class, 'a'"),
        ("a.csv", "text,label\n", "a.csv:1: there are no rows"),
        ("a.csv", "", "a.csv:1: there are no rows"),
        ("a.csv", "text,label\nx,a\ny\n", "a.csv:3: too few fields, 1"),
        ("a.csv", "text,label\nx,a\ny, z,b\n", "a.csv:3: too many fields, 3"),
        ("a.csv", "text,label\nx,a\ny, \n", "a.csv:3: the label is empty"),
        ("a.csv", "text,text,label\nx,y,a\n", "a.csv:1: the column 'text' is there twice"),
        ("a.csv", b"text,label\nx,a\n\xff,b\n", "a.csv:3: not UTF-8 at byte 15"),
        ("a.csv", b"text,label\nx,a\n\0,b\n", "a.csv:3: a NUL byte at byte 15"),
        ("a.csv", b"\xff\xfet\0e\0", "a.csv:1: not UTF-8 at byte 0"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": "y"\n', "a.jsonl:2: not a JSON record"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n[1]\n', "a.jsonl:2: a JSON object is needed, not a list"),
        (
            "a.jsonl",
            '{"text": "x", "label": "a"}\n{"label": "b"}\n',
            "a.jsonl:2: the field 'text' is missing",
        ),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": "y"}\n', "a.jsonl:2: the label is empty"),
        (
            "a.jsonl",
            '{"text": "x", "label": "a"}\n{"text": "\\ud800", "label": "b"}\n',
            "a.jsonl:2: field 'text' holds half a",
        ),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: not a JSON record"),
        ("a.csv.gz", b"\x1f\x8bnot gzip", "a.csv.gz:1: damaged gzip data"),
    ],
)
def test_mistakes_are_named_with_their_line(
    name: str, content: str | bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read(write(tmp_path, name, content))
    assert said in caught.value.what and str(tmp_path) in caught.value.what


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.csv: no such file"):
        read(tmp_path / "nowhere.csv")


def test_five_hundred_mutilated_files_raise_nothing_else(tmp_path: Path) -> None:
    """Each is read or refused with file and line; most of them must be refused, or nothing was tried."""
    rng, n_refused = random.Random(5), 0
    splinters = [
        b'"',
        b"\n",
        b",",
        b"\t",
        b"\0",
        b"\xff",
        b"{",
        b"}",
        b"\\u",
        b"\\ud800",
        b"x" * 140_000,
        b"\r",
    ]
    tokenizer = Chars.from_text(["abcdefghijklmnopqrstuvwxyz ,"])
    for i in range(500):
        name, content = rng.choice(
            [("m.csv", CSV), ("m.tsv", TSV), ("m.jsonl", JSONL), ("m", CSV), ("m", JSONL)]
        )
        data = bytearray(content.encode())
        for _ in range(rng.randrange(1, 5)):
            place = rng.randrange(len(data) + 1)
            match rng.randrange(3):
                case 0:
                    data[place : place + rng.randrange(1, 9)] = b""
                case 1:
                    data[place:place] = rng.choice(splinters)
                case 2:
                    data[place : place + 1] = bytes([rng.randrange(256)])
        path = write(tmp_path, name, bytes(data))
        try:
            labelled = read_labelled(path, "text", "label", options=STRICT)
            split_labelled(labelled, ClassifyDataConfig(source="x"), tokenizer, 8, 1)
        except Gpt2Error as error:
            n_refused += 1
            head = error.what.removeprefix(f"{path}:")
            assert head != error.what and head.split(":")[0].isdecimal(), (i, error.what)
    assert n_refused > 250


def test_split_balance_and_cuts(tmp_path: Path) -> None:
    rows = "".join(f"{'ham' if i % 4 else 'spam'},{'word ' * i}\n" for i in range(80))
    labelled = read_labelled(write(tmp_path, "a.csv", f"label,text\n{rows}"), "text", "label")
    plain = split_labelled(labelled, ClassifyDataConfig(source="x"), gpt2(), 64, 1)
    assert [len(plain.train), len(plain.validation), len(plain.test)] == [56, 8, 16]
    assert [sum(part.classes) for part in (plain.train, plain.validation, plain.test)] == [14, 2, 4]
    assert plain.n_cut == sum(len(gpt2().encode("word " * i)) > 64 for i in range(80)) > 0
    assert max(map(len, plain.train.ids)) <= 64 and plain.max_tokens == 64
    assert (
        split_labelled(labelled, ClassifyDataConfig(source="x", max_tokens=64), gpt2(), 64, 1).max_tokens
        == 64
    )
    with pytest.raises(UsageError, match=r"data.max_tokens=65") as caught:
        split_labelled(labelled, ClassifyDataConfig(source="x", max_tokens=65), gpt2(), 64, 1)
    assert caught.value.fix.startswith("data.max_tokens=64")
    even = split_labelled(
        labelled, ClassifyDataConfig(source="x", balance="undersample", max_tokens=5), gpt2(), 64, 1
    )
    assert [len(even.train), sum(even.train.classes), even.n_left_out] == [28, 14, 40]
    assert max(map(len, even.train.ids)) == 5
    digests = {
        split_labelled(labelled, ClassifyDataConfig(source="x"), gpt2(), 64, seed).digest
        for seed in (1, 1, 2)
    }
    assert len(digests) == 2


def test_a_class_with_too_few_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "label,text\n" + "ham,x\n" * 5 + "spam,y\nspam,z\n")
    labelled = read_labelled(path, "text", "label")
    with pytest.raises(InputError, match=r"a.csv:7: the class 'spam' has 2 rows"):
        split_labelled(labelled, ClassifyDataConfig(source="x"), gpt2(), 64, 1)


def test_a_text_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "label,text\n" + "ham,x\nspam,x\n" * 5 + "ham,☃\n")
    with pytest.raises(InputError, match=r"a.csv:12: .*U\+2603"):
        split_labelled(
            read_labelled(path, "text", "label"), ClassifyDataConfig(source="x"), Chars.from_text(["x"]), 8, 1
        )


def test_padding_and_batches_by_length() -> None:
    input_ids, lengths = pad_right([(1, 2, 3), (4,)], 9)
    assert input_ids.tolist() == [[1, 2, 3], [4, 9, 9]] and lengths.tolist() == [3, 1]
    assert encode_text(gpt2(), "") == (50256,)
    assert batches_by_length((5, 1, 30, 2, 2, 7), 3, 12) == [(1, 3, 4), (0,), (5,), (2,)]
    assert class_weights([0, 0, 0, 1], 2) == (4 / 6, 2.0)


def test_other_columns_come_along(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.jsonl", json.dumps({"a": None, "b": 2, "c": "x"}) + "\n{}\n"))
    assert table.columns == ("a", "b", "c")
    assert [row.values for row in table.rows] == [(None, "2", "x"), (None, None, None)]


def test_one_class_alone_tells_which_rows_were_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"quoted\ttab"\tx\nplain\ty\n')
    with pytest.raises(InputError, match=r"a\.tsv:3: only one class") as caught:
        read_labelled(path, "text", "label")
    assert "a.tsv:2: too many fields" in caught.value.why
