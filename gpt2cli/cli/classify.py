"""`gpt2 classify`: texts in, labels and probabilities out."""

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli.options import DeviceOption, JsonOption, PrecisionOption, ThreadsOption
from gpt2cli.errors import InputError, UsageError
from gpt2cli.paths import find_model
from gpt2cli.ui.console import err, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gpt2cli.checkpoints.classifier import LoadedClassifier
    from gpt2cli.data.records import Table
    from gpt2cli.generation.label_texts import LabelPrediction

LONGEST_LINE = 1 << 26  # bytes; no context is that long, and a pipe may never end
FEW = 200  # texts; fewer are done before a bar could be read
UNSURE = "unsure"
STDIN = Path("-")
ADDED = ("label", "probability")  # added columns, as "predicted_label" where names are taken


def classify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run of finetune-classify, a folder or a name.")
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="The texts; without any, the lines of stdin.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read texts from a file, one per line; -: stdin.")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            "--column",
            metavar="NAME",
            help="Read --file as CSV, TSV or JSONL with the text in this column; prints CSV.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="NAME,NAME",
            help="Names of all columns, for a CSV or TSV file without a header.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="P",
            help="Print 'unsure' where the most likely label has a probability below P (nothing in CSV, null"
            " in JSON). With two labels it is at least 0.5.",
        ),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Classify texts with a fine-tuned classifier.

    Prints one line per text: label, probability and text, separated by tabs;
    or with --json an object with the probability of every label.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"--threshold is {threshold:g}", "a probability is from 0 to 1")
    if file is not None and texts:
        raise UsageError("there are two sources of texts", f"{file} and the arguments", "give one of them")
    if column is not None and file is None:
        raise UsageError("--column names a column of a file", "no file is given", "--file FILE.csv")
    if column is None and (file is not None or columns is not None):
        _refuse_tables(file, columns)
    names = _names(columns, column)
    if not texts and file in (None, STDIN):
        _require_stdin()
    writer = _Writer(threshold or 0.0, as_json)
    if column is not None and file is not None:
        table, place = _open_table(file, column, names)
        loaded = _load(model, device, precision, threads)
        writer.table(loaded, table, place)
    elif file is not None and file != STDIN:
        lines = _lines_of(file)
        writer.texts(_load(model, device, precision, threads), lines, lambda i: f"{file}:{i + 1}")
    elif texts:
        writer.texts(_load(model, device, precision, threads), texts, lambda i: f"text {i + 1}")
    else:
        loaded, n_before = _load(model, device, precision, threads), 0
        for lines in _arriving_lines():
            writer.texts(loaded, lines, lambda i, n=n_before: f"line {n + i + 1}")  # type: ignore[misc]
            n_before += len(lines)
    writer.end()


class _Writer:
    """Writes answers to stdout as they come: as lines, CSV or JSON."""

    def __init__(self, threshold: float, as_json: bool) -> None:
        self._threshold, self._as_json = threshold, as_json
        self._shown: Callable[[str], str] = printable if sys.stdout.isatty() else str
        self._n_cut, self._limit = 0, 0

    def texts(
        self, loaded: "LoadedClassifier", texts: "Sequence[str]", where: "Callable[[int], str]"
    ) -> None:
        for text, answer in zip(texts, self._predictions(loaded, texts, where), strict=True):
            self._line(
                self._object(text, answer, loaded) if self._as_json else self._row(text, answer, loaded)
            )

    def table(self, loaded: "LoadedClassifier", table: "Table", place: int) -> None:
        """Every row as it came, as CSV with label and probability appended; or objects, with --json."""
        texts = [row.values[place] or "" for row in table.rows]
        answers = self._predictions(loaded, texts, lambda i: table.where(table.rows[i].line))
        if self._as_json:
            for text, answer in zip(texts, answers, strict=True):
                self._line(self._object(text, answer, loaded))
            return
        self._line(_csv([*table.columns, *_added(table)]))
        for row, answer in zip(table.rows, answers, strict=True):
            label = "" if self._is_unsure(answer) else loaded.labels[answer.best]
            self._line(_csv([*row.values, label, f"{answer.probabilities[answer.best]:.4f}"]))

    def end(self) -> None:
        if self._n_cut:
            err().print(
                f"note: {self._n_cut:,} text{'s were' if self._n_cut > 1 else ' was'} longer than"
                f" {self._limit} tokens and cut there"
            )

    def _predictions(
        self, loaded: "LoadedClassifier", texts: "Sequence[str]", where: "Callable[[int], str]"
    ) -> "Iterator[LabelPrediction]":
        from gpt2cli.generation import label_texts
        from gpt2cli.ui.progress import counting, track

        self._limit = loaded.max_tokens
        answers = label_texts.predict_labels(loaded, texts, where)
        if len(texts) > FEW:
            answers = track(answers, err(), counting("classifying", len(texts)))
        for answer in answers:
            self._n_cut += answer.was_cut
            yield answer

    def _is_unsure(self, answer: "LabelPrediction") -> bool:
        return answer.probabilities[answer.best] < self._threshold

    def _row(self, text: str, answer: "LabelPrediction", loaded: "LoadedClassifier") -> str:
        label = UNSURE if self._is_unsure(answer) else _one_line(printable(loaded.labels[answer.best]))
        return f"{label}\t{answer.probabilities[answer.best]:.4f}\t{_one_line(printable(text))}"

    def _object(self, text: str, answer: "LabelPrediction", loaded: "LoadedClassifier") -> str:
        value = {
            "text": text,
            "label": None if self._is_unsure(answer) else loaded.labels[answer.best],
            "probability": answer.probabilities[answer.best],
            "probabilities": dict(zip(loaded.labels, answer.probabilities, strict=True)),
        }
        return json.dumps(value, ensure_ascii=True)

    def _line(self, text: str) -> None:
        sys.stdout.write(self._shown(text) + "\n")
        sys.stdout.flush()


def _load(name: str, device: str, precision: str, threads: int) -> "LoadedClassifier":
    from gpt2cli.checkpoints.classifier import load_classifier
    from gpt2cli.runtime import choose_runtime

    folder = find_model(name)
    runtime = choose_runtime(device, precision, threads)
    for notice in runtime.notices:
        err().print(notice, style="warn")
    loaded = load_classifier(folder, remembered=True)
    loaded.model.to(device=runtime.device, dtype=runtime.dtype)
    return loaded


def _refuse_tables(file: Path | None, columns: str | None) -> None:
    """Raise UsageError for a table without --column."""
    from gpt2cli.data.records import kind_by_name

    if columns is not None or (file is not None and kind_by_name(file)):
        raise UsageError(
            f"{file or '--columns'}: which column holds the texts?",
            "--columns makes the file a table"
            if columns is not None
            else "its name says that the file is a table",
            f"gpt2 classify MODEL --file {file or 'FILE.csv'} --column NAME",
        )


def _names(columns: str | None, column: str | None) -> tuple[str, ...]:
    """The names in --columns; none where it is not given."""
    if columns is None:
        return ()
    names = tuple(name.strip() for name in columns.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(
            f"--columns is {columns!r}",
            "it must be names separated by commas, each once",
            "--columns label,text",
        )
    if column not in names:
        raise UsageError(
            f"--column {column} is not among --columns",
            f"these are {', '.join(names)}",
            f"--column {names[-1]}",
        )
    return names


def _require_stdin() -> None:
    if sys.stdin is None:  # closed by the parent process
        raise UsageError("there are no texts", "stdin is closed", "gpt2 classify MODEL TEXT, or --file FILE")


def _say_if_typed() -> None:
    """Without a word, the user and the program would wait for each other."""
    if sys.stdin.isatty():
        err().print("reading lines from the terminal; Ctrl-D ends")


def _open_table(file: Path, column: str, names: tuple[str, ...]) -> "tuple[Table, int]":
    """The table, and the index of its text column, which no row lacks."""
    from gpt2cli.data.records import read_table

    # A file without a header has the labels first, like the SMS Spam Collection.
    usual = ("label", column) if column != "label" else ()
    if file == STDIN:
        _say_if_typed()
        table = read_table(Path("stdin"), usual, names, sys.stdin.buffer)
    else:
        table = read_table(file, usual, names)
    other = "label" if column != "label" else "text"
    place = table.column(column, f"--columns {other},{column} with its columns in their order")
    for row in table.rows:
        if row.values[place] is None:
            raise InputError(f"{table.where(row.line)}: the field {column!r} is missing")
    _added(table)  # names that are taken are an error before any work
    return table, place


def _lines_of(file: Path) -> list[str]:
    from gpt2cli.data.records import read_text

    text = read_text(file)[0]
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _arriving_lines() -> "Iterator[list[str]]":
    """Lines of stdin in groups, each as soon as it arrives. Invalid UTF-8 becomes U+FFFD."""
    _say_if_typed()
    pending = b""
    while block := os.read(sys.stdin.fileno(), 1 << 16):
        *lines, pending = (pending + block).split(b"\n")
        if len(pending) > LONGEST_LINE:
            raise InputError("a line on stdin is longer than 64 MiB", "no context is near that")
        if lines:
            yield [_decoded(line) for line in lines]
    if pending:
        yield [_decoded(pending)]


def _decoded(line: bytes) -> str:
    return line.decode("utf-8", "replace").removesuffix("\r")


def _added(table: "Table") -> tuple[str, ...]:
    """Names of the two added columns. Raises InputError if all are taken."""
    for names in (ADDED, tuple(f"predicted_{name}" for name in ADDED)):
        if not set(names) & set(table.columns):
            return names
    raise InputError(
        f"{table.where(1)}: has the columns label and predicted_label, or their probabilities, already",
        "the results need columns of their own",
        "rename these columns",
    )


def _csv(values: "Sequence[str | None]") -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(["" if value is None else value for value in values])
    return line.getvalue()


def _one_line(text: str) -> str:
    return text.replace("\n", "␊").replace("\t", " ")
