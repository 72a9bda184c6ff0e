"""Runs all measurements one after another, and sets them beside the goals.

    python benchmarks/all.py [--out benchmarks/results] [--size 124M] [--only decode batch] [--quick]
    python benchmarks/all.py --from benchmarks/results    # only the table, from what lies there

Every program writes PROGRAM.json into the folder; one that fails is named, and the others go on. The
table, also in table.md, has a line for each line of goals.py: medians of ours and theirs, and the
median of the rounds' ratios with the lowest and the highest. `--quick` is one round of little, which
shows that everything runs and measures nothing. Compiled steps are kept in the folder as well, unless
GPT2_HOME names another.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from goals import GOALS, LEAST, SPEEDS, Goal
from peers import described

# {program: its arguments, its arguments with --quick}
PROGRAMS = {
    "prepare": ("--peak 10 1000", "--rounds 1 --mb 5 --peak 10 50"),
    "training": ("--curve 50", "--rounds 1 --steps 1 --curve 2"),
    "decode": ("", "--rounds 1 --new-tokens 8"),
    "batch": ("", "--rounds 1 --new-tokens 8"),
    "scoring": ("", "--rounds 1 --windows 2 --texts 20"),
    "loading": ("", "--rounds 1"),
    "startup": ("", "--rounds 1"),
}
SIZELESS = ("prepare",)
SCALES = {"ms/token": 1e3, "ms/step": 1e3, "GB": 1e-9}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument("--size", default="124M", help="or LAYERSxWIDTH, for a trial")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), metavar="PROGRAM")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="measure nothing")
    options = parser.parse_args()
    failed = [] if options.source else run(options)
    folder = options.source or options.out
    reports = {
        name: json.loads(path.read_bytes()) for name in PROGRAMS if (path := _json(folder, name)).exists()
    }
    text = table(reports, failed)
    print(text)
    if not options.source:
        (folder / "table.md").write_text(text + "\n")
    sys.exit(bool(failed))


def run(options: argparse.Namespace) -> list[str]:
    """Run the programs; the names of those that failed, whose results of an earlier run are removed."""
    options.out.mkdir(parents=True, exist_ok=True)
    environment = {"GPT2_HOME": str((options.out / "home").resolve()), **os.environ}
    failed = []
    for name in options.only:
        path = _json(options.out, name)
        path.unlink(missing_ok=True)
        arguments = [*PROGRAMS[name][options.quick].split(), "--json", str(path)]
        arguments += [] if name in SIZELESS else ["--size", options.size]
        script = Path(__file__).with_name(f"{name}.py")
        print(f"\n$ {script.name} {' '.join(arguments)}", flush=True)
        if code := subprocess.run([sys.executable, str(script), *arguments], env=environment).returncode:
            print(f"{name}: failed with exit code {code}; going on without it", file=sys.stderr)
            failed.append(name)
    return failed


def table(reports: dict[str, Any], failed: list[str]) -> str:
    lines = [_line(goal, reports) for goal in GOALS]
    ends = [line[-1] for line in lines]
    return "\n".join(
        [
            "",
            *_machines(reports),
            *(f"failed, so not measured or only in part: {name}" for name in failed),
            *(f"not there, so not measured: {name}" for name in _missing(reports)),
            "",
            "| what | against | ours | theirs | ratio (lowest to highest) | goal | met |",
            "|---|---|---|---|---|---|---|",
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            "at least: times their speed, round by round; at most: the share of theirs",
            f"{ends.count('yes')} met, {ends.count('no')} missed, {ends.count('')} not measured",
        ]
    )


def _line(goal: Goal, reports: dict[str, Any]) -> tuple[str, ...]:
    values, unit = goal.values, goal.values.unit
    bound = f"{goal.sense} {goal.bound:g}" + ("" if values.theirs else f" {unit}")
    try:
        report = reports[values.program]
        ours = values.ours(report)
        theirs = values.theirs(report) if values.theirs else []
    except KeyError:  # a program that was not run, or a peer that is missing
        return goal.what, goal.against, "not measured", "", "", bound, ""
    if not theirs:
        value, told = statistics.median(ours), _range([n * SCALES.get(unit, 1.0) for n in ours])
        return goal.what, goal.against, f"{told} {unit}", "", "", bound, _met(goal, value)
    pairs = list(zip(ours, theirs, strict=True))
    if goal.sense == LEAST and unit not in SPEEDS:
        ratios = [b / a for a, b in pairs]
    else:
        ratios = [a / b for a, b in pairs]
    cells = (_cell(statistics.median(numbers), unit) for numbers in (ours, theirs))
    return goal.what, goal.against, *cells, _range(ratios), bound, _met(goal, statistics.median(ratios))


def _met(goal: Goal, value: float) -> str:
    return "yes" if (value >= goal.bound if goal.sense == LEAST else value <= goal.bound) else "no"


def _cell(number: float, unit: str) -> str:
    number *= SCALES.get(unit, 1.0)
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"


def _range(numbers: list[float]) -> str:
    median = f"{statistics.median(numbers):.3g}"
    return f"{median} ({min(numbers):.3g} to {max(numbers):.3g})" if len(numbers) > 1 else median


def _machines(reports: dict[str, Any]) -> list[str]:
    """One description a kind of machine: the results of a folder may be of several."""
    found = (one for report in reports.values() for one in _entries(report))
    return list(dict.fromkeys(described(one["machine"]) for one in found))


def _missing(reports: dict[str, Any]) -> list[str]:
    found = (
        name for report in reports.values() for one in _entries(report) for name in one.get("missing", ())
    )
    return list(dict.fromkeys(found))


def _entries(report: Any) -> list[dict[str, Any]]:
    """training.py writes a list, of one report for each shape."""
    return report if isinstance(report, list) else [report]


def _json(folder: Path, program: str) -> Path:
    return folder / f"{program}.json"


if __name__ == "__main__":
    main()
