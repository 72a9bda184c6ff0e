"""Owns how a conversation becomes one text, for training and for asking alike.

A template turns turns into parts: what is given, and what the model says. Everything before an
answer is the same text in training and in asking, and the same ids, because each part is encoded
by itself: no byte pair crosses a border. Markers are ordinary text, so GPT-2 needs no new tokens;
an end-of-text id after each answer is what ends it. A user's text that holds a marker is not
changed: what it says is the user's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Role = Literal["system", "user", "assistant"]
PREAMBLE = (
    "Below is an instruction that describes a task."
    " Write a response that appropriately completes the request."
)


@dataclass(frozen=True)
class Turn:
    """What one side says. `input` is what a user's instruction is to be applied to, if given apart."""

    role: Role
    text: str
    input: str = ""


class Part(NamedTuple):
    text: str
    is_answer: bool


@dataclass(frozen=True)
class Template:
    """One way of writing conversations. `stops` are texts that end an answer besides end-of-text:
    with them the model begins to speak for the other side.
    """

    name: str
    stops: tuple[str, ...]
    opening: Callable[[str | None], str]  # with the system's text, where there is one
    question: Callable[[Turn], str]  # up to the place where the answer begins

    def parts(self, turns: Sequence[Turn]) -> list[Part]:
        """The turns as parts, in order; after a last question the answer may begin."""
        system = turns[0].text if turns and turns[0].role == "system" else None
        parts, given = [], self.opening(system)
        for turn in turns:
            if turn.role == "user":
                given += self.question(turn)
            elif turn.role == "assistant":
                parts += [Part(given, False), Part(turn.text, True)]
                given = ""
        return [*parts, Part(given, False)] if given else parts

    def prompt(self, turns: Sequence[Turn]) -> str:
        """What an answer to the last question follows, for a person to read."""
        return "".join(part.text for part in self.parts(turns))


def encoded(
    parts: Sequence[Part], encode: Callable[[str], list[int]], end_of_text: int
) -> list[tuple[list[int], bool]]:
    """The ids of each part, and whether it is an answer; answers end with end-of-text."""
    return [(encode(text) + [end_of_text] * is_answer, is_answer) for text, is_answer in parts]


def prompt_ids(
    template: Template, turns: Sequence[Turn], encode: Callable[[str], list[int]], end_of_text: int
) -> list[int]:
    """What the model is given to answer the last question: just what training has put before it."""
    return [token for ids, _ in encoded(template.parts(turns), encode, end_of_text) for token in ids]


def _alpaca_question(turn: Turn) -> str:
    given = f"### Input:\n{turn.input}\n\n" if turn.input else ""
    return f"### Instruction:\n{turn.text}\n\n{given}### Response:\n"


def _chat_question(turn: Turn) -> str:
    given = f"\n\n{turn.input}" if turn.input else ""
    return f"User:\n{turn.text}{given}\n\nAssistant:\n"


# Taori et al. 2023, Stanford Alpaca, with one preamble whether or not there is an input.
_ALPACA = Template(
    name="alpaca",
    stops=("\n\n### Instruction:", "\n\n### Input:", "\n\n### Response:"),
    opening=lambda system: f"{PREAMBLE if system is None else system}\n\n",
    question=_alpaca_question,
)
_CHAT = Template(
    name="chat",
    stops=("\n\nUser:\n", "\n\nAssistant:\n"),
    opening=lambda system: "" if system is None else f"System:\n{system}\n\n",
    question=_chat_question,
)
TEMPLATES = {template.name: template for template in (_ALPACA, _CHAT)}
