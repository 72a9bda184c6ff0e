"""Each layer that decodes on a CPU against the linear layer whose place it takes."""

import copy
import mmap
import sys

import pytest
import torch

from gpt2cli.generation.cpu.linear import (
    CHUNK,
    FEW_ROWS,
    HUGE_PAGE,
    LARGEST,
    Bf16Linear,
    BlockedBf16Linear,
    BlockedInt8Linear,
    BlockedLinear,
    Int8Linear,
    RowLinear,
    SplitLinear,
    can_block,
    in_huge_pages,
    quantize_rows,
)

KINDS = {"fp32": (BlockedLinear, 1e-5), "bf16": (BlockedBf16Linear, 2**-6), "int8": (BlockedInt8Linear, 0.03)}


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
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not any(map(can_block, KINDS))


@pytest.mark.parametrize("n_rows", [3, CHUNK + 1])
def test_each_weight_is_at_most_half_a_step_away(n_rows: int) -> None:
    weight = torch.randn(n_rows, 40) * torch.logspace(-30, 3, n_rows)[:, None]
    weight[1] = 0
    whole, scale = torch.empty(n_rows, 40, dtype=torch.int8), torch.empty(n_rows)
    quantize_rows(weight.t().contiguous().t(), whole, scale)
    assert whole.abs().max() == LARGEST and whole.min() >= -LARGEST
    assert scale[1] == 0 and not whole[1].any()
    assert ((whole * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()


def test_a_rows_largest_weight_is_kept() -> None:
    weight = torch.tensor([[0.5, -2.54, 1.0]])
    whole, scale = torch.empty(1, 3, dtype=torch.int8), torch.empty(1)
    quantize_rows(weight, whole, scale)
    assert whole.tolist() == [[25, -127, 50]]
    assert scale.item() == pytest.approx(0.02)


def test_huge_pages_hold_what_they_are_given() -> None:
    for shape, dtype in (((3, 5), torch.float32), ((1 << 20, 3), torch.int8), ((700, 801), torch.float32)):
        memory = in_huge_pages(shape, dtype)
        assert memory.shape == shape and memory.dtype is dtype and memory.is_contiguous()
        values = torch.randint(-100, 100, shape).to(dtype)
        assert torch.equal(memory.copy_(values), values)
        assert memory.numel() * memory.element_size() < HUGE_PAGE or memory.data_ptr() % HUGE_PAGE == 0


def test_they_are_large_where_the_system_has_them() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux says how large the pages of a process are")
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
        if "[never]" in file.read():
            pytest.skip("this system gives no large pages")
    before = _large_kib()
    memory = in_huge_pages((64 << 20,), torch.int8).fill_(1)
    assert _large_kib() - before >= 32 << 10  # a crowded machine may not have all of them
    del memory


def _large_kib() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return int(next(line.split()[1] for line in file if line.startswith("AnonHugePages")))


def test_a_kernel_that_has_none_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12_345, raising=False)  # it answers as to nonsense
    assert in_huge_pages((3 << 20,), torch.int8).fill_(1).sum() == 3 << 20
