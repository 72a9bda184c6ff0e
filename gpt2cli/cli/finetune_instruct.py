"""`gpt2 finetune-instruct`: instruction tuning, then answers to the test split.

Writes one answer per evaluation to samples.txt, and responses.jsonl and scores.json at the end.
"""

import contextlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli import paths
from gpt2cli.cli.train_command import TrainCommand, train_function
from gpt2cli.errors import DivergedError, Gpt2Error, counted
from gpt2cli.ui.console import err, say

if TYPE_CHECKING:
    from gpt2cli.evaluation.responses import Response
    from gpt2cli.recipe.schema import InstructRecipe
    from gpt2cli.training.run_dir import RunDir
    from gpt2cli.training.setup import TrainingSetup
    from gpt2cli.training.sft_task import SftTask
    from gpt2cli.ui.training import TrainingView

SCORES = "scores.json"
SHOWN_TOKENS = 60  # of the answer after each evaluation


def _open_task(
    recipe: "InstructRecipe", offline: bool, checkpoint: Path | None
) -> "contextlib.AbstractContextManager[tuple[SftTask, dict[str, object]]]":
    from gpt2cli.training.open_task import open_instruction_tuning

    return open_instruction_tuning(recipe, offline, checkpoint, say)


def _hint(setup: "TrainingSetup", run: "RunDir") -> str:
    return f"gpt2 chat {shlex.quote(str(run.folder))}"


def _answer_one(setup: "TrainingSetup", run: "RunDir", view: "TrainingView", stop: Callable[[], int]) -> None:
    """Answer a record of the validation split, to the screen and samples.txt."""
    from gpt2cli.generation.batch import answer_batch
    from gpt2cli.generation.sampling import SamplingOptions
    from gpt2cli.training.run_dir import add_sample
    from gpt2cli.training.sft_task import SftTask
    from gpt2cli.training.torch_compile import uncompiled

    task = setup.task
    assert isinstance(task, SftTask)
    shown, replies = task.examples.shown, None
    with uncompiled(), contextlib.suppress(DivergedError):  # the loop reports it
        replies = answer_batch(
            setup.model,
            task.tokenizer,
            [shown.ids],
            task.template.stops,
            SamplingOptions(temperature=0),
            SHOWN_TOKENS,
            stop,
        )
    if replies is None:
        return
    text = replies[0].text
    view.note(f"{_last_question(shown.record.turns)} -> {text}".replace("\n", " "), "faint")
    add_sample(run, setup.state.step, task.template.prompt(shown.record.question) + text)


def _answer_all(setup: "TrainingSetup", run: "RunDir", stop: Callable[[], int]) -> int:
    """Answer the rest of the test split with the best checkpoint. Returns a signal's number, or 0."""
    from gpt2cli.evaluation.responses import open_responses
    from gpt2cli.generation.batch import answer_prompts
    from gpt2cli.generation.sampling import SamplingOptions
    from gpt2cli.training.sft_task import SftTask
    from gpt2cli.ui.progress import counting, track

    task = setup.task
    assert isinstance(task, SftTask)
    if not task.examples.test:
        say("no test split, as data.test is 0: nothing is answered")
        return 0
    asked = task.recipe.eval
    best, test = paths.best_checkpoint(run.folder), task.examples.test
    test_digest = task.examples.test_digest
    key = _key(best, task.recipe, test_digest)
    with open_responses(run.folder / paths.RESPONSES, key) as file:
        missing = [question for question in test if question.record.index not in file.responses]
        if missing:
            replies = answer_prompts(
                _best_model(setup, best),
                task.tokenizer,
                [question.ids for question in missing],
                stops=task.template.stops,
                options=SamplingOptions(temperature=asked.temperature, seed=setup.recipe.seed),
                max_new_tokens=asked.max_new_tokens,
                n_rows=setup.recipe.batch.micro_batch,
                stop=stop,
            )
            n_done = len(file.responses)
            say(
                f"answering {counted(len(missing), 'test prompt')}"
                + f", {n_done} are answered" * bool(n_done)
            )
            for number, reply in track(replies, err(), counting("answering", len(test), n_done)):
                file.add(_response(missing[number].record, reply, key))
        if len(file.responses) < len(test):
            return stop()
        about = {
            "checkpoint": best.name,
            "key": key,
            "test": test_digest,
            "data": task.recipe.data.model_dump(mode="json"),
            "source_sha256": task.examples.sha256,
        }
        _conclude(run, list(file.responses.values()), about, asked.rouge)
    return 0


def _best_model(setup: "TrainingSetup", best: Path) -> Any:
    """In fp32: in half precision the other rows of a batch can change a close choice."""
    from gpt2cli.generation.cpu.swap_linears import swap_for_decoding
    from gpt2cli.model.lora import merge_lora

    model = setup.task.saved_model(best, setup.attention)
    merge_lora(model)
    return swap_for_decoding(model.to(setup.runtime.device), "fp32", "rows")


def _response(record: Any, reply: Any, key: str) -> "Response":
    from gpt2cli.evaluation.responses import Response, messages_digest, messages_of

    messages = messages_of(record.question)
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
        messages=messages,
        digest=messages_digest(messages),
    )


def _conclude(run: "RunDir", responses: "list[Response]", about: dict[str, Any], with_rouge: bool) -> None:
    """Measure and report the answers; scores.json is written last and marks them as complete."""
    from gpt2cli import files
    from gpt2cli.evaluation.rouge import rouge

    n, n_ended = len(responses), sum(response.ended for response in responses)
    n_stop = sum(response.finish_reason == "stop" for response in responses)
    scores: dict[str, Any] = {**about, "responses": n, "ended": n_ended, "ended_by_stop_text": n_stop}
    end = "ends by itself" if n == 1 else "end by themselves"
    said = f"{n_ended} of {counted(n, 'answer')} {end} ({n_ended / n:.0%})"
    if n_stop:
        said += f", {n_stop} of them by a stop text"
    if with_rouge:
        values = rouge([(response.output, response.response) for response in responses])
        scores |= values
        said += "; " + ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    files.write_json(run.folder / SCORES, scores)
    say(f"{said}; all in {run.folder / paths.RESPONSES}")


def _is_complete(run: "RunDir", recipe: "InstructRecipe") -> bool:
    """Whether all the answers and scores that this recipe asks for are there."""
    from gpt2cli.evaluation.rouge import ROUGE_TYPES
    from gpt2cli.json_files import read_json_object

    if not recipe.data.test and not recipe.data.test_source:
        return True
    try:
        scores = read_json_object(run.folder / SCORES)
        key, test, data = scores["key"], scores["test"], scores["data"]
        source_sha256 = scores["source_sha256"]
    except (Gpt2Error, KeyError):
        return False
    # A known corpus never changes; a file of the user may, and a test record with it.
    if data != recipe.data.model_dump(mode="json") or _sources_sha256(recipe) not in (None, source_sha256):
        return False
    has_scores = not recipe.eval.rouge or all(name in scores for name in ROUGE_TYPES)
    return has_scores and bool(key == _key(paths.best_checkpoint(run.folder), recipe, test))


def _sources_sha256(recipe: "InstructRecipe") -> str | None:
    """The joined hash of the recipe's files, as in `SftSplits`; None if one is gone or a known corpus."""
    from gpt2cli import files
    from gpt2cli.data.byte_source import joined_digest
    from gpt2cli.data.corpora import BUNDLED, CORPORA
    from gpt2cli.data.input_files import record_sources
    from gpt2cli.recipe.data_sections import each_name

    parts, data = list[str](), recipe.data
    for names in (data.source, data.validation_source, data.test_source):
        if any(name in CORPORA or name in BUNDLED for name in each_name(names)):
            return None
        try:
            sources = record_sources(each_name(names))
            digests = [
                files.sha256_of(source.path) for source in sources if source.path and source.path.is_file()
            ]
        except Gpt2Error:
            return None
        if len(digests) < len(sources):
            return None
        parts += [joined_digest(digests)] if digests else []
    return joined_digest(parts)


def _key(checkpoint: Path, recipe: "InstructRecipe", test_digest: str) -> str:
    """A hash of the weights, the test split and the options: a change of one discards all answers."""
    import hashlib

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


finetune_instruct = train_function(
    TrainCommand(
        task="finetune-instruct",
        open_task=_open_task,
        after_evaluation=_answer_one,
        at_end=_answer_all,
        is_complete=_is_complete,
        hint=_hint,
    ),
    "Fine-tune a GPT-2 to follow instructions.",
)
