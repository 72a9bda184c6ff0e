"""Damaged files of every kind of text and records: read, or refused with their name; nothing else happens."""

import csv
import gzip
import io
import json
import random
import re
import resource
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2cli.data.byte_source import ReadOptions
from gpt2cli.data.instructions import read_instructions
from gpt2cli.data.labelled_texts import read_labelled
from gpt2cli.data.manifest import PrepareSettings
from gpt2cli.data.prepare import prepare
from gpt2cli.data.text_reader import SplitRule
from gpt2cli.errors import Gpt2Error
from gpt2cli.evaluation.eval_text import read_eval_text
from gpt2cli.judge.items import read_items
from gpt2cli.recipe.data_sections import InstructDataConfig

SEED = 20261129
ROWS = [
    {"text": f'row {i}, "said"\nähm £', "label": "ab"[i % 2], "instruction": f"do {i}", "output": f"done {i}"}
    for i in range(12)
]


def as_csv(separator: str) -> bytes:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(ROWS[0]), delimiter=separator)
    table.writeheader()
    table.writerows(ROWS)
    return text.getvalue().encode()


def as_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file.getvalue()


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
TABLE = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
CHATS = [[{"role": role, "content": f"{role} {i}"} for role in ("user", "assistant")] for i in range(8)]
PLAIN = "\n\n".join(row["text"] for row in ROWS).encode()
FILES = {
    "a.csv": as_csv(","),
    "semicolons.csv": as_csv(";"),
    "a.tsv": "\n".join("\t".join(row).replace("\n", " ") for row in TABLE).encode(),
    "a.jsonl": LINES,
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "lines.json": LINES,
    "a.parquet": as_parquet(),
    "a.txt": PLAIN,
    "a.csv.gz": gzip.compress(as_csv(",")),
    "a.jsonl.zst": pa.compress(LINES, codec="zstd", asbytes=True),
    "a.md.gz": gzip.compress(PLAIN),
    "utf16.txt": PLAIN.decode().encode("utf-16"),
    "cp1252.csv": as_csv(",").decode().encode("cp1252"),
    "chats.jsonl": "\n".join(json.dumps({"messages": chat}) for chat in CHATS).encode(),
}
SPLINTERS = [
    *(
        b'"',
        b"\n",
        b"\r",
        b",",
        b";",
        b"\t",
        b"|",
        b"\0",
        b"\xff",
        b"\xe2\x82",
        b"{",
        b"}",
        b"[",
        b"]",
        b"\\u",
    ),
    *(
        b"\\ud800",
        b"x" * 140_000,
        b'"' * 3,
        b"[" * 5000,
        b"null",
        b"1e999",
        b"NaN",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
    ),
    *(b"%PDF-", b"PK\x03\x04", b"\x1f\x8b", b"<|endoftext|>", b"-" * 20, b"9" * 5000),
]


def mutated(chance: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(chance.randrange(1, 5)):
        place = chance.randrange(len(found) + 1)
        match chance.randrange(5):
            case 0:
                found[place : place + chance.randrange(1, 30)] = b""
            case 1:
                found[place:place] = chance.choice(SPLINTERS)
            case 2:
                found[place : place + 1] = bytes([chance.randrange(256)])
            case 3:
                other = chance.randrange(len(found) + 1)
                found[place:place] = found[other : other + chance.randrange(1, 200)]
            case 4:
                del found[place:]
    return bytes(found)


def readers(path: Path, out: Path, options: ReadOptions) -> list[Callable[[], object]]:
    fields = InstructDataConfig(source="x")
    settings = PrepareSettings(
        "gpt2", ("text",), 0.1, encoding=options.encoding, max_bad=options.max_bad, split_on="\n\n"
    )
    return [
        lambda: list(prepare([path], out, settings, force=True)),
        lambda: read_eval_text(str(path), options=options, rule=SplitRule(blank_line=True)),
        lambda: read_labelled(path, "text", "label", options=options),
        lambda: read_instructions(path, fields, options),
        lambda: read_items(path, options=options),
    ]


# What is said of a file as a whole; all else has a line, a row or a byte.
WHOLE = (
    *("too little text", "no record has an answer", "no record to judge", "has 0 tokens", "has 1 tokens"),
    *("no column", "the preparation was"),
)


@pytest.mark.parametrize("n_files", [100, pytest.param(500, marks=pytest.mark.proofs)])
def test_damaged_files_are_read_or_refused_by_name(n_files: int, tmp_path: Path) -> None:
    """The 100 by one reader each, the 500 by all of them."""
    chance = random.Random(SEED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = [0, 0]
    for n in range(n_files):
        name = list(FILES)[n % len(FILES)]
        path = tmp_path / name
        path.write_bytes(mutated(chance, FILES[name]))
        encoding = {"utf16.txt": "utf-16", "cp1252.csv": "cp1252"}.get(name, "utf-8")
        options = ReadOptions(encoding, chance.choice([0, 0.001, 1]))
        reads = list(enumerate(readers(path, tmp_path / "out", options)))
        for reader, read in reads if n_files > 100 else [reads[(n + n // len(FILES)) % len(reads)]]:
            what = f"seed {SEED}, file {n}, {name}, reader {reader}"
            try:
                read()
                outcomes[0] += 1
            except Gpt2Error as error:
                outcomes[1] += 1
                assert error.exit_code in (2, 3), what
                has_place = str(path) in error.what and re.search(
                    r":\d+|row \d+|byte \d+|: is an? ", error.what
                )
                assert has_place or any(words in error.what for words in WHOLE), f"{what}: {error.what}"
                assert 0 < len(error.what) < 2_000, what
            except Exception as error:
                raise AssertionError(what) from error
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(outcomes, f"{grown >> 10} MiB")
    assert min(outcomes) > n_files / 10  # both are tried
    assert grown < 300 << 10
