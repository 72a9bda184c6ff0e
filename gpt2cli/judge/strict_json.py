"""The strict reader of a judge's answers. Near misses are errors: parsing "85/100" would be guessing.

Ignored are only thoughts before the JSON object, a Markdown fence around it, and extra keys in it.
"""

import json
import math
import re
from typing import Any, NoReturn

LONGEST_REASON = 2000  # characters; what the schema asks for is shorter
# First in a schema, so that the grades follow from it; limited, because small models do not stop.
REASON: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 300}


class AnswerError(ValueError):
    """An answer that is not the JSON object asked for; says what is wrong with it."""


def object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema of an object with exactly these properties, in this order."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def strict_object(text: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Parse a JSON object with these keys, each once; others are left out. Raises AnswerError."""
    try:
        value = json.loads(_bare(text), object_pairs_hook=_without_duplicates, parse_constant=_refuse)
    except AnswerError:
        raise
    except (ValueError, RecursionError) as error:
        raise AnswerError(f"not a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise AnswerError("not a JSON object")
    if missing := [repr(name) for name in names if name not in value]:
        others = [repr(name[:40]) for name in value if name not in names]
        has = f" and has {others[0]}" if others else ""
        raise AnswerError(f"the object lacks {' and '.join(missing[:2])}{has}")
    return {name: value[name] for name in names}


def is_unfinished_thought(text: str) -> bool:
    """Whether it begins to think and does not come to an end."""
    return bool(_THOUGHT.match(text)) and not _AFTER_THOUGHT.match(text)


def points_of(value: object, name: str) -> float:
    """Check that `value` is a number from 0 to 100 and return it, 85.5 too. Raises AnswerError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AnswerError(f"{name} is {_shown(value)}, not a number")
    if not 0 <= value <= 100:
        raise AnswerError(f"{name} is {_shown(value)}, not from 0 to 100")
    return int(value) if value == math.floor(value) else value


def one_of(value: object, name: str, words: tuple[str, ...]) -> str:
    """Check that `value` is one of the words and return it. Raises AnswerError."""
    if not isinstance(value, str) or value not in words:
        raise AnswerError(f"{name} is {_shown(value)}, not one of {', '.join(words)}")
    return value


def reason_of(value: object) -> str:
    """Check that `value` is a short text and return it without lone surrogates. Raises AnswerError."""
    if not isinstance(value, str) or not value.strip():
        raise AnswerError("the reason is empty" if isinstance(value, str) else "the reason is not text")
    if len(value) > LONGEST_REASON:
        raise AnswerError(f"the reason has {len(value)} characters, more than {LONGEST_REASON}")
    return value.encode("utf-8", "replace").decode("utf-8")


_THOUGHT = re.compile(r"\s*(<(think|thinking|thought|reasoning)>|\[THINK\]|<\|channel\|>analysis)", re.I)
# Many chat templates open the block in the prompt, so that a reply holds its end alone. A fence, or the
# object itself, has begun before a marker in a string of it.
_AFTER_THOUGHT = re.compile(
    r"(?!\s*[{`]).*?(</(think|thinking|thought|reasoning)>|\[/THINK\]|<\|channel\|>final<\|message\|>)",
    re.I | re.DOTALL,
)


def _bare(text: str) -> str:
    """The text without thoughts before it, and out of the fence that ends it."""
    if thought := _AFTER_THOUGHT.match(text):
        text = text[thought.end() :]
    before, fence, fenced = text.strip().partition("```")
    if not fence or not fenced.endswith("```") or "{" in before:
        return text
    return re.sub(r"\A[a-z]*\s", "", fenced.removesuffix("```"), flags=re.I)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise AnswerError("a key occurs twice")
    return value


def _refuse(name: str) -> NoReturn:
    raise AnswerError(f"{name} is not a number in JSON")


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return "a huge number"  # Python refuses to write more than 4,300 digits
    return repr(value)[:40]
