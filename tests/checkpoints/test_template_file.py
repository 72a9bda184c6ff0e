"""prompt.json: there and back, and what is not one."""

from pathlib import Path

import pytest

from gpt2cli.checkpoints.template_file import PROMPT, read_prompt, template_of, write_prompt
from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of


@pytest.mark.parametrize("name", ["alpaca", "chat"])
def test_the_name_comes_back_with_its_template(name: str, tmp_path: Path) -> None:
    assert read_prompt(tmp_path) is None and template_of(tmp_path) is None
    assert write_prompt(tmp_path, name) == {PROMPT: sha256_of(tmp_path / PROMPT)}
    template = template_of(tmp_path)
    assert read_prompt(tmp_path) == name and template is not None and template.name == name


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"template": "llama"}', '{"template": []}', "\0", "[" * 9000]
)
def test_a_name_that_is_not_known_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / PROMPT).write_text(content)
    with pytest.raises(InputError, match=r"prompt\.json: names no prompt template"):
        read_prompt(tmp_path)
