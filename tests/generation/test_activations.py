"""One forward pass as it is watched, against what transformers shows of its own."""

from pathlib import Path

import pytest
import torch
import transformers
from loud import loud
from torch import Tensor

from gpt2cli.checkpoints.folder import load_model, write_manifest, write_model
from gpt2cli.generation.activations import ForwardTrace, attention_weights, heads, next_tokens, trace_forward
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.tokenizer.chars import Chars

CHARS = Chars.from_text("".join(map(chr, range(32, 127))))
CONFIG = GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=40, vocab_size=CHARS.n_vocab)
T = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_manifest(path, write_model(path, loud(new_model(CONFIG, 1)), CHARS, "task: pretrain\n"))
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> GPT2LMHead:
    return load_model(folder, attention="formula").model


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, CHARS.n_vocab, (1, T), generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def anatomy(model: GPT2LMHead, ids: Tensor) -> ForwardTrace:
    return trace_forward(model, ids, n_drawn=T)


@pytest.fixture(scope="module")
def theirs(folder: Path, ids: Tensor) -> transformers.modeling_outputs.CausalLMOutputWithCrossAttentions:
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return reference(ids, output_attentions=True, output_hidden_states=True)


Theirs = transformers.modeling_outputs.CausalLMOutputWithCrossAttentions


def test_attention_is_that_of_transformers(anatomy: ForwardTrace, theirs: Theirs) -> None:
    wanted = torch.cat(theirs.attentions)
    assert wanted.std() > 0.1, "weights this even would hide mistakes"
    torch.testing.assert_close(anatomy.attention, wanted, atol=1e-5, rtol=0)
    assert anatomy.attention.triu(1).count_nonzero() == 0


@torch.no_grad()
def test_what_is_drawn_is_what_the_model_used(model: GPT2LMHead, ids: Tensor, anatomy: ForwardTrace) -> None:
    seen: dict[str, Tensor] = {}
    for layer, block in enumerate(model.transformer.h):
        handles = [
            block.attn.c_attn.register_forward_hook(lambda m, i, o: seen.update(qkv=o)),
            block.attn.c_proj.register_forward_hook(lambda m, i, o: seen.update(y=i[0])),
        ]
        model(ids)
        q, k, v = heads(seen["qkv"], CONFIG.n_head)
        torch.testing.assert_close(attention_weights(q, k)[0], anatomy.attention[layer], atol=1e-6, rtol=0)
        y = (anatomy.attention[layer] @ v).transpose(1, 2).reshape(1, T, CONFIG.n_embd)
        torch.testing.assert_close(y, seen["y"], atol=1e-6, rtol=0)
        for handle in handles:
            handle.remove()


def test_the_residual_stream_is_that_of_transformers(anatomy: ForwardTrace, theirs: Theirs) -> None:
    found = {a.name: a for a in anatomy.activations}
    names = ["wte+wpe", "h.0.after_mlp", "h.1.after_mlp", "ln_f"]  # their last one is normalised
    for name, hidden in zip(names, theirs.hidden_states, strict=True):
        numbers = found[name].statistics
        assert found[name].shape == tuple(hidden.shape)
        assert numbers is not None
        wanted = (hidden.mean(), hidden.std(correction=0), hidden.min(), hidden.max())
        got = (numbers.mean, numbers.std, numbers.min, numbers.max)
        assert got == pytest.approx([float(w) for w in wanted], abs=1e-5)
    torch.testing.assert_close(anatomy.logits, theirs.logits[0, -1], atol=1e-4, rtol=0)


def block(layer: int) -> dict[str, tuple[int, ...]]:
    C, H, D, M = 32, 4, 8, 128
    shapes = {
        "ln_1": (1, T, C),
        "attn.c_attn": (1, T, 3 * C),
        "attn.q": (1, H, T, D),
        "attn.k": (1, H, T, D),
        "attn.v": (1, H, T, D),
        "attn.weights": (1, H, T, T),
        "attn.y": (1, T, C),
        "attn.c_proj": (1, T, C),
        "after_attn": (1, T, C),
        "ln_2": (1, T, C),
        "mlp.c_fc": (1, T, M),
        "mlp.gelu": (1, T, M),
        "mlp.c_proj": (1, T, C),
        "after_mlp": (1, T, C),
    }
    return {f"h.{layer}.{name}": shape for name, shape in shapes.items()}


def test_every_activation_in_order(anatomy: ForwardTrace) -> None:
    wanted = {"input_ids": (1, T), "wte": (1, T, 32), "wpe": (T, 32), "wte+wpe": (1, T, 32)}
    wanted |= block(0) | block(1) | block(2) | {"ln_f": (1, T, 32), "logits": (1, T, CHARS.n_vocab)}
    assert [(a.name, a.shape) for a in anatomy.activations] == list(wanted.items())


@torch.no_grad()
def test_values_between_the_modules(model: GPT2LMHead, ids: Tensor, anatomy: ForwardTrace) -> None:
    """What no module returns is rebuilt by hand for the first block."""
    trunk = model.transformer
    x = trunk.wte(ids) + trunk.wpe(torch.arange(T))
    after = x + trunk.h[0].attn(trunk.h[0].ln_1(x), None, None)
    gelu = torch.nn.functional.gelu(trunk.h[0].mlp.c_fc(trunk.h[0].ln_2(after)), approximate="tanh")
    found = {a.name: a.statistics for a in anatomy.activations}
    for name, tensor in (("wte+wpe", x), ("h.0.after_attn", after), ("h.0.mlp.gelu", gelu)):
        assert found[name].std == pytest.approx(float(tensor.std(correction=0)), rel=1e-5)
        assert found[name].max == pytest.approx(float(tensor.max()), rel=1e-5)


def test_the_likeliest_are_those_of_transformers(anatomy: ForwardTrace, theirs: Theirs) -> None:
    wanted = theirs.logits[0, -1].softmax(dim=-1).topk(10)
    found = next_tokens(anatomy.logits, 10)
    assert [token.id for token in found] == wanted.indices.tolist()
    assert [token.probability for token in found] == pytest.approx(wanted.values.tolist(), abs=1e-6)


def test_no_more_tokens_than_there_are(anatomy: ForwardTrace) -> None:
    found = next_tokens(anatomy.logits, 10**6)
    assert sorted(token.id for token in found) == list(range(CHARS.n_vocab))
    assert sum(token.probability for token in found) == pytest.approx(1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_have_no_order(anatomy: ForwardTrace, value: float) -> None:
    logits = anatomy.logits.clone()
    logits[3] = value
    assert next_tokens(logits, 5) == []


@pytest.mark.parametrize("n", [0, 1, 4, 100])
def test_attention_of_the_last_tokens_alone(
    model: GPT2LMHead, ids: Tensor, anatomy: ForwardTrace, n: int
) -> None:
    kept = trace_forward(model, ids, n).attention
    first = max(T - n, 0)
    assert kept.shape == (3, 4, T - first, T - first)
    torch.testing.assert_close(kept, anatomy.attention[:, :, first:, first:], atol=1e-6, rtol=0)


def test_nothing_is_left_in_the_model(model: GPT2LMHead, ids: Tensor) -> None:
    trace_forward(model, ids)
    assert all(not module._forward_hooks for module in model.modules())


def test_the_fused_kernel_shows_the_same(folder: Path, ids: Tensor, anatomy: ForwardTrace) -> None:
    fused = trace_forward(load_model(folder).model, ids, T)
    torch.testing.assert_close(fused.attention, anatomy.attention, atol=1e-5, rtol=0)


def test_where_numbers_stop_being_finite(folder: Path, ids: Tensor) -> None:
    model = load_model(folder, attention="formula").model
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.bias[5] = float("nan")
    found = trace_forward(model, ids)
    broken = [a.name for a in found.activations if a.statistics and a.statistics.n_nan]
    assert broken[:2] == ["h.1.mlp.c_fc", "h.1.mlp.gelu"]
    assert broken[-1] == "logits"
