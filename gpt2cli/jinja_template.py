"""A model's own chat template: Hugging Face's form, a Jinja program that writes messages as one text.

The program comes with the model, so it runs in Jinja's sandbox: no imports, files or attributes of
Python. The templates that gpt2cli trains with are in templates.py, and are written beside a model in
this form too, for transformers and llama.cpp.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt2cli.errors import InputError
from gpt2cli.json_files import read_json_object
from gpt2cli.templates import CHAT_TEMPLATE, Template, Turn, read_template
from gpt2cli.tokenizer.base import Tokenizer

TOKENIZER_CONFIG = "tokenizer_config.json"  # held the template before it got a file of its own


@dataclass(frozen=True)
class JinjaTemplate:
    """Used in place of a `Template`, for chat alone: nothing is trained with it."""

    source: str
    where: str  # for errors
    name = "the model's own"
    stops: tuple[str, ...] = ()  # an answer ends with one of the model's end tokens

    def hugging_face_form(self, tokenizer: Tokenizer) -> str:
        return self.source

    def prompt_ids(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> list[int]:
        """The prompt for the last question: the ids of transformers' `apply_chat_template` with
        `add_generation_prompt`. Raises InputError where the template refuses the conversation.
        """
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        text = render(self.source, messages, tokenizer, self.where)
        return tokenizer.encode(text, control_tokens=True)


def read_chat_template(folder: Path) -> Template | JinjaTemplate | None:
    """The template that the model was trained with; None for a model that was never instruction-tuned.

    Raises InputError for a file that is damaged.
    """
    return read_template(folder) or read_jinja_template(folder)


def read_jinja_template(folder: Path) -> JinjaTemplate | None:
    """The folder's chat template in Hugging Face's form; of several the one called "default"."""
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        return JinjaTemplate(path.read_text("utf-8", "replace"), str(path))
    path = folder / TOKENIZER_CONFIG
    found: Any = read_json_object(path).get("chat_template") if path.is_file() else None
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, Mapping)}
        found = named.get("default")
    return JinjaTemplate(found, str(path)) if isinstance(found, str) and found else None


def render(source: str, messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer, where: str) -> str:
    """The text of the messages, up to where the next answer begins."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks an answer for trainers; its content is written as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:  # Jinja's own escapes for HTML
        return json.dumps(value, ensure_ascii=False, indent=indent)

    # As transformers sets it up.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    special = tokenizer.special
    names = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad}
    values = {name: "" if id is None else tokenizer.decode([id]) for name, id in names.items()}
    failures = (
        jinja2.TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    )
    try:
        return environment.from_string(source).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **values
        )
    except failures as error:
        raise InputError(
            f"{where}: the model's chat template cannot write this conversation",
            f"{error or type(error).__name__}"[:200],
            "without a system prompt, if there is one; or continue text: gpt2 generate",
        ) from None
