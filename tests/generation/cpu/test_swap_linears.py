import copy
import dataclasses

import pytest
import torch

from gpt2cli.generation.cpu import swap_linears
from gpt2cli.generation.cpu.linear import (
    Bf16Linear,
    BlockedBf16Linear,
    BlockedInt8Linear,
    BlockedLinear,
    Int8Linear,
    SplitLinear,
)
from gpt2cli.generation.cpu.swap_linears import swap_for_decoding
from gpt2cli.generation.engine import generate
from gpt2cli.generation.sampling import SamplingOptions
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.model.layers import OutputLayer


def test_a_packed_model_writes_the_same_and_holds_no_second_copy(model: GPT2LMHead) -> None:
    packed = swap_for_decoding(copy.deepcopy(model))
    prompts = [[5, 80, 210], [17], list(range(30))]
    ours, expected = (
        list(generate(m, prompts, SamplingOptions(temperature=0), 120)) for m in (packed, model)
    )
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
        assert torch.allclose(swap_for_decoding(model)(ids), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp32", SplitLinear), ("bf16", Bf16Linear), ("int8", Int8Linear)]
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_product_follows_the_precision(model: GPT2LMHead, precision: str, kind: type, tied: bool) -> None:
    if not tied:
        model.config = dataclasses.replace(model.config, tie_word_embeddings=False)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    packed = swap_for_decoding(model, precision)
    assert type(packed.lm_head) is kind and type(packed.transformer.h[0].attn.c_proj) is kind
    assert (packed.lm_head.weight is packed.transformer.wte.weight) is tied
    assert packed.transformer.ln_f.weight.dtype is torch.float32


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, Bf16Linear), (torch.float16, OutputLayer)])
def test_without_a_word_the_weights_keep_their_precision(
    model: GPT2LMHead, dtype: torch.dtype, kind: type
) -> None:
    assert type(swap_for_decoding(model.to(dtype)).lm_head) is kind


@pytest.mark.parametrize(("precision", "largest"), [("bf16", 1e-4), ("int8", 6e-4)])
@pytest.mark.parametrize("at_once", [True, False])
@torch.no_grad()
def test_fewer_bits_stay_near_fp32(model: GPT2LMHead, precision: str, largest: float, at_once: bool) -> None:
    """The mean KL divergence from fp32 over a text."""
    for name, parameter in model.named_parameters():
        parameter += "ln_" in name and name.endswith("weight")  # as training leaves them, around 1
    ids = torch.randint(0, 211, (1, 60), generator=torch.Generator().manual_seed(1))
    expected = model(ids).double().log_softmax(-1)
    packed = swap_for_decoding(model, precision)
    cache = packed.new_cache(1, 64)
    rows = [ids] if at_once else ids.split(1, dim=1)
    ours = torch.cat([packed(row, cache).double() for row in rows], dim=1).log_softmax(-1)
    assert 0 < (expected.exp() * (expected - ours)).sum(-1).mean() < largest
    assert cache.keys[0].dtype is torch.bfloat16


def test_other_devices_are_left_alone(model: GPT2LMHead) -> None:
    packed = swap_for_decoding(model.to("meta"))
    assert type(packed.lm_head) is OutputLayer


BLOCKED = {"fp32": BlockedLinear, "bf16": BlockedBf16Linear, "int8": BlockedInt8Linear}


@pytest.mark.parametrize(("precision", "largest"), [("fp32", 1e-9), ("bf16", 1e-4), ("int8", 1.5e-3)])
@torch.no_grad()
def test_a_model_packed_for_several_rows_stays_near_fp32(
    model: GPT2LMHead, precision: str, largest: float
) -> None:
    """The mean KL divergence over texts that are read at once, and id by id."""
    require_blocks(precision)
    for name, parameter in model.named_parameters():
        parameter += "ln_" in name and name.endswith("weight")  # as training leaves them, around 1
    ids = torch.randint(0, 211, (3, 40), generator=torch.Generator().manual_seed(1))
    expected = model(ids).double().log_softmax(-1)
    packed = swap_for_decoding(model, precision, "rows")
    assert type(packed.lm_head) is BLOCKED[precision]
    for pieces in ([ids], ids.split(1, dim=1)):
        cache = packed.new_cache(3, 64)
        ours = torch.cat([packed(piece, cache).double() for piece in pieces], dim=1).log_softmax(-1)
        assert 0 <= (expected.exp() * (expected - ours)).sum(-1).mean() < largest
        assert cache.keys[0].dtype is torch.float32


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_row_does_not_depend_on_the_others(model: GPT2LMHead, precision: str) -> None:
    """In bf16 the same, but for what rounding makes of another order of sums."""
    require_blocks(precision)
    packed = swap_for_decoding(model, precision, "rows")
    prompts = [[5, 80, 210], [17, 3, 3], [9, 100, 2]]
    greedy = SamplingOptions(temperature=0)
    together = list(generate(packed, prompts, greedy, 20))
    for row, prompt in enumerate(prompts):
        alone = list(generate(packed, [prompt], greedy, 20))
        assert [step.ids[0] for step in alone] == [step.ids[row] for step in together]


def test_without_kernels_for_several_rows_the_others_are_taken(
    model: GPT2LMHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap_linears, "can_block", lambda precision: False)
    assert type(swap_for_decoding(model, "int8", "rows").lm_head) is Int8Linear


def require_blocks(precision: str) -> None:
    if not swap_linears.can_block(precision):
        pytest.skip(f"this processor has no kernels for several rows in {precision}")
