import copy
import dataclasses

import pytest
import torch

from gpt2cli.generation.engine import generate
from gpt2cli.generation.packing import (
    FEW_ROWS,
    HUGE_PAGE,
    Bf16Linear,
    Int8Linear,
    RowLinear,
    SplitLinear,
    in_huge_pages,
    pack_for_decoding,
)
from gpt2cli.generation.sampling import Decoding
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.model.layers import Linear


@pytest.mark.parametrize("n_threads", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(1, 1, 96), (1, 96), (5, 1, 96), (2, 40, 96)])
@pytest.mark.parametrize("bias", [True, False])
def test_split_product_equals_linear(n_threads: int, shape: tuple[int, ...], bias: bool) -> None:
    torch.set_num_threads(n_threads)
    linear = torch.nn.Linear(96, 33, bias=bias)
    x = torch.randn(shape)
    packed = SplitLinear(linear)
    assert packed.parts.shape[0] == {1: 1, 2: 2, 3: 3, 7: 6}[n_threads]
    assert packed(x).shape == linear(x).shape
    assert torch.allclose(packed(x), linear(x), atol=1e-5)


def test_both_ways_of_the_split_product_are_tried() -> None:
    linear = torch.nn.Linear(8, 4)
    packed, x = SplitLinear(linear), torch.randn(FEW_ROWS + 1, 8)
    for n in (FEW_ROWS, FEW_ROWS + 1):
        assert torch.allclose(packed(x[:n]), linear(x[:n]), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_in_bf16_equal_fp32_to_the_precision_of_bf16(rows: int) -> None:
    linear = torch.nn.Linear(96, 33)
    x = torch.randn(rows, 1, 96)
    assert torch.allclose(Bf16Linear(linear)(x).float(), linear(x), rtol=2**-6, atol=2**-6)
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
    packed, x = Int8Linear(linear), torch.randn(rows, 1, 96).bfloat16()
    exact = (x.double() @ (packed.weight * packed.scale[:, None]).double().T) + (linear.bias if bias else 0)
    assert torch.allclose(packed(x).double(), exact, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("kind", [RowLinear, Bf16Linear, Int8Linear])
@pytest.mark.parametrize("shape", [(1, 1, 96), (96,)])
def test_the_sums_for_the_compiler_are_the_same_product(
    kind: type, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    linear, x = torch.nn.Linear(96, 32), torch.randn(shape)
    product = kind(linear)
    weight = product.weight.double() * (product.scale[:, None].double() if kind is Int8Linear else 1)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert product(x).dtype is torch.float32
    assert torch.allclose(product(x).double(), x.double() @ weight.T + linear.bias, atol=1e-5)


def test_huge_pages_hold_what_they_are_given() -> None:
    for shape, dtype in (((3, 5), torch.float32), ((1 << 20, 3), torch.int8), ((700, 801), torch.float32)):
        memory = in_huge_pages(shape, dtype)
        assert memory.shape == shape and memory.dtype is dtype and memory.is_contiguous()
        values = torch.randint(-100, 100, shape).to(dtype)
        assert torch.equal(memory.copy_(values), values)
        assert memory.numel() * memory.element_size() < HUGE_PAGE or memory.data_ptr() % HUGE_PAGE == 0


def test_a_packed_model_writes_the_same_and_holds_no_second_copy(model: GPT2LMHead) -> None:
    packed = pack_for_decoding(copy.deepcopy(model))
    prompts = [[5, 80, 210], [17], list(range(30))]
    ours, expected = (list(generate(m, prompts, Decoding(temperature=0), 120)) for m in (packed, model))
    assert ours == expected
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in packed.parameters()}
    assert sum(storages.values()) == 4 * model.config.n_parameters
    assert packed.transformer.wte.weight is packed.lm_head.weight
    products = [m for m in packed.modules() if isinstance(m, SplitLinear)]
    assert len(products) == 4 * model.config.n_layer + 1


def test_logits_of_a_packed_model_agree(model: GPT2LMHead) -> None:
    ids = torch.randint(0, 211, (2, 20))
    with torch.no_grad():
        expected = model(ids)
        assert torch.allclose(pack_for_decoding(model)(ids), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp32", SplitLinear), ("bf16", Bf16Linear), ("int8", Int8Linear)]
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_product_follows_the_precision(model: GPT2LMHead, precision: str, kind: type, tied: bool) -> None:
    if not tied:
        model.config = dataclasses.replace(model.config, tie_word_embeddings=False)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    packed = pack_for_decoding(model, precision)
    assert type(packed.lm_head) is kind and type(packed.transformer.h[0].attn.c_proj) is kind
    assert (packed.lm_head.weight is packed.transformer.wte.weight) is tied
    assert packed.transformer.ln_f.weight.dtype is torch.float32


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, Bf16Linear), (torch.float16, Linear)])
def test_without_a_word_the_weights_keep_their_precision(
    model: GPT2LMHead, dtype: torch.dtype, kind: type
) -> None:
    assert type(pack_for_decoding(model.to(dtype)).lm_head) is kind


@pytest.mark.parametrize(("precision", "largest"), [("bf16", 1e-4), ("int8", 6e-4)])
@pytest.mark.parametrize("at_once", [True, False])
@torch.no_grad()
def test_fewer_bits_stay_near_fp32(model: GPT2LMHead, precision: str, largest: float, at_once: bool) -> None:
    """The mean KL divergence from fp32 over a text."""
    for name, parameter in model.named_parameters():
        parameter += "ln_" in name and name.endswith("weight")  # as training leaves them, around 1
    ids = torch.randint(0, 211, (1, 60), generator=torch.Generator().manual_seed(1))
    expected = model(ids).double().log_softmax(-1)
    packed = pack_for_decoding(model, precision)
    cache = packed.new_cache(1, 64)
    rows = [ids] if at_once else ids.split(1, dim=1)
    ours = torch.cat([packed(row, cache).double() for row in rows], dim=1).log_softmax(-1)
    assert 0 < (expected.exp() * (expected - ours)).sum(-1).mean() < largest
    assert cache.keys[0].dtype is torch.bfloat16


def test_other_devices_are_left_alone(model: GPT2LMHead) -> None:
    packed = pack_for_decoding(model.to("meta"))
    assert type(packed.lm_head) is Linear
