"""Owns what training must remember beside the weights, and its two files in a checkpoint.

`train_state.safetensors` holds AdamW's moments by parameter name, `train_state.json` the progress
and the identity of the run: what must not change if a resumed run is to be the same run. The
random state is not here because there is none: batches and dropout are functions of (seed, step).
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpt2cli.checkpoints.safetensors_file import read_tensors, write_tensors
from gpt2cli.errors import InputError
from gpt2cli.files import open_regular, sha256_of, write_json

TENSORS, FACTS = "train_state.safetensors", "train_state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
RECENT = 32  # losses kept to know what is usual


@dataclass
class Progress:
    """Where a run is. `step` counts finished steps, skipped ones included."""

    step: int = 0
    updates: int = 0  # steps that changed the weights: AdamW's own clock
    evaluated: int = -1  # the step of the newest evaluation
    best_loss: float = math.inf
    best_step: int = -1
    without_gain: int = 0  # evaluations since the best one
    skipped_in_a_row: int = 0
    in_spike: bool = False
    recent_losses: list[float] = field(default_factory=list)


Identity = dict[str, str | int | float]


def write_state(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    names: list[str],
    progress: Progress,
    identity: Identity,
    scaler: dict[str, Any],
) -> dict[str, str]:
    """Write both files into a checkpoint folder; returns {file name: SHA-256}."""
    moments = {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in zip(names, _parameters(optimizer), strict=True)
        for moment in MOMENTS
        if parameter in optimizer.state
    }
    facts = asdict(progress)
    facts["best_loss"] = None if math.isinf(progress.best_loss) else progress.best_loss
    write_json(folder / FACTS, {"progress": facts, "identity": identity, "scaler": scaler})
    return {TENSORS: write_tensors(folder / TENSORS, moments, {}), FACTS: sha256_of(folder / FACTS)}


def read_facts(folder: Path) -> tuple[Progress, Identity, dict[str, Any]]:
    """Progress, identity and loss scaler of a checkpoint that `weights.folder.verify` has passed."""
    with open_regular(folder / FACTS) as file:
        facts = json.load(file)
    try:
        values = dict(facts["progress"])
        values["best_loss"] = math.inf if values["best_loss"] is None else values["best_loss"]
        return Progress(**values), facts["identity"], facts["scaler"]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / FACTS}: is not what this version of gpt2cli saves",
            str(error),
            "resume with the version that began the run, which run.json names",
        ) from None


def read_moments(
    folder: Path, optimizer: torch.optim.Optimizer, names: list[str], updates: int, sha256: str
) -> None:
    """Put AdamW's moments back, as after `updates` updates."""
    moments = read_tensors(folder / TENSORS, sha256)
    if not moments:
        return  # saved before the first update
    for name, parameter in zip(names, _parameters(optimizer), strict=True):
        state: dict[str, Any] = {"step": torch.tensor(float(updates), device=_clock(optimizer, parameter))}
        for moment in MOMENTS:
            state[moment] = moments[f"{moment}.{name}"].to(parameter.device)
        optimizer.state[parameter] = state


def refuse_differences(saved: Identity, now: Identity) -> None:
    """Raise InputError with every way in which the run asked for is not the run that was saved."""
    keys = sorted(saved.keys() | now.keys())
    changed = [f"{key}: {saved.get(key)} -> {now.get(key)}" for key in keys if saved.get(key) != now.get(key)]
    if changed:
        raise InputError(
            "this is not the run that was saved: " + "; ".join(changed),
            "a resumed run must see the same data in the same batches to end in the same weights",
            "undo the change, or start a new run with --name",
        )


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _clock(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> torch.device:
    """Fused AdamW keeps its step count on the parameter's device, the plain one on the CPU."""
    return parameter.device if optimizer.defaults["fused"] else torch.device("cpu")
