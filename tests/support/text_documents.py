"""The documents that a file is read as."""

from contextlib import closing
from pathlib import Path

from gpt2cli.data.byte_source import ReadOptions
from gpt2cli.data.input_files import expand_sources
from gpt2cli.data.text_reader import SourceReader, SplitRule


def read(
    path: Path, *fields: str, options: ReadOptions | None = None, rule: SplitRule | None = None
) -> tuple[list[str], list[str]]:
    """The documents, and what is said of the file."""
    (source,) = expand_sources([path], out=Path("out"))
    documents, current = list[str](), ""
    with closing(SourceReader(source, fields or ("text",), options, rule)) as reader:
        for piece in reader.pieces():
            current += piece.text
            if piece.ends:
                documents.append(current)
                current = ""
        assert not current
        return documents, reader.notes
