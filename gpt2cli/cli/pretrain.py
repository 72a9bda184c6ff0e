"""`gpt2 pretrain`: trains a GPT-2 from random weights, and shows a sample after each evaluation."""

import contextlib
import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gpt2cli.cli.options import OfflineOption
from gpt2cli.cli.train_command import (
    DryRunOption,
    NameOption,
    OverridesArgument,
    RecipeArgument,
    ResumeOption,
    TrainCommand,
    train,
)
from gpt2cli.errors import DivergedError, UsageError
from gpt2cli.ui.console import err, say

if TYPE_CHECKING:
    from gpt2cli.recipe.schema import PretrainRecipe
    from gpt2cli.training.pretrain_task import PretrainTask
    from gpt2cli.training.run_dir import RunDir
    from gpt2cli.training.setup import TrainingSetup
    from gpt2cli.ui.training import TrainingView


def pretrain(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    name: NameOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    offline: OfflineOption = False,
) -> None:
    """Train a GPT-2 from random weights, as a recipe describes."""
    command = TrainCommand(
        task="pretrain",
        open_task=_open_task,
        after_evaluation=_sample,
        at_end=lambda setup, run, stop: 0,
        is_complete=lambda run, recipe: True,
        hint=_hint,
    )
    train(command, recipe, overrides, name, resume, dry_run, offline)


@contextlib.contextmanager
def _open_task(recipe: "PretrainRecipe", offline: bool) -> "Iterator[tuple[PretrainTask, dict[str, object]]]":
    """The recipe's text as tokens, from the cache or prepared into it, and its origin."""
    from gpt2cli.data.corpora import find_corpus
    from gpt2cli.data.manifest import PrepareSettings
    from gpt2cli.data.prepare import prepare_cached
    from gpt2cli.data.token_dataset import open_dataset
    from gpt2cli.training.pretrain_task import PretrainTask
    from gpt2cli.ui.progress import finish, preparing

    found = find_corpus(recipe.data.source, offline=offline, allow_bundled=recipe.data.bundled)
    if found.warning:
        say(f"warning: {found.warning}")
    settings = PrepareSettings(
        tokenizer=recipe.data.tokenizer,
        validation=recipe.data.validation,
        text_fields=recipe.data.text_fields,
    )
    folder = finish(prepare_cached(found.paths, settings), err(), preparing()).out
    origin: dict[str, object] = {
        "source": found.name,
        "origin": found.origin,
        "sha256": found.sha256,
        "tokens": str(folder),
    }
    with open_dataset(folder) as data:
        task = PretrainTask(recipe, data)
        _prompt(task)  # an error in it comes before any work
        yield task, origin


def _hint(setup: "TrainingSetup", run: "RunDir") -> str:
    from gpt2cli.recipe.schema import PretrainRecipe

    assert isinstance(setup.recipe, PretrainRecipe)
    prompt = shlex.quote(setup.recipe.eval.prompt)
    return f"gpt2 generate --model {shlex.quote(str(run.folder))} {prompt}"


def _prompt(task: "PretrainTask") -> list[int]:
    """The token ids that each sample begins with."""
    tokenizer, context = task.tokenizer, task.recipe.model.context
    ids = tokenizer.encode(task.recipe.eval.prompt) or [tokenizer.end_of_text]
    if len(ids) > context:
        raise UsageError(
            f"eval.prompt has {len(ids)} tokens, the model's context {context}", fix="give a shorter prompt"
        )
    return ids


def _sample(setup: "TrainingSetup", run: "RunDir", view: "TrainingView", stop: Callable[[], int]) -> None:
    """Sample from the model, to the screen and samples.txt."""
    from gpt2cli.generation.engine import generate
    from gpt2cli.generation.sampling import SamplingOptions
    from gpt2cli.training.pretrain_task import PretrainTask
    from gpt2cli.training.run_dir import add_sample
    from gpt2cli.training.torch_compile import uncompiled

    assert isinstance(setup.task, PretrainTask)
    wanted, tokenizer = setup.task.recipe.eval, setup.task.tokenizer
    if not wanted.sample_tokens:
        return
    sampling = SamplingOptions(temperature=wanted.temperature, top_k=wanted.top_k, seed=setup.recipe.seed)
    prompt, ids = _prompt(setup.task), list[int]()
    with uncompiled(), contextlib.suppress(DivergedError):  # the loop reports it
        for step in generate(setup.model, [prompt], sampling, wanted.sample_tokens, {tokenizer.end_of_text}):
            if stop():
                return
            ids += [token for token in step.ids if token is not None]
    text = wanted.prompt + tokenizer.decode(ids)
    view.note(text.replace("\n", " "), "faint")
    add_sample(run, setup.state.step, text)
