"""The task of a recipe, with its data read and its base loaded: all that comes before a training loop.

Data is found or downloaded here, and prepared through a callback that may show its progress. Notices are
sentences for the user.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from gpt2cli import paths
from gpt2cli.data.byte_source import joined_digest, read_options
from gpt2cli.data.corpora import find_corpora
from gpt2cli.data.instructions import InstructionRecords, read_instructions
from gpt2cli.data.labelled_splits import class_notes, leak_notes, split_labelled
from gpt2cli.data.labelled_texts import LabelledTexts, read_labelled
from gpt2cli.data.manifest import is_prepared, read_manifest
from gpt2cli.data.prepare import named_tokenizer, prepare_cached
from gpt2cli.data.prepare_pipeline import PrepareProgress
from gpt2cli.data.prepare_settings import READING, prepare_settings, require_same_settings
from gpt2cli.data.token_dataset import TokenDataset, open_dataset
from gpt2cli.errors import InputError, at_place
from gpt2cli.evaluation.rouge import require_rouge
from gpt2cli.recipe.data_sections import ClassifyDataConfig, InstructDataConfig, each_name
from gpt2cli.recipe.schema import ClassifyRecipe, InstructRecipe, PretrainRecipe
from gpt2cli.tokenizer.base import Tokenizer, is_made_of_text
from gpt2cli.tokenizer.files import load_tokenizer
from gpt2cli.training.base_model import base_of_run, base_to_train_further, random_weights
from gpt2cli.training.classify_task import ClassifyTask
from gpt2cli.training.pretrain_task import PretrainTask
from gpt2cli.training.sft_task import SftTask, split_records

Held = TypeVar("Held", LabelledTexts, InstructionRecords)
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
    found = find_corpora(each_name(wanted.source), offline=offline, allow_bundled=wanted.bundled)
    if found.warning:
        notice(f"warning: {found.warning}")
    options = read_options(wanted.encoding, wanted.max_bad)

    def read(paths: Sequence[Path], fewest: int = 1) -> LabelledTexts:
        names = wanted.columns or ()
        labelled = read_labelled(paths, wanted.text, wanted.label, names, options, fewest)
        for note in labelled.notes:
            notice(f"warning: {note}")
        return labelled

    labelled, held_out = read(found.paths, fewest=2), _held_out(wanted, offline, read)
    for kind, sentence in class_notes(labelled):
        notice(f"{kind}: {sentence}")
    data = split_labelled(
        labelled, wanted, start.tokenizer, start.config.n_positions, recipe.seed, **held_out
    )
    for kind, sentence in leak_notes(data):
        notice(f"{kind}: {sentence}")
    if data.n_left_out:
        notice(
            f"note: {data.n_left_out:,} of {len(labelled.texts):,} rows are left out to balance the classes"
        )
    if data.n_cut:
        notice(f"note: {data.n_cut:,} texts are longer than {data.max_tokens} tokens and cut there")
    origin: Origin = {
        "source": found.name,
        "origin": found.origin,
        "sha256": joined_digest([one.sha256 for one in (labelled, *held_out.values())]),
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
    found = find_corpora(each_name(data.source), offline=offline, allow_bundled=data.bundled)
    if found.warning:
        notice(f"warning: {found.warning}")
    options, n_read = read_options(data.encoding, data.max_bad), 0

    def read_all(paths: Sequence[Path]) -> InstructionRecords:
        nonlocal n_read
        records = read_instructions(paths, data, options, n_read)
        n_read = records.records[-1].index + 1
        for note in records.notes:
            notice(f"note: {note}")
        return records

    read, held_out = read_all(found.paths), _held_out(data, offline, read_all)
    examples = split_records(recipe, read, start, **held_out)
    for n, said in (
        (read.n_empty, "left out: no answer"),
        (examples.n_left_out, f"left out: the prompt alone fills {examples.limit} tokens"),
        (
            examples.n_train_only,
            f"used for training only: the last answer begins after {examples.limit} tokens",
        ),
        (examples.n_cut, f"cut: longer than {examples.limit} tokens"),
    ):
        if n:
            notice(f"note: {n:,} of {len(read.records) + read.n_empty:,} records {said}")
    if n := examples.n_repeated:
        notice(f"note: {n:,} of {len(read.records):,} records repeat another")
    for name, shared, part in (
        ("validation", examples.n_shared_validation, examples.validation),
        ("test", examples.n_shared, examples.test),
    ):
        if shared:
            notice(f"note: {shared:,} of the {len(part):,} {name} prompts are in the training split too")
    yield (
        SftTask(recipe, start, examples),
        {
            "source": found.name,
            "origin": found.origin,
            "sha256": examples.sha256,
            "records": len(read.records),
            "cut": examples.n_cut,
            "left_out": examples.n_left_out + read.n_empty,
            "init": start.name,
            "init_sha256": start.sha256,
        },
    )


def _tokenizer_in_folder(name: str | None, checkpoint: Path | None) -> Tokenizer | None:
    """The tokenizer of a recipe that names a folder. Where the folder is gone, a resumed run has its own
    copy; the run's identity tells whether the two differ. Raises UsageError for an unknown name.
    """
    if name is None or name == "gpt2" or is_made_of_text(name):
        return None
    if checkpoint and not paths.expand(name).is_dir():
        return load_tokenizer(checkpoint)
    with at_place("data.tokenizer"):
        return named_tokenizer(name)


def _held_out(
    data: ClassifyDataConfig | InstructDataConfig, offline: bool, read: Callable[[Sequence[Path]], Held]
) -> dict[str, Held]:
    """The validation and test texts that the recipe names itself, by the name of their split."""
    named = {"validation": data.validation_source, "test": data.test_source}
    return {
        split: read(find_corpora(each_name(names), offline=offline, allow_bundled=False).paths)
        for split, names in named.items()
        if names
    }


def _tokens(
    recipe: PretrainRecipe, tokenizer: Tokenizer | None, offline: bool, notice: Notice, prepare: Prepare
) -> tuple[TokenDataset, Origin]:
    """The text as tokens, by this tokenizer if there is one; and its origin."""
    wanted, held_out = recipe.data, tuple[Path, ...]()
    text = find_corpora(each_name(wanted.source), offline=offline, allow_bundled=wanted.bundled)
    if text.warning:
        notice(f"warning: {text.warning}")
    if wanted.validation_source:  # a stand-in would be another text to validate on
        names = each_name(wanted.validation_source)
        held_out = find_corpora(names, offline=offline, allow_bundled=False).paths
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
            validation_source=" ".join(each_name(wanted.validation_source)) or None,
            reading={key: getattr(wanted, key) for key in READING},
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
