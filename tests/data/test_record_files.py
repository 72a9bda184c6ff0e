"""Every kind of file gives the same records with their lines; JSON is read as strictly everywhere."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.data.record_files import read_records
from gpt2cli.data.tables import read_table
from gpt2cli.errors import InputError
from gpt2cli.json_files import LARGEST_JSON, read_json, read_json_object

RECORDS = [{"a": "x", "b": "1,2"}, {"a": 'q"\n', "b": "é\u2028"}, {"a": "", "b": "z"}]


def written(path: Path, kind: str) -> Path:
    path = path.with_suffix(f".{kind}")
    match kind:
        case "csv":
            text = io.StringIO(newline="")
            rows = csv.DictWriter(text, ["a", "b"], lineterminator="\n")
            rows.writeheader()
            rows.writerows(RECORDS)
            path.write_text(text.getvalue(), encoding="utf-8", newline="")
        case "jsonl":
            lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
            path.write_text("\n\n".join(lines), encoding="utf-8")
        case "json":
            path.write_text(json.dumps(RECORDS, indent=1), encoding="utf-8")
        case "parquet":
            pa = pytest.importorskip("pyarrow")
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(RECORDS), path)
    return path


@pytest.mark.parametrize(
    ("kind", "lines"),
    [("csv", [2, 3, 5]), ("jsonl", [1, 3, 5]), ("json", [2, 6, 10]), ("parquet", [1, 2, 3])],
)
def test_the_same_records_from_every_kind(tmp_path: Path, kind: str, lines: list[int]) -> None:
    path = written(tmp_path / "x", kind)
    records, sha256 = read_records(path)
    assert records == list(zip(lines, RECORDS, strict=True))
    table = read_table(path)
    assert table.columns == ("a", "b") and table.sha256 == sha256
    assert [(row.line, dict(zip(("a", "b"), row.values, strict=True))) for row in table.rows] == records


@given(st.lists(st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=4)), st.booleans())
def test_a_json_list_is_what_json_says(
    tmp_path_factory: pytest.TempPathFactory, values: list[object], pretty: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(f" \n{json.dumps(values, indent=2 if pretty else None)}\n", encoding="utf-8")
    assert [value for _, value in read_records(path)[0]] == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2", "x.json:1: not JSON"),
        ("[1,\n2,]", "x.json:2: not JSON, column 3"),
        ("[1,\n2] 3", "x.json:2: not JSON"),
        ("[1\n 2]", "x.json:2: not JSON, column 2"),
        ('[1,\n{"a": 1,\n"a": 2}]', "x.json:2: not JSON"),
        ("[1,\n" + "[" * 100_000, "x.json:2: not JSON"),
        ("[" + "9" * 5000 + "]", "x.json:1: not JSON"),
        ("{}", "x.json:1: a list of records is needed, not an object"),
        ("", "x.json:1: not JSON"),
        ("[1]\0", "x.json:1: a NUL byte at byte 3"),
    ],
)
def test_a_broken_list_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_records(tmp_path / "x.json")
    assert caught.value.what.startswith(str(tmp_path / said))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}\n{", ":2: is not JSON"),
        (b'{"a": 1, "a": 2}', ": is not JSON: the key 'a' occurs twice"),
        (b"[" * 100_000, ": is not JSON: it is nested too deeply"),
        (b'{"a": "\xff"}', ": is not JSON: 'utf-8'"),
        (b'{"a": ' + b"9" * 5000 + b"}", ": is not JSON: Exceeds the limit"),
        (b"[]", ": is not a JSON object"),
        (b"", ":1: is not JSON"),
    ],
)
def test_a_json_file_is_read_strictly(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json_object(path, "do this")
    assert str(caught.value).startswith(f"{path}{said}") and caught.value.fix == "do this"


def test_a_json_file_is_bounded_and_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1]}')
    assert read_json(path) == {"a": [1]}
    with open(path, "r+b") as file:
        file.truncate(LARGEST_JSON + 1)
    with pytest.raises(InputError, match="larger than 64 MiB"):
        read_json(path)
    with pytest.raises(InputError):
        read_json(Path("/dev/zero"))
