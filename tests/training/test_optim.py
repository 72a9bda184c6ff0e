"""The optimizer's groups, the schedule's corners, and a clip that one NaN cannot spread through."""

import math

import pytest
import torch

from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.recipe.schema import Optim
from gpt2cli.training.optim import clip_gradients, learning_rate, make_optimizer, parameter_names


def test_matrices_decay_and_vectors_do_not() -> None:
    model = new_model(GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=4, vocab_size=9), 1)
    optimizer = make_optimizer(model, Optim(steps=1, weight_decay=0.3), torch.device("cpu"))
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2} and {p.dim() for p in plain["params"]} == {1}
    named = dict(model.named_parameters())
    held = [*decayed["params"], *plain["params"]]
    assert len(held) == len(named), "the tied matrix is there once"
    assert all(named[name] is p for name, p in zip(parameter_names(model), held, strict=True))


def test_the_rate_climbs_to_its_top_and_falls_along_a_cosine() -> None:
    optim = Optim(steps=110, lr=1.0, min_lr=0.1, warmup_steps=10)
    rates = [learning_rate(optim, step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10] == pytest.approx(1.0) and rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    middle = 10 + 99 / 2
    assert rates[int(middle)] == pytest.approx(0.55, abs=0.01)
    assert learning_rate(Optim(steps=1, lr=0.5), 0) == 0.5


def test_clipping_keeps_the_direction_and_reports_the_norm_before() -> None:
    parameters = [torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0, 0]), torch.tensor([0, 4.0])
    assert clip_gradients(parameters, 10.0) == pytest.approx(5.0)
    assert parameters[1].grad.tolist() == [0, 4.0], "a norm below the limit is left alone"
    assert clip_gradients(parameters, 1.0) == pytest.approx(5.0)
    assert parameters[0].grad[0].item() == pytest.approx(0.6, abs=1e-5)
    assert clip_gradients(parameters, 0.0) == pytest.approx(1.0, abs=1e-5)


def test_a_nan_stays_where_it_is() -> None:
    parameters = [torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)]
    parameters[0].grad, parameters[1].grad = torch.tensor([math.nan]), torch.tensor([7.0])
    assert math.isnan(clip_gradients(parameters, 1.0))
    assert parameters[1].grad.item() == 7.0
