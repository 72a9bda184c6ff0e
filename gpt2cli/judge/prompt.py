"""The chat prompts of an LLM judge. The texts to judge are data: a JSON object without special tokens."""

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
    # They occur inside strings only, where JSON allows escapes.
    data = _MARKERS.sub(lambda match: f"\\u{ord(match[0]):04x}", data)
    return [{"role": "system", "content": system}, {"role": "user", "content": data}]


# Digests of the wording: judgements made with different prompts are not mixed.
GRADE_PROMPT = digest_of(grade_messages("a", "b", "c", "<d [e"))
COMPARISON_PROMPT = digest_of(comparison_messages("a", "b", "c", "<d [e", "f"))
