"""What is neither text nor records is named, and markup that is read as text is told."""

import gzip
import io
import shlex
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from text_documents import read

from gpt2cli.errors import InputError


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.html", "<!DOCTYPE html>\n<html><body><p>hi</p></body></html>", "a web page, and its tags"),
        ("a.txt", "\n<HTML lang=en><body>hi</body></HTML>", "a web page, and its tags"),
        ("wiki dump.xml", "<mediawiki xml:lang='en'><page>x</page></mediawiki>", "XML, and its tags"),
        ("a.xhtml", "<?xml version='1.0'?><html/>", "XML, and its tags"),
        ("a.ipynb", '{\n "cells": [\n  {\n   "cell_type": "code"}]}', "a notebook, and its JSON"),
        ("a.tex", "\\documentclass{article}\n\\begin{document}", "LaTeX, and its commands"),
        ("a.srt", "1\n00:00:01,000 --> 00:00:02,000\nHi.\n", "a file of subtitles"),
        ("a.md", "# <html> and <?xml are words here\n", ""),
        ("a.txt", '{"cells" is how a poem may begin', ""),
        ("a.txt", "<p>a tag alone</p>", ""),
    ],
)
def test_markup_is_read_as_text_and_told(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    found, notes = read(path)
    assert "".join(found) == text and len(notes) == bool(said)
    assert all(said in note and shlex.quote(str(path)) in note for note in notes)


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["one, two", "three"]}), file)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return file.getvalue()


FOREIGN = [
    ("a.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF", "pdftotext"),
    ("a.txt", b"%PDF-1.4\n", "a PDF", "pdftotext"),
    ("a.docx", zipped("[Content_Types].xml", "word/document.xml"), "a Word document", "pandoc"),
    ("a.xlsx", zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook", "csv"),
    ("a.csv", zipped("xl/workbook.xml"), "an Excel workbook", "csv"),
    ("a.pptx", zipped("ppt/presentation.xml"), "a PowerPoint", "libreoffice"),
    ("a.odt", zipped("META-INF/manifest.xml"), "an OpenDocument", "libreoffice"),
    ("a.epub", zipped("META-INF/container.xml"), "an EPUB", "pandoc"),
    ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, "an old Office file", "txt"),
    ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, "an old Office file", "csv"),
    ("a.zip", zipped("a.txt"), "a zip archive", "unzip"),
    ("a.jsonl", zipped("a.txt"), "a zip archive", "unzip"),
    ("a.tar", tarred(), "a tar archive", "tar -xf"),
    ("a.tar.gz", gzip.compress(tarred()), "a tar archive", "tar -xf"),
    ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "an image", "tesseract"),
    ("a.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF\0", "an image", "tesseract"),
    ("a.webp", b"RIFF\x24\0\0\0WEBPVP8 ", "an image", "text files"),
    ("a.mp3", b"ID3\x04\0\0\0", "a sound recording", "text files"),
    ("a.mp4", b"\0\0\0\x20ftypisom\0", "a video", "text files"),
    ("a.db", b"SQLite format 3\0\x10\0", "an SQLite database", "sqlite3"),
    ("a.rtf", b"{\\rtf1\\ansi hello}", "an RTF document", "libreoffice"),
    ("a.pkl", b"\x80\x04\x95\x05\0\0\0", "a Python pickle", ".jsonl"),
    ("a.txt", gzip.compress(b"hello"), "gzip data", "mv"),
    ("a.txt.xz", b"\xfd7zXZ\0\0\x04", "xz data", "unxz"),
    ("a.txt", b"BZh91AY&SY\x19\xff\0", "bzip2 data", "mv"),
    ("a.bin", b"\x01\0\x02\0\xff\xff", "a file of numbers, perhaps nanoGPT's", "train.bin"),
    ("a.data", parquet(), "a parquet file", "mv"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "what", "fix"), FOREIGN, ids=[f"{name} {what}" for name, _, what, _ in FOREIGN]
)
def test_what_is_neither_text_nor_records_is_named(
    tmp_path: Path, name: str, content: bytes, what: str, fix: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"is {what}") as caught:
        read(path)
    assert caught.value.what.startswith(f"{path}: ") and fix in caught.value.fix


@pytest.mark.parametrize(
    "text", ["BMW drives", "MZ and GIF8 and ID3", "PK is a name", "II* x", "%PDF in the middle"]
)
def test_a_text_that_begins_like_another_kind_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert read(tmp_path / "a.txt")[0] == [text]
