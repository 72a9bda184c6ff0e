"""Hundreds of damaged files for every reader: an error of ours, or exactly what another program reads."""

import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import ODD_VALUES, damage
from readers import KINDS, Kind, Model, make_nano
from torch import Tensor

from gpt2cli.errors import Gpt2Error

SEED = 20240607


@pytest.mark.parametrize("n_inputs", [600, pytest.param(5_000, marks=pytest.mark.proofs)])
def test_nothing_wrong_is_accepted_and_nothing_else_breaks(tmp_path: Path, n_inputs: int) -> None:
    generator = random.Random(SEED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {kind.name: [0, 0] for kind in KINDS}
    originals = {kind.name: made(tmp_path / "whole" / kind.name, kind) for kind in KINDS}
    for n in range(n_inputs):
        kind = KINDS[n % len(KINDS)]
        place = tmp_path / "damaged"
        shutil.copytree(originals[kind.name], place)
        how = damage(generator, place / generator.choice(kind.damaged))
        accepted = survives(place, kind, f"seed {SEED}, {kind.name} {n}: {how}")
        outcomes[kind.name][accepted] += 1
        shutil.rmtree(place)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(outcomes, f"{grown >> 10} MiB")
    assert grown < 300 << 10
    assert all(n_refused > 0.2 * n_inputs / len(KINDS) for n_refused, _ in outcomes.values())
    assert sum(n_accepted for _, n_accepted in outcomes.values()) > 0.02 * n_inputs  # both sides are tried


def made(place: Path, kind: Kind) -> Path:
    """The undamaged source, which must be read."""
    place.mkdir(parents=True)
    kind.make(place)
    assert survives(place, kind, f"{kind.name}, whole")
    return place


def survives(place: Path, kind: Kind, what: str) -> bool:
    """Whether the source was accepted; then all that was read is what the other program reads. Any
    error that is not ours fails.
    """
    try:
        found = kind.ours(place)
    except Gpt2Error as error:
        assert error.exit_code in (2, 3, 4), what
        assert 0 < len(error.what) < 5_000, what
        return False
    except Exception as error:
        raise AssertionError(what) from error
    wanted = kind.theirs(place)
    if isinstance(found, Model):
        require_same_tensors(found.tensors, wanted, what)
    else:
        assert found == wanted, what
    return True


def require_same_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    for name, tensor in found.items():
        theirs = wanted.get(name)
        if theirs is None:  # a bias that the file lacks, or rows beyond the vocabulary
            assert name.endswith(".bias") and not tensor.any(), f"{what}: {name}"
            continue
        theirs = theirs[: tensor.shape[0]].contiguous()
        assert (tensor.dtype, tensor.shape) == (theirs.dtype, theirs.shape), f"{what}: {name}"
        assert torch.equal(tensor.view(torch.uint8), theirs.view(torch.uint8)), f"{what}: {name}"


@pytest.mark.parametrize("change", ["n_layer", "n_head", "bias", "dropout"])
def test_odd_values_among_the_arguments(tmp_path: Path, change: str) -> None:
    make_nano(tmp_path)
    whole = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    kind = next(kind for kind in KINDS if kind.name == "nanogpt")
    for value in (*ODD_VALUES, torch.zeros(2), {"a": {"b": 1}}):
        if isinstance(value, int) and value > 2**100:
            value = 2**500  # as much as this pickle can hold
        torch.save({**whole, "model_args": {**whole["model_args"], change: value}}, tmp_path / "ckpt.pt")
        survives(tmp_path, kind, f"{change}={value!r}"[:80])


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.name in ("bin", "nanogpt", "book")], ids=lambda k: k.name
)
def test_odd_tensors(tmp_path: Path, kind: Kind) -> None:
    kind.make(tmp_path)
    path = tmp_path / kind.damaged[0]
    whole = torch.load(path, weights_only=True)
    state = whole.get("model", whole.get("model_state_dict", whole))
    generator = random.Random(5)
    odd: list[Callable[[Tensor], Any]] = [
        lambda t: t.double(),
        lambda t: t.bfloat16(),
        lambda t: t.int(),
        lambda t: t.bool(),
        lambda t: t.to(torch.complex64),
        lambda t: t.to_sparse(),
        lambda t: t[..., :0],
        lambda t: t[..., None],
        lambda t: t.flatten(),
        lambda t: t.flip(0).T.contiguous().T if t.dim() == 2 else t.flip(0),
        lambda t: torch.zeros(1).expand(t.shape),
        lambda t: torch.zeros(1).expand(*t.shape[:-1], 2**40),
        lambda t: torch.full_like(t, torch.nan),
        lambda t: torch.nn.Parameter(t.clone()),
        lambda t: torch.empty(t.shape, device="meta"),
        lambda t: [1.0],
        lambda t: None,
    ]
    n_accepted = 0
    for n, change in enumerate(odd):
        name = generator.choice([name for name in state if not name.endswith((".attn.bias", "mask"))])
        changed = {**state, name: change(state[name])}
        value = (
            changed if whole is state else {**whole, **{key: changed for key in whole if whole[key] is state}}
        )
        torch.save(value, path)
        n_accepted += survives(tmp_path, kind, f"{kind.name} {n} {name}")
    assert 2 <= n_accepted <= 6
