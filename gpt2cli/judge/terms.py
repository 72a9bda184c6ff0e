"""Owns who judges and how they are asked; and that one file holds judgements of one judge only.

The server's address is no part of it: the same model may be served elsewhere tomorrow, at another
port or behind another name, and what judges is the model.

For another kind of judgement, write a frozen dataclass whose first field is `index` and another one
`terms: Terms`, and a function that makes one of a line's object (its terms by `terms_from`). Then go
on with its file by `resuming`:

    with resuming(path, _verdict, terms, server, is_asked) as file:
        done = {verdict.index for verdict in file.values}
        ...
        file.add(verdict)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gpt2cli.errors import InputError
from gpt2cli.json_lines import Content, Ledger, appending, digest_of, read_ledger
from gpt2cli.judge.asking import require_unless_stopped
from gpt2cli.judge.client import PATIENCE, TEMPERATURE
from gpt2cli.judge.server import Server
from gpt2cli.patience import Patience


@dataclass(frozen=True)
class Terms:
    """What makes two judgements comparable. `prompt` and `schema` are digests."""

    model: str
    server: str  # "ollama" or "openai-compatible"
    prompt: str
    schema: str
    temperature: float
    seed: int


class Signed(Protocol):
    @property
    def terms(self) -> Terms: ...


S = TypeVar("S", bound=Signed)
Parse = Callable[[dict[str, Any]], S]


def terms_of(server: Server, prompt: str, schema: dict[str, Any], seed: int) -> Terms:
    """`prompt` is the version of the prompt (prompts.JUDGE_VERSION, prompts.PAIR_VERSION)."""
    kind = "ollama" if server.is_ollama else "openai-compatible"
    # To Ollama, a name without a tag is that of its latest.
    model = server.model.removesuffix(":latest") if server.is_ollama else server.model
    return Terms(model, kind, prompt, digest_of(schema), TEMPERATURE, seed)


def terms_from(fields: dict[str, Any]) -> Terms:
    """The terms in a line of a file. Raises ValueError, TypeError or KeyError."""
    terms = Terms(**fields)
    texts = (terms.model, terms.server, terms.prompt, terms.schema)
    if not all(isinstance(text, str) for text in texts) or type(terms.seed) is not int:
        raise TypeError("a field of another type")
    return terms


@contextmanager
def resuming(
    path: Path,
    parse: Parse[S],
    terms: Terms,
    server: Server,
    is_asked: Callable[[Sequence[S]], bool],
    *,
    fresh: bool = False,
    patience: Patience = PATIENCE,
    stop: Callable[[], int] = lambda: 0,
) -> Iterator[Ledger[S] | None]:
    """Open a file of judgements to add to it: locked, its torn last line cut off.

    With `fresh`, what is in it goes. `is_asked` says whether the server is needed, given what stands;
    then it is looked for before the file is touched or made, and None comes where `stop` ended the
    look. Raises InputError for a file of other terms, with the differences, or that is no such file,
    also with `fresh`; ResourceError where another process writes in it; and as `require_model`.
    """

    def allow(content: Content[S]) -> None:
        require_ours(path, content)
        others = [value.terms for value in content.values if value.terms != terms]
        if others and not fresh:
            raise InputError(
                f"{path}: another judge wrote this",
                f"{_differences(others[0], terms)}; averages over both would mean nothing",
                "--fresh empties it and judges everything again, --out FILE leaves it alone",
            )

    content = read_ledger(path, parse)
    allow(content)
    if is_asked(() if fresh else content.values):
        require_unless_stopped(server, patience, stop)
        if stop():
            yield None
            return
    with appending(path, parse, allow, fresh=fresh) as file:
        yield file


def require_ours(path: Path, content: Content[S]) -> None:
    """Raise InputError for a file that has lines of something else: it may be dear to somebody."""
    torn = bool(content.tail) and not (content.values or _is_beginning(content.tail))
    if content.strays or torn:
        raise InputError(
            f"{path}:{content.strays[0] if content.strays else 1}: not a judgement of this kind",
            "the file was written by something else, or was changed",
            "name another file: --out FILE",
        )


def _is_beginning(tail: bytes) -> bool:
    """Whether it may be the first line of such a file, cut short."""
    return tail.startswith(b'{"index": '[: len(tail)])


def _differences(theirs: Terms, ours: Terms) -> str:
    before, now = asdict(theirs), asdict(ours)
    return ", ".join(
        f"{name} was {before[name]}, is {now[name]}" for name in now if before[name] != now[name]
    )
