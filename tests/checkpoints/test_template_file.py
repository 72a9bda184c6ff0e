"""prompt.json: there and back, and what is not one."""

from pathlib import Path

import pytest

from gpt2cli.checkpoints.template_file import TEMPLATE_FILE, read_template, read_template_name, write_template
from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of


@pytest.mark.parametrize("name", ["alpaca", "chat"])
def test_the_name_comes_back_with_its_template(name: str, tmp_path: Path) -> None:
    assert read_template_name(tmp_path) is None and read_template(tmp_path) is None
    assert write_template(tmp_path, name) == {TEMPLATE_FILE: sha256_of(tmp_path / TEMPLATE_FILE)}
    template = read_template(tmp_path)
    assert read_template_name(tmp_path) == name and template is not None and template.name == name


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"template": "llama"}', '{"template": []}', "\0", "[" * 9000]
)
def test_a_name_that_is_not_known_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / TEMPLATE_FILE).write_text(content)
    with pytest.raises(InputError, match=r"prompt\.json(:1)?: (names no known chat template|is not)"):
        read_template_name(tmp_path)
