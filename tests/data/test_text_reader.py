"""Reading: encodings, records, places of errors, and cuts that the encoding cannot notice."""

import gzip
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.data import text_reader as pieces_module
from gpt2cli.data.byte_source import STRICT, ReadOptions
from gpt2cli.data.input_files import expand_sources
from gpt2cli.data.text_reader import MAX_PIECE_CHARACTERS, SourceReader, TextPiece, split_document
from gpt2cli.errors import InputError, UsageError
from gpt2cli.tokenizer.bpe import gpt2


def read(path: Path, fields: tuple[str, ...] = ("text",), options: ReadOptions = STRICT) -> list[TextPiece]:
    (source,) = expand_sources([path], out=Path("out"))
    return list(SourceReader(source, fields, options).pieces())


def documents(path: Path, fields: tuple[str, ...] = ("text",), options: ReadOptions = STRICT) -> list[str]:
    found, current = [], ""
    for piece in read(path, fields, options):
        current += piece.text
        assert piece.n_bytes == len(piece.text.encode())
        if piece.ends:
            found.append(current)
            current = ""
    assert current == ""
    return found


def test_bom_is_dropped_and_crlf_becomes_lf(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo \xef\xbb\xbf")
    assert documents(tmp_path / "a.txt") == ["one\ntwo \ufeff"]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}')
    assert documents(tmp_path / "a.jsonl") == ["one", "two"]


BLOCK = 1 << 20  # bytes of a read


@pytest.mark.parametrize(
    ("content", "text", "n"),
    [
        (b"a\r\nb\r\n", "a\nb\n", 2),
        (b"a\rb\r", "a\rb\r", 0),
        (b"a\r\r\n\n\r", "a\r\n\n\r", 1),
        (b"\r\n", "\n", 1),
        (b"x" * (BLOCK - 1) + b"\r\ny\r\n", "x" * (BLOCK - 1) + "\ny\n", 2),  # between two reads
        (b"x" * (BLOCK - 1) + b"\ry", "x" * (BLOCK - 1) + "\ry", 0),
        (b"x" * (BLOCK - 1) + b"\r", "x" * (BLOCK - 1) + "\r", 0),
        (b"ab \r\n" * BLOCK, "ab \n" * BLOCK, BLOCK),  # several pieces, a border in each place
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.md.gz"])
def test_line_ends_of_windows_are_counted_and_a_lone_return_stays(
    name: str, content: bytes, text: str, n: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    (source,) = expand_sources([path], out=tmp_path)
    reading = SourceReader(source, ("text",))
    assert "".join(piece.text for piece in reading.pieces()) == text
    assert reading.n_line_ends == n
    assert reading.digest == hashlib.sha256(path.read_bytes()).hexdigest()


WORDS = "naïve “quotes” — cost 5 €\n"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", WORDS),
        ("latin-1", "naïve café\n"),
        ("utf-16", WORDS),
        ("utf-32", WORDS),
        ("utf-16-le", WORDS),
        ("utf-16-be", WORDS),
        ("cp1251", "Все счастливые семьи похожи друг на друга\n"),
        ("koi8-r", "Все счастливые семьи похожи друг на друга\n"),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。\n"),
        ("euc_jp", "吾輩は猫である。名前はまだ無い。\n"),
        ("gb18030", "道可道非常道名可名非常名\n"),
    ],
)
@pytest.mark.parametrize("name", ["a b.txt", "a.jsonl", "a.md.gz"])
def test_the_option_that_is_named_makes_a_file_readable(
    name: str, encoding: str, text: str, tmp_path: Path
) -> None:
    """The bytes are Python's own: what is read with the option is what was written."""
    line = json.dumps({"text": text}, ensure_ascii=False) + "\n" if "jsonl" in name else text
    content = line.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(InputError) as caught:
        read(Path(name))
    named = caught.value.fix.removeprefix("--encoding ").partition(",")[0]
    assert f"data.encoding={named}" in caught.value.fix
    assert documents(Path(name), options=ReadOptions(named, 0)) == [text]


def test_damaged_utf8_binary_files_and_what_no_windows_program_wrote(tmp_path: Path) -> None:
    def fix(content: bytes) -> str:
        Path("a.txt").write_bytes(content)
        with pytest.raises(InputError) as caught:
            read(Path("a.txt"))
        return caught.value.fix

    subprocess.run(fix("naïve ".encode() + b"\xff" + "café".encode()), shell=True, check=True)
    assert documents(Path("a.utf8.txt")) == ["naïve café"]
    assert "iconv" not in fix(b"\x7fELF\x02\x01\x01\0\0\0abc\xff\xd8")
    assert "cp1252" not in fix("日本語のテキスト".encode("shift_jis"))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("héllo".encode("latin-1"), "byte 1"),
        ("hello".encode("utf-16"), "byte 0|NUL byte at byte 3"),
        (b"abc\0def", "NUL byte at byte 3"),
        (b"cut \xc3", "byte 4"),
        (b"a" * (1 << 20) + b"\xc3\x28", f"byte {1 << 20}"),
        (b"a" * ((1 << 20) - 1) + b"\xe2\x82\x28", f"byte {(1 << 20) - 1}"),  # across two reads
        (b"a" * (1 << 20) + b"\0", f"byte {1 << 20}"),
    ],
)
@pytest.mark.parametrize("gzipped", [False, True])
def test_what_is_not_utf8_is_refused_with_its_byte(
    content: bytes, place: str, gzipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / ("a.txt.gz" if gzipped else "a.txt")
    path.write_bytes(gzip.compress(content) if gzipped else content)
    with pytest.raises(InputError, match=place) as caught:
        read(path)
    assert str(path) in caught.value.what


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON record"),
        ("[1]", "must be a JSON object, not a list"),
        ('{"title": "x"}', "field 'text' is missing"),
        ('{"text": 5}', "field 'text' is a number, not text"),
        ('{"text": null}', "field 'text' is null, not text"),
        ('{"text": "\\ud83d"}', "half a surrogate pair"),
        ("[" * 100_000, "not a JSON record"),
        ("\0", "a NUL byte at byte 17"),
        ("\xff", "not UTF-8 at byte 17"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert f"{path}:2: " in caught.value.what


def test_the_fix_for_a_missing_field_names_the_longest_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 7, "title": "T", "my content": "long text"}\n')
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.jsonl")
    assert "--text-field 'my content'" in caught.value.fix
    assert "'data.text_fields=[my content]'" in caught.value.fix
    assert documents(tmp_path / "a.jsonl", ("my content",)) == ["long text"]


def test_fields_are_joined_by_a_blank_line_and_empty_ones_left_out(tmp_path: Path) -> None:
    rows = [{"title": "T", "text": "body"}, {"title": "", "text": "only"}, {"title": "", "text": ""}]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert documents(path, ("title", "text")) == ["T\n\nbody", "only"]


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(1000).hex().encode())
    for content in (whole[:-20], b"not gzip", whole[:50] + b"XXXX" + whole[54:]):
        (tmp_path / "a.txt.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"damaged gzip|not UTF-8"):
            read(tmp_path / "a.txt.gz")


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", "two"], "n": [1, 2], "hole": ["x", None]}), path)
    assert documents(path) == ["one", "two"]
    (source,) = expand_sources([path], out=tmp_path)
    reading = SourceReader(source, ("text",))
    list(reading.pieces())
    assert reading.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="no column 'body'"):
        read(path, ("body",))
    with pytest.raises(InputError, match="row 1: field 'n' is a number"):
        read(path, ("n",))
    with pytest.raises(InputError, match="row 2: field 'hole' is null"):
        read(path, ("hole",))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="not a readable parquet file"):
        read(path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match="parquet needs pyarrow"):
        read(path)


@pytest.mark.parametrize("name", ["text", "gzip", "jsonl"])
def test_digest_and_size_are_those_of_the_file(
    name: str, tmp_path: Path, words: Callable[[int], str]
) -> None:
    text = words(200_000).encode()
    content = {
        "text": text,
        "gzip": gzip.compress(text, 1),
        "jsonl": b'{"text": "x"}\n' * 90_000,
    }[name]
    path = tmp_path / {"text": "a.txt", "gzip": "a.txt.gz", "jsonl": "a.jsonl"}[name]
    path.write_bytes(content)
    (source,) = expand_sources([path], out=tmp_path)
    reading = SourceReader(source, ("text",))
    for _ in reading.pieces():
        pass
    assert (reading.digest, reading.n_read) == (hashlib.sha256(content).hexdigest(), len(content))


@pytest.mark.parametrize("place", ["directory", "fifo", "zero", "loop", "missing"])
def test_what_would_hang_is_refused_at_once(place: str, tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    match place:
        case "directory":
            path = tmp_path / "x.jsonl"
            (tmp_path / "x.jsonl").mkdir()
            with pytest.raises(InputError, match="no text"):
                read(path)
            return
        case "fifo":
            os.mkfifo(path)
        case "zero":
            path = Path("/dev/zero")
        case "loop":
            path.symlink_to(path)
    start = time.monotonic()
    with pytest.raises(InputError, match=str(path)):
        read(path)
    assert time.monotonic() - start < 1


WORDLIKE = st.one_of(
    st.sampled_from(["a", "the", "'s", "don't", "12", "!", "?!", "é", "数字", "🚢", "'", " '"]),
    st.sampled_from([" ", "  ", "\n", "\n\n", "\t", "\r\n", "\xa0", "\u3000", "\x1c", "\u200b", "\u2028"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDLIKE, min_size=1, max_size=80).map("".join), st.integers(2, 12), st.integers(0, 20))
def test_cut_text_encodes_like_the_whole(text: str, size: int, more: int) -> None:
    """Any text, cut as finely as one likes: only a forced cut may change the ids."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module, "PIECE_CHARACTERS", size)
        patch.setattr(pieces_module, "MAX_PIECE_CHARACTERS", size + more)
        parts = list(split_document(text))
    assert "".join(part.text for part in parts) == text
    assert [part.ends for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(len(part.text) <= size + more for part in parts)
    if not any(part.forced for part in parts):
        whole = gpt2()._encoding.encode_ordinary(text)  # not BPE.encode, which cuts as well
        assert [i for part in parts for i in gpt2()._encoding.encode_ordinary(part.text)] == whole


def test_a_long_file_is_cut_into_the_same_ids(tmp_path: Path, words: Callable[[int], str]) -> None:
    text = words(500_000)
    (tmp_path / "a.txt").write_bytes(text.encode())
    parts = read(tmp_path / "a.txt")
    assert len(parts) > 5
    assert not any(part.forced for part in parts)
    whole = gpt2()._encoding.encode_ordinary(text)
    assert [i for part in parts for i in gpt2().encode(part.text)] == whole


@pytest.mark.parametrize(
    "text", ["a" * 10**6, " " * 10**6 + "x", "🚢" * 10**6, "\n" * 10**6, "ab " * 3 * 10**5]
)
def test_monotonous_text_takes_bounded_time(text: str) -> None:
    start = time.monotonic()
    parts = list(split_document(text))
    n_ids = sum(len(gpt2().encode(part.text)) for part in parts)
    assert time.monotonic() - start < 5
    assert n_ids > 1000
    assert "".join(part.text for part in parts) == text
    assert max(len(part.text) for part in parts) <= MAX_PIECE_CHARACTERS
