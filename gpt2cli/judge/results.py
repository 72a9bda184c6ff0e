"""The results file of `gpt2 judge`: one JSON line per judgement, appended to by one judge alone."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from gpt2cli.errors import InputError
from gpt2cli.json_lines import Parse, digest_of, read_ledger
from gpt2cli.judge.chat_api import TEMPERATURE
from gpt2cli.judge.endpoint import JudgeServer

Status = Literal["scored", "unscored", "truncated", "empty"]
LONGEST_TEXT = 2000  # characters of a judge's own words
RETRIED: tuple[Status, ...] = ("unscored", "truncated")  # what `--retry` asks for again


@dataclass(frozen=True)
class Terms:
    """What makes two judgements comparable: the judge and its settings. `prompt` and `schema` are digests.

    The address is not included: the same model may be served elsewhere tomorrow.
    """

    model: str
    server: str  # "ollama" or "openai-compatible"
    prompt: str
    schema: str
    temperature: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The result of one question. A negative index is a canary's."""

    index: int  # of the item; the first field, so that a torn first line is recognised
    status: Status
    why: str  # "" where it is scored
    attempts: int  # requests sent
    seconds: float  # from the first request to the last reply
    prompt_tokens: int | None  # as the server counts them
    asked: str  # a digest of the texts: a changed response is judged again
    terms: Terms
    text: str = ""  # what the judge wrote where it could not be scored, up to LONGEST_TEXT

    @property
    def is_canary(self) -> bool:
        return self.index < 0


J = TypeVar("J", bound=Judgement)


def terms_of(server: JudgeServer, prompt: str, schema: dict[str, Any], seed: int) -> Terms:
    kind = "ollama" if server.is_ollama else "openai-compatible"
    # To Ollama, a name without a tag is that of its latest.
    model = server.model.removesuffix(":latest") if server.is_ollama else server.model
    return Terms(model, kind, prompt, digest_of(schema), TEMPERATURE, seed)


def checked_fields(line: dict[str, Any]) -> dict[str, Any]:
    """A line's fields with `terms` as Terms. Raises ValueError, TypeError or KeyError."""
    has_key = type(line["index"]) is int and isinstance(line["asked"], str)
    if not has_key or line["status"] not in get_args(Status) or not isinstance(line.get("text", ""), str):
        raise ValueError("not a judgement")
    return {**line, "terms": Terms(**line["terms"])}


def read_results(path: Path, parse: Parse[J]) -> tuple[J, ...]:
    """All judgements of a file, in the order of its lines; none where there is no file.

    Raises InputError for a file that holds anything else: with --fresh, too, it is never emptied.
    """
    content = read_ledger(path, parse)
    is_torn_first_line = content.tail.startswith(b'{"index": '[: len(content.tail)])
    if content.strays or (not content.values and not is_torn_first_line):
        raise InputError(
            f"{path}:{content.strays[0] if content.strays else 1}: not a judgement of this kind",
            "another program or a newer gpt2cli wrote the file, or it was changed",
            "name another file: --out FILE; or pip install --upgrade gpt2cli",
        )
    return content.values


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
