"""`gpt2 pretrain`: trains a GPT-2 on raw text, and shows a sample after each evaluation."""

import contextlib
import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2cli.cli.train_command import TrainCommand, train_function
from gpt2cli.errors import DivergedError, InputError
from gpt2cli.ui.console import err, say

if TYPE_CHECKING:
    from gpt2cli.recipe.schema import PretrainRecipe
    from gpt2cli.training.pretrain_task import PretrainTask
    from gpt2cli.training.run_dir import RunDir
    from gpt2cli.training.setup import TrainingSetup
    from gpt2cli.ui.training import TrainingView


@contextlib.contextmanager
def _open_task(
    recipe: "PretrainRecipe", offline: bool, checkpoint: Path | None
) -> "Iterator[tuple[PretrainTask, dict[str, object]]]":
    from gpt2cli.training.open_task import open_pretraining
    from gpt2cli.ui.progress import finish, preparing

    with open_pretraining(
        recipe, offline, checkpoint, say, lambda steps: finish(steps, err(), preparing())
    ) as (task, origin):
        if warning := _prompt(task)[1]:  # before any work
            say(f"warning: {warning}")
        yield task, origin


def _hint(setup: "TrainingSetup", run: "RunDir") -> str:
    from gpt2cli.training.pretrain_task import PretrainTask

    assert isinstance(setup.task, PretrainTask)
    return f"gpt2 generate --model {shlex.quote(str(run.folder))} {shlex.quote(_prompt(setup.task)[0])}"


def _prompt(task: "PretrainTask") -> tuple[str, str]:
    """The text that each sample begins with, and a warning if it is not the recipe's."""
    asked, context = task.recipe.eval.prompt, task.row_length
    own = _first_words(task)
    if asked is None:
        return own, ""
    try:
        n_ids = len(task.tokenizer.encode(asked))
    except InputError as error:  # a character outside of a character vocabulary
        return own, f"eval.prompt: {error.what}; the samples begin with {own!r} instead"
    if n_ids > context:
        return own, (
            f"eval.prompt has {n_ids} tokens, the context {context}; the samples begin with {own!r} instead"
        )
    return asked, ""


def _first_words(task: "PretrainTask") -> str:
    """The first words of the training text, up to four, on one line and of 40 characters."""
    ids = task.data.train.read(0, min(32, task.row_length, task.data.train.n_tokens)).tolist()
    text = task.tokenizer.decode(list(itertools.takewhile(lambda id: id != task.tokenizer.end_of_text, ids)))
    match = re.match(r"\S+(?: +\S+){0,3}", text.strip("\ufffd").lstrip())
    return match[0][:40] if match else ""


def _sample(setup: "TrainingSetup", run: "RunDir", view: "TrainingView", stop: Callable[[], int]) -> None:
    """Sample from the model, to the screen and samples.txt."""
    from gpt2cli.generation.engine import generate
    from gpt2cli.generation.sampling import SamplingOptions
    from gpt2cli.tokenizer.base import begin
    from gpt2cli.training.pretrain_task import PretrainTask
    from gpt2cli.training.run_dir import add_sample
    from gpt2cli.training.torch_compile import uncompiled

    assert isinstance(setup.task, PretrainTask)
    wanted, tokenizer = setup.task.recipe.eval, setup.task.tokenizer
    if not wanted.sample_tokens:
        return
    sampling = SamplingOptions(temperature=wanted.temperature, top_k=wanted.top_k, seed=setup.recipe.seed)
    prompt, ids = _prompt(setup.task)[0], list[int]()
    prompt_ids = [*begin(tokenizer), *tokenizer.encode(prompt)] or [tokenizer.end_of_text]
    ends = set(tokenizer.special.stops)
    with uncompiled(), contextlib.suppress(DivergedError):  # the loop reports it
        for step in generate(setup.model, [prompt_ids], sampling, wanted.sample_tokens, ends):
            if stop():
                return
            ids += [token for token in step.ids if token is not None and token not in ends]
    text = prompt + tokenizer.decode(ids)
    view.note(text.replace("\n", " "), "faint")
    add_sample(run, setup.state.step, text)


def _compare_with_base(setup: "TrainingSetup", run: "RunDir", stop: Callable[[], int]) -> int:
    """For a model that was trained further, report perplexity before and after, and what it copies."""
    from gpt2cli.evaluation.copied_text import longest_copied_run
    from gpt2cli.recipe.schema import SCRATCH
    from gpt2cli.training.pretrain_task import PretrainTask
    from gpt2cli.training.run_dir import evaluations, last_sample

    assert isinstance(setup.task, PretrainTask)
    task = setup.task
    if task.recipe.init == SCRATCH:
        return 0
    measured = evaluations(run)
    if measured and measured[0]["step"] == 0:
        kept = [one for one in measured if one["step"] == setup.state.kept_step]
        before, after = measured[0], (kept or measured)[-1]
        say(
            f"perplexity on the validation text: {before['perplexity']:,.1f} before,"
            f" {after['perplexity']:,.1f} after {after['step']} steps"
        )
    if ids := task.tokenizer.encode(last_sample(run).removeprefix(_prompt(task)[0])):
        copied = longest_copied_run(ids, task.data.train)
        words = task.tokenizer.decode(ids[copied.start : copied.start + copied.length])
        say(
            f"of the last sample's {len(ids)} tokens, at most {copied.length} in a row stand in the training"
            f" text: {words!r}"
        )
    return 0


pretrain = train_function(
    TrainCommand(
        task="pretrain",
        open_task=_open_task,
        after_evaluation=_sample,
        at_end=_compare_with_base,
        is_complete=lambda run, recipe: True,
        hint=_hint,
    ),
    "Train a GPT-2 on raw text, from random weights or further.",
)
