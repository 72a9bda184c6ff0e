"""Pins: a checkpoint that is the base of another run's adapters stays for as long as one of them is there.

`needed_by.json` in its folder names those runs.
"""

import contextlib
import os
from pathlib import Path

from gpt2cli import files, paths
from gpt2cli.errors import Gpt2Error, InputError
from gpt2cli.json_files import read_json_object
from gpt2cli.paths import ADAPTER, BASE

NEEDED_BY = "needed_by.json"
NEEDED_BY_FORMAT = 1


def pin(checkpoint: Path, run: Path) -> None:
    """Note in a checkpoint that the adapters of `run` need its weights.

    Raises InputError if the checkpoint has been pruned meanwhile; OSError if it cannot be written.
    """
    if not checkpoint.is_dir():
        raise InputError(
            f"{checkpoint}: is gone", "its run has pruned it meanwhile", "start again: init takes another one"
        )
    there, place = runs_that_need(checkpoint), Path(os.path.abspath(run))
    noted = [
        {"path": str(path), "relative": os.path.relpath(path, checkpoint.resolve())}
        for path in dict.fromkeys([*there, place])
    ]
    files.write_json(checkpoint / NEEDED_BY, {"format": NEEDED_BY_FORMAT, "runs": noted})


def runs_that_need(checkpoint: Path) -> list[Path]:
    """The runs whose adapters need a checkpoint and which are still there, wherever the two have moved
    together. A note that cannot be read is one of them itself: its checkpoint stays.
    """
    note = checkpoint / NEEDED_BY
    if not note.exists():
        return []
    try:
        noted = [
            (Path(one["path"]), checkpoint.resolve() / one["relative"])
            for one in read_json_object(note)["runs"]
        ]
    except (Gpt2Error, KeyError, TypeError):
        return [note]
    found = []
    for path, relative in noted:
        there = [place for place in (path, Path(os.path.normpath(relative))) if paths.is_run(place)]
        found += there[:1] or _renamed(path.parent, checkpoint)
    return list(dict.fromkeys(found))


def _renamed(folder: Path, checkpoint: Path) -> list[Path]:
    """Of the runs in `folder`, those whose newest adapter is one over `checkpoint`."""
    found = []
    for run in sorted(folder.iterdir()) if folder.is_dir() else []:
        for newest in paths.checkpoints(run)[-1:]:
            for record in (newest / BASE, newest / ADAPTER / BASE):
                with contextlib.suppress(InputError):  # no adapter
                    if read_json_object(record).get("path") == str(checkpoint.resolve()):
                        found.append(run)
    return found
