"""The task of a recipe, its data read and its base loaded: what stands before a training loop.

Data is found or downloaded here, and prepared through a callback that may show its progress. Notices are
sentences for the user.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from gpt2cli import paths
from gpt2cli.data.corpora import find_corpus
from gpt2cli.data.instructions import read_instructions
from gpt2cli.data.labelled_texts import read_labelled, split_labelled
from gpt2cli.data.manifest import is_prepared, read_manifest
from gpt2cli.data.prepare import named_tokenizer, prepare_cached
from gpt2cli.data.prepare_command import prepare_settings, require_same_settings
from gpt2cli.data.prepare_pipeline import PrepareProgress
from gpt2cli.data.token_dataset import TokenDataset, open_dataset
from gpt2cli.errors import Gpt2Error, InputError
from gpt2cli.evaluation.rouge import require_rouge
from gpt2cli.recipe.schema import ClassifyRecipe, InstructRecipe, PretrainRecipe
from gpt2cli.tokenizer.base import Tokenizer, is_made_of_text
from gpt2cli.tokenizer.files import load_tokenizer
from gpt2cli.training.base_model import base_of_run, base_to_train_further, random_weights
from gpt2cli.training.classify_task import ClassifyTask
from gpt2cli.training.pretrain_task import PretrainTask
from gpt2cli.training.sft_task import SftTask, split_records

Notice = Callable[[str], None]
Origin = dict[str, object]  # of the data, for run.json
# Runs a preparation to its end; returns its last step.
Prepare = Callable[[Iterable[PrepareProgress]], PrepareProgress]


@contextlib.contextmanager
def open_pretraining(
    recipe: PretrainRecipe, offline: bool, checkpoint: Path | None, notice: Notice, prepare: Prepare
) -> Iterator[tuple[PretrainTask, Origin]]:
    """The recipe's text as tokens, from the cache or prepared into it by `prepare`, and its origin."""
    recipe, base, notices = base_to_train_further(recipe, checkpoint)
    for sentence in notices:
        notice(f"note: {sentence}")
    tokenizer = base.tokenizer if base else _tokenizer_in_folder(recipe.data.tokenizer, checkpoint)
    data, origin = _tokens(recipe, tokenizer, offline, notice, prepare)
    if base:
        origin |= {"init": base.name, "init_sha256": base.sha256}
    with data:
        yield PretrainTask(recipe, data, base or random_weights(recipe, data.tokenizer)), origin


@contextlib.contextmanager
def open_classification(
    recipe: ClassifyRecipe, offline: bool, checkpoint: Path | None, notice: Notice
) -> Iterator[tuple[ClassifyTask, Origin]]:
    """The recipe's texts, split and encoded for its base model, and their origin."""
    wanted = recipe.data
    start = base_of_run(recipe, checkpoint)
    if start.notice:
        notice(f"note: {start.notice}")
    found = find_corpus(wanted.source, offline=offline, allow_bundled=wanted.bundled)
    if found.warning:
        notice(f"warning: {found.warning}")
    labelled = read_labelled(found.paths[0], wanted.text, wanted.label, wanted.columns or ())
    data = split_labelled(labelled, wanted, start.tokenizer, start.config.n_positions, recipe.seed)
    if data.n_left_out:
        notice(
            f"note: {data.n_left_out:,} of {len(labelled.texts):,} rows are left out to balance the classes"
        )
    if data.n_cut:
        notice(f"note: {data.n_cut:,} texts are longer than {data.max_tokens} tokens and cut there")
    origin: Origin = {
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
    yield ClassifyTask(recipe, data, start), origin


@contextlib.contextmanager
def open_instruction_tuning(
    recipe: InstructRecipe, offline: bool, checkpoint: Path | None, notice: Notice
) -> Iterator[tuple[SftTask, Origin]]:
    """The recipe's records, split and encoded for its base model, and their origin."""
    if recipe.eval.rouge:
        require_rouge()
    start = base_of_run(recipe, checkpoint)
    if start.notice:
        notice(f"note: {start.notice}")
    data = recipe.data
    found = find_corpus(data.source, offline=offline, allow_bundled=data.bundled)
    if found.warning:
        notice(f"warning: {found.warning}")
    read = read_instructions(found.paths[0], data)
    examples = split_records(recipe, read, start)
    for n, said in (
        (read.n_empty, "left out: no answer"),
        (examples.n_left_out, f"left out: the prompt alone fills {examples.limit} tokens"),
        (
            examples.n_train_only,
            f"used for training only: their last answers begin after {examples.limit} tokens",
        ),
        (examples.n_cut, f"cut: longer than {examples.limit} tokens"),
    ):
        if n:
            notice(f"note: {n:,} of {len(read.records) + read.n_empty:,} records {said}")
    if shared := examples.n_shared:
        notice(f"note: {shared:,} of the {len(examples.test):,} test prompts are in the training split too")
    yield (
        SftTask(recipe, start, examples),
        {
            "source": found.name,
            "origin": found.origin,
            "sha256": read.sha256,
            "records": len(read.records),
            "cut": examples.n_cut,
            "left_out": examples.n_left_out + read.n_empty,
            "init": start.name,
            "init_sha256": start.sha256,
        },
    )


def _tokenizer_in_folder(name: str | None, checkpoint: Path | None) -> Tokenizer | None:
    """The tokenizer of a recipe that names a folder. A resumed run has a copy of its own, if that is gone.

    Whether it is still the same, the run's identity says. Raises UsageError for an unknown name.
    """
    if name is None or name == "gpt2" or is_made_of_text(name):
        return None
    if checkpoint and not paths.expand(name).is_dir():
        return load_tokenizer(checkpoint)
    try:
        return named_tokenizer(name)
    except Gpt2Error as error:
        raise type(error)(f"data.tokenizer: {error.what}", error.why, error.fix) from None


def _tokens(
    recipe: PretrainRecipe, tokenizer: Tokenizer | None, offline: bool, notice: Notice, prepare: Prepare
) -> tuple[TokenDataset, Origin]:
    """The text as tokens, by this tokenizer if there is one; and its origin."""
    wanted, held_out = recipe.data, tuple[Path, ...]()
    text = find_corpus(wanted.source, offline=offline, allow_bundled=wanted.bundled)
    if text.warning:
        notice(f"warning: {text.warning}")
    if wanted.validation_source:  # a stand-in would be another text to validate on
        held_out = find_corpus(wanted.validation_source, offline=offline, allow_bundled=False).paths
    origin: Origin = {"source": text.name, "origin": text.origin, "sha256": text.sha256}
    if len(text.paths) == 1 and is_prepared(text.paths[0]):
        folder = text.paths[0]
        require_same_settings(
            folder,
            read_manifest(folder),
            tokenizer=wanted.tokenizer,
            fingerprint=tokenizer.fingerprint if tokenizer else None,
            validation=wanted.validation,
            text_fields=wanted.text_fields,
            validation_source=wanted.validation_source,
        )
        return open_dataset(folder), origin | {"tokens": str(folder)}
    job = partial(
        prepare_cached,
        text.paths,
        prepare_settings(wanted, tokenizer),
        validation_sources=held_out,
        tokenizer=tokenizer,
    )
    folder = prepare(job()).out
    try:
        data = open_dataset(folder)
    except InputError as damage:
        notice(f"warning: {damage.what}; the text is at hand, and is prepared again")
        data = open_dataset(prepare(job(again=True)).out)
    return data, origin | {"tokens": str(folder)}
