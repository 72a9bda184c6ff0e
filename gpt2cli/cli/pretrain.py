"""`gpt2 pretrain`: a recipe becomes a run. Parses, assembles, and renders what the loop tells."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from gpt2cli.data.stored import TokenData
    from gpt2cli.recipe.loader import Loaded
    from gpt2cli.recipe.schema import PretrainRecipe
    from gpt2cli.training.run import Run
    from gpt2cli.training.session import Session
    from gpt2cli.ui.training import TrainingView


def pretrain(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a shipped recipe (see: gpt2 recipes).")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it, like optim.lr=3e-4.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Name of the run, or a path; otherwise the recipe's name.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run where its newest checkpoint is.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be trained, in what memory and time.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
) -> None:
    """Train a GPT-2 from random weights, as a recipe says."""
    from gpt2cli import disk
    from gpt2cli.cli.signals import polite_stop
    from gpt2cli.recipe.loader import load_recipe
    from gpt2cli.training import run as runs
    from gpt2cli.training.session import open_session

    given = list(overrides or [])
    if dry_run:
        _show_plan(load_recipe(recipe, given), offline)
        return
    run = runs.find_run(name or _name_of(recipe), resume=resume)
    if resume:
        given = runs.recorded_overrides(run) + given
    loaded = load_recipe(recipe, given)
    disk.require_writable(run.folder)
    with disk.lock(run.folder):
        runs.sweep(run)
        checkpoint = _resume_point(run) if resume else None
        if checkpoint and _nothing_to_do(checkpoint, loaded.recipe, run):
            return
        data, origin = _open_data(loaded.recipe, offline)
        with data, polite_stop("finishing this step and saving; once more to leave at once") as stop:
            session = open_session(loaded.recipe, data, checkpoint)
            for notice in session.notices:
                _say(f"note: {notice}")
            _train(session, run, stop, lambda: _record(run, session, checkpoint, given, origin))


def _name_of(recipe: str) -> str:
    """verdict for recipes/verdict.yaml; the run itself for a recipe.yaml that lies in a run."""
    from pathlib import Path

    from gpt2cli import home

    path = Path(recipe)
    if path.name == "recipe.yaml" and home.is_run(path.parent):
        return str(path.parent.resolve())
    return path.stem


def _show_plan(loaded: "Loaded", offline: bool) -> None:
    from gpt2cli.training.session import open_session
    from gpt2cli.ui.plan import show_plan

    with _open_data(loaded.recipe, offline)[0] as data:
        session = open_session(loaded.recipe, data, None)
        for notice in session.notices:
            _say(f"note: {notice}")
        show_plan(session, loaded.origins)


def _resume_point(run: "Run") -> "Path | None":
    """The newest whole checkpoint; says which newer ones are damaged."""
    from gpt2cli.training.run import newest_valid_checkpoint

    checkpoint, problems = newest_valid_checkpoint(run)
    for problem in problems:
        _say(f"warning: {problem.what}; going back to {checkpoint.name if checkpoint else 'the start'}")
    return checkpoint


def _nothing_to_do(checkpoint: "Path", recipe: "PretrainRecipe", run: "Run") -> bool:
    """Whether the run has come to its end, by its steps or by its patience; if so, say it."""
    from gpt2cli.training.state import read_facts

    progress, steps, patience = read_facts(checkpoint)[0], recipe.optim.steps, recipe.eval.patience
    if progress.step >= steps and progress.evaluated == progress.step:
        _say(f"nothing to do: {run.folder} has finished its {steps} steps")
        return True
    if patience and progress.without_gain >= patience:
        _say(f"nothing to do: {run.folder} stopped early; eval.patience={2 * patience} would go on")
        return True
    return False


def _open_data(recipe: "PretrainRecipe", offline: bool) -> "tuple[TokenData, dict[str, object]]":
    """The recipe's text as tokens, prepared into the cache if need be, and where it came from."""
    from gpt2cli.data.corpora import find_corpus
    from gpt2cli.data.tokens import Settings, open_tokens, prepare_cached
    from gpt2cli.ui.console import err
    from gpt2cli.ui.preparing import show_preparing

    found = find_corpus(recipe.data.source, offline=offline, allow_bundled=recipe.data.bundled)
    if found.warning:
        _say(f"warning: {found.warning}")
    settings = Settings(
        tokenizer=recipe.data.tokenizer,
        validation=recipe.data.validation,
        text_fields=recipe.data.text_fields,
    )
    folder = show_preparing(prepare_cached(found.paths, settings), err()).out
    origin: dict[str, object] = {
        "source": found.name,
        "origin": found.origin,
        "sha256": found.sha256,
        "tokens": str(folder),
    }
    return open_tokens(folder), origin


def _train(session: "Session", run: "Run", stop: Callable[[], int], record: Callable[[], None]) -> None:
    """Train and show it. `record` is called once nothing can be wrong with the command any more."""
    import shlex

    from gpt2cli.training import run as runs
    from gpt2cli.training.events import EvalDone, Stopped
    from gpt2cli.ui.board import Board
    from gpt2cli.ui.console import err, out, printable
    from gpt2cli.ui.plots import plot_losses
    from gpt2cli.ui.training import TrainingView

    recipe, first = session.recipe, session.progress.step
    prompt = _prompt(session)
    config, runtime = session.model.config, session.runtime
    signal = 0
    with (
        Board(run.folder / "tensorboard", recipe.log.tensorboard, first) as board,
        TrainingView(recipe.optim.steps, err(), log_every=recipe.log.every, first_step=first) as view,
    ):
        record()
        view.note(
            f"{run.name}: {config.n_parameters:,} parameters,"
            f" {session.data.train.n_tokens:,} training tokens,"
            f" {runtime.device.type} {runtime.precision}, {runtime.threads} threads"
            + (", compiled" if runtime.compile else "")
        )
        if first:
            view.note(f"resuming after step {first}")
        for event in session.events(run, stop):
            runs.append(run, event)
            board.write(event)
            view.show(event)
            if isinstance(event, EvalDone):
                _sample(session, prompt, run, view, stop)
            if isinstance(event, EvalDone | Stopped):
                plot_losses(run.metrics, run.plot, title=run.name)
            if isinstance(event, Stopped):
                signal = event.signal
    out().print(printable(str(run.folder)))
    if signal:
        _say(f"to go on: gpt2 pretrain {shlex.quote(str(run.recipe))} --resume")
        raise typer.Exit(128 + signal)
    _say(f"try it: gpt2 generate --model {shlex.quote(str(run.folder))} {shlex.quote(recipe.eval.prompt)}")


def _record(
    run: "Run", session: "Session", checkpoint: "Path | None", given: list[str], origin: dict[str, object]
) -> None:
    """Write recipe.yaml and run.json; on a resume, say what changed and cut what was never saved."""
    import sys
    import time

    from gpt2cli import __version__, disk
    from gpt2cli.recipe.loader import dump_recipe
    from gpt2cli.runtime import describe_machine
    from gpt2cli.training.run import cut_records, write_record

    text, step = dump_recipe(session.recipe), session.progress.step
    if checkpoint and run.recipe.exists():
        before = run.recipe.read_text(encoding="utf-8").splitlines()
        for line in text.splitlines():
            if line not in before:
                _say(f"note: changed since the run began: {line.strip()}")
    run.checkpoints.mkdir(exist_ok=True)
    disk.write_file(run.recipe, text)
    cut_records(run, step if checkpoint else -1)
    write_record(
        run,
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "overrides": given,
            "from_step": step,
            "gpt2cli": __version__,
            "machine": describe_machine(session.runtime),
            "data": origin,
        },
        resumed=checkpoint is not None,
    )


def _prompt(session: "Session") -> list[int]:
    """The ids that each sample begins with, made before training so that a mistake shows at once."""
    from gpt2cli.errors import UsageError

    tokenizer, context = session.data.tokenizer, session.recipe.model.context
    ids = tokenizer.encode(session.recipe.eval.prompt) or [tokenizer.end_of_text]
    if len(ids) > context:
        raise UsageError(
            f"eval.prompt has {len(ids)} tokens, the model sees {context}", fix="give a shorter prompt"
        )
    return ids


def _sample(
    session: "Session", prompt: list[int], run: "Run", view: "TrainingView", stop: Callable[[], int]
) -> None:
    """Let the model write a little, on the screen and in samples.txt."""
    import contextlib

    from gpt2cli.errors import DivergedError
    from gpt2cli.generation.engine import generate
    from gpt2cli.generation.sampling import Decoding
    from gpt2cli.training.compiling import uncompiled
    from gpt2cli.training.run import add_sample

    wanted, tokenizer = session.recipe.eval, session.data.tokenizer
    if not wanted.sample_tokens:
        return
    decoding = Decoding(temperature=wanted.temperature, top_k=wanted.top_k, seed=session.recipe.seed)
    ids: list[int] = []
    with uncompiled(), contextlib.suppress(DivergedError):  # the loop itself will say what that means
        for step in generate(
            session.model, [prompt], decoding, wanted.sample_tokens, {tokenizer.end_of_text}
        ):
            if stop():
                return
            ids += [token for token in step.ids if token is not None]
    text = wanted.prompt + tokenizer.decode(ids)
    view.note(text.replace("\n", " "), "faint")
    add_sample(run, session.progress.step, text)


def _say(text: str) -> None:
    """A line on stderr, safe for a terminal whatever is in it."""
    from gpt2cli.ui.console import err, printable

    err().print(printable(text))
