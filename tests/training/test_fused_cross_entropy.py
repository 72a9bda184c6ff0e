"""Loss and gradients in one, against torch's own cross-entropy over all logits."""

import pytest
import torch
import torch.nn.functional as F

from gpt2cli.training import fused_cross_entropy
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum


def problem(n: int, n_vocab: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n + n_vocab)
    hidden = torch.randn(n, 24, generator=generator, requires_grad=True)
    weight = torch.randn(n_vocab, 24, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(0, n_vocab, (n,), generator=generator)


@pytest.mark.parametrize("n_vocab", [64, 65, 127, 3])
@pytest.mark.parametrize("n", [1, 32, 75])
def test_it_is_torchs(n: int, n_vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_cross_entropy, "CHUNK", 40)  # 75 positions take a whole one and part of one
    hidden, weight, targets = problem(n, n_vocab)
    wanted = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    gradients = torch.autograd.grad(wanted * 0.5, (hidden, weight))
    found = cross_entropy_sum(hidden, weight, targets, torch.float32)
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(torch.autograd.grad(found * 0.5, (hidden, weight)), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy_sum(hidden, weight, targets, torch.float32), wanted)


def test_gradients_come_in_the_precision_of_what_was_given() -> None:
    hidden, weight, targets = problem(50, 65)
    half = weight.detach().bfloat16().requires_grad_()
    wanted = torch.autograd.grad(
        F.cross_entropy(hidden @ half.float().T, targets, reduction="sum"), (hidden, half)
    )
    found = torch.autograd.grad(cross_entropy_sum(hidden, half, targets, torch.bfloat16), (hidden, half))
    assert [g.dtype for g in found] == [torch.float32, torch.bfloat16]
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.float() - theirs.float()).norm() < 0.02 * theirs.float().norm()


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, targets = problem(5, 65)
    cross_entropy_sum(hidden, weight.detach(), targets, torch.float32).backward()
    assert hidden.grad is not None and weight.grad is None
