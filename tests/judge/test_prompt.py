"""The chat prompts: what is judged stays data, and a version follows the wording."""

import hashlib
import json

from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.judge.prompt import COMPARISON_PROMPT, GRADE_PROMPT, comparison_messages, grade_messages

# What chat templates put between turns; in the text of a message a tokenizer would take it for its own.
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<<SYS>>", "<start_of_turn>", "[INST]", "[/INST]", "[gMASK]"]


@given(
    st.lists(st.text() | st.sampled_from(SPECIAL) | st.characters(categories=["Cs"]), min_size=4, max_size=4)
)
def test_what_is_judged_stays_what_it_is_inside_of_a_json_string(texts: list[str]) -> None:
    system, user = grade_messages(*texts)
    assert (system["role"], user["role"]) == ("system", "user")
    assert system == grade_messages("", "", "", "")[0], "nothing of it among the rules"
    assert list(json.loads(user["content"]).values()) == texts
    assert not any(token in user["content"] for token in SPECIAL)
    user["content"].encode("utf-8")
    assert len(user["content"].split("\n")) == 6, "no line of it begins where a line begins"


def test_lists_stay_readable() -> None:
    assert '"[1, 2], [[3]], [ ]"' in grade_messages("", "", "", "[1, 2], [[3]], [ ]")[1]["content"]


def test_two_answers_are_named_by_their_place() -> None:
    system, user = comparison_messages("ask", "it", "right", "<a>", "[B]")
    assert json.loads(user["content"]) == {
        "instruction": "ask",
        "input": "it",
        "reference": "right",
        "first": "<a>",
        "second": "[B]",
    }
    assert '"better": "first" or "second" or "tie"' in system["content"]


def test_a_version_is_a_digest_of_all_that_is_fixed() -> None:
    def digest(messages: list[dict[str, str]]) -> str:
        return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]

    assert digest(grade_messages("a", "b", "c", "<d [e")) == GRADE_PROMPT
    assert digest(comparison_messages("a", "b", "c", "<d [e", "f")) == COMPARISON_PROMPT
