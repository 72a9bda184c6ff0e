"""Rows of CSV and TSV, in constant memory: the separator is detected, and a bad row costs no other row.

CSV is RFC 4180: quotes around what holds a separator, a quote or a line end. TSV is plain: tabs separate
and a quote is a character like any other, as in the SMS Spam Collection.
"""

import collections
import contextlib
import csv
import itertools
from collections.abc import Iterator, Sequence

from gpt2cli.data.bad_records import RecordTally
from gpt2cli.errors import InputError

LONGEST = 131_072  # characters of a field, the csv module's own limit
SAMPLE, LARGEST_SAMPLE = 64, 1 << 20  # lines and characters that the separator is found from
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}

NumberedLines = Iterator[tuple[int, str]]  # from 1, with their line ends


def sample_lines(lines: NumberedLines) -> tuple[list[tuple[int, str]], NumberedLines]:
    """The first lines, and all of them again."""
    first, size = list[tuple[int, str]](), 0
    for line in itertools.islice(lines, SAMPLE):
        first.append(line)
        size += len(line[1])
        if size > LARGEST_SAMPLE:
            break
    return first, itertools.chain(first, lines)


def find_separator(lines: Sequence[str]) -> str:
    """The separator that gives the first lines the most equal numbers of fields; a comma if none does."""
    if lines and lines[0].lower().startswith("sep=") and len(lines[0].strip()) == 5:
        return lines[0][4]  # as Excel writes and wants it
    best, best_rank = ",", (0.0, 0)
    for separator in SEPARATORS:
        counts = list[int]()
        with contextlib.suppress(csv.Error):  # reading the rows says so
            counts.extend(len(row) for row in csv.reader(lines, delimiter=separator) if row)
        if not counts or counts[0] < 2:
            continue
        rank = (sum(n == counts[0] for n in counts) / len(counts), counts[0])
        if rank > best_rank:
            best, best_rank = separator, rank
    return best


def has_spaced_quotes(lines: Sequence[str], separator: str) -> bool:
    """Whether fields have a space before their quotes, as in `"a, b", "c"`."""
    rows = csv.reader(lines, delimiter=separator)
    with contextlib.suppress(csv.Error):
        if any(value.startswith(" ") and value.lstrip()[:1] == '"' for row in rows for value in row):
            try:
                list(csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True))
            except csv.Error as error:
                return "unexpected end" in str(error)  # the sample ends within a text
            return True
    return False


def csv_rows(
    lines: NumberedLines,
    name: str,
    separator: str,
    tally: RecordTally,
    *,
    quoted: bool,
    longest: int,
    spaced: bool = False,
) -> Iterator[tuple[int, list[str]]]:
    """(the line where it begins, its fields) of each row that is not blank; bad ones go to `tally`.

    After a bad row, reading goes on with the line after its first: a quote that is never closed takes
    nothing else along.
    """
    source = _NumberedLines(lines)

    def reader() -> Iterator[list[str]]:
        csv.field_size_limit(longest)
        if quoted:
            return csv.reader(source, delimiter=separator, strict=True, skipinitialspace=spaced)
        return csv.reader(source, delimiter=separator, quoting=csv.QUOTE_NONE)

    rows = reader()
    while True:
        source.taken.clear()
        try:
            values = next(rows, None)
        except csv.Error as error:
            tally.skip(_malformed(f"{name}:{source.taken[0][0]}", str(error), longest))
            source.retry()
            rows = reader()
            continue
        if values is None:
            return
        if any(map(str.strip, values)):
            yield source.taken[0][0], values


class _NumberedLines:
    """Lines for csv.reader; those after the first of the current row can be read again."""

    def __init__(self, lines: NumberedLines) -> None:
        self._lines = lines
        self._again: collections.deque[tuple[int, str]] = collections.deque()
        self.taken: list[tuple[int, str]] = []

    def __iter__(self) -> "_NumberedLines":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        return line[1]

    def retry(self) -> None:
        self._again.extendleft(reversed(self.taken[1:]))


def _malformed(where: str, said: str, longest: int) -> InputError:
    if "field limit" in said:
        return InputError(
            f"{where}: a field of more than {longest:,} characters",
            "no context is near that; perhaps a quote that is never closed opens in this row",
            "close the quote, or shorten the text",
        )
    if "unexpected end" in said:
        return InputError(
            f"{where}: a quote that opens in this row is never closed",
            "everything behind it, to the end of the file, would be one text",
            'close it; a quote inside of quotes is written twice: ""',
        )
    return InputError(f"{where}: is not a row of CSV", said, 'a quote inside of quotes is written twice: ""')
