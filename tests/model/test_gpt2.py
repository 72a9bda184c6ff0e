"""The model against itself: two attentions, cache against no cache, and how it begins."""

import math
from dataclasses import replace

import pytest
import torch

from gpt2cli.errors import InputError
from gpt2cli.model.config import PRESETS, GPT2Config, from_hugging_face, to_hugging_face
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.model.layers import ATTENTION, KVCache

PARAMETERS = {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1558M": 1_557_611_200}


@pytest.mark.parametrize("size", PRESETS)
def test_sizes_have_the_published_number_of_parameters(size: str) -> None:
    with torch.device("meta"):
        model = GPT2LMHead(PRESETS[size])
    assert sum(p.numel() for p in model.parameters()) == PRESETS[size].n_parameters == PARAMETERS[size]


@pytest.mark.parametrize(("T", "S"), [(7, 7), (1, 9), (4, 9)])
def test_written_out_attention_equals_the_fused_one(T: int, S: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, T, 8), torch.randn(2, 3, S, 8), torch.randn(2, 3, S, 8)
    padded = torch.rand(2, 1, T, S) > 0.3
    padded[..., 0] = True
    for mask in (None, padded):
        written, fused = (ATTENTION[name](q, k, v, mask, 0.0) for name in ("formula", "sdpa"))
        torch.testing.assert_close(written, fused, atol=1e-5, rtol=0)


def test_both_attentions_give_one_model(loud_model: GPT2LMHead) -> None:
    written = GPT2LMHead(loud_model.config, attention="formula").eval()
    written.load_state_dict(loud_model.state_dict())
    ids = torch.randint(0, 257, (2, 40), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(written(ids), loud_model(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cached_pieces_equal_the_whole(loud_model: GPT2LMHead) -> None:
    ids = torch.randint(0, 257, (3, 30), generator=torch.Generator().manual_seed(2))
    cache = KVCache(loud_model.config, 3, loud_model.lm_head.weight)
    pieces = [loud_model(part, cache) for part in ids.split([11, 1, 5, 1, 12], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), loud_model(ids), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("n_last", [1, 5, 12])
def test_the_last_positions_alone_equal_those_of_the_whole(
    loud_model: GPT2LMHead, attention: str, n_last: int
) -> None:
    """With a cache that has a beginning, with padded rows, and for what the cache holds afterwards."""
    model = GPT2LMHead(loud_model.config, attention).eval()
    model.load_state_dict(loud_model.state_dict())
    body, ids = model.transformer, torch.randint(0, 257, (2, 30), generator=torch.Generator().manual_seed(4))
    whole = body(ids)
    cache = KVCache(model.config, 2, model.lm_head.weight)
    parts = [body(part, cache, n_last=n_last)[:, -n_last:] for part in ids.split([12, 18], dim=1)]
    assert [part.shape[1] for part in parts] == [n_last, n_last]
    for part, end in zip(parts, (12, 30), strict=True):
        torch.testing.assert_close(part, whole[:, end - n_last : end], atol=1e-5, rtol=1e-5)
    mask = torch.ones(30, 30, dtype=torch.bool).tril().repeat(2, 1, 1, 1)  # (B, 1, T, T)
    mask[1, :, 3:, :3] = False
    padded = body(ids, mask=mask)
    assert not torch.allclose(padded[1, -n_last:], whole[1, -n_last:], atol=1e-3)
    torch.testing.assert_close(body(ids, mask=mask, n_last=n_last), padded[:, -n_last:], atol=1e-5, rtol=1e-5)


def test_no_position_sees_what_comes_after_it(loud_model: GPT2LMHead) -> None:
    ids = torch.randint(0, 257, (1, 20), generator=torch.Generator().manual_seed(3))
    changed = ids.clone()
    changed[0, 12:] = 7
    a, b = loud_model(ids), loud_model(changed)
    torch.testing.assert_close(a[:, :12], b[:, :12], atol=1e-6, rtol=0)
    assert not torch.allclose(a[:, 12:], b[:, 12:])


def test_fresh_weights_have_the_stated_spread() -> None:
    config = GPT2Config(n_layer=4, n_head=4, n_embd=128, vocab_size=5000, n_positions=256)
    model, same, other = new_model(config, 1), new_model(config, 1), new_model(config, 2)
    block = model.transformer.h[2]
    assert block.attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.03)
    assert model.transformer.wte.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert model.transformer.wpe.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert block.attn.c_proj.bias.abs().max() == 0 and block.ln_1.weight.min() == 1
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


@torch.no_grad()
def test_a_fresh_124m_begins_at_10_98() -> None:
    """Over all targets the mean of -log p is ln V plus half the variance of the logits. Their spread comes
    from the last LayerNorm and the embedding, however many blocks lie before.
    """
    model = new_model(replace(PRESETS["124M"], n_layer=1), 1337).eval()
    logits = model(torch.arange(128)[None])[0]  # (128, V)
    losses = logits.logsumexp(1) - logits.mean(1)
    assert losses.mean().item() == pytest.approx(math.log(50257) + 768 * 0.02**2 / 2, abs=0.01)


def test_dropout_acts_in_training_only() -> None:
    model = new_model(
        GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=50, dropout=0.5), 1
    )
    ids = torch.arange(8)[None]
    model.train()
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_config_goes_to_hugging_face_and_back() -> None:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_inner=12, n_positions=5, vocab_size=9, dropout=0.1)
    assert from_hugging_face(to_hugging_face(config)) == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_head": 5}, "does not divide"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"n_embd": "wide"}, "n_embd is 'wide'"),
        ({"n_embd": 2**40}, "no model is that large"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"resid_pdrop": 3}, "resid_pdrop is 3"),
    ],
)
def test_a_config_that_is_no_gpt2_is_refused(change: dict[str, object], said: str) -> None:
    values = to_hugging_face(GPT2Config(n_layer=2, n_head=2, n_embd=8)) | change
    with pytest.raises(InputError, match=said):
        from_hugging_face(values)
