"""`gpt2 classify`: texts in, labels and probabilities out."""

import difflib
import io
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli.options import (
    DeviceOption,
    EncodingOption,
    JsonOption,
    MaxBadOption,
    PrecisionOption,
    ThreadsOption,
    arriving_lines,
    lines_of,
    say_if_typed,
)
from gpt2cli.errors import InputError, UsageError
from gpt2cli.generation.load import load_for_classifying
from gpt2cli.paths import expand, is_classifier, models_newest_first, shown_model
from gpt2cli.ui.console import err, out, print_json, printable, say
from gpt2cli.ui.spinner import load_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gpt2cli.checkpoints.classifier import LoadedClassifier
    from gpt2cli.data.byte_source import ReadOptions
    from gpt2cli.data.tables import Table
    from gpt2cli.generation.label_texts import LabelPrediction

FEW = 200  # texts; fewer are done before a bar could be read
UNSURE = "unsure"
STDIN = Path("-")
ADDED = ("label", "probability")  # added columns, as "predicted_label" where names are taken


def classify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A finetune-classify run, a model folder or a name.")
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Texts to classify; by default one per line from stdin."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            parser=expand,
            metavar="PATH",
            help="Read texts from a file, one per line; -: stdin.",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="NAME",
            help="Read --file as a table or records (.csv, .tsv, .json, .jsonl, .parquet) with the text in"
            " this column; print CSV. Repeat it to join several.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            metavar="NAME",
            help="Column of --file with the true label: print accuracy, macro-F1, confusion and calibration"
            " instead.",
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
            help="Print 'unsure' (empty in CSV, null in JSON) if the top probability is below P. With two"
            " labels it is never below 0.5.",
        ),
    ] = None,
    encoding: EncodingOption = None,
    max_bad: MaxBadOption = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Classify texts with a fine-tuned classifier.

    Prints one line per text: label, probability and text, separated by tabs;
    or with --json one object with the probability of each label. With --label, scores the
    classifier on a labelled file instead.
    """
    from gpt2cli.data.byte_source import read_options

    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"--threshold is {threshold:g}", "a probability is from 0 to 1")
    if file is not None and texts:
        raise UsageError("there are two sources of texts", f"{file} and the arguments", "give one of them")
    if (column or label) and file is None:
        named = "--column" if column else "--label"
        raise UsageError(f"{named} names a column of a file", "no file is given", "--file FILE.csv")
    if label and not column:
        raise UsageError("--label needs the column of the texts, too", fix="--column text")
    if label and threshold is not None:
        raise UsageError("--threshold with --label", "every text counts in a score", "leave --threshold out")
    if not column:
        _refuse_tables(file, columns)
    names = _names(columns, column or [], label)
    if not texts and file in (None, STDIN) and sys.stdin is None:  # closed by the parent process
        raise UsageError("there are no texts", "stdin is closed", "gpt2 classify MODEL TEXT, or --file FILE")
    # What is in a file is checked before the model is loaded.
    batches: Iterable[tuple[Sequence[str], Callable[[int], str]]]
    table = None
    if column and file is not None:
        table, found_texts = _open_table(file, column, label, names, read_options(encoding, max_bad))
        lines = [row.line for row in table.rows]
        batches = [(found_texts, lambda i: table.where(lines[i]))]
    elif file is not None and file != STDIN:
        batches = [(lines_of(file, encoding), _numbered(f"{file}:"))]
    elif texts:
        batches = [(texts, _numbered("text "))]
    else:
        batches = ((some, _numbered("line ", n_before)) for some, n_before in arriving_lines(encoding))
    _require_model(model, texts)
    load_torch()
    loaded = load_for_classifying(model, device, precision, threads, lambda text, kind: say(text, "warn"))
    if table and label:
        ((texts_of_file, where),) = batches
        truth = _true_classes(table, label, loaded.labels)
        _print_scores(
            loaded.labels, truth, _predictions(loaded, texts_of_file, where), model, table.name, as_json
        )
        return
    rows = iter(table.rows) if table and not as_json else None
    if table and rows:
        _write(_csv([*table.columns, *_added(table)]))
    n_cut = 0
    for some, where in batches:
        for text, answer in zip(some, _predictions(loaded, some, where), strict=True):
            n_cut += answer.was_cut
            probability = answer.probabilities[answer.best]
            found = loaded.labels[answer.best] if probability >= (threshold or 0) else None
            if as_json:
                _write(_json(loaded, text, found, answer))
            elif rows:
                _write(_csv([*next(rows).values, found, f"{probability:.4f}"]))
            else:
                shown = UNSURE if found is None else found
                _write(f"{_one_line(shown)}\t{probability:.4f}\t{_one_line(text)}")
    if n_cut:
        were = "texts were" if n_cut > 1 else "text was"
        say(f"note: {n_cut:,} {were} longer than {loaded.max_tokens} tokens and cut there")


def _require_model(model: str, texts: list[str] | None) -> None:
    """Raises UsageError, with the command that was meant, for a text in the place of the model."""
    if texts or " " not in model.strip() or expand(model).exists():
        return
    found = [shown_model(path) for path in models_newest_first() if is_classifier(path)]
    raise UsageError(
        f"{model[:60]!r} is a text, and no model",
        "the model comes first, then the texts" + ("" if found else "; there is no classifier here yet"),
        shlex.join(["gpt2", "classify", found[0], model]) if found else "gpt2 finetune-classify spam-tiny",
    )


def _predictions(
    loaded: "LoadedClassifier", texts: "Sequence[str]", where: "Callable[[int], str]"
) -> "Iterator[LabelPrediction]":
    from gpt2cli.generation.label_texts import predict_labels
    from gpt2cli.ui.progress import counting, track

    answers = predict_labels(loaded, texts, where)
    return track(answers, err(), counting("classifying", len(texts))) if len(texts) > FEW else answers


def _true_classes(table: "Table", column: str, labels: "Sequence[str]") -> list[int]:
    """The class of each row. Raises InputError naming the row for a label that the classifier lacks."""
    place = table.column(column, "")
    numbers = {label: number for number, label in enumerate(labels)}
    found = []
    for row in table.rows:
        name = (row.values[place] or "").strip()
        if name not in numbers:
            near = difflib.get_close_matches(name, labels, n=1)
            raise InputError(
                f"{table.where(row.line)}: {name!r} is not one of the classifier's labels",
                f"they are {', '.join(map(repr, labels[:12]))}",
                f"write {near[0]!r} there" if near else "correct the label, or delete the row",
            )
        found.append(numbers[name])
    return found


def _print_scores(
    labels: "Sequence[str]",
    truth: "Sequence[int]",
    predictions: "Iterable[LabelPrediction]",
    model: str,
    file: str,
    as_json: bool,
) -> None:
    """The predictions beside the file's own labels: a table on stdout, or one JSON object."""
    from dataclasses import asdict

    from gpt2cli.evaluation.class_metrics import N_BINS, calibration_error, classification_metrics
    from gpt2cli.ui.tables import print_classes

    found = list(predictions)
    pairs = list(zip(truth, [one.best for one in found], strict=True))
    scores = classification_metrics(pairs, len(labels))
    error = calibration_error(
        (one.probabilities[best], best == true) for one, (true, best) in zip(found, pairs, strict=True)
    )
    if not as_json:
        print_classes(scores, labels, out())
        out().print(f"expected calibration error {error:.4f} ({N_BINS} bins)")
        return
    print_json(
        {
            "model": model,
            "file": file,
            "texts": len(found),
            "accuracy": scores.accuracy,
            "macro_f1": scores.macro_f1,
            "expected_calibration_error": error,
            "calibration_bins": N_BINS,
            "labels": list(labels),
            "classes": {label: asdict(one) for label, one in zip(labels, scores.classes, strict=True)},
            "confusion": scores.confusion,
            "cut": sum(one.was_cut for one in found),
        }
    )


def _json(loaded: "LoadedClassifier", text: str, label: str | None, answer: "LabelPrediction") -> str:
    value = {
        "text": text,
        "label": label,
        "probability": answer.probabilities[answer.best],
        "probabilities": dict(zip(loaded.labels, answer.probabilities, strict=True)),
    }
    return json.dumps(value)


def _write(line: str) -> None:
    sys.stdout.write((printable(line) if sys.stdout.isatty() else line) + "\n")
    sys.stdout.flush()


def _refuse_tables(file: Path | None, columns: str | None) -> None:
    """Raise UsageError for a table without --column."""
    from gpt2cli.data.file_kinds import kind_by_name

    why = ""
    if columns is not None:
        why = "--columns makes the file a table"
    elif file is not None and kind_by_name(file):
        why = "its name says that the file is a table"
    if why:
        fix = f"gpt2 classify MODEL --file {file or 'FILE.csv'} --column NAME"
        raise UsageError(f"{file or '--columns'}: which column holds the texts?", why, fix)


def _names(columns: str | None, column: "Sequence[str]", label: str | None) -> tuple[str, ...]:
    """The names in --columns; none if it is not given."""
    if columns is None:
        return ()
    names = tuple(name.strip() for name in columns.split(","))
    if not all(names) or len(set(names)) < len(names):
        why = "it must be names separated by commas, each once"
        raise UsageError(f"--columns is {columns!r}", why, "--columns label,text")
    for option, name in [*(("--column", name) for name in column), *[("--label", label)] * bool(label)]:
        if name not in names:
            what, why = f"{option} {name} is not among --columns", f"these are {', '.join(names)}"
            raise UsageError(what, why, f"{option} {names[-1 if option == '--column' else 0]}")
    return names


def _open_table(
    file: Path, column: "Sequence[str]", label: str | None, names: tuple[str, ...], options: "ReadOptions"
) -> "tuple[Table, list[str]]":
    """The table, and the text of each row: of several columns, joined by blank lines."""
    from gpt2cli.data.tables import read_table
    from gpt2cli.data.text_fields import BETWEEN

    # A file without a header has the labels first, like the SMS Spam Collection.
    usual = (label or "label", column[0]) if len(column) == 1 and column[0] != "label" else ()
    stream, path = (sys.stdin.buffer, Path("stdin")) if file == STDIN else (None, file)
    if stream:
        say_if_typed()
    needed = [*column, *[label] * bool(label)]
    table = read_table(path, usual, names, stream, options, [name for name in needed if name], label)
    for note in table.notes:
        say(note, "warn")
    other = label or ("label" if "label" not in column else "text")
    naming, (likely_text, likely_label) = f"--columns {','.join([other, *column])}", table.guess()
    places = [table.column(name, f"--column {shlex.quote(likely_text)}", naming) for name in column]
    if label:
        table.column(label, f"--label {shlex.quote(likely_label)}", naming)
    else:
        _added(table)  # names that are taken are an error before any work
    texts = [[row.values[place] or "" for place in places] for row in table.rows]
    return table, [parts[0] if len(parts) == 1 else BETWEEN.join(filter(None, parts)) for parts in texts]


def _numbered(what: str, n_before: int = 0) -> "Callable[[int], str]":
    """The name of the i-th text, for messages."""
    return lambda i: f"{what}{n_before + i + 1}"


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
    import csv

    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def _one_line(text: str) -> str:
    return printable(text).replace("\n", "␊").replace("\t", " ")
