"""Templates: what they write, and that asking repeats training to the id."""

from pathlib import Path

import pytest

from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of
from gpt2cli.templates import (
    CHAT_TEMPLATE,
    PREAMBLE,
    TEMPLATE_FILE,
    TEMPLATES,
    TemplatePart,
    Turn,
    encode_parts,
    prompt_ids,
    read_template,
    write_template,
)
from gpt2cli.tokenizer.bpe import gpt2

TALK = (
    Turn("system", "Be brief."),
    Turn("user", "Hello"),
    Turn("assistant", "\nHi "),
    Turn("user", " And now?", "It rains."),
    Turn("assistant", " Umbrella"),
)


def test_alpaca_is_the_well_known_text() -> None:
    alpaca = TEMPLATES["alpaca"]
    asked = (Turn("user", "Name a colour.", "red or blue"), Turn("assistant", "red"))
    assert alpaca.parts(asked) == [
        TemplatePart(
            "Below is an instruction that describes a task. Write a response that appropriately completes the"
            " request.\n\n### Instruction:\nName a colour.\n\n### Input:\nred or blue\n\n### Response:\n",
            False,
            False,
        ),
        TemplatePart("red", True, True),
    ]
    without = alpaca.prompt((Turn("user", "Name a colour."),))
    assert "### Input" not in without and without.endswith("Name a colour.\n\n### Response:\n")


def test_a_system_text_takes_the_place_of_the_preamble_and_stands_before_a_chat() -> None:
    alpaca, chat = (TEMPLATES[name].prompt(TALK[:2]) for name in ("alpaca", "chat"))
    assert alpaca.startswith("Be brief.\n\n### Instruction:\nHello") and PREAMBLE not in alpaca
    assert chat == "System:\nBe brief.\n\nUser:\nHello\n\nAssistant:\n"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_before_an_answer_is_the_prompt_in_characters_and_in_ids(name: str) -> None:
    template, tokenizer = TEMPLATES[name], gpt2()
    parts = template.parts(TALK)
    assert [part.is_answer for part in parts] == [False, True, False, True]
    assert template.prompt(TALK[:-1]) == "".join(part.text for part in parts[:-1])
    trained = encode_parts(parts, tokenizer)
    asked = prompt_ids(template, TALK[:-1], tokenizer)
    assert asked == [token for ids, _ in trained[:-1] for token in ids]
    assert asked.count(tokenizer.end_of_text) == 1, "the first answer has ended"
    assert trained[-1][0] == [*tokenizer.encode(" Umbrella"), tokenizer.end_of_text]


def test_no_byte_pair_crosses_the_border_of_an_answer() -> None:
    """Encoded as one, the line feeds of the header and of this answer become other ids."""
    template, tokenizer = TEMPLATES["alpaca"], gpt2()
    parts = template.parts((Turn("user", "x"), Turn("assistant", "\n\nyes")))
    apart = [token for ids, _ in encode_parts(parts, tokenizer) for token in ids]
    together = tokenizer.encode("".join(part.text for part in parts))
    assert apart[:-1] != together and tokenizer.decode(apart[:-1]) == tokenizer.decode(together)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_begins_the_next_question_is_a_stop(name: str) -> None:
    template = TEMPLATES[name]
    following = template.prompt(TALK[3:4]).removeprefix(template.opening(None))
    assert any(("\n\n" + following).startswith(stop) for stop in template.stops)


@pytest.mark.parametrize("name", ["alpaca", "chat"])
def test_a_folder_names_its_template(name: str, tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    hashes = write_template(tmp_path, name, gpt2())
    assert hashes == {file: sha256_of(tmp_path / file) for file in (TEMPLATE_FILE, CHAT_TEMPLATE)}
    assert read_template(tmp_path) == TEMPLATES[name]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"template": "llama"}', '{"template": []}', "\0", "[" * 9000]
)
def test_a_name_that_is_not_known_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / TEMPLATE_FILE).write_text(content)
    with pytest.raises(InputError, match=r"prompt\.json(:1)?: (names no known chat template|is not)"):
        read_template(tmp_path)
