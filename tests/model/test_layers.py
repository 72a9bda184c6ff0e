"""Other ways to write the same layer: attention in blocks, a sigmoid for the tanh, sixteen bits a dropout."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.model.config import GPT2Config
from gpt2cli.model.cpu_ops import causal_attention_in_blocks, drop, gelu_by_sigmoid
from gpt2cli.model.gpt2 import new_model
from gpt2cli.model.layers import attention_blocks, attention_formula, attention_sdpa, gelu


def heads(n: int, seed: int) -> Tensor:
    return torch.randn(2, 3, n, 8, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.parametrize(("T", "S"), [(5, 5), (4, 4), (11, 11), (8, 8), (6, 11), (1, 7), (9, 13)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_blocks_is_attention(T: int, S: int, masked: bool) -> None:
    q, k, v = heads(T, 1), heads(S, 2), heads(S, 3)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    if masked:
        mask[:, 1] &= torch.arange(T) % 2 == 0
        mask[:, 0] = True
    given = mask.expand(2, 1, T, S) if masked else None
    wanted = attention_formula(q, k, v, given, 0.0)
    if masked:
        found = attention_blocks(q, k, v, given, 0.0)
    else:
        found = causal_attention_in_blocks(q, k, v, 0.0, n_queries=4)
    torch.testing.assert_close(found, wanted)
    upstream = heads(T, 4).detach()
    for ours, theirs in zip(
        torch.autograd.grad(found, (q, k, v), upstream),
        torch.autograd.grad(wanted, (q, k, v), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_gelu_that_is_compiled_is_the_one_of_gpt2() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, 1e4])])
    wanted = F.gelu(x, approximate="tanh")
    assert torch.equal(gelu(x), wanted)
    torch.testing.assert_close(gelu_by_sigmoid(x), wanted, atol=2e-6, rtol=2e-6)
    assert gelu_by_sigmoid(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 0.99999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_meets_its_rate_and_keeps_the_mean(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x = torch.ones(401, 1003, dtype=dtype)  # no multiple of four
    y = drop(x, rate)
    n, share = y.numel(), (y == 0).double().mean().item()
    real = min(round(rate * 2**16), 2**16 - 1) / 2**16
    assert abs(share - real) < 5 * math.sqrt(real * (1 - real) / n) and abs(real - rate) < 1e-5
    assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - real)], rel=4e-3)
    assert drop(x, 0.0) is x


def test_dropout_is_independent_of_place_neighbours_and_the_draw_before() -> None:
    torch.manual_seed(4)
    first, second = (drop(torch.ones(512, 512), 0.5) == 0 for _ in range(2))
    limit = 5 * 0.5 / math.sqrt(512 * 512)
    for other in (second, *(first.flatten().roll(n).view(512, 512) for n in (1, 2, 3, 4, 8, 512))):
        assert abs((first & other).double().mean().item() - 0.25) < limit
    for axis in (0, 1):
        means = first.double().mean(axis)
        assert means.std().item() == pytest.approx(0.5 / math.sqrt(512), rel=0.2)


def test_dropout_follows_the_seed_and_reaches_every_way_to_attend() -> None:
    q = heads(6, 1).detach()
    many = q[:1].expand(4000, -1, -1, -1)
    for attend in (attention_formula, attention_blocks, attention_sdpa):
        results = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            results.append(attend(q, q, q, None, 0.5))
        assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
        torch.manual_seed(5)
        mean = attend(many, many, many, None, 0.5).mean(0)
        torch.testing.assert_close(mean, attend(q, q, q, None, 0.0)[0], atol=0.15, rtol=0)


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the numbers that a forward keeps for its backward."""

    def __init__(self) -> None:
        self.n = 0
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        self.n += tensor.numel()
        return tensor


def test_recomputed_blocks_give_the_same_bits_under_dropout() -> None:
    config = GPT2Config(n_layer=3, n_head=2, n_embd=16, n_positions=8, vocab_size=20, dropout=0.3)
    ids = torch.arange(16).view(2, 8)
    results = []
    for checkpointing in (False, True):
        model = new_model(config, 1).train()
        model.transformer.activation_checkpointing = checkpointing
        torch.manual_seed(6)
        kept = Kept()
        with kept:
            loss = model(ids).square().sum()
        results.append((loss, torch.autograd.grad(loss, list(model.parameters())), kept.n))
    (loss, gradients, n_kept), (again, others, n_kept_again) = results
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    assert n_kept_again < n_kept / 3, "the blocks' insides are not kept"
