"""The chat prompts of an LLM judge. The texts to judge are data: a JSON object without special tokens."""

import json
import re
from collections.abc import Callable, Sequence

from gpt2cli.json_lines import digest_of
from gpt2cli.judge.rubric import comparing, grading

Messages = list[dict[str, str]]
# Where special tokens begin: <s>, <|im_start|>, <<SYS>>, [INST], [/INST], [gMASK]. A list of numbers stays.
_MARKERS = re.compile(r"<|\[(?=/?[A-Za-z])|[\ud800-\udfff]")


def grade_messages(
    instruction: str,
    input: str,
    reference: str | None,
    response: str,
    conversation: Sequence[dict[str, str]] = (),
) -> Messages:
    """The request to grade one response. `conversation` is what came before: system text and history."""
    return _messages(grading, conversation, instruction, input, reference, {"response": response})


def comparison_messages(
    instruction: str,
    input: str,
    reference: str | None,
    first: str,
    second: str,
    conversation: Sequence[dict[str, str]] = (),
) -> Messages:
    """The request to say which of two responses is better."""
    answers = {"first": first, "second": second}
    return _messages(comparing, conversation, instruction, input, reference, answers)


def _messages(
    rubric: Callable[[bool, bool], str],
    conversation: Sequence[dict[str, str]],
    instruction: str,
    input: str,
    reference: str | None,
    answers: dict[str, str],
) -> Messages:
    fields = {
        **({"conversation": list(conversation)} if conversation else {}),
        "instruction": instruction,
        "input": input,
        **({} if reference is None else {"reference": reference}),
        **answers,
    }
    data = json.dumps(fields, ensure_ascii=False, indent=1)
    # They occur inside strings only, where JSON allows escapes.
    data = _MARKERS.sub(lambda match: f"\\u{ord(match[0]):04x}", data)
    system = rubric(bool(conversation), reference is not None)
    return [{"role": "system", "content": system}, {"role": "user", "content": data}]


# Digests of the wording: judgements made with different prompts are not mixed.
GRADE_PROMPT = digest_of(grade_messages("a", "b", "c", "<d [e"))
COMPARISON_PROMPT = digest_of(comparison_messages("a", "b", "c", "<d [e", "f"))
