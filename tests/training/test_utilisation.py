"""Utilisation by hand for one device, and none where it would be a guess."""

from types import SimpleNamespace

import pytest
import torch

from gpt2cli.model.config import PRESETS
from gpt2cli.runtime import Runtime
from gpt2cli.training.estimate import flops_per_token, peak_flops, utilisation

CONFIG = PRESETS["124M"]


def test_operations_of_a_token_are_those_of_its_products() -> None:
    blocks = 12 * 12 * 768**2  # four matrices of 12 C^2 numbers in all, a block
    assert flops_per_token(CONFIG, 1024) == pytest.approx(
        6 * (blocks + 50257 * 768) + 12 * 12 * 768 * 1024, rel=0.002
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_a_device_is_known_by_whole_words(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_it_is_a_share_of_the_peak_and_is_told_only_where_it_means_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    gpu = Runtime(torch.device("cuda"), "bf16", 2, compile=True)
    task = SimpleNamespace(config=CONFIG, row_length=1024)
    at_peak = 312e12 / flops_per_token(CONFIG, 1024)
    assert utilisation(task, at_peak / 2, gpu) == pytest.approx(0.5)  # type: ignore[arg-type]
    changing = SimpleNamespace(config=CONFIG, row_length=None)
    assert utilisation(changing, at_peak, gpu) is None  # type: ignore[arg-type]
    for device, precision in (("cpu", "bf16"), ("cuda", "fp32")):
        other = Runtime(torch.device(device), precision, 2, compile=True)
        assert utilisation(task, at_peak, other) is None  # type: ignore[arg-type]
