"""The kinds of data files: text, tables and records by their names, and what is neither by its bytes."""

import contextlib
import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from gpt2cli.encodings import UNPACK
from gpt2cli.errors import InputError

Kind = Literal["csv", "tsv", "jsonl", "json", "parquet"]
Packing = Literal["", "gz", "bz2", "zst"]
KIND_OF_SUFFIX: dict[str, Kind] = {
    **{".csv": "csv", ".psv": "csv", ".tsv": "tsv", ".tab": "tsv"},
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"},
}
PACKINGS: dict[str, Packing] = {".gz": "gz", ".bz2": "bz2", ".zst": "zst"}
TABLES = ("csv", "tsv")
HEAD = 1024  # bytes that tell what a file is


def kind_by_name(path: Path) -> Kind | None:
    """The kind that a file's name tells, packed or not; None if it need not hold records."""
    inner = Path(path.stem) if packing_of(path) else path
    return KIND_OF_SUFFIX.get(inner.suffix.lower())


def packing_of(path: Path) -> Packing:
    return PACKINGS.get(path.suffix.lower(), "")


def reading_command(name: str, command: str, suffix: str) -> str:
    """The shell command that runs `command` over the content of a file, unpacked, into a copy `suffix`."""
    path, quoted = Path(name), shlex.quote(name)
    unpack = UNPACK.get(path.suffix.lower(), "")
    plain = path.with_suffix("") if unpack else path
    copy = shlex.quote(str(plain.with_name(f"{plain.stem}.new{suffix}")))
    return f"{unpack} {quoted} | {command} > {copy}" if unpack else f"{command} < {quoted} > {copy}"


def require_readable(name: str, path: Path | None, head: bytes) -> None:
    """Raise InputError for a file that is neither text nor records, by the first bytes of its content.

    `path` is None for standard input, and what a packed file holds.
    """
    what, command = _foreign(head, path)
    if not what:
        return
    quoted, copy = shlex.quote(name), shlex.quote(f"{Path(name).with_suffix('')}")
    raise InputError(
        f"{name}: is {what}",
        "GPT-2 reads text, and records with text",
        command.format(file=quoted, copy=copy),
    )


def markup_note(name: str, head: str) -> str:
    """What to say of a text whose first characters show that it is markup; "" for plain text."""
    start = head[:HEAD].lstrip("\ufeff \t\r\n").lower()
    for is_there, what, command in _MARKUP:
        if is_there(start):
            quoted, copy = shlex.quote(name), shlex.quote(f"{Path(name).with_suffix('')}")
            return f"{name}: is {what} read as ordinary text; {command.format(file=quoted, copy=copy)}"
    return ""


def is_text(head: bytes) -> bool:
    """Whether bytes look like UTF-8 text, which may be cut at their end."""
    with contextlib.suppress(UnicodeDecodeError):
        head[:HEAD].decode("utf-8")
        return b"\0" not in head
    for cut in (1, 2, 3):
        with contextlib.suppress(UnicodeDecodeError):
            head[: len(head) - cut].decode("utf-8")
            return b"\0" not in head
    return False


_OFFICE = "libreoffice --headless --convert-to {to} {{file}}"
_TO_TEXT, _TO_CSV = _OFFICE.format(to="txt:Text"), _OFFICE.format(to="csv")
_UNZIP = "unzip {file} -d {copy}"
_NO_TEXT = "name text files instead"
# (the first bytes, what the file is, the command that makes text of it), of what looks like text itself.
_TEXTUAL = (
    (b"%PDF-", "a PDF", "pdftotext {file} {copy}.txt"),
    (b"{\\rtf1", "an RTF document", _TO_TEXT),
    (b"%!PS", "a PostScript document", "ps2ascii {file} {copy}.txt"),
)
# (whether the first characters, in lower case, are its own; what the text is; what leaves the marks out)
_MARKUP: tuple[tuple[Callable[[str], bool], str, str], ...] = (
    (
        lambda text: text.startswith(("<!doctype html", "<html")),
        "a web page, and its tags are",
        "pandoc {file} -f html -t plain -o {copy}.txt leaves them out",
    ),
    (
        lambda text: text.startswith("<?xml") or bool(re.match(r"<(mediawiki|rss|feed|tei|svg)\b", text)),
        "XML, and its tags are",
        "xmllint --xpath 'string(/)' {file} > {copy}.txt leaves them out",
    ),
    (
        lambda text: text.startswith("{") and '"cells"' in text and '"cell_type"' in text,
        "a notebook, and its JSON and outputs are",
        "jupyter nbconvert --to script {file} keeps its code and text",
    ),
    (
        lambda text: text.startswith(("\\documentclass", "\\documentstyle")),
        "LaTeX, and its commands are",
        "pandoc {file} -f latex -t plain -o {copy}.txt leaves them out",
    ),
    (
        lambda text: bool(re.match(r"1\n\d\d:\d\d:\d\d,\d\d\d --> ", text)) or text.startswith("webvtt"),
        "a file of subtitles, and its numbers and times are",
        "grep -v -e '-->' -e '^[0-9]*$' {file} > {copy}.txt leaves them out",
    ),
)
_BINARY = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file", _TO_TEXT),
    (b"\x89PNG\r\n", "an image", "tesseract {file} {copy}"),
    (b"\xff\xd8\xff", "an image", "tesseract {file} {copy}"),
    (b"GIF8", "an image", "tesseract {file} {copy}"),
    (b"BM", "an image", "tesseract {file} {copy}"),
    (b"II*\0", "an image", "tesseract {file} {copy}"),
    (b"MM\0*", "an image", "tesseract {file} {copy}"),
    (
        b"SQLite format 3\0",
        "an SQLite database",
        "sqlite3 -header -csv {file} 'select * from TABLE' > {copy}.csv",
    ),
    (b"ID3", "a sound recording", _NO_TEXT),
    (b"OggS", "a sound recording", _NO_TEXT),
    (b"fLaC", "a sound recording", _NO_TEXT),
    (b"\x1aE\xdf\xa3", "a video", _NO_TEXT),
    (b"\x7fELF", "a program", _NO_TEXT),
    (b"MZ", "a program", _NO_TEXT),
    (b"\xca\xfe\xba\xbe", "a program", _NO_TEXT),
    (b"GGUF", "a model's weights", _NO_TEXT),
    (b"\x89HDF\r\n", "an HDF5 file", _NO_TEXT),
    (b"\x93NUMPY", "a NumPy array", _NO_TEXT),
    (b"ARROW1", "an Arrow file", "save it as parquet: name it .parquet"),
    (b"PAR1", "a parquet file", "mv {file} {copy}.parquet"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {file} -o{copy}"),
    (b"Rar!\x1a\x07", "a RAR archive", "unrar x {file} {copy}/"),
    (b"BZh", "bzip2 data", "mv {file} {file}.bz2"),
    (b"\xfd7zXZ\0", "xz data", "unxz -k {file}"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data", "mv {file} {file}.zst"),
    (b"\x1f\x8b", "gzip data", "mv {file} {file}.gz"),
    (b"\x80\x02", "a Python pickle", "save its texts as .jsonl"),
    (b"\x80\x03", "a Python pickle", "save its texts as .jsonl"),
    (b"\x80\x04", "a Python pickle", "save its texts as .jsonl"),
    (b"\x80\x05", "a Python pickle", "save its texts as .jsonl"),
)
_TOKENS = (
    "a file of numbers, perhaps nanoGPT's token ids",
    "give the folder that holds train.bin and val.bin: gpt2 prepare FOLDER --out OUT",
)


def _foreign(head: bytes, path: Path | None) -> tuple[str, str]:
    """What a file is, if it is neither text nor records, and the command that helps; "" for what is."""
    for magic, what, command in _TEXTUAL:
        if head.startswith(magic):
            return what, command
    if is_text(head):
        return "", ""
    if head.startswith(b"PK\x03\x04"):
        return _zipped(path)
    if head[257:262] == b"ustar":
        return "a tar archive", "tar -xf {file}"
    if head[4:8] == b"ftyp":
        return "a video or image", _NO_TEXT
    if head.startswith(b"RIFF"):
        kind = {b"WEBP": "an image", b"WAVE": "a sound recording"}.get(head[8:12], "a video")
        return kind, _NO_TEXT
    for magic, what, command in _BINARY:
        if head.startswith(magic):
            old_table = what == "an old Office file" and path and path.suffix.lower() in (".xls", ".xlt")
            return what, _TO_CSV if old_table else command
    if path and path.suffix.lower() == ".bin":
        return _TOKENS
    return "", ""


# (a name within the zip, what the file is, the command)
_WITHIN: tuple[tuple[Callable[[str], bool], str, str], ...] = (
    (lambda name: name.startswith("word/"), "a Word document", "pandoc {file} -t plain -o {copy}.txt"),
    (lambda name: name.startswith("xl/"), "an Excel workbook", _TO_CSV),
    (lambda name: name.startswith("ppt/"), "a PowerPoint presentation", _TO_TEXT.replace("txt:Text", "pdf")),
    (lambda name: name == "META-INF/container.xml", "an EPUB book", "pandoc {file} -t plain -o {copy}.txt"),
    (lambda name: name == "META-INF/manifest.xml", "an OpenDocument file", _TO_TEXT),
    (lambda name: name.endswith("/data.pkl") or name == "data.pkl", "a model's weights", _NO_TEXT),
    (lambda name: name.endswith(".npy"), "a NumPy archive", _NO_TEXT),
)


def _zipped(path: Path | None) -> tuple[str, str]:
    names: list[str] = []
    if path:
        with contextlib.suppress(OSError, zipfile.BadZipFile, ValueError), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    for is_there, what, command in _WITHIN:
        if any(map(is_there, names)):
            if what == "an OpenDocument file" and path and path.suffix.lower() == ".ods":
                return "a spreadsheet", _TO_CSV
            return what, command
    return "a zip archive", _UNZIP
