"""The training state beside the weights, and its two files in a checkpoint.

`train_state.safetensors` holds the optimizer's moments by parameter name. `train_state.json` holds the
counters, the fp16 loss scale and the identity of the run: what must not change for a resume to be
the same run. There is no random state: batches and dropout are functions of (seed, step).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpt2cli.checkpoints.safetensors_file import open_tensors, write_tensors
from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of, write_json
from gpt2cli.json_files import read_json_object, read_own_json
from gpt2cli.paths import STATE, TENSORS

FORMAT = 1  # of train_state.json; it is not written, the manifest has a number
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # AdamW's two, Muon's one
RECENT_LOSSES = 32  # losses in the running median that spikes are compared with


@dataclass
class TrainState:
    """The progress of a run. `step` counts finished steps, including skipped ones."""

    step: int = 0
    updates: int = 0  # steps that changed the weights: AdamW's step count
    evaluated: int = -1  # step of the last evaluation
    value: float | None = None  # what that evaluation found of `best_by`
    best_by: str = "loss"  # the recipe's eval.best, by which evaluations are compared
    best_step: int = -1  # of the best evaluation; 0 is the model before training
    best_loss: float = math.inf  # its validation loss
    best_value: float | None = None  # and what it found of `best_by`
    kept_step: int = -1  # of the best evaluation with a checkpoint: the run's `best` points there
    kept_value: float | None = None
    without_gain: int = 0  # evaluations since the best one
    skipped_in_a_row: int = 0
    in_spike: bool = False
    recent_losses: list[float] = field(default_factory=list)

    def add_evaluation(self, step: int, loss: float, metrics: Mapping[str, float]) -> bool:
        """Record an evaluation; returns whether it is the best so far. The earlier of two equals is."""
        value = loss if self.best_by == "loss" else metrics[self.best_by]
        self.evaluated, self.value = step, value
        is_best = self._is_better(value, self.best_value)
        if is_best:
            self.best_step, self.best_loss, self.best_value = step, loss, value
        self.without_gain = 0 if is_best else self.without_gain + 1
        return is_best

    @property
    def would_be_kept(self) -> bool:
        """Whether a checkpoint of this step is the best one to keep. The step must have been evaluated."""
        return self.evaluated == self.step > 0 and self._is_better(self.value, self.kept_value)

    def keep(self, step: int, value: float | None) -> None:
        """Note that the checkpoint of an evaluated step is the best of those on disk."""
        self.kept_step, self.kept_value = step, value

    def _is_better(self, value: float | None, than: float | None) -> bool:
        if value is None or than is None:
            return value is not None
        return value < than if self.best_by == "loss" else value > than


@dataclass(frozen=True)
class Computing:
    """What else the bits of a step depend on."""

    threads: int
    processes: int


RunIdentity = dict[str, str | int | float]
ROWS_PER_STEP = "batch.micro_batch * batch.accumulation"
# Of runs from before these keys were there.
_BEFORE: RunIdentity = {"model.positions": "learned", "optim.name": "adamw"}


def write_state(
    folder: Path,
    moments: Mapping[str, torch.Tensor],
    state: TrainState,
    identity: RunIdentity,
    scaler: dict[str, Any],
    computing: "Computing | None" = None,
) -> dict[str, str]:
    """Write both files into a checkpoint folder; returns {file name: SHA-256}."""
    progress = asdict(state)
    progress["best_loss"] = None if math.isinf(state.best_loss) else state.best_loss
    values = {"progress": progress, "identity": identity, "scaler": scaler}
    write_json(folder / STATE, values | ({"computing": asdict(computing)} if computing else {}))
    return {TENSORS: write_tensors(folder / TENSORS, moments, {}), STATE: sha256_of(folder / STATE)}


def moments_of(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.Tensor]:
    """AdamW's moments by their names in a checkpoint; `names` are those of the parameters, in its order."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in zip(names, _parameters(optimizer), strict=True)
        for moment in MOMENTS
        if moment in optimizer.state.get(parameter, ())
    }


def read_state(folder: Path) -> tuple[TrainState, RunIdentity, dict[str, Any]]:
    """Read (state, identity, loss scaler) from a checkpoint. The caller has verified its hashes.

    Raises NewerFormatError for a later version's, InputError for an odd one.
    """
    saved = read_own_json(folder / STATE, FORMAT, is_numbered=False)
    try:
        values = dict(saved["progress"])
        if "best_by" not in values:  # an older version's, which knew the loss alone
            values["best_value"] = values["best_loss"]
        values["best_loss"] = math.inf if values["best_loss"] is None else values["best_loss"]
        return TrainState(**values), dict(saved["identity"]), dict(saved["scaler"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / STATE}: was not saved by this version of gpt2cli",
            str(error),
            "resume with the version that started the run: run.json names it",
        ) from None


def read_threads(folder: Path, processes: int) -> int:
    """The number of threads of the run that saved a checkpoint with as many processes; 0: not recorded."""
    found = read_json_object(folder / STATE).get("computing")
    if not isinstance(found, dict) or found.get("processes") != processes:
        return 0
    threads = found.get("threads")
    return threads if isinstance(threads, int) and threads > 0 else 0


def load_moments(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    names: list[str],
    updates: int,
    place: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Restore the moments, of which `place` puts each where its parameter is, and AdamW's step count,
    `updates`. The caller has verified the file's hash.
    """
    is_fused = {p: group.get("fused") for group in optimizer.param_groups for p in group["params"]}
    with open_tensors(folder / TENSORS) as file:
        if not file.entries:
            return  # saved before the first update
        for name, parameter in zip(names, _parameters(optimizer), strict=True):
            stored = {moment: f"{moment}.{name}" for moment in MOMENTS if f"{moment}.{name}" in file.entries}
            assert stored, f"{name} has no moments"
            state: dict[str, Any] = {
                moment: place(file.read(entry), parameter) for moment, entry in stored.items()
            }
            if "exp_avg" in state:
                # Fused AdamW keeps its step count on the parameter's device, the plain one on the CPU.
                device = parameter.device if is_fused[parameter] else "cpu"
                state["step"] = torch.tensor(float(updates), device=device)
            optimizer.state[parameter] = state


def require_same_run(saved: RunIdentity, now: RunIdentity, new_run: str) -> None:
    """Raise InputError that lists every difference between the saved run and this one, and proposes
    `new_run`.
    """
    if ROWS_PER_STEP in now and "batch.micro_batch" in saved:  # an older version's
        saved = dict(saved)
        saved[ROWS_PER_STEP] = int(saved.pop("batch.micro_batch")) * int(saved.pop("batch.accumulation"))
    saved = {key: value for key, value in saved.items() if key != "world size"}  # of older versions
    saved = {key: value for key, value in _BEFORE.items() if key in now} | saved
    keys = sorted(saved.keys() | now.keys())
    changed = [f"{key}: {saved.get(key)} -> {now.get(key)}" for key in keys if saved.get(key) != now.get(key)]
    if changed:
        raise InputError(
            "this is not the run that was saved: " + "; ".join(changed),
            "a resumed run must see the same data in the same batches to end with the same weights",
            f"undo the change, or start a new run: {new_run}",
        )


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
