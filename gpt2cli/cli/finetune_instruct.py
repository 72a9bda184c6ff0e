"""`gpt2 finetune-instruct`: a language model learns to answer, and then answers the test split.

What it adds to `training.py`: records, an answer after each evaluation, responses.jsonl, scores.json.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli import paths
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
    from gpt2cli.evaluation.responses import Response
    from gpt2cli.recipe.schema import InstructRecipe
    from gpt2cli.training.run_dir import Run
    from gpt2cli.training.setup import Session
    from gpt2cli.training.sft_task import Instruction
    from gpt2cli.ui.training import TrainingView

SCORES = "scores.json"
SHOWN_TOKENS = 60  # of the answer after each evaluation


def finetune_instruct(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    name: NameOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    offline: OfflineOption = False,
) -> None:
    """Teach a language model to follow instructions, as a recipe says."""
    lesson = Lesson(
        task="finetune-instruct",
        opened=_opened,
        after_evaluation=_answer_one,
        at_end=_answer_all,
        is_complete=_is_complete,
        hint=_hint,
    )
    train(lesson, recipe, overrides, name, resume, dry_run, offline)


@contextlib.contextmanager
def _opened(recipe: "InstructRecipe", offline: bool) -> "Iterator[tuple[Instruction, dict[str, object]]]":
    """The recipe's records, divided and encoded for the model that is to learn them."""
    from gpt2cli.data.corpora import find_corpus
    from gpt2cli.data.instructions import Fields, read_records
    from gpt2cli.evaluation.rouge import require_rouge
    from gpt2cli.training.base_model import find_start
    from gpt2cli.training.sft_task import Instruction, examples_of

    if recipe.eval.rouge:
        require_rouge()
    start = find_start(recipe)
    data = recipe.data
    found = find_corpus(data.source, offline=offline, allow_bundled=data.bundled)
    if found.warning:
        say(f"warning: {found.warning}")
    fields = Fields(data.instruction, data.input, data.output, data.task)
    read = read_records(found.paths[0], fields)
    examples = examples_of(recipe, read, start)
    for n, said in (
        (read.n_empty, "left out: no answer in them"),
        (examples.n_left_out, f"left out: their questions alone fill {examples.limit} tokens"),
        (
            examples.n_only_learnt,
            f"learnt but never asked: their last answers begin beyond {examples.limit} tokens",
        ),
        (examples.n_cut, f"cut: longer than {examples.limit} tokens"),
    ):
        if n:
            say(f"note: {n:,} of {len(read.records) + read.n_empty:,} records {said}")
    yield (
        Instruction(recipe, start, examples),
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


def _hint(session: "Session", run: "Run") -> str:
    import shlex

    return f"head -n 3 {shlex.quote(str(run.folder / paths.RESPONSES))}"


def _answer_one(session: "Session", run: "Run", view: "TrainingView", stop: Callable[[], int]) -> None:
    """Let the model answer a record of the validation split, on the screen and in samples.txt."""
    from gpt2cli.errors import DivergedError
    from gpt2cli.generation.batch import answer_batch
    from gpt2cli.generation.sampling import Decoding
    from gpt2cli.training.run_dir import add_sample
    from gpt2cli.training.sft_task import Instruction
    from gpt2cli.training.torch_compile import uncompiled

    task = session.task
    assert isinstance(task, Instruction)
    shown, replies = task.examples.shown, None
    with uncompiled(), contextlib.suppress(DivergedError):  # the loop itself will say what that means
        replies = answer_batch(
            session.model,
            task.tokenizer,
            [shown.ids],
            task.template.stops,
            Decoding(temperature=0),
            SHOWN_TOKENS,
            stop,
        )
    if replies is None:
        return
    text = replies[0].text
    view.note(f"{_last_question(shown.record.turns)} -> {text}".replace("\n", " "), "faint")
    add_sample(run, session.progress.step, task.template.prompt(shown.record.question) + text)


def _answer_all(session: "Session", run: "Run", stop: Callable[[], int]) -> int:
    """Answer what is not answered yet of the test split, by the best checkpoint. A signal's number, or 0."""
    from gpt2cli.evaluation.responses import appending
    from gpt2cli.generation.batch import answers
    from gpt2cli.generation.sampling import Decoding
    from gpt2cli.training.sft_task import Instruction
    from gpt2cli.ui.answers import show_answering
    from gpt2cli.ui.console import err

    task = session.task
    assert isinstance(task, Instruction)
    asked = task.recipe.eval
    best, test = paths.best_checkpoint(run.folder), task.examples.test
    test_digest = task.examples.test_digest
    key = _key(best, task.recipe, test_digest)
    with appending(run.folder / paths.RESPONSES, key) as file:
        missing = [question for question in test if question.record.index not in file.responses]
        if missing:
            replies = answers(
                _best_model(session, best),
                task.tokenizer,
                [question.ids for question in missing],
                stops=task.template.stops,
                decoding=Decoding(temperature=asked.temperature, seed=session.recipe.seed),
                max_new_tokens=asked.max_new_tokens,
                n_rows=session.recipe.batch.micro_batch,
                stop=stop,
            )
            for number, reply in show_answering(replies, err(), len(file.responses), len(test)):
                file.add(_response(missing[number].record, reply, key))
        if len(file.responses) < len(test):
            return stop()
        about = {
            "checkpoint": best.name,
            "key": key,
            "test": test_digest,
            "data": task.recipe.data.model_dump(),
            "source_sha256": task.examples.sha256,
        }
        _conclude(run, list(file.responses.values()), about, asked.rouge)
    return 0


def _best_model(session: "Session", best: Path) -> Any:
    """In fp32, where a row's answer is its own: in half precision, rows beside it move a close choice."""
    from gpt2cli.model.lora import merge_lora

    model = session.task.saved_model(best, session.attention)
    merge_lora(model)
    return model.to(session.runtime.device)


def _response(record: Any, reply: Any, key: str) -> "Response":
    from gpt2cli.evaluation.responses import Response

    return Response(
        index=record.index,
        instruction=_last_question(record.turns),
        input=record.turns[-2].input,
        output=record.answer,
        response=reply.text,
        ended=reply.finish_reason != "length",
        finish_reason=reply.finish_reason,
        tokens=len(reply.ids),
        key=key,
    )


def _conclude(run: "Run", responses: "list[Response]", about: dict[str, Any], with_rouge: bool) -> None:
    """Count, measure and say it; scores.json, written last, says that all is done."""
    from gpt2cli import files
    from gpt2cli.evaluation.rouge import rouge

    n, n_ended = len(responses), sum(response.ended for response in responses)
    n_stop = sum(response.finish_reason == "stop" for response in responses)
    scores: dict[str, Any] = {
        **about,
        "responses": n,
        "ended": n_ended,
        "ended_by_stop_text": n_stop,
    }
    said = f"{n_ended} of {n} answers ended by themselves ({n_ended / n:.0%})"
    if n_stop:
        said += f", {n_stop} of them by a stop text"
    if with_rouge:
        values = rouge([(response.output, response.response) for response in responses])
        scores |= values
        said += "; " + ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    files.write_json(run.folder / SCORES, scores)
    say(f"{said}; all in {run.folder / paths.RESPONSES}")


def _is_complete(run: "Run", recipe: "InstructRecipe") -> bool:
    """Whether the answers are there that this recipe asks for, with all its scores."""
    import json

    from gpt2cli import files
    from gpt2cli.evaluation.rouge import MEASURES

    try:
        scores = json.loads((run.folder / SCORES).read_text(encoding="utf-8"))
        key, test, data = scores["key"], scores["test"], scores["data"]
        source_sha256 = scores["source_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    # Known corpora never change; a file of one's own may, and a test record with it.
    source = Path(recipe.data.source)
    if data != recipe.data.model_dump() or (source.is_file() and files.sha256_of(source) != source_sha256):
        return False
    has_scores = not recipe.eval.rouge or all(name in scores for name in MEASURES)
    return has_scores and bool(key == _key(paths.best_checkpoint(run.folder), recipe, test))


def _key(checkpoint: Path, recipe: "InstructRecipe", test_digest: str) -> str:
    """Names the weights that answer, what they are asked and how: where one of them changes, all
    is answered again.
    """
    import hashlib
    import json

    from gpt2cli.checkpoints.folder import MANIFEST
    from gpt2cli.files import sha256_of

    asked = recipe.eval
    facts = {
        "weights": sha256_of(checkpoint / MANIFEST),
        "temperature": asked.temperature,
        "max_new_tokens": asked.max_new_tokens,
        "template": recipe.template,
        "test": test_digest,
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _last_question(turns: Any) -> str:
    return str(turns[-2].text)
