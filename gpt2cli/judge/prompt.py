"""The chat prompts of an LLM judge. What is judged is data: a JSON object that holds no special token."""

import json
import re

from gpt2cli.json_lines import digest_of
from gpt2cli.judge.rubric import COMPARING, GRADING

Messages = list[dict[str, str]]
# Where special tokens begin: <s>, <|im_start|>, <<SYS>>, [INST], [/INST], [gMASK]. A list of numbers stays.
_MARKERS = re.compile(r"<|\[(?=/?[A-Za-z])|[\ud800-\udfff]")


def grade_messages(instruction: str, input: str, reference: str, response: str) -> Messages:
    """The request to grade one response."""
    fields = {"instruction": instruction, "input": input, "reference": reference, "response": response}
    return _messages(GRADING, fields)


def comparison_messages(instruction: str, input: str, reference: str, first: str, second: str) -> Messages:
    """The request to say which of two responses is better."""
    fields = {"instruction": instruction, "input": input, "reference": reference}
    return _messages(COMPARING, {**fields, "first": first, "second": second})


def _messages(system: str, fields: dict[str, str]) -> Messages:
    data = json.dumps(fields, ensure_ascii=False, indent=1)
    # Only strings hold such characters, and there each may be written by its number.
    data = _MARKERS.sub(lambda match: f"\\u{ord(match[0]):04x}", data)
    return [{"role": "system", "content": system}, {"role": "user", "content": data}]


# Digests of all that is fixed in a prompt: judgements by one wording do not mix with those by another.
GRADE_PROMPT = digest_of(grade_messages("a", "b", "c", "<d [e"))
COMPARISON_PROMPT = digest_of(comparison_messages("a", "b", "c", "<d [e", "f"))
