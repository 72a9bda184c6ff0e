"""adapter_config.json: what is not an adapter as it is built here is refused by its field."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import IDS, Base, Lora, adapted, by_somebody_else, save_adapter, save_base

from gpt2cli.convert.open_model import open_model
from gpt2cli.errors import InputError


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return save_base(tmp_path / "models" / "plain")


@pytest.fixture
def folder(tmp_path: Path, base: Base) -> Path:
    save_adapter(tmp_path / "adapter", base, Lora())
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("r", True),
        ("r", "8"),
        ("r", 10**9),
        ("lora_alpha", None),
        ("lora_alpha", "16"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", 10**400),
        ("use_rslora", "yes"),
        ("target_modules", []),
        ("target_modules", None),
        ("target_modules", [3]),
        ("target_modules", ["q_proj"]),
        ("base_model_name_or_path", 7),
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("task_type", "SEQ_CLS"),
        ("bias", "lora_only"),
        ("a_field_of_the_future", {"on": True}),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", 1),
    ],
)
def test_settings_are_refused_by_their_field(folder: Path, field: str, value: Any) -> None:
    by_somebody_else(folder, **{field: value})
    with pytest.raises(InputError, match=rf"adapter_config\.json: {field} ") as caught:
        open_model(folder)
    assert caught.value.why


def test_a_pattern_that_would_run_for_ever_is_not_run(folder: Path, base: Base) -> None:
    by_somebody_else(folder, target_modules="(.+)+(.+)+(.+)+!")
    with torch.no_grad():
        torch.testing.assert_close(
            open_model(folder).model(IDS), adapted(base, Lora())(IDS), atol=1e-5, rtol=0
        )
