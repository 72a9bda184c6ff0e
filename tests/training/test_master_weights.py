"""The fast step against torch's own: the same gradients, norms and weights, but for rounding to bf16."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import scratch_task, tiny

from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.model.lora import add_lora
from gpt2cli.recipe.sections import OptimConfig
from gpt2cli.runtime import Runtime
from gpt2cli.training import events as ev
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum
from gpt2cli.training.loop import train
from gpt2cli.training.master_weights import MasterWeightsStep
from gpt2cli.training.optimizer_step import OptimizerStep, make_optimizer
from gpt2cli.training.run_dir import RunDir, newest_valid_checkpoint, save_checkpoint
from gpt2cli.training.setup import TrainingSetup, set_up_training
from gpt2cli.training.torch_compile import uncompiled

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=45, initializer_range=0.3)
CPU = torch.device("cpu")
RUNTIME = Runtime(CPU, "bf16", 2, compile=True)
IDS = torch.randint(0, 9, (3, 16), generator=torch.Generator().manual_seed(1))  # tokens that repeat
OPTIM = OptimConfig(steps=9, lr=1e-2, weight_decay=0.5)


def plain(model: GPT2LMHead) -> OptimizerStep:
    return OptimizerStep(model, make_optimizer(model, OPTIM, CPU), torch.amp.GradScaler("cpu", enabled=False))


def with_copies(model: GPT2LMHead) -> MasterWeightsStep:
    return MasterWeightsStep(model, make_optimizer(model, OPTIM, CPU))


def backward(optimizer_step: OptimizerStep, ids: torch.Tensor, factor: float = 1.0) -> float:
    with RUNTIME.autocast():
        hidden = optimizer_step.model.transformer(ids[:, :-1]).flatten(0, 1)  # type: ignore[operator,union-attr]
        weight = optimizer_step.model.lm_head.weight  # type: ignore[union-attr]
        loss = cross_entropy_sum(hidden, weight, ids[:, 1:].flatten(), RUNTIME.dtype) / ids.numel()  # type: ignore[arg-type]
    optimizer_step.backward(loss * factor)
    return loss.item()


def step(optimizer_step: OptimizerStep, *batches: torch.Tensor, max_norm: float = 1.0) -> tuple[float, float]:
    loss = sum(backward(optimizer_step, ids) for ids in batches)
    _, norm = optimizer_step.losses_and_norm([])
    optimizer_step.update(norm, max_norm)
    optimizer_step.zero_grad()
    return loss, norm


@pytest.fixture
def interpreted() -> Iterator[None]:
    """What most tests are about is the arithmetic; compiling takes longer than all of it."""
    with uncompiled():
        yield


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("limit", [0.0, 0.5])
@pytest.mark.parametrize("n_batches", [1, 3])
def test_steps_are_torchs_own_but_for_rounding(tied: bool, limit: float, n_batches: int) -> None:
    config = replace(CONFIG, tie_word_embeddings=tied)
    ours, theirs = new_model(config, 1), new_model(config, 1)
    fast, slow = with_copies(ours), plain(theirs)
    for i in range(4):
        batches = [IDS.roll(i + j, 1) for j in range(n_batches)]
        (loss, norm), (wanted_loss, wanted_norm) = (
            step(optimizer_step, *batches, max_norm=limit) for optimizer_step in (fast, slow)
        )
        assert loss == pytest.approx(wanted_loss, rel=5e-3)
        assert norm == pytest.approx(wanted_norm, rel=2e-2)
    begun = new_model(config, 1)
    for (name, a), b, c in zip(ours.named_parameters(), theirs.parameters(), begun.parameters(), strict=True):
        if name.endswith("c_attn.bias"):  # the keys' third moves by noise alone: softmax ignores it
            a, b, c = (torch.cat([whole.chunk(3)[0], whole.chunk(3)[2]]) for whole in (a, b, c))
        moved = (b - c).norm()
        assert moved > 0 and (a - b).norm() < 0.3 * moved, name


@pytest.mark.usefixtures("interpreted")
def test_an_update_is_adamw_on_just_these_gradients() -> None:
    """Both forms of weight, fed with the gradients of one of them: the same numbers in fp32."""
    ours, theirs = new_model(CONFIG, 1), new_model(CONFIG, 1)
    fast, slow = with_copies(ours), plain(theirs)
    for i in range(3):
        backward(fast, IDS.roll(i, 1))
        found = {**fast._gradients, **{p: p.grad for p in fast._others}}
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.grad = found[mine].float().clone()
        _, norm = fast.losses_and_norm([])
        assert norm == pytest.approx(slow.losses_and_norm([])[1], rel=1e-5)
        for optimizer_step in (fast, slow):
            optimizer_step.update(norm, 0.3)
            optimizer_step.zero_grad()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                fast.optimizer.state[a][key], slow.optimizer.state[b][key], atol=1e-7, rtol=1e-5
            )


@pytest.mark.usefixtures("interpreted")
def test_copies_are_the_masters_rounded_and_all_else_is_shared() -> None:
    model = new_model(CONFIG, 1)
    optimizer_step = with_copies(model)
    step(optimizer_step, IDS)
    twin = dict(optimizer_step.model.named_parameters(remove_duplicate=False))
    for name, master in model.named_parameters(remove_duplicate=False):
        if (name.startswith("transformer.h.") and master.dim() == 2) or name == "lm_head.weight":
            assert twin[name].dtype == torch.bfloat16
            assert torch.equal(twin[name], master.to(torch.bfloat16)), name
        else:
            assert twin[name].data_ptr() == master.data_ptr(), name
            assert twin[name].dtype == torch.float32
    assert not any(p.grad is not None for p in (*model.parameters(), *twin.values()))


@pytest.mark.usefixtures("interpreted")
def test_a_gradient_that_is_not_finite_is_seen_and_forgotten() -> None:
    model = new_model(CONFIG, 1)
    before = [p.clone() for p in model.parameters()]
    optimizer_step = with_copies(model)
    backward(optimizer_step, IDS, math.nan)
    assert math.isnan(optimizer_step.losses_and_norm([])[1])
    optimizer_step.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert math.isfinite(step(optimizer_step, IDS)[1]), "nothing of it is left"


@pytest.mark.usefixtures("interpreted")
def test_only_adapters_learn_beside_frozen_copies() -> None:
    model = new_model(CONFIG, 1)
    add_lora(model, rank=2, alpha=4.0, dropout=0.0, targets=("c_attn",), seed=1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer_step = with_copies(model)
    losses = [step(optimizer_step, IDS)[0] for _ in range(4)]
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) != ("lora_" in name), name


@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_a_compiled_run_resumes_in_the_same_bits(checkpointing: str, tmp_path: Path) -> None:
    if not shutil.which("g++"):
        pytest.skip("there is no C++ compiler on this machine")
    overrides = (
        "run.compile=on",
        "run.precision=bf16",
        "optim.steps=8",
        "checkpoint.every=3",
        "eval.every=4",
    )
    recipe, data = tiny(tmp_path, *overrides, f"run.activation_checkpointing={checkpointing}")
    results = []
    for stops in ([99], [5, 99]):
        run = RunDir(tmp_path / f"to-{stops[0]}")
        run.folder.mkdir()
        found: dict[int, tuple[float, float]] = {}
        for stop_at in stops:
            checkpoint = newest_valid_checkpoint(run)[0] if found else None
            session = set_up_training(scratch_task(recipe, data), recipe, checkpoint)
            assert session.runtime.compile and isinstance(session.optimizer_step, MasterWeightsStep), (
                session.notices
            )

            def save(run: RunDir = run, session: TrainingSetup = session) -> Path:
                return save_checkpoint(run, session)

            def stop(found: dict[int, object] = found, stop_at: int = stop_at) -> int:  # type: ignore[assignment]
                return 15 if len(found) == stop_at else 0

            for event in train(session, save=save, stop=stop):
                if isinstance(event, ev.StepDone):
                    found[event.step] = event.loss, event.grad_norm
        results.append((found, [p.detach() for p in session.model.parameters()]))
    torch.compiler.reset()
    (wanted, weights), (resumed, others) = results
    assert wanted == resumed and len(wanted) == 8
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def test_a_compiler_that_fails_leaves_torchs_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: MasterWeightsStep) -> None:
        raise RuntimeError("no such compiler\nmore")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    monkeypatch.setattr(MasterWeightsStep, "compile", broken)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    recipe, data = tiny(tmp_path, "run.compile=on", "run.precision=bf16", "optim.steps=2")
    session = set_up_training(scratch_task(recipe, data), recipe, None)
    assert type(session.optimizer_step) is OptimizerStep and session.optimizer_step.model is session.model
    assert session.notices == ("torch.compile does not work here (no such compiler); running without it",)
    (tmp_path / "run").mkdir()
    run = RunDir(tmp_path / "run")
    events = list(train(session, save=lambda: save_checkpoint(run, session), stop=lambda: 0))
    assert [event.step for event in events if isinstance(event, ev.StepDone)] == [1, 2]
