"""The items of the benchmarks, from the files in which they are published: LAMBADA, HellaSwag, CBT."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.data.file_kinds import kind_by_name
from gpt2cli.data.record_files import read_records, read_text
from gpt2cli.errors import InputError

Records = Sequence[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Item:
    """A context and the texts that may go on from it, one of which is right; LAMBADA has that one alone."""

    where: str  # FILE:LINE
    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class ItemFile:
    """All items of a file, and the SHA-256 of the file as it is, packed or not."""

    items: tuple[Item, ...]
    sha256: str


def read_lambada(path: Path) -> ItemFile:
    """OpenAI's form: {"text": ...} per line. The last word, with the space before it, is the one to predict.

    Raises InputError naming FILE:LINE, as all of these.
    """
    records, sha256 = _records(path, 'one record per line: {"text": "..."}')
    return ItemFile(tuple(_lambada_items(records)), sha256)


def _lambada_items(records: Records) -> Iterator[Item]:
    for where, record in records:
        passage = record.get("text")
        if not isinstance(passage, str) or not passage.rpartition(" ")[2].strip():
            raise InputError(
                f"{where}: no text that ends in a word",
                "the last word is the one to predict",
                'one record per line: {"text": "..."}',
            )
        context, _, word = passage.rpartition(" ")
        yield Item(where, context, (f" {word}",), 0)


def read_hellaswag(path: Path) -> ItemFile:
    """HellaSwag as lm-evaluation-harness prepares it: "Activity: context", without bracketed markers.

    The file is the original .jsonl, or six lines per item: that context, the number of the right ending,
    four endings; such a text is taken as it is.
    """
    if kind_by_name(path) == "jsonl":
        records, sha256 = _records(path, _HELLASWAG_FORM)
        return ItemFile(tuple(_harness_items(records)), sha256)
    text, sha256 = read_text(path)
    return ItemFile(tuple(_six_line_items(text, path)), sha256)


def read_hellaswag_completion(path: Path) -> ItemFile:
    """HellaSwag as build-nanogpt reads it: context and endings as they are, without the activity.

    In the file of six lines per item the activity is what stands before the first ": ", and the markers are
    gone already.
    """
    if kind_by_name(path) == "jsonl":
        records, sha256 = _records(path, _HELLASWAG_FORM)
        return ItemFile(tuple(_original_items(records)), sha256)
    text, sha256 = read_text(path)
    items = tuple(
        Item(item.where, item.context.partition(": ")[2] or item.context, item.choices, item.answer)
        for item in _six_line_items(text, path)
    )
    return ItemFile(items, sha256)


def _harness_items(records: Records) -> Iterator[Item]:
    for where, record in records:
        label, first, second = (_text_of(record, key, where) for key in ("activity_label", "ctx_a", "ctx_b"))
        endings, answer = _endings_of(record, where)
        context = _without_markers(f"{label}: {first} {second.capitalize()}")
        yield Item(where, context, tuple(f" {_without_markers(ending)}" for ending in endings), answer)


def _original_items(records: Records) -> Iterator[Item]:
    for where, record in records:
        endings, answer = _endings_of(record, where)
        context = _text_of(record, "ctx", where)
        yield Item(where, context, tuple(f" {ending}" for ending in endings), answer)


def _without_markers(text: str) -> str:
    """The harness's clean-up of WikiHow's markers, spaces and all: a marker at the beginning leaves one."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _six_line_items(text: str, path: Path) -> Iterator[Item]:
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    for start in range(0, len(lines), 6):
        part, where = lines[start : start + 6], f"{path}:{start + 1}"
        if len(part) < 6 or not all(part) or part[1] not in ("0", "1", "2", "3"):
            raise InputError(f"{where}: not an item of HellaSwag", "an item has six lines", _HELLASWAG_FORM)
        context, label, *endings = part
        yield Item(where, context, tuple(f" {ending}" for ending in endings), int(label))


_HELLASWAG_FORM = (
    "use the original hellaswag_val.jsonl, or a text of six lines per item: context, number of the right"
    " ending (0 to 3), four endings"
)


def _endings_of(record: dict[str, Any], where: str) -> tuple[Sequence[str], int]:
    endings, label = record.get("endings"), record.get("label")
    if not isinstance(endings, list) or len(endings) < 2 or not all(isinstance(e, str) for e in endings):
        raise InputError(f"{where}: no list of endings", "an item has four", _HELLASWAG_FORM)
    if str(label) not in map(str, range(len(endings))):
        raise InputError(
            f"{where}: label {label!r} is not the number of an ending",
            "the test set is published without labels",
            "use the validation set, hellaswag_val.jsonl",
        )
    return endings, int(label)  # type: ignore[arg-type]


def _text_of(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise InputError(f"{where}: no text {key!r}", fix=_HELLASWAG_FORM)
    return value


def _records(path: Path, fix: str) -> tuple[Records, str]:
    """(FILE:LINE, the record) of each record, and the SHA-256 of the file."""
    found, sha256 = read_records(path, fix=fix)
    for line, record in found:
        if not isinstance(record, dict):
            raise InputError(f"{path}:{line}: not a JSON object", fix=fix)
    return [(f"{path}:{line}", record) for line, record in found], sha256


def read_cbt(path: Path) -> ItemFile:
    """The Children's Book Test: 20 numbered sentences, then a 21st with XXXXX, the answer and the candidates.

    The context of an item ends before XXXXX; a choice is a candidate with the rest of the sentence. The
    tokenisation of the Penn Treebank is undone first.
    """
    text, sha256 = read_text(path)
    return ItemFile(tuple(_cbt_items(text, path)), sha256)


def _cbt_items(text: str, path: Path) -> Iterator[Item]:
    sentences: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        found = re.match(r"(\d+) ", line)
        if not found or int(found[1]) != len(sentences) + 1:
            raise InputError(
                f"{path}:{number}: line {len(sentences) + 1} of an item is missing", fix=_CBT_FORM
            )
        sentence, *fields = line[found.end() :].split("\t")
        sentences.append(sentence)
        if len(sentences) == 21:
            yield _cbt_item(sentences, fields, f"{path}:{number}")
            sentences = []
    if sentences:
        raise InputError(f"{path}: its last item has {len(sentences)} lines", "an item has 21", _CBT_FORM)


_CBT_FORM = (
    "use a file of the Children's Book Test, such as cbtest_CN_valid_2000ex.txt: 20 numbered lines, then"
    " 21 QUESTION WITH XXXXX<tab>ANSWER<tab><tab>CANDIDATE|CANDIDATE|..."
)


def _cbt_item(sentences: Sequence[str], fields: Sequence[str], where: str) -> Item:
    candidates = [word for word in fields[-1].strip().split("|") if word] if len(fields) >= 2 else []
    if sentences[-1].count("XXXXX") != 1 or len(candidates) < 2 or fields[0] not in candidates:
        raise InputError(f"{where}: not a question of CBT", "it needs XXXXX and its candidates", _CBT_FORM)
    # Undone over all of it: what stands around XXXXX says whether a space does, too.
    before, _, after = undo_treebank(" ".join(sentences)).partition("XXXXX")
    return Item(where, before, tuple(word + after for word in candidates), candidates.index(fields[0]))


_UNDO = (
    (r"-LRB- ?", "("),
    (r" ?-RRB-", ")"),
    (r"`` ?", '"'),  # opens
    (r" ?''", '"'),  # closes
    (r"(?<!\S)` ", "'"),
    (r" (n't|'(?:s|S|m|re|ve|ll|d))(?!\w)", r"\1"),
    (r" '(?!\S)", "'"),
    (r" ([,.;:!?%])(?!\w)", r"\1"),
)


def undo_treebank(text: str) -> str:
    """A text without the Penn Treebank's tokenisation: no space before a comma, "don't", quotes as typed.

    The paper's own de-tokenizer is not published; these are the rules that its examples need.
    """
    for pattern, replacement in _UNDO:
        text = re.sub(pattern, replacement, text)
    return text
