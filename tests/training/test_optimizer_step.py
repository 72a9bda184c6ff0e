"""The optimizer's groups, the schedule's corners, and a clip that one NaN cannot spread through."""

import math

import pytest
import torch

from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.recipe.sections import OptimConfig
from gpt2cli.training.optimizer_step import (
    OptimizerStep,
    clip_gradients,
    gradient_norm,
    learning_rate,
    make_optimizer,
    parameter_names,
)


def test_matrices_decay_and_vectors_do_not() -> None:
    model = new_model(GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=4, vocab_size=9), 1)
    optimizer = make_optimizer(model, OptimConfig(steps=1, weight_decay=0.3), torch.device("cpu"))
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2} and {p.dim() for p in plain["params"]} == {1}
    named = dict(model.named_parameters())
    held = [*decayed["params"], *plain["params"]]
    assert len(held) == len(named), "the tied matrix is there once"
    assert all(named[name] is p for name, p in zip(parameter_names(model, optimizer), held, strict=True))


def test_the_rate_climbs_to_its_top_and_falls_along_a_cosine() -> None:
    optim = OptimConfig(steps=110, lr=1.0, min_lr=0.1, warmup_steps=10)
    rates = [learning_rate(optim, step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10] == pytest.approx(1.0) and rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    middle = 10 + 99 / 2
    assert rates[int(middle)] == pytest.approx(0.55, abs=0.01)
    assert learning_rate(OptimConfig(steps=1, lr=0.5), 0) == 0.5


def test_clipping_keeps_the_direction() -> None:
    parameters = [torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0, 0]), torch.tensor([0, 4.0])
    frozen = torch.zeros(1)
    norm = gradient_norm([*parameters, frozen]).item()
    assert norm == pytest.approx(5.0)
    clip_gradients(parameters, norm, 10.0)
    assert parameters[1].grad.tolist() == [0, 4.0], "a norm below the limit is left alone"
    clip_gradients(parameters, norm, 0.0)
    assert parameters[1].grad.tolist() == [0, 4.0], "and 0 is no limit"
    clip_gradients([*parameters, frozen], norm, 1.0)
    assert parameters[0].grad[0].item() == pytest.approx(0.6, abs=1e-5)
    assert gradient_norm(parameters).item() == pytest.approx(1.0, abs=1e-5)


def test_a_nan_is_in_the_norm_and_a_learner_refuses_to_clip_by_it() -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = make_optimizer(model, OptimConfig(steps=1), torch.device("cpu"))
    learner = OptimizerStep(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    model.weight.grad, model.bias.grad = torch.tensor([[math.nan, 1.0]]), torch.tensor([7.0])
    losses, norm = learner.losses_and_norm([torch.tensor(0.25), torch.tensor(3.0)])
    assert losses == [0.25, 3.0]
    assert math.isnan(norm)
    with pytest.raises(AssertionError, match="spread one NaN"):
        learner.update(norm, 1.0)
    assert model.bias.grad.item() == 7.0
