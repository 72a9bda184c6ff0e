"""Names that are no models, as every command meets them."""

from collections.abc import Callable
from pathlib import Path

Gpt2 = Callable[..., object]


def test_no_such_model(gpt2: Gpt2) -> None:
    outcome = gpt2("inspect", "nowhere")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith("error: nowhere: no such model\n")


def test_a_file_of_a_sizes_name_is_not_mistaken_for_it(gpt2: Gpt2, tmp_path: Path) -> None:
    (tmp_path / "124M").touch()
    assert "fix: gpt2 download 124M" in gpt2("inspect", "124M").err
