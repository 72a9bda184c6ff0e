"""Conversations in their common spellings: OpenAI's and Hugging Face's messages, ShareGPT's, trl's.

    {"messages": [{"role": "user", "content": "..."}, ...]}            OpenAI, Hugging Face
    {"conversations": [{"from": "human", "value": "..."}, ...]}        ShareGPT
    {"prompt": ..., "completion": ...}                                 trl; texts, or lists of messages
    [{"role": "user", "content": "..."}, ...]                          a list without a name

A list may be JSON in a column of a table, and a system message a field "system" beside it.

A message's "weight": 0 keeps an answer out of the loss, as in OpenAI's format; an empty one is kept out, too.
"""

import contextlib
from typing import Any

from gpt2cli.data.text_fields import text_field
from gpt2cli.errors import InputError
from gpt2cli.json_files import kind_of, parse_json
from gpt2cli.templates import Role, Turn

LISTS = ("messages", "conversations", "conversation")
PAIR = ("prompt", "completion")
BESIDE = "system"  # the system message as a field of the record, beside the list
ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "ai"), "assistant"),
}
UNSUPPORTED = ("tool", "function", "function_call", "observation", "ipython")
MESSAGE = 'a message is {"role": "user", "content": "..."}'


def is_conversation(record: dict[str, Any], instruction: str) -> bool:
    """Whether the record is read here; `instruction` is the field of instructions, which may be "prompt"."""
    if any(record.get(name) is not None for name in LISTS):
        return True
    if instruction in record:
        return False  # in a table of both kinds, the other kind's fields are null
    return any(name in record for name in LISTS) or all(name in record for name in PAIR)


def read_conversation(record: dict[str, Any], where: str) -> tuple[Turn, ...]:
    """An optional system message, then user and assistant in turn, the assistant last; it may come first.

    What follows the last answer that counts in the loss is dropped. Empty if none counts.
    Raises InputError that names the message.
    """
    found: list[tuple[str, Any]] = []  # (what it is called, the message)
    names = [name for name in LISTS if name in record]
    if names:
        name = next((name for name in names if record[name] is not None), names[0])
        found = _listed(record[name], name, where)
        beside = record.get(BESIDE)
        if isinstance(beside, str) and beside.strip() and not _is_system(found[0][1]):
            found.insert(0, (BESIDE, {"role": "system", "content": beside}))
    else:
        for name, role in zip(PAIR, ("user", "assistant"), strict=True):
            value = record[name]
            messages = [{"role": role, "content": value}] if isinstance(value, str) else value
            found += _listed(messages, name, where)
    turns: list[Turn] = []
    for here, message in found:
        turn = _turn(message, f"{where}, {here}")
        due = "assistant" if turns and turns[-1].role == "user" else "user"
        is_opening = all(before.role == "system" for before in turns)
        may_open = (turn.role == "assistant" and is_opening) or (turn.role == "system" and not turns)
        if turn.role != due and not may_open:
            raise InputError(
                f"{where}, {here}: the role is {turn.role}, but it must be {due}",
                "a system message may come first; then user and assistant take turns",
            )
        turns.append(turn)
    if turns[-1].role != "assistant":
        raise InputError(
            f"{where}: the last message is the {turns[-1].role}'s",
            "training needs an assistant's answer at the end",
        )
    if all(turn.role != "user" for turn in turns):
        raise InputError(f"{where}: no message is the user's", "an answer needs a question")
    counted = [i for i, turn in enumerate(turns) if turn.role == "assistant" and turn.in_loss]
    asked = [i for i in counted if any(turn.role == "user" for turn in turns[:i])]
    return tuple(turns[: asked[-1] + 1]) if asked else ()


def _listed(messages: Any, name: str, where: str) -> list[tuple[str, Any]]:
    if isinstance(messages, str) and messages.lstrip().startswith("["):  # a column of a table
        with contextlib.suppress(ValueError):
            messages = parse_json(messages)
    if not isinstance(messages, list) or not messages:
        is_empty = "it is an empty list" if isinstance(messages, list) else f"it is {kind_of(messages)}"
        raise InputError(f"{where}: {name!r} is not a list of messages", is_empty, MESSAGE)
    return [(f"{'message' if name in LISTS else name} {i}", message) for i, message in enumerate(messages)]


def _is_system(message: Any) -> bool:
    spelled = (message.get("role") or message.get("from")) if isinstance(message, dict) else None
    return isinstance(spelled, str) and ROLES.get(spelled.lower()) == "system"


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise InputError(f"{where}: must be a JSON object, not {kind_of(message)}", fix=MESSAGE)
    role_key, text_key = ("from", "value") if message.get("from") is not None else ("role", "content")
    spelled = text_field(message, role_key, where, MESSAGE)
    role = ROLES.get(spelled.lower())
    if role is None or message.get("tool_calls") or message.get("function_call"):
        is_tool = spelled.lower() in UNSUPPORTED or role is not None
        raise InputError(
            f"{where}: {'calls of tools are' if is_tool else f'the role {spelled[:40]!r} is'} not supported",
            f"the roles are {', '.join(ROLES)}",
            "leave it out",
        )
    weight = message.get("weight")
    weight = 1 if weight is None else weight  # parquet has null where another message has a weight
    if isinstance(weight, bool) or weight not in (0, 1):
        raise InputError(f"{where}: the weight is {weight!r}", "it must be 0 or 1", '"weight": 0')
    text = _text(message, text_key, where)
    return Turn(role, text, in_loss=weight == 1 and not (role == "assistant" and not text.strip()))


def _text(message: dict[str, Any], key: str, where: str) -> str:
    """The content: a text, or a list of parts that are texts."""
    parts = message.get(key)
    if not isinstance(parts, list):
        return text_field(message, key, where, MESSAGE)
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else kind_of(part)
        if not isinstance(part, dict) or kind not in ("text", "input_text", "output_text"):
            raise InputError(
                f"{where}: content of the type {str(kind)[:40]!r} is not supported",
                "GPT-2 reads text alone",
                "leave it out",
            )
        texts.append(text_field(part, "text", where, MESSAGE))
    return "".join(texts)
