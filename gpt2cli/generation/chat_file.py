"""The file of a saved conversation: one JSON object, read strictly."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from gpt2cli.errors import InputError, UsageError, require_format
from gpt2cli.generation.chat_prompt import ChatFormat, Exchange
from gpt2cli.generation.chat_settings import SETTINGS, ChatSettings
from gpt2cli.tokenizer.base import Tokenizer, without_surrogates

FORMAT = 1


@dataclass(frozen=True)
class Transcript:
    """The content of a file; chat_session.py makes a conversation of it."""

    system: str | None
    settings: ChatSettings
    exchanges: tuple[Exchange, ...]
    n_dropped: int
    history: int | None = None  # turns that the model is shown; None shows all


def to_json(transcript: Transcript, chat_format: ChatFormat, model: str) -> dict[str, Any]:
    """For `from_json`; a reply is stored as text and as the ids that the model chose."""
    return {
        "format": FORMAT,
        "model": model,
        "tokenizer": chat_format.tokenizer.fingerprint,
        "template": chat_format.template.name if chat_format.template else None,
        "system": transcript.system,
        "settings": asdict(transcript.settings),
        "dropped": transcript.n_dropped,
        # Left out where all are shown, so that earlier versions read the file too.
        **({} if transcript.history is None else {"history": transcript.history}),
        "turns": [
            {
                "question": exchange.question,
                "reply": exchange.reply,
                "ids": list(exchange.ids),
                "finish_reason": exchange.finish_reason,
                "attempt": exchange.attempt,
                "dropped": exchange.n_dropped,
            }
            for exchange in transcript.exchanges
        ],
    }


def from_json(value: Any, tokenizer: Tokenizer, where: str) -> Transcript:
    """Read it back; with another vocabulary the replies are encoded again. Ids may be left out.

    Raises InputError for anything else that `to_json` does not write, NewerFormatError for what a later
    version did.
    """
    try:
        require_format(where, value.get("format") if isinstance(value, dict) else None, FORMAT)
    except InputError as error:
        raise _wrong(where, "format" if isinstance(value, dict) else "", error.why) from None
    try:
        file = _File.model_validate(value)
        settings = ChatSettings(**file.settings.model_dump())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _wrong(where, ".".join(map(str, first["loc"])), first["msg"]) from None
    except UsageError as error:
        raise _wrong(where, "settings", str(error)) from None
    _check_drops(where, [turn.dropped for turn in file.turns], file.dropped)
    same = file.tokenizer == tokenizer.fingerprint
    exchanges = [_exchange(turn, n, tokenizer, same, where) for n, turn in enumerate(file.turns)]
    return Transcript(file.system, settings, tuple(exchanges), file.dropped, file.history)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_Text = Annotated[str, AfterValidator(without_surrogates)]


class _Turn(_Strict):
    question: _Text
    reply: _Text
    ids: list[int] | None = None
    finish_reason: Literal["end_of_text", "stop", "length", "context", "interrupted"]
    attempt: int = Field(default=0, ge=0)
    dropped: int = Field(default=0, ge=0)


_fields: dict[str, Any] = {name: (kind, ...) for name, kind in SETTINGS.items()}
_Settings: Any = create_model("_Settings", __base__=_Strict, **_fields)


class _File(_Strict):
    format: int = Field(ge=FORMAT, le=FORMAT)
    model: _Text
    tokenizer: str
    template: _Text | None
    system: _Text | None
    settings: _Settings
    dropped: int = Field(ge=0)
    history: int | None = Field(default=None, ge=0)
    turns: list[_Turn]


def _exchange(turn: _Turn, number: int, tokenizer: Tokenizer, same: bool, where: str) -> Exchange:
    if same and turn.ids is not None:
        ids = turn.ids
        if not all(0 <= token < tokenizer.n_vocab for token in ids) or tokenizer.decode(ids) != turn.reply:
            raise _wrong(where, f"turns.{number}.ids", "they do not decode to the reply")
    else:
        ids = tokenizer.encode(turn.reply)
    tokenizer.encode(turn.question)  # a character model may not know it
    return Exchange(turn.question, turn.reply, tuple(ids), turn.finish_reason, turn.attempt, turn.dropped)


def _check_drops(where: str, before: Sequence[int], after: int) -> None:
    """A turn that has left the context never comes back."""
    drops = [*before, after]
    if drops != sorted(drops) or any(n > number for number, n in enumerate(drops)):
        raise _wrong(where, "dropped", "more turns have left the context than there were")


def _wrong(where: str, place: str, why: str) -> InputError:
    at = f"{where}: {place}" if place else where
    return InputError(f"{at}: is not part of a saved conversation", why, "/save FILE writes one")
