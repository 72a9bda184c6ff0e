"""Decoding on devices that are not here: fp32 logits, attention that is right, no waiting for a number."""

import pytest
import torch
from fake_device import fake_device

from gpt2cli.generation.sampling import SamplingOptions, choose
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.cpu_ops import has_fast_sdpa
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.model.layers import OutputLayer

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=200)


def model_on_cuda(dtype: torch.dtype) -> GPT2LMHead:
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            return GPT2LMHead(CONFIG).eval()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_cuda_logits_are_fp32_sums_of_half_precision_matmuls(dtype: torch.dtype) -> None:
    with fake_device() as launches:
        model = model_on_cuda(dtype)
        logits = [model(torch.zeros(3, n, dtype=torch.long, device="cuda")) for n in (7, 1)]
    assert [(one.dtype, one.shape) for one in logits] == [(torch.float32, (3, n, 200)) for n in (7, 1)]
    assert launches.launched.count("aten.mm.dtype") == 2 and not launches.waits


@torch.no_grad()
def test_elsewhere_logits_of_half_precision_weights_are_summed_in_fp32() -> None:
    layer = OutputLayer(64, 200, bias=False).bfloat16()
    layer.weight.normal_(0, 2, generator=torch.Generator().manual_seed(1))
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(2)) * 8
    wanted = hidden.double() @ layer.weight.double().T  # some hundreds, which bf16 rounds to whole numbers
    for found in (layer(hidden), under_autocast(layer, hidden)):
        torch.testing.assert_close(found.double(), wanted, atol=1e-3, rtol=1e-5)


def under_autocast(layer: OutputLayer, hidden: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return layer(hidden)


def test_on_an_apple_gpu_attention_is_never_torchs_own() -> None:
    with fake_device():
        q, mask = (
            torch.empty(1, 2, 7, 8, device="mps"),
            torch.ones(1, 1, 7, 7, dtype=torch.bool, device="mps"),
        )
        assert not has_fast_sdpa(q, None, 0.0) and not has_fast_sdpa(q, mask, 0.1)
        assert has_fast_sdpa(torch.empty(1, 2, 7, 8, device="cuda"), None, 0.1)


def test_looking_for_nan_waits_for_no_number_of_the_device() -> None:
    with fake_device() as launches:
        logits = torch.empty(4, 200, device="cuda")
        ids = choose(logits, SamplingOptions(temperature=0), torch.zeros(4))
    assert ids.device.type == "cuda" and not launches.waits
