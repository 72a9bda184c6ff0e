"""The same documents from every kind of file; what is none is named with what helps."""

import bz2
import csv
import gzip
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_documents import read

from gpt2cli.data import text_reader
from gpt2cli.data.byte_source import ReadOptions
from gpt2cli.data.text_reader import SplitRule
from gpt2cli.errors import InputError, UsageError

DOCS = ["one, two", 'say "hi"\nthen; go|on', "tab\there", "naïve “café” £5", "l\u2028s"]
NESTED = [{"id": i, "data": {"text": text, "n": i}} for i, text in enumerate(DOCS)]


def table(separator: str = ",", head: tuple[str, ...] = ("id", "text"), *, ends: str = "\r\n") -> bytes:
    text = io.StringIO(newline="")
    rows = csv.writer(text, delimiter=separator, lineterminator=ends)
    rows.writerow(head)
    rows.writerows([i, doc, *[""] * (len(head) - 2)] for i, doc in enumerate(DOCS))
    return text.getvalue().encode()


def lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def parquet(records: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), file)
    return file.getvalue()


def zst(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


FLAT = [{"text": doc} for doc in DOCS]
KINDS: list[tuple[str, bytes, str]] = [
    ("a.csv", table(), "text"),
    ("line-feeds.csv", table(ends="\n"), "text"),
    ("semicolons.csv", table(";"), "text"),
    ("tabs.csv", table("\t"), "text"),
    ("pipes.csv", table("|"), "text"),
    ("pipes.psv", table("|"), "text"),
    ("excel.csv", b"sep=;\r\n" + table(";"), "text"),
    ("mark.csv", b"\xef\xbb\xbf" + table(head=("text!", "text")), "text"),
    ("unnamed.csv", table(head=("id", "joke", "", "", "")), "joke"),
    ("a.csv.gz", gzip.compress(table()), "text"),
    ("a.csv.zst", zst(table()), "text"),
    ("a.jsonl", lines(FLAT), "text"),
    ("a.ndjson", lines(FLAT), "text"),
    ("a.jsonl.gz", gzip.compress(lines(FLAT)), "text"),
    ("a.jsonl.zst", zst(lines(NESTED[:2])) + zst(lines(NESTED[2:])), "data.text"),  # two frames
    ("nested.jsonl", lines(NESTED), "data.text"),
    ("deep.jsonl", lines([{"a": {"b": record}} for record in NESTED]), "a.b.data.text"),
    ("dotted.jsonl", lines([{"data.text": doc} for doc in DOCS]), "data.text"),
    ("strings.jsonl", lines(DOCS), "text"),
    ("a.json", json.dumps(FLAT).encode(), "text"),
    ("pretty.json", json.dumps(NESTED, indent=2, ensure_ascii=False).encode(), "data.text"),
    ("strings.json", json.dumps(DOCS).encode(), "text"),
    ("lines.json", lines(FLAT), "text"),
    ("a.json.gz", gzip.compress(json.dumps(FLAT).encode()), "text"),
    ("objects.json", b"\n".join(json.dumps(record, indent=1).encode() for record in FLAT), "text"),
    ("marks.jsonl", b"".join(b"\xef\xbb\xbf" + lines([record]) for record in FLAT), "text"),
    ("windows.csv", table().replace(b"\n", b"\r\n").replace(b"\r\r\n", b"\r\n"), "text"),
    ("commas.json", b",\n".join(json.dumps(record).encode() for record in FLAT), "text"),
    ("objects.jsonl", b"\n".join(json.dumps(record, indent=1).encode() for record in FLAT), "text"),
    ("list.jsonl", json.dumps(FLAT).encode(), "text"),
    ("pretty-list.jsonl", b"\xef\xbb\xbf" + json.dumps(FLAT, indent=1).encode(), "text"),
    ("one.json", json.dumps({"text": DOCS[:1] + DOCS[1:]}).encode(), "text"),
    (
        "parts.json",
        json.dumps({"body": [*FLAT, {"text": None}, {"n": 1}], "refs": [{"a": 1}]}).encode(),
        "body.text",
    ),
    ("spaced.csv", table().replace(b',"', b', "'), "text"),
    ("a.csv.bz2", bz2.compress(table()), "text"),
    ("a.parquet", parquet(FLAT), "text"),
    ("bytes.parquet", parquet([{"text": doc.encode()} for doc in DOCS]), "text"),
    ("dots.parquet", parquet([{"a.b": {"c": {"text": doc}}} for doc in DOCS]), "a.b.c.text"),
    ("nested.parquet", parquet(NESTED), "data.text"),
]


@pytest.mark.parametrize(("name", "content", "field"), KINDS, ids=[name for name, *_ in KINDS])
def test_the_same_documents_from_every_kind(tmp_path: Path, name: str, content: bytes, field: str) -> None:
    (tmp_path / name).write_bytes(content)
    found, notes = read(tmp_path / name, field)
    assert found == (["\n\n".join(DOCS)] if name in ("one.json", "parts.json") else DOCS)
    spoken = next((word for word in ("semicolons", "tabs", "pipes") if word in name), "")
    spoken = "semicolons" if name == "excel.csv" else spoken
    assert [note for note in notes if f"separated by {spoken}" in note] == notes if spoken else not notes


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-8-sig", "cp1251", "shift_jis"])
def test_every_kind_of_text_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    docs = ["first", {"cp1251": "Вторая", "shift_jis": "二番"}.get(encoding, "naïve “café”"), "third"]
    options, rows = ReadOptions(encoding), [{"text": doc} for doc in docs]
    made = {
        "a.csv": "text\n" + "\n".join(docs) + "\n",
        "a.jsonl": lines(rows).decode(),
        "a.json": json.dumps(rows, ensure_ascii=False, indent=1),
        "a.txt": "\n".join(docs),
    }
    for name, text in made.items():
        for path, data in ((tmp_path / name, text.encode(encoding)), (tmp_path / f"{name}.gz", b"")):
            path.write_bytes(data or gzip.compress(text.encode(encoding)))
            assert read(path, options=options, rule=SplitRule(per_line=True))[0] == docs, path


def test_lists_of_texts_are_joined_as_several_fields_are(tmp_path: Path) -> None:
    record = {"title": "T", "parts": ["a", "b"], "chat": [{"say": "x"}, {"say": "y"}], "none": []}
    (tmp_path / "a.jsonl").write_bytes(lines([record]))
    assert read(tmp_path / "a.jsonl", "title", "parts")[0] == ["T\n\na\n\nb"]
    assert read(tmp_path / "a.jsonl", "chat.say")[0] == ["x\n\ny"]
    with pytest.raises(InputError, match="'none' is a list, not text"):
        read(tmp_path / "a.jsonl", "none")


@pytest.mark.parametrize(
    ("name", "content", "has", "fix"),
    [
        ("a.csv", b"id,joke\n1,knock knock\n", "'id', 'joke'", "--text-field joke"),
        ("a.tsv", b"id\tsome words\n1\tknock\n", "'some words'", "--text-field 'some words'"),
        ("a.json", b'[{"id": "7", "body": "knock knock"}]', "'body'", "--text-field body"),
        ("a.jsonl", b'{"a": {"b": "knock"}, "c": "x"}\n', "'a', 'c'", "--text-field a.b"),
        ("a.parquet", parquet([{"joke": "knock"}]), "'joke'", "--text-field joke"),
    ],
)
def test_records_without_the_field_name_those_that_there_are(
    tmp_path: Path, name: str, content: bytes, has: str, fix: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert has in caught.value.why and fix in caught.value.fix
    field = caught.value.fix.partition("--text-field ")[2].partition(",")[0].strip("'")
    assert f"data.text_fields=[{field}]" in caught.value.fix
    assert "knock" in read(tmp_path / name, field)[0][0]


@pytest.mark.parametrize(
    ("n", "n_bad", "max_bad", "is_read"),
    [
        (20, 1, 0.001, True),  # a share is rounded up: one may be bad in a file of any size
        (20, 2, 0.001, False),
        (2000, 2, 0.001, True),
        (2000, 3, 0.001, False),
        (20, 2, 0.1, True),
        (20, 3, 0.1, False),
        (20, 1, 0, False),
        (20, 19, 1, True),
        (20, 20, 1, False),  # nothing is left
        (1, 1, 0.001, False),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_bad_records_are_counted_up_to_a_share(
    tmp_path: Path, kind: str, n: int, n_bad: int, max_bad: float, is_read: bool
) -> None:
    bad = set(range(n - n_bad, n))
    match kind:
        case "jsonl":
            content = "".join("{oops\n" if i in bad else '{"text": "x"}\n' for i in range(n))
            first = n - n_bad + 1
        case "csv":
            content = "id,text\n" + "".join("1,2,3\n" if i in bad else f"{i},x\n" for i in range(n))
            first = n - n_bad + 2
        case _:
            content = "[\n" + ",\n".join("null" if i in bad else '{"text": "x"}' for i in range(n)) + "]"
            first = n - n_bad + 2
    path = tmp_path / f"a.{kind}"
    path.write_text(content)
    if is_read:
        found, (note,) = read(path, options=ReadOptions(max_bad=max_bad))
        assert len(found) == n - n_bad and f"{n_bad:,} of {n:,} records" in note
        assert note.count(f"{path}:") == 1 + min(n_bad, 3) and f"{path}:{first}: " in note
        return
    with pytest.raises(InputError) as caught:
        read(path, options=ReadOptions(max_bad=max_bad))
    assert caught.value.what.startswith(f"{path}:{first}: ")
    if n_bad < n and max_bad:
        share = float(re.search(r"data.max_bad=([\d.]+)", caught.value.fix)[1])  # type: ignore[index]
        assert len(read(path, options=ReadOptions(max_bad=share))[0]) == n - n_bad


def test_a_stray_quote_costs_its_own_row_alone(tmp_path: Path) -> None:
    rows = [f"{i},word {i}" for i in range(2000)]
    rows[3], rows[1998] = '3,"never closed', '1998,"closed" too early'
    path = tmp_path / "a.csv"
    path.write_text("id,text\n" + "\n".join(rows) + "\n")
    found, (note,) = read(path)
    assert found == [f"word {i}" for i in range(2000) if i not in (3, 1998)]
    assert f"{path}:5: " in note and f"{path}:2000: " in note


RULES = [
    (SplitRule(split_on="<|endoftext|>"), r"<\|endoftext\|>"),
    (SplitRule(split_on="\n---\n"), r"\n---\n"),
    (SplitRule(split_on="aab"), "aab"),
    (SplitRule(per_line=True), "\n"),
    (SplitRule(blank_line=True), r"\n(?:[ \t]*\n)+"),
]
SHARDS = [
    "<|endoftext|>",
    "<|endof",
    "text|>",
    "\n",
    "\n\n",
    "---",
    " \n",
    "a",
    "aab",
    "word ",
    "é",
    "\r\n",
    "\t",
]


@given(st.lists(st.sampled_from(SHARDS), max_size=40).map("".join), st.integers(1, 9), st.integers(4, 30))
def test_documents_are_what_a_plain_split_gives(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int, size: int
) -> None:
    """However the file is cut into blocks and long documents into pieces."""
    path = tmp_path_factory.getbasetemp() / "split.txt"
    path.write_bytes(text.encode())
    plain = text.replace("\r\n", "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_reader, "BLOCK", block)
        patch.setattr(text_reader, "PIECE_CHARACTERS", size)
        patch.setattr(text_reader, "MAX_PIECE_CHARACTERS", 2 * size)
        for rule, pattern in RULES:
            wanted = [part.strip("\n") for part in re.split(pattern, plain) if part.strip()]
            assert read(path, rule=rule)[0] == wanted, rule


def test_split_on_reaches_into_records_and_the_other_rules_do_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"text": "a<|endoftext|>b\nc"}]))
    assert read(path, rule=SplitRule(split_on="<|endoftext|>")) == (["a", "b\nc"], [])
    found, (note,) = read(path, rule=SplitRule(per_line=True))
    assert found == ["a<|endoftext|>b\nc"] and "--split-on '<|endoftext|>'" in note
    with pytest.raises(UsageError, match="two ways"):
        SplitRule(split_on="x", per_line=True)


@pytest.mark.parametrize(
    ("text", "n"), [("a<|endoftext|>b", 1), ("<|endoftext|>" * 3, 3), ("<|endof text|>", 0)]
)
@pytest.mark.parametrize("name", ["a.txt", "a.md.gz", "a.jsonl"])
def test_a_marker_in_the_text_is_told(tmp_path: Path, name: str, text: str, n: int) -> None:
    content = lines([{"text": text}]) if name == "a.jsonl" else text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    notes = read(tmp_path / name)[1]
    assert len(notes) == (n > 0) and all(
        f"{n} times" in note or (n == 1 and "once" in note) for note in notes
    )


def test_a_json_list_of_any_length_and_its_places(tmp_path: Path) -> None:
    """A list beyond the blocks that it is read in, with numbers and long values at their borders."""
    values: list[Any] = [{"text": "x" * (i * 37_003 % 900_000), "n": 10**i} for i in range(40)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values, indent=1) + "\n")
    assert read(path)[0] == [value["text"] for value in values if value["text"]]
    path.write_text(json.dumps(values, indent=1)[:-2] + ",\n{oops]")
    with pytest.raises(InputError, match=rf"a.json:{1 + 40 * 4 + 1}: not JSON, column 2"):
        read(path)


TABLE = {"text": {"0": "a", "1": "b"}, "n": {"0": 1, "1": 2}}
ROWS = [{"text": "a", "n": 1}, {"text": "b", "n": 2}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("columns of pandas.json", json.dumps(TABLE)),
        ("index.json", json.dumps({str(i): row for i, row in enumerate(ROWS)})),
        ("split.json", json.dumps({"columns": ["text", "n"], "index": [0, 1], "data": [["a", 1], ["b", 2]]})),
        ("named.json", json.dumps({"version": 1, "my data": {"it's": ROWS}})),
        ("commas.jsonl", "".join(json.dumps(row) + ", \n" for row in ROWS)),
        ("python.jsonl", "".join(f"{row!r}\n" for row in ROWS)),
        ("packed.json.gz", json.dumps({"data": ROWS})),
    ],
)
def test_the_fix_for_json_of_another_shape_makes_what_is_read(
    name: str, content: str, tmp_path: Path
) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed here")
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(InputError, match=f"{name}:1") as caught:
        read(tmp_path / name)
    subprocess.run(caught.value.fix, shell=True, check=True, cwd=tmp_path, timeout=20)
    (made,) = tmp_path.glob("*.new.jsonl")
    assert read(made) == (["a", "b"], [])


@pytest.mark.parametrize(
    ("content", "place", "fix"),
    [
        ('[{"text": "a"},\n{"text": "b"},]', 2, "delete the comma"),
        ('[{"text": "a"},\n{"text": "b', 2, "fetch the file again"),
        ('[{"text": "a"},\n{"text": "b"}', 2, "fetch the file again"),
        ('[{"text": "a"}\n{"text": "b"}]', 2, "correct line 2"),
    ],
)
def test_damaged_json_names_what_helps(content: str, place: int, fix: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=rf"a\.json:{place}: not JSON") as caught:
        read(tmp_path / "a.json")
    assert fix in caught.value.fix


def test_separators_and_blank_lines_of_other_systems(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\n--\r\ntwo\r\n\xc2\xa0\r\nthree\r\n\x0c\r\nfour")
    for separator in ("\r\n--\r\n", "\n--\n"):
        assert [doc[:3] for doc in read(path, rule=SplitRule(separator))[0]] == ["one", "two"]
    assert read(path, rule=SplitRule(blank_line=True))[0] == ["one\n--\ntwo", "three", "four"]


def test_bzip2_in_folders_and_files_of_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "a.txt.bz2").write_bytes(bz2.compress(b"one"))
    assert read(folder) == (["one"], [])
    for name in ("a.txt.bz2", "a.txt.gz", "a.txt.zst"):
        (tmp_path / name).write_bytes(b"")
        assert read(tmp_path / name) == ([], [])
    damaged = tmp_path / "damaged file.txt.bz2"
    damaged.write_bytes(bz2.compress("naïve".encode() + b"\xff!"))
    with pytest.raises(InputError) as caught:
        read(damaged)
    subprocess.run(caught.value.fix, shell=True, check=True, timeout=20)
    assert read(tmp_path / "damaged file.utf8.txt")[0] == ["naïve!"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text", ["Привет, мой друг!", "今天天气很好，我们去公园。", "Καλημέρα κόσμε", "東京へ行きます。"]
)
def test_utf16_of_any_script_is_recognised_without_a_mark(encoding: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding) * 3)
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.txt")
    assert f"--encoding {encoding}," in caught.value.fix
    assert read(tmp_path / "a.txt", options=ReadOptions(encoding))[0] == [text * 3]


@pytest.mark.parametrize(
    "data", [b"hello\0there\0my\0friends", bytes(range(256)) * 9, b"\x01\x02\xff\xfe" * 50]
)
def test_what_has_control_characters_is_not_utf16_therefore(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.txt")
    assert "utf-16" not in caught.value.fix
