"""The results file of `gpt2 judge`: one JSON line per judgement, only appended to, and by one judge alone."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from gpt2cli import json_lines
from gpt2cli.errors import InputError
from gpt2cli.judge.chat_api import TEMPERATURE
from gpt2cli.judge.server import JudgeServer

Status = Literal["scored", "unscored", "truncated", "empty"]
RETRIED: tuple[Status, ...] = ("unscored", "truncated")  # what `--retry` asks for again


@dataclass(frozen=True)
class Terms:
    """What makes two judgements comparable: who judges, and how. `prompt` and `schema` are digests.

    The address is no part of it: the same model may be served elsewhere tomorrow.
    """

    model: str
    server: str  # "ollama" or "openai-compatible"
    prompt: str
    schema: str
    temperature: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What became of one question. A negative index is a canary's."""

    index: int  # of the item; the first field, by which the beginning of a torn file is known
    status: Status
    why: str  # "" where it is scored
    attempts: int  # requests sent
    seconds: float  # from the first request to the last reply
    prompt_tokens: int | None  # as the server counts them
    asked: str  # a digest of the texts: a changed response is judged anew
    terms: Terms

    @property
    def is_canary(self) -> bool:
        return self.index < 0

    @property
    def key(self) -> Hashable:
        """Of several judgements with the same key the last one counts."""
        return self.index, self.asked


J = TypeVar("J", bound=Judgement)
Parse = Callable[[dict[str, Any]], J]  # raises ValueError, TypeError or KeyError for other objects


def terms_of(server: JudgeServer, prompt: str, schema: dict[str, Any], seed: int) -> Terms:
    kind = "ollama" if server.is_ollama else "openai-compatible"
    # To Ollama, a name without a tag is that of its latest.
    model = server.model.removesuffix(":latest") if server.is_ollama else server.model
    return Terms(model, kind, prompt, json_lines.digest_of(schema), TEMPERATURE, seed)


def checked_fields(line: dict[str, Any]) -> dict[str, Any]:
    """A line's fields with `terms` as Terms. Raises ValueError, TypeError or KeyError."""
    terms = Terms(**line["terms"])
    texts = (line["asked"], terms.model, terms.server, terms.prompt, terms.schema)
    is_good = type(line["index"]) is int and type(terms.seed) is int and line["status"] in get_args(Status)
    if not is_good or not all(isinstance(text, str) for text in texts):
        raise ValueError("not a judgement")
    return {**line, "terms": terms}


def read_results(path: Path, parse: Parse[J]) -> tuple[J, ...]:
    """All judgements of a file, in the order of its lines; none where there is no file.

    Raises InputError for a file that holds anything else.
    """
    content = json_lines.read_ledger(path, parse)
    _require_judgements(path, content)
    return content.values


@contextmanager
def appending(path: Path, parse: Parse[J], terms: Terms, *, fresh: bool) -> Iterator[json_lines.Ledger[J]]:
    """A results file to add to: locked, its torn last line cut off, and with `fresh` emptied.

    Raises InputError for a file of other content, and without `fresh` for one of other terms; ResourceError
    where another process writes in it.
    """

    def allow(content: json_lines.Content[J]) -> None:
        _require_judgements(path, content)
        if not fresh:
            require_terms(path, content.values, terms)

    with json_lines.appending(path, parse, allow, fresh=fresh) as file:
        yield file


def require_terms(path: Path, judgements: tuple[J, ...], terms: Terms) -> None:
    """Raise InputError, with the differences, if a judgement has other terms."""
    others = [one.terms for one in judgements if one.terms != terms]
    if others:
        before, now = asdict(others[0]), asdict(terms)
        changes = [f"{name} was {before[name]}, is {now[name]}" for name in now if before[name] != now[name]]
        raise InputError(
            f"{path}: another judge wrote this",
            f"{', '.join(changes)}; averages over both would mean nothing",
            "--fresh empties it and judges everything again, --out FILE leaves it alone",
        )


def _require_judgements(path: Path, content: json_lines.Content[J]) -> None:
    """Also with --fresh: a file of something else is never emptied."""
    is_torn_first_line = content.tail.startswith(b'{"index": '[: len(content.tail)])
    if content.strays or (not content.values and not is_torn_first_line):
        raise InputError(
            f"{path}:{content.strays[0] if content.strays else 1}: not a judgement of this kind",
            "the file was written by something else, or was changed",
            "name another file: --out FILE",
        )
