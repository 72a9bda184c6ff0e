"""Compiled blocks train like plain ones, and a compiler that fails leaves plain ones behind."""

import shutil
import subprocess

import pytest
import torch

from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.recipe.sections import OptimConfig
from gpt2cli.runtime import Runtime
from gpt2cli.training.optimizer_step import OptimizerStep, make_optimizer
from gpt2cli.training.torch_compile import compile_blocks, uncompiled

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=20)
RUNTIME = Runtime(torch.device("cpu"), "fp32", 2, compile=True)
IDS = torch.arange(16).view(2, 8)


@pytest.fixture(autouse=True)
def fresh_compiler() -> object:
    yield
    torch.compiler.reset()


def compiled(model: GPT2LMHead) -> str | None:
    optimizer = make_optimizer(model, OptimConfig(steps=1), torch.device("cpu"))
    return compile_blocks(
        OptimizerStep(model, optimizer, torch.amp.GradScaler("cpu", enabled=False)), 2, RUNTIME
    )


def gradient(model: GPT2LMHead) -> torch.Tensor:
    model.zero_grad()
    model(IDS).square().mean().backward()
    grad = model.transformer.h[0].attn.c_attn.weight.grad
    assert grad is not None
    return grad.clone()


def test_compiled_blocks_give_the_same_gradients() -> None:
    if not shutil.which("g++"):
        pytest.skip("there is no C++ compiler on this machine")
    model = new_model(CONFIG, 1)
    wanted = gradient(model)
    assert compiled(model) is None
    assert model.transformer.h[0].attn.c_attn.weight.grad is None, "the trial leaves no gradient"
    torch.testing.assert_close(gradient(model), wanted, atol=1e-6, rtol=1e-4)
    assert list(model.state_dict()) == list(new_model(CONFIG, 1).state_dict()), "no name changes"
    with uncompiled():
        torch.testing.assert_close(model(IDS[:1, :5]), new_model(CONFIG, 1)(IDS[:1, :5]))


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, KeyError, subprocess.SubprocessError])
def test_a_failing_compiler_is_one_notice_and_the_plain_model(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = kind("no such compiler\nmore")

    def broken(self: object, *arguments: object, **options: object) -> None:
        self._compiled_call_impl = lambda *a, **k: (_ for _ in ()).throw(fault)  # type: ignore[attr-defined]

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    model = new_model(CONFIG, 1)
    wanted = gradient(new_model(CONFIG, 1))
    notice = compiled(model)
    assert notice is not None and "no such compiler" in notice and "\n" not in notice
    assert torch.equal(gradient(model), wanted)


def test_memory_that_runs_out_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(self: object, *arguments: object, **options: object) -> None:
        self._compiled_call_impl = lambda *a, **k: torch.empty(1 << 50)  # type: ignore[attr-defined]

    monkeypatch.setattr(torch.nn.Module, "compile", burst)
    with pytest.raises(RuntimeError, match="allocate"):
        compiled(new_model(CONFIG, 1))


def test_the_optimizer_of_every_gpu_is_one_kernel_a_step() -> None:
    for device in ("cpu", "cuda", "mps"):
        optimizer = make_optimizer(new_model(CONFIG, 1), OptimConfig(steps=1), torch.device(device))
        assert optimizer.defaults["fused"], device
