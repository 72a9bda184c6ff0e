import copy

import pytest
import torch

from gpt2cli.generation.cpu import blocked
from gpt2cli.generation.cpu.blocked import BlockedBf16Linear, BlockedInt8Linear, BlockedLinear, can_block

KINDS = {"fp32": (BlockedLinear, 1e-5), "bf16": (BlockedBf16Linear, 2**-6), "int8": (BlockedInt8Linear, 0.03)}


@pytest.fixture(params=KINDS)
def precision(request: pytest.FixtureRequest) -> str:
    if not can_block(request.param):
        pytest.skip(f"this processor has no kernels for several rows in {request.param}")
    return str(request.param)


@pytest.mark.parametrize("shape", [(1, 1, 96), (2, 96), (5, 1, 96), (3, 40, 96)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_the_linear_layer(precision: str, shape: tuple[int, ...], bias: bool) -> None:
    kind, tolerance = KINDS[precision]
    linear, x = torch.nn.Linear(96, 33, bias=bias), torch.randn(shape)
    found = kind(copy.deepcopy(linear))(x)
    assert found.shape == linear(x).shape and found.dtype is torch.float32
    assert torch.allclose(found, linear(x), atol=tolerance, rtol=tolerance)


def test_int8_is_exact_for_whole_numbers() -> None:
    if not can_block("int8"):
        pytest.skip("this processor has no kernels for several rows in int8")
    linear, x = torch.nn.Linear(64, 40), torch.randint(-127, 128, (6, 64)).float()
    linear.weight = torch.nn.Parameter(torch.randint(-127, 128, (40, 64)).float())
    with torch.no_grad():
        linear.weight[:, 0], x[:, 0] = 127, -127  # so that each scale is 1
        assert torch.equal(BlockedInt8Linear(copy.deepcopy(linear))(x) - linear.bias, x @ linear.weight.T)


def test_in_int8_rows_of_zeros_and_rows_of_very_different_size_stay_apart() -> None:
    if not can_block("int8"):
        pytest.skip("this processor has no kernels for several rows in int8")
    linear = torch.nn.Linear(64, 40, bias=False)
    x = torch.randn(4, 64) * torch.tensor([[0.0], [1e-30], [1.0], [1e30]])
    with torch.no_grad():
        found, wanted = BlockedInt8Linear(copy.deepcopy(linear))(x), linear(x)
    assert torch.equal(found[0], torch.zeros(40))
    for ours, theirs in zip(found[1:].double(), wanted[1:].double(), strict=True):
        assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_nothing_is_blocked_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked.torch.backends.mkldnn, "is_available", lambda: False)
    assert not any(map(can_block, KINDS))
