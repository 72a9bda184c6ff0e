import copy

import pytest
import torch

from gpt2cli.generation.engine import generate
from gpt2cli.generation.packing import FEW_ROWS, PlainLinear, SplitLinear, pack_for_decoding
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
def test_plain_product_equals_fp32_to_the_precision_of_bf16(rows: int) -> None:
    linear = torch.nn.Linear(96, 33).bfloat16()
    x = torch.randn(rows, 1, 96).bfloat16()
    exact = torch.nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    assert torch.allclose(PlainLinear(linear)(x).double(), exact, rtol=2**-7, atol=2**-7)
    assert torch.backends.mkldnn.enabled


def test_plain_product_gives_onednn_back_after_an_error() -> None:
    product = PlainLinear(torch.nn.Linear(8, 4).bfloat16())
    with pytest.raises(RuntimeError):
        product(torch.randn(1, 8))  # fp32 input
    assert torch.backends.mkldnn.enabled


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


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, PlainLinear), (torch.float16, Linear)])
def test_the_product_follows_the_precision(model: GPT2LMHead, dtype: torch.dtype, kind: type) -> None:
    packed = pack_for_decoding(model.to(dtype))
    assert type(packed.lm_head) is kind
    assert type(packed.transformer.h[0].attn.c_proj) is kind
    assert packed.lm_head.weight is packed.transformer.wte.weight


def test_other_devices_are_left_alone(model: GPT2LMHead) -> None:
    packed = pack_for_decoding(model.to("meta"))
    assert type(packed.lm_head) is Linear
