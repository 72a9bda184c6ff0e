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
    monkeypatch.setitem(fused_cross_entropy.CHUNK, "cpu", 40)  # 75 positions take a whole one and part of one
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


def test_in_fp16_no_gradient_is_lost_before_the_loss_scale() -> None:
    hidden, weight, targets = problem(8, 30_000)  # probabilities of 3e-5, which fp16 rounds to steps of 6e-8
    scaled = weight.detach().mul(0.02).requires_grad_()
    exact = F.cross_entropy(hidden.double() @ scaled.double().T, targets, reduction="sum")
    wanted = torch.autograd.grad(exact, (hidden, scaled))
    found = torch.autograd.grad(cross_entropy_sum(hidden, scaled, targets, torch.float16), (hidden, scaled))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-4)


def test_without_a_gradient_the_loss_is_that_of_fp32() -> None:
    hidden, weight, targets = problem(50, 65)
    far = (
        hidden.detach() * 20,
        weight.detach() * 2,
    )  # logits of some hundreds, which bf16 rounds to whole ones
    wanted = F.cross_entropy(far[0].double() @ far[1].double().T, targets, reduction="sum")
    with torch.no_grad():
        found = cross_entropy_sum(*far, targets, torch.bfloat16)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
