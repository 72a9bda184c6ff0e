"""The fast step against torch's own: the same gradients, norms and weights, but for rounding to bf16."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import tiny

from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.model.lora import add_lora
from gpt2cli.recipe.schema import Optim
from gpt2cli.runtime import Runtime
from gpt2cli.training import events as ev
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum
from gpt2cli.training.master_weights import CopyLearner
from gpt2cli.training.optim import make_optimizer
from gpt2cli.training.optimizer_step import Learner
from gpt2cli.training.pretrain_task import Pretraining
from gpt2cli.training.run_dir import Run, newest_valid_checkpoint
from gpt2cli.training.setup import open_session
from gpt2cli.training.torch_compile import uncompiled

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=45, initializer_range=0.3)
CPU = torch.device("cpu")
RUNTIME = Runtime(CPU, "bf16", 2, compile=True)
IDS = torch.randint(0, 9, (3, 16), generator=torch.Generator().manual_seed(1))  # tokens that repeat
OPTIM = Optim(steps=9, lr=1e-2, weight_decay=0.5)


def plain(model: GPT2LMHead) -> Learner:
    return Learner(model, make_optimizer(model, OPTIM, CPU), torch.amp.GradScaler("cpu", enabled=False))


def with_copies(model: GPT2LMHead) -> CopyLearner:
    return CopyLearner(model, make_optimizer(model, OPTIM, CPU))


def backward(learner: Learner, ids: torch.Tensor, factor: float = 1.0) -> float:
    with RUNTIME.autocast():
        hidden = learner.model.transformer(ids[:, :-1]).flatten(0, 1)  # type: ignore[operator,union-attr]
        weight = learner.model.lm_head.weight  # type: ignore[union-attr]
        loss = cross_entropy_sum(hidden, weight, ids[:, 1:].flatten(), RUNTIME.dtype) / ids.numel()  # type: ignore[arg-type]
    learner.backward(loss * factor)
    return loss.item()


def step(learner: Learner, *batches: torch.Tensor, limit: float = 1.0) -> tuple[float, float]:
    loss = sum(backward(learner, ids) for ids in batches)
    norm = learner.gradient_norm()
    learner.update(norm, limit)
    learner.finish()
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
            step(learner, *batches, limit=limit) for learner in (fast, slow)
        )
        assert loss == pytest.approx(wanted_loss, rel=5e-3)
        assert norm == pytest.approx(wanted_norm, rel=2e-2)
    begun = new_model(config, 1)
    for (name, a), b, c in zip(ours.named_parameters(), theirs.parameters(), begun.parameters(), strict=True):
        moved = (b - c).norm()
        assert moved > 0 and (a - b).norm() < 0.3 * moved, name  # a key bias moves by noise alone


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
        norm = fast.gradient_norm()
        assert norm == pytest.approx(slow.gradient_norm(), rel=1e-5)
        for learner in (fast, slow):
            learner.update(norm, 0.3)
            learner.finish()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                fast.optimizer.state[a][key], slow.optimizer.state[b][key], atol=1e-7, rtol=1e-5
            )


@pytest.mark.usefixtures("interpreted")
def test_copies_are_the_masters_rounded_and_all_else_is_shared() -> None:
    model = new_model(CONFIG, 1)
    learner = with_copies(model)
    step(learner, IDS)
    twin = dict(learner.model.named_parameters(remove_duplicate=False))
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
    learner = with_copies(model)
    backward(learner, IDS, math.nan)
    assert math.isnan(learner.gradient_norm())
    learner.finish()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert math.isfinite(step(learner, IDS)[1]), "nothing of it is left"


@pytest.mark.usefixtures("interpreted")
def test_only_adapters_learn_beside_frozen_copies() -> None:
    model = new_model(CONFIG, 1)
    add_lora(model, rank=2, alpha=4.0, dropout=0.0, targets=("c_attn",), seed=1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    learner = with_copies(model)
    losses = [step(learner, IDS)[0] for _ in range(4)]
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) != ("lora_" in name), name


@pytest.mark.parametrize("recompute", ["off", "on"])
def test_a_compiled_run_resumes_in_the_same_bits(recompute: str, tmp_path: Path) -> None:
    if not shutil.which("g++"):
        pytest.skip("there is no C++ compiler on this machine")
    wish = ("run.compile=on", "run.precision=bf16", "optim.steps=8", "checkpoint.every=3", "eval.every=4")
    recipe, data = tiny(tmp_path, *wish, f"run.recompute={recompute}")
    results = []
    for stops in ([99], [5, 99]):
        run = Run(tmp_path / f"to-{stops[0]}")
        run.folder.mkdir()
        found: dict[int, tuple[float, float]] = {}
        for stop_at in stops:
            checkpoint = newest_valid_checkpoint(run)[0] if found else None
            session = open_session(Pretraining(recipe, data), recipe, checkpoint)
            assert session.runtime.compile and isinstance(session.learner, CopyLearner), session.notices
            for event in session.events(run, lambda: 15 if len(found) == stop_at else 0):  # noqa: B023
                if isinstance(event, ev.StepDone):
                    found[event.step] = event.loss, event.grad_norm
        results.append((found, [p.detach() for p in session.model.parameters()]))
    torch.compiler.reset()
    (wanted, weights), (resumed, others) = results
    assert wanted == resumed and len(wanted) == 8
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def test_a_compiler_that_fails_leaves_torchs_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: CopyLearner) -> None:
        raise RuntimeError("no such compiler\nmore")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    monkeypatch.setattr(CopyLearner, "prove", broken)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    recipe, data = tiny(tmp_path, "run.compile=on", "run.precision=bf16", "optim.steps=2")
    session = open_session(Pretraining(recipe, data), recipe, None)
    assert type(session.learner) is Learner and session.learner.model is session.model
    assert session.notices == ("torch.compile does not work here (no such compiler); running without it",)
    (tmp_path / "run").mkdir()
    events = list(session.events(Run(tmp_path / "run"), lambda: 0))
    assert [event.step for event in events if isinstance(event, ev.StepDone)] == [1, 2]
