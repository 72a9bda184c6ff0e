import copy

import pytest
import torch

from gpt2cli.generation.cpu.linear import FEW_ROWS, Bf16Linear, Int8Linear, RowLinear, SplitLinear


@pytest.mark.parametrize("n_threads", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(1, 1, 96), (1, 96), (5, 1, 96), (2, 40, 96)])
@pytest.mark.parametrize("bias", [True, False])
def test_split_product_equals_linear(n_threads: int, shape: tuple[int, ...], bias: bool) -> None:
    torch.set_num_threads(n_threads)
    linear = torch.nn.Linear(96, 33, bias=bias)
    x = torch.randn(shape)
    packed = SplitLinear(copy.deepcopy(linear))
    assert packed.parts.shape[0] == {1: 1, 2: 2, 3: 3, 7: 6}[n_threads]
    assert packed(x).shape == linear(x).shape
    assert torch.allclose(packed(x), linear(x), atol=1e-5)


def test_both_ways_of_the_split_product_are_tried() -> None:
    linear = torch.nn.Linear(8, 4)
    packed, x = SplitLinear(copy.deepcopy(linear)), torch.randn(FEW_ROWS + 1, 8)
    for n in (FEW_ROWS, FEW_ROWS + 1):
        assert torch.allclose(packed(x[:n]), linear(x[:n]), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_in_bf16_equal_fp32_to_the_precision_of_bf16(rows: int) -> None:
    linear = torch.nn.Linear(96, 33)
    x = torch.randn(rows, 1, 96)
    assert torch.allclose(Bf16Linear(copy.deepcopy(linear))(x).float(), linear(x), rtol=2**-6, atol=2**-6)
    assert torch.backends.mkldnn.enabled


def test_onednn_is_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    product = Bf16Linear(torch.nn.Linear(8, 4))
    product.weight = torch.nn.Parameter(product.weight[:, :7])
    with pytest.raises(RuntimeError):
        product(torch.randn(1, 1, 7 * 8)[..., :8])
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_int8_equals_the_product_with_what_was_rounded(rows: int, bias: bool) -> None:
    linear = torch.nn.Linear(96, 32, bias=bias)
    packed, x = Int8Linear(copy.deepcopy(linear)), torch.randn(rows, 1, 96).bfloat16()
    exact = (x.double() @ (packed.weight * packed.scale[:, None]).double().T) + (linear.bias if bias else 0)
    assert torch.allclose(packed(x).double(), exact, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("kind", [RowLinear, Bf16Linear, Int8Linear])
@pytest.mark.parametrize("shape", [(1, 1, 96), (96,)])
def test_the_sums_for_the_compiler_are_the_same_product(
    kind: type, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    linear, x = torch.nn.Linear(96, 32), torch.randn(shape)
    product = kind(copy.deepcopy(linear))
    weight = product.weight.double() * (product.scale[:, None].double() if kind is Int8Linear else 1)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert product(x).dtype is torch.float32
    assert torch.allclose(product(x).double(), x.double() @ weight.T + linear.bias, atol=1e-5)
