"""A grid of runs: every combination of the values of some keys, once per seed; and what came out.

Each run is one of its own in the grid's folder; `cli/grid.py` starts them. What a run found is read from its
metrics.jsonl, so that a grid knows nothing that its runs do not.
"""

import hashlib
import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2cli import files
from gpt2cli.errors import UsageError
from gpt2cli.evaluation.seed_statistics import (
    MeanOverSeeds,
    PairedDifference,
    mean_over_seeds,
    paired_difference,
)
from gpt2cli.json_files import read_own_json
from gpt2cli.recipe.loader import dump_recipe, load_recipe
from gpt2cli.training.metrics_log import records_of
from gpt2cli.training.run_dir import RunDir, diverged_at, evaluations

RECORD, RECORD_FORMAT = "grid.json", 1
LONGEST_NAME = 120  # characters of a run's folder
Status = Literal["new", "unfinished", "finished", "diverged"]


@dataclass(frozen=True)
class GridRun:
    """One run of the grid; `overrides` are the recipe's, the seed among them."""

    cell: str  # "positions=rotary lr=1e-3"; the same for each seed
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    digest: str  # of the recipe that they give

    @property
    def status(self) -> Status:
        run = RunDir(self.folder)
        if diverged_at(run) is not None:
            return "diverged"
        ends = [record["reason"] for record in records_of(run.metrics, "Stopped")]
        if ends and ends[-1] in ("finished", "patience"):
            return "finished"
        return "unfinished" if run.record.exists() else "new"


@dataclass(frozen=True)
class RunResult:
    """What a run found. `curve` has step, seconds of training so far and loss of each evaluation."""

    cell: str
    seed: int
    folder: Path
    is_diverged: bool
    curve: tuple[tuple[int, float, float], ...]
    tokens_per_second: float  # of the median step

    @property
    def best(self) -> float:
        return min((loss for _, _, loss in self.curve), default=math.inf)

    def reached(self, loss: float) -> tuple[int, float] | None:
        """Step and seconds of the first evaluation that found at most `loss`."""
        return next(((step, seconds) for step, seconds, found in self.curve if found <= loss), None)


@dataclass(frozen=True)
class CellSummary:
    """A cell over its seeds. Runs that diverged do not count."""

    cell: str
    results: tuple[RunResult, ...]
    n_diverged: int
    best: MeanOverSeeds | None
    tokens_per_second: MeanOverSeeds | None
    steps_to: MeanOverSeeds | None  # of the runs that reached the loss
    seconds_to: MeanOverSeeds | None
    difference: PairedDifference | None  # of the best loss, from that of the best cell; None for that one


@dataclass(frozen=True)
class GridReport:
    """The table. `loss` is the target: times are measured until a run reaches it."""

    cells: tuple[CellSummary, ...]
    loss: float


def plan_grid(recipe: str, arguments: Sequence[str], n_seeds: int, folder: Path) -> list[GridRun]:
    """The runs of the grid, cell after cell: KEY=A,B varies a key, KEY=A holds for all.

    Seeds count up from the recipe's. Raises UsageError for a seed that is varied, for two equal runs, and as
    `load_recipe`.
    """
    split = [_split(argument) for argument in arguments]
    axes = {key: values for key, values in split if len(values) > 1}
    for key, last in axes.items():
        if len(given := [others for name, others in split if name == key]) > 1:
            both = list(dict.fromkeys(itertools.chain(*given)))
            raise UsageError(
                f"{key} is given {len(given)} times",
                f"the values of a key stand together; here only {','.join(last)} would count",
                f"{key}={','.join(both)}",
            )
    if "seed" in axes:
        raise UsageError(
            "seed has several values",
            "each cell has the same seeds, which count up",
            f"--seeds {len(axes['seed'])} seed={axes['seed'][0]}",
        )
    fixed = [argument for argument in arguments if argument.partition("=")[0] not in axes]
    names = _short_names(list(axes))
    runs = list[GridRun]()
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        varied = [f"{key}={value}" for key, value in chosen.items()]
        cell = " ".join(f"{names[key]}={value}" for key, value in chosen.items())
        first = load_recipe(recipe, [*fixed, *varied]).recipe.seed
        for seed in range(first, first + n_seeds):
            overrides = (*fixed, *varied, f"seed={seed}")
            text = dump_recipe(load_recipe(recipe, overrides).recipe)
            digest = hashlib.sha256(text.encode()).hexdigest()
            name = _folder_name(f"{cell} seed={seed}".strip())
            runs.append(GridRun(cell or "the recipe", seed, folder / name, overrides, digest))
    for one, other in itertools.combinations(runs, 2):
        if one.digest == other.digest or one.folder == other.folder:
            raise UsageError(
                f"{one.cell} and {other.cell} are the same run",
                "their values are equal, and a grid has each once",
            )
    return runs


def split_values(text: str) -> list[str]:
    """The values between commas, but for commas inside [ ], { } or quotes: [a,b],[c] has two.

    A quote opens at the beginning of a value alone: it's,that's has two as well.
    """
    values, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            values.append("")
            continue
        values[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and values[-1][:-1].rstrip()[-1:] in ("", "[", "{", ",", ":"):
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
    return [value.strip() for value in values]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """lr for optim.lr; the whole key where two end alike, as lora.dropout and model.dropout."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def record_grid(folder: Path, runs: Sequence[GridRun]) -> None:
    """Note in grid.json which recipe each run has; runs that are there already must have the same one.

    Raises UsageError for a run of another recipe.
    """
    path, known = folder / RECORD, dict[str, str]()
    if path.exists():
        known = dict(read_own_json(path, RECORD_FORMAT)["runs"])
    for run in runs:
        if known.get(run.folder.name, run.digest) != run.digest:
            raise UsageError(
                f"{run.folder}: was started with another recipe",
                "its result would stand in a table where it does not belong",
                f"--name {folder.name}-2",
            )
    known |= {run.folder.name: run.digest for run in runs}
    files.write_json(path, {"format": RECORD_FORMAT, "runs": known})


def read_result(run: GridRun) -> RunResult:
    """What a run found so far."""
    place = RunDir(run.folder)
    step_records = records_of(place.metrics, "StepDone")
    curve, seconds = list[tuple[int, float, float]](), 0.0
    remaining = iter([*step_records, {"step": math.inf, "seconds": 0.0}])
    step = next(remaining)
    for evaluation in evaluations(place):
        while step["step"] <= evaluation["step"]:
            seconds, step = seconds + step["seconds"], next(remaining)
        curve.append((evaluation["step"], seconds, evaluation["loss"]))
    speeds = [record["n_tokens"] / record["seconds"] for record in step_records if record["seconds"]]
    return RunResult(
        cell=run.cell,
        seed=run.seed,
        folder=run.folder,
        is_diverged=diverged_at(place) is not None,
        curve=tuple(curve),
        tokens_per_second=statistics.median(speeds) if speeds else 0.0,
    )


def summarize(results: Sequence[RunResult], loss: float | None) -> GridReport:
    """The table of the results, in their order; None measures time to the loss that all runs reach."""
    by_cell = {cell: list(group) for cell, group in itertools.groupby(results, key=lambda one: one.cell)}
    finished = {
        cell: [one for one in group if not one.is_diverged and one.curve] for cell, group in by_cell.items()
    }
    if loss is None:
        worst = max((one.best for group in finished.values() for one in group), default=math.inf)
        loss = math.ceil(worst * 1000) / 1000 if math.isfinite(worst) else worst
    means = {cell: mean_over_seeds([one.best for one in group]) for cell, group in finished.items()}
    ranked = [cell for cell, mean in means.items() if mean]
    best = min(ranked, key=lambda cell: means[cell].mean, default="")  # type: ignore[union-attr]

    def losses(cell: str) -> dict[int, float]:
        return {one.seed: one.best for one in finished[cell]}

    cells = []
    for cell, group in finished.items():
        reached = [found for one in group if (found := one.reached(loss))]
        cells.append(
            CellSummary(
                cell=cell,
                results=tuple(by_cell[cell]),
                n_diverged=sum(one.is_diverged for one in by_cell[cell]),
                best=means[cell],
                tokens_per_second=mean_over_seeds([one.tokens_per_second for one in group]),
                steps_to=mean_over_seeds([step for step, _ in reached]),
                seconds_to=mean_over_seeds([seconds for _, seconds in reached]),
                difference=paired_difference(losses(cell), losses(best)) if best and cell != best else None,
            )
        )
    return GridReport(tuple(cells), loss)


def _split(argument: str) -> tuple[str, list[str]]:
    key, _, text = argument.partition("=")
    return key, split_values(text)


def _folder_name(text: str) -> str:
    """Letters, digits and a few signs; where that loses something, a digest tells two of them apart."""
    name = re.sub(r"[^\w.+-]+", "-", text.replace(" ", "_").replace("=", "-"))
    plain = text.replace(" ", "_").replace("=", "-")
    if name == plain and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
