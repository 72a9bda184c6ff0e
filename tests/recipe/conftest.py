"""Recipe files that a test writes and reads."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2cli.errors import Gpt2Error
from gpt2cli.recipe.loader import load_recipe

SMALL = """\
# A title
task: pretrain
data:
  source: the-verdict
model:
  size: 124M
  context: 256
optim:
  steps: 90
  lr: 4e-4
"""


@pytest.fixture
def small() -> str:
    """The smallest recipe; optim.lr stands on line 10."""
    return SMALL


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], str]:
    """Writes x.yaml in the working directory, and returns that name."""
    monkeypatch.chdir(tmp_path)

    def write(content: str | bytes) -> str:
        (tmp_path / "x.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
        return "x.yaml"

    return write


@pytest.fixture
def refused(written: Callable[[str | bytes], str]) -> Callable[..., Gpt2Error]:
    """Loads a text that must be refused, and returns the error."""

    def load(content: str | bytes, *overrides: str) -> Gpt2Error:
        with pytest.raises(Gpt2Error) as caught:
            load_recipe(written(content), overrides)
        return caught.value

    return load
