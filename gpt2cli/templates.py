"""Chat templates: how a conversation becomes one text, in training and in generation alike.

A template turns a conversation into parts: what is given, and what the model answers. Everything
before an answer is the same text, and the same ids, in training and in generation, because each part
is encoded by itself: no byte pair crosses a border. Markers are ordinary text, so GPT-2 needs no new
tokens; an end-of-text id ends each answer. A user's text that holds a marker is left unchanged. A model
folder names its template in prompt.json, and whether it was trained on single exchanges alone; it holds the
template in Hugging Face's form as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of, write_file, write_json
from gpt2cli.json_files import read_json_object
from gpt2cli.tokenizer.base import Tokenizer, begin

TEMPLATE_FILE, CHAT_TEMPLATE = "prompt.json", "chat_template.jinja"
Role = Literal["system", "user", "assistant"]
Turns = Literal["single", "multi"]  # questions with their answers in a training record, at most
PREAMBLE = (
    "Below is an instruction that describes a task."
    " Write a response that appropriately completes the request."
)

CONTENT = "\0"  # stands for a message's text where a template is written in another language
ALPACA_REPLY, CHAT_REPLY = "### Response:\n", "Assistant:\n"


@dataclass(frozen=True)
class Turn:
    """One message. `input` is what a user's instruction applies to, where it is given apart; an answer
    that is not `in_loss` is read in training, not predicted.
    """

    role: Role
    text: str
    input: str = ""
    in_loss: bool = True


class TemplatePart(NamedTuple):
    text: str
    is_answer: bool
    in_loss: bool


@dataclass(frozen=True)
class Template:
    """One chat format. `stops` are texts that end an answer besides end-of-text: with them the
    model begins to write the user's turn.
    """

    name: str
    stops: tuple[str, ...]
    opening: Callable[[str | None], str]  # with the system's text, where there is one
    question: Callable[[Turn], str]  # up to the place where the answer begins
    reply: str  # the header of an answer; the question's text ends with it

    def parts(self, turns: Sequence[Turn]) -> list[TemplatePart]:
        """The turns as parts, in order; after a last question the answer may begin."""
        system = turns[0].text if turns and turns[0].role == "system" else None
        parts, given, is_asked = [], self.opening(system), False
        for turn in turns:
            if turn.role == "user":
                given, is_asked = given + self.question(turn), True
            elif turn.role == "assistant":
                given += "" if is_asked else self.reply  # a greeting opens the conversation
                parts += [TemplatePart(given, False, False), TemplatePart(turn.text, True, turn.in_loss)]
                given = ""
        return [*parts, TemplatePart(given, False, False)] if given else parts

    def hugging_face_form(self, tokenizer: Tokenizer) -> str:
        """The Jinja program by which transformers' `apply_chat_template` gives the ids of `prompt_ids`."""
        default = self.opening(None)
        otherwise = "{% else %}" + _jinja(default, "") if default else ""
        return (
            ("{{ bos_token }}" if begin(tokenizer) else "")
            + "{% if messages and messages[0].role == 'system' %}"
            + _jinja(self.opening(CONTENT), "messages[0].content")
            + otherwise
            + "{% endif %}{% for message in messages %}{% if message.role == 'user' %}"
            + _jinja(self.message(CONTENT), "message.content")
            + "{% elif message.role == 'assistant' %}"
            + _jinja(self.reply + CONTENT, "message.content + eos_token")
            + "{% endif %}{% endfor %}"
            + "{% if add_generation_prompt %}"
            + _jinja(self.reply, "")
            + "{% endif %}"
        )

    def message(self, text: str) -> str:
        """A user's message, without the header of the answer that follows."""
        return self.question(Turn("user", text)).removesuffix(self.reply)

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The prompt for the last question as text, for a person to read."""
        return "".join(part.text for part in self.parts(turns))


def write_template(
    folder: Path, name: str, tokenizer: Tokenizer, turns: Turns | None = None
) -> dict[str, str]:
    """Write the template's name, its Hugging Face form, and what the model was trained on; returns
    {file name: SHA-256} for the manifest.
    """
    write_json(folder / TEMPLATE_FILE, {"template": name} | ({"turns": turns} if turns else {}))
    write_file(folder / CHAT_TEMPLATE, TEMPLATES[name].hugging_face_form(tokenizer))
    return {file: sha256_of(folder / file) for file in (TEMPLATE_FILE, CHAT_TEMPLATE)}


def read_template(folder: Path) -> Template | None:
    """The template that the folder names; None for a model that was never instruction-tuned.

    Raises InputError for a file that names none of the templates.
    """
    path = folder / TEMPLATE_FILE
    if not path.exists():
        return None
    name = read_json_object(path).get("template")
    if not isinstance(name, str) or name not in TEMPLATES:
        raise InputError(
            f"{path}: names no known chat template",
            f"they are {', '.join(TEMPLATES)}",
            "pip install --upgrade gpt2cli, if a newer version wrote it",
        )
    return TEMPLATES[name]


def read_turns(folder: Path) -> Turns | None:
    """Whether the folder's model was trained on single exchanges alone; None where it does not say: models
    of earlier versions, and those that were never instruction-tuned. Raises InputError for what is not JSON.
    """
    path = folder / TEMPLATE_FILE
    found = read_json_object(path).get("turns") if path.exists() else None
    return next((known for known in get_args(Turns) if known == found), None)


def encode_parts(parts: Sequence[TemplatePart], tokenizer: Tokenizer) -> list[tuple[list[int], bool]]:
    """The ids of each part, and whether it is in the loss; answers end with end-of-text."""
    encoded = [
        (tokenizer.encode(text) + [tokenizer.end_of_text] * is_answer, in_loss)
        for text, is_answer, in_loss in parts
    ]
    if encoded:
        ids, in_loss = encoded[0]
        encoded[0] = begin(tokenizer) + ids, in_loss
    return encoded


def prompt_ids(template: Template, turns: Sequence[Turn], tokenizer: Tokenizer) -> list[int]:
    """The prompt for the last question: the ids that training puts before an answer."""
    return [token for ids, _ in encode_parts(template.parts(turns), tokenizer) for token in ids]


def _alpaca_question(turn: Turn) -> str:
    given = f"### Input:\n{turn.input}\n\n" if turn.input else ""
    return f"### Instruction:\n{turn.text}\n\n{given}{ALPACA_REPLY}"


def _chat_question(turn: Turn) -> str:
    given = f"\n\n{turn.input}" if turn.input else ""
    return f"User:\n{turn.text}{given}\n\n{CHAT_REPLY}"


def _jinja(text: str, content: str) -> str:
    """A Jinja output of the text, with the expression `content` where CONTENT stands. Its line feeds are
    escaped, because Jinja drops a literal one after a block.
    """
    strings = [repr(piece) if piece else "" for piece in text.split(CONTENT)]
    between = [word for piece in strings for word in (piece, content)][:-1]
    return "{{ " + " + ".join(word for word in between if word) + " }}"


# Taori et al. 2023, Stanford Alpaca, with one preamble whether or not there is an input.
_ALPACA = Template(
    name="alpaca",
    stops=("\n\n### Instruction:", "\n\n### Input:", "\n\n### Response:"),
    opening=lambda system: f"{PREAMBLE if system is None else system}\n\n",
    question=_alpaca_question,
    reply=ALPACA_REPLY,
)
_CHAT = Template(
    name="chat",
    stops=("\n\nUser:\n", "\n\nAssistant:\n"),
    opening=lambda system: "" if system is None else f"System:\n{system}\n\n",
    question=_chat_question,
    reply=CHAT_REPLY,
)
TEMPLATES = {template.name: template for template in (_ALPACA, _CHAT)}
