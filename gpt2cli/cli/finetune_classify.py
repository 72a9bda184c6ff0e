"""`gpt2 finetune-classify`: a recipe becomes a classifier. What it adds to `training.py`: labelled
texts at the start, and the report on the test split at the end.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.train_command import (
    DryRunOption,
    Lesson,
    NameOption,
    OfflineOption,
    OverridesArgument,
    RecipeArgument,
    ResumeOption,
    say,
    train,
)

if TYPE_CHECKING:
    from pathlib import Path

    from gpt2cli.evaluation.classes import Scores
    from gpt2cli.recipe.schema import ClassifyRecipe
    from gpt2cli.training.classify_task import Classification
    from gpt2cli.training.run_dir import Run
    from gpt2cli.training.setup import Session

REPORT, PICTURE = "report.json", "confusion.png"
AT_ONCE = 512  # test texts between two looks for a signal


def finetune_classify(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    name: NameOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    offline: OfflineOption = False,
) -> None:
    """Teach a GPT-2 to tell classes of texts apart, as a recipe says."""
    lesson = Lesson(
        task="finetune-classify",
        opened=_opened,
        after_evaluation=lambda session, run, view, stop: None,
        at_end=_report,
        is_complete=lambda run, recipe: _is_reported(run),
        hint=_hint,
    )
    train(lesson, recipe, overrides, name, resume, dry_run, offline)


@contextlib.contextmanager
def _opened(recipe: "ClassifyRecipe", offline: bool) -> "Iterator[tuple[Classification, dict[str, object]]]":
    """The recipe's texts, split and encoded for the model that it begins with."""
    from gpt2cli.data.corpora import find_corpus
    from gpt2cli.data.labelled_texts import prepare, read_labelled
    from gpt2cli.training.base_model import find_start
    from gpt2cli.training.classify_task import Classification

    wanted = recipe.data
    start = find_start(recipe)
    found = find_corpus(wanted.source, offline=offline, allow_bundled=wanted.bundled)
    if found.warning:
        say(f"warning: {found.warning}")
    labelled = read_labelled(found.paths[0], wanted.text, wanted.label, wanted.columns or ())
    data = prepare(labelled, wanted, start.tokenizer, start.config.n_positions, recipe.seed)
    if data.n_left_out:
        say(f"note: {data.n_left_out:,} of {len(labelled.texts):,} rows are left out for balance")
    if data.n_cut:
        say(f"note: {data.n_cut:,} texts are longer than {data.max_tokens} tokens and are cut there")
    origin: dict[str, object] = {
        "source": found.name,
        "origin": found.origin,
        "sha256": labelled.sha256,
        "init": start.name,
        "init_sha256": start.sha256,
        "labels": list(data.labels),
        "rows": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        "left_out": data.n_left_out,
        "cut": data.n_cut,
    }
    yield Classification(recipe, data, start), origin


def _hint(session: "Session", run: "Run") -> str:
    import shlex

    return f"gpt2 classify {shlex.quote(str(run.folder))} 'a text'"


def _report(session: "Session", run: "Run", stop: Callable[[], int]) -> int:
    """Put the best checkpoint to the test split: a table, report.json and confusion.png."""
    from gpt2cli import files
    from gpt2cli.checkpoints.classifier import load_classifier
    from gpt2cli.evaluation.classes import score
    from gpt2cli.generation.label_texts import label_probabilities
    from gpt2cli.paths import best_checkpoint
    from gpt2cli.training.classify_task import Classification
    from gpt2cli.ui.console import err
    from gpt2cli.ui.tables import plot_confusion, show_scores

    assert isinstance(session.task, Classification)
    test, seen = session.task.data.test, set(session.task.data.train.ids)
    folder = best_checkpoint(run.folder)
    loaded = load_classifier(folder)
    loaded.model.to(session.runtime.device)
    verdicts: list[tuple[int, int]] = []
    for first in range(0, len(test), AT_ONCE):
        if signal := stop():
            return signal
        for found in label_probabilities(loaded, list(test.ids[first : first + AT_ONCE])):
            verdicts.append((test.classes[len(verdicts)], found.index(max(found))))
    scores = score(verdicts, len(loaded.labels))
    new = [verdict for verdict, ids in zip(verdicts, test.ids, strict=True) if ids not in seen]
    plot_confusion(scores, loaded.labels, run.folder / PICTURE, title=run.name)
    report = _as_report(scores, loaded.labels) | {
        "checkpoint": folder.name,
        "weights": _weights_of(folder),
        "not_in_training": {"texts": len(new), "accuracy": score(new, len(loaded.labels)).accuracy},
    }
    files.write_json(run.folder / REPORT, report)  # last: it says that the rest is there
    say(f"test split, {len(test):,} texts, with {folder.name}:")
    show_scores(scores, loaded.labels, err())
    if len(new) < len(test):
        say(
            f"{len(test) - len(new)} of these texts stand in the training split as well;"
            f" accuracy on the other {len(new)}: {report['not_in_training']['accuracy']:.4f}"
        )
    return 0


def _as_report(scores: "Scores", labels: tuple[str, ...]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "labels": list(labels),
        "classes": {label: asdict(one) for label, one in zip(labels, scores.classes, strict=True)},
        "confusion": [list(row) for row in scores.confusion],
    }


def _is_reported(run: "Run") -> bool:
    """Whether the report is there, and is of what is now the best checkpoint."""
    import json

    from gpt2cli.paths import best_checkpoint

    try:
        report = json.loads((run.folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_of_best = isinstance(report, dict) and report.get("weights") == _weights_of(
        best_checkpoint(run.folder)
    )
    return is_of_best and (run.folder / PICTURE).exists()


def _weights_of(folder: "Path") -> str | None:
    from gpt2cli.checkpoints.folder import WEIGHTS, read_manifest

    return read_manifest(folder).get(WEIGHTS)
