"""Labelled texts as training, validation and test: balanced, split within each class, encoded; and what is
odd about their classes.
"""

import hashlib
import json
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpt2cli.data.labelled_texts import LabelledTexts, encode_text
from gpt2cli.data.sft_batches import ANY_TEXT, OWN_BASE, token_limit
from gpt2cli.data.splits import stratified_split, undersampled
from gpt2cli.errors import Gpt2Error, InputError, at_place, counted
from gpt2cli.recipe.data_sections import ClassifyDataConfig
from gpt2cli.tokenizer.base import Tokenizer

MISSING_VALUES = {"nan", "null", "none", "n/a", "na", "#n/a", "nil", "?", "undefined", "<na>"}
MOST_SHOWN = 12  # classes


@dataclass(frozen=True)
class LabelledExamples:
    """One split, as token ids."""

    ids: tuple[tuple[int, ...], ...]  # at least one each
    classes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ClassifySplits:
    train: LabelledExamples
    validation: LabelledExamples
    test: LabelledExamples
    labels: tuple[str, ...]
    max_tokens: int
    n_cut: int  # texts that were longer
    n_left_out: int  # rows dropped for balance

    @property
    def digest(self) -> str:
        """SHA-256 of everything that training and its report use."""
        splits = [(part.ids, part.classes) for part in (self.train, self.validation, self.test)]
        return hashlib.sha256(json.dumps([self.labels, splits]).encode()).hexdigest()


def split_labelled(
    data: LabelledTexts,
    wanted: ClassifyDataConfig,
    tokenizer: Tokenizer,
    context: int,
    seed: int,
    *,
    validation: LabelledTexts | None = None,
    test: LabelledTexts | None = None,
) -> ClassifySplits:
    """Balance, split within each class, encode and truncate. `validation` and `test`, where given, take the
    places of their shares of `data`.

    Raises InputError naming FILE:LINE for a class with too few rows, for a class that training lacks and
    for a text that cannot be encoded, UsageError for a limit beyond the context.
    """
    max_tokens = token_limit(wanted.max_tokens, context)
    shares = [
        share
        for share, own in ((wanted.validation, validation), (wanted.test, test))
        if own is None and share
    ]
    fewest = 1 + len(shares)
    for kind, count in sorted(Counter(data.classes).items()):
        if count < fewest:
            uses = [
                "training",
                *["validation"] * (validation is None),
                *["test"] * bool(test is None and wanted.test),
            ]
            raise InputError(
                f"{data.where(data.classes.index(kind))}: the class {data.labels[kind]!r}"
                f" has {counted(count, 'row')}",
                f"each class needs {fewest}: for {' and '.join([', '.join(uses[:-1]), uses[-1]])}",
                "add rows of this class, or delete it",
            )
    balanced = wanted.balance == "undersample"
    kept = undersampled(data.classes, seed) if balanced else list(range(len(data.classes)))
    classes = [data.classes[i] for i in kept]
    with at_place(data.where(0)):
        parts = stratified_split(classes, shares, seed)
    n_cut = 0

    def encoded(texts: LabelledTexts, rows: Sequence[int]) -> LabelledExamples:
        nonlocal n_cut
        ids: list[tuple[int, ...]] = []
        for i in rows:
            try:
                found = encode_text(tokenizer, texts.texts[i])
            except Gpt2Error as error:
                why = f"{error.why}; {ANY_TEXT}"
                raise InputError(f"{texts.where(i)}: {error.what}", why, OWN_BASE) from None
            n_cut += len(found) > max_tokens
            ids.append(found[:max_tokens])
        return LabelledExamples(tuple(ids), tuple(_classes_of(texts, data, rows)))

    first, *held = [encoded(data, [kept[i] for i in part]) for part in parts]
    own_validation = None if validation is None else encoded(validation, range(len(validation.texts)))
    own_test = None if test is None else encoded(test, range(len(test.texts)))
    return ClassifySplits(
        train=first,
        validation=own_validation or held.pop(0),
        test=own_test or (held.pop(0) if held else LabelledExamples((), ())),
        labels=data.labels,
        max_tokens=max_tokens,
        n_cut=n_cut,
        n_left_out=len(data.classes) - len(kept),
    )


def _classes_of(texts: LabelledTexts, data: LabelledTexts, rows: Sequence[int]) -> Iterator[int]:
    for i in rows:
        label = texts.labels[texts.classes[i]]
        if label not in data.labels:
            raise InputError(
                f"{texts.where(i)}: the class {label!r} is not in the training data",
                f"its classes are {', '.join(map(repr, data.labels[:MOST_SHOWN]))}",
                "correct the label, or delete the row",
            )
        yield data.labels.index(label)


def class_notes(data: LabelledTexts) -> Iterator[tuple[str, str]]:
    """("note" or "warning", a sentence) on what is trained on: the classes with their counts, names that
    may be mistakes, texts that occur several times.
    """
    counts = Counter(data.classes)
    named = [f"{label} {counts[kind]:,}" for kind, label in enumerate(data.labels)]
    more = f" and {len(named) - MOST_SHOWN:,} more" if len(named) > MOST_SHOWN else ""
    yield "note", f"{len(named):,} classes: {', '.join(named[:MOST_SHOWN])}{more}"
    for alike in _alike(data.labels):
        together = ", ".join(map(repr, alike))
        yield "warning", f"the classes {together} are nearly equal, and count as different ones"
    for kind, label in enumerate(data.labels):
        if label.casefold() in MISSING_VALUES:
            yield "warning", f"the class {label!r}, of {counts[kind]:,} rows, looks like a missing value"
        if label[:1] + label[-1:] in ("[]", "{}", "()") and len(label) > 1:
            yield "warning", f"the class {label!r} looks like a list; a text has one class"
    if len(data.labels) > len(data.texts) / 2:
        yield (
            "warning",
            f"{len(data.labels):,} classes for {len(data.texts):,} rows: is this the column of labels?",
        )
    yield from _repeated(data)


def _alike(labels: Sequence[str]) -> Iterator[list[str]]:
    """Labels that differ by case, spaces, punctuation or a number's spelling alone."""
    groups = defaultdict(list)
    for label in labels:
        groups[_folded(label)].append(label)
    yield from (group for group in groups.values() if len(group) > 1)


def _folded(label: str) -> object:
    try:
        number = float(label)
        if math.isfinite(number):
            return number
    except ValueError:
        pass
    folded = unicodedata.normalize("NFKC", label).casefold()
    return "".join(filter(str.isalnum, folded)) or label


def _repeated(data: LabelledTexts) -> Iterator[tuple[str, str]]:
    classes = defaultdict(set)
    for text, kind in zip(data.texts, data.classes, strict=True):
        classes[text].add(kind)
    if n := len(data.texts) - len(classes):
        yield "note", f"{n:,} of {len(data.texts):,} rows repeat the text of another"
    if torn := [text for text, kinds in classes.items() if len(kinds) > 1]:
        first = data.where(data.texts.index(torn[0]))
        many = f"{len(torn):,} texts have" if len(torn) > 1 else "a text has"
        yield "warning", f"{many} several classes, the first at {first}"


def leak_notes(splits: ClassifySplits) -> Iterator[tuple[str, str]]:
    """As `class_notes`, on texts of the other splits that are in training too."""
    seen = set(splits.train.ids)
    for name, part in (("validation", splits.validation), ("test", splits.test)):
        if n := sum(ids in seen for ids in part.ids):
            yield "note", f"{n:,} of the {len(part):,} {name} texts are in the training split too"
