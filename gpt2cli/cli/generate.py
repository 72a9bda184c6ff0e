"""`gpt2 generate`: a prompt in, continuations out."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli.choose_model import load_for_decoding, preloading
from gpt2cli.cli.generate_prompts import N_ROWS, continue_lines, prompt_lines
from gpt2cli.cli.options import (
    AdapterOption,
    CompileOption,
    DecodingPrecisionOption,
    DeviceOption,
    JsonOption,
    MinPOption,
    ModelOption,
    RepetitionPenaltyOption,
    SeedOption,
    SpecialOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    encode_prompt,
    fit_prompt,
    prompt_text,
    warn_of_control_tokens,
)
from gpt2cli.errors import UsageError
from gpt2cli.generation.load import NEW_TOKENS
from gpt2cli.paths import expand
from gpt2cli.ui.console import err, print_json, printable, say, stream
from gpt2cli.ui.spinner import load_torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.generation.engine import DecodeStep, Throughput
    from gpt2cli.generation.stop_text import Continuation
    from gpt2cli.generation.trace import ChoiceRecord, ChoiceTrace
    from gpt2cli.tokenizer.base import Tokenizer

N_CANDIDATES = 10  # that a trace shows, before and after the filters
LONGEST_ECHO = 2000  # characters of the prompt that a terminal repeats


def generate(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; - or piped input: read stdin.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", parser=expand, metavar="PATH", help="Read the prompt from a file."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            parser=expand,
            metavar="PATH",
            help="Continue each line of a file, in batches; - is stdin. An empty line is an empty prompt.",
        ),
    ] = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="Maximum number of new tokens.")
    ] = NEW_TOKENS,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionPenaltyOption = None,
    seed: SeedOption = None,
    num_samples: Annotated[
        int, typer.Option("--num-samples", min=1, help="Number of continuations, decoded as one batch.")
    ] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", help="Stop where this text appears (not printed); repeatable."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Print tokens as they are generated.")
    ] = True,
    special: SpecialOption = False,
    template: Annotated[
        bool,
        typer.Option("--template", help="Put the prompt into the model's chat template."),
    ] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Print exact bytes, including control characters; only to a pipe or file."
        ),
    ] = False,
    as_json: JsonOption = False,
    logprobs: Annotated[
        bool,
        typer.Option(
            "--logprobs", help="With --json: add the model's log-probability of each new token, in nats."
        ),
    ] = False,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help="Show each choice: candidates before and after each filter, and the draw; on stderr, or with"
            " --json in the objects.",
        ),
    ] = False,
    truncate: Annotated[
        bool,
        typer.Option("--truncate", help="Keep only the last tokens of a prompt longer than the context."),
    ] = False,
    device: DeviceOption = "auto",
    precision: DecodingPrecisionOption = "auto",
    compile: CompileOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Continue a text.

    Prints only continuations to stdout, or with --json one object per line.
    With --prompts each line gets what it would get alone with this seed.
    Progress and notes go to stderr.
    """
    if "" in (stop or ()):
        raise UsageError("--stop is empty", "every text contains the empty text", "--stop .")
    if logprobs and not as_json:
        raise UsageError("--logprobs needs --json", "it is one number per token", "--json --logprobs")
    if raw and (as_json or sys.stdout.isatty()):
        raise UsageError(
            "--raw is for a pipe or a file",
            "control characters can take over a terminal"
            if not as_json
            else "--json escapes control characters",
            "leave out --raw",
        )
    if prompts:
        _require_nothing_else(
            prompts,
            {"PROMPT": prompt, "--file": file, "--raw": raw, "--trace": trace, "--logprobs": logprobs},
        )
        lines, name = prompt_lines(prompts)
    text = "" if prompts else prompt_text(prompt, file)
    with preloading(model, adapter) as (folder, adapters):
        load_torch()
        from gpt2cli.generation import engine
        from gpt2cli.generation.sampling import sampling_options
        from gpt2cli.generation.stop_text import Continuation
        from gpt2cli.generation.trace import ChoiceRecord

        sampling = sampling_options(
            seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        loaded = load_for_decoding(
            *(folder, device, precision, threads, compile),
            adapters=adapters,
            n_rows=num_samples if not prompts else N_ROWS,
            n_tokens=max_new_tokens,
        )
    cut = None if truncate else "--truncate"
    stops = list(stop or ())
    if prompts:
        if template:
            stops += _in_template("", loaded, cut, special)[1]
        else:
            _hint_at_template(loaded)
        continue_lines(
            *(lines, name, loaded),
            lambda line: (
                _in_template(line, loaded, cut, special)[0]
                if template
                else encode_prompt(line, loaded, cut, special)
            ),
            n_samples=num_samples,
            stops=stops,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            as_json=as_json,
        )
        return
    if template:
        ids, more = _in_template(text, loaded, cut, special)
        stops += more
    else:
        ids = encode_prompt(text, loaded, cut, special)
        _hint_at_template(loaded)

    replies = [Continuation(loaded.tokenizer, stops) for _ in range(num_samples)]
    record = ChoiceRecord(N_CANDIDATES if trace else 0) if trace or logprobs else None
    choices: list[_Choices] = [_Choices([], []) for _ in replies]
    ends = set(loaded.tokenizer.special.stops)
    steps = engine.generate(loaded.model, [ids] * num_samples, sampling, max_new_tokens, ends, watch=record)
    screen = None if as_json else _Screen(text, raw)
    throughput = engine.Throughput()
    reason = "error"
    try:
        for step in _timed(steps, throughput):
            for row, (reply, token) in enumerate(zip(replies, step.ids, strict=True)):
                if token is None:
                    continue
                if record and not reply.finish_reason:
                    choices[row].add(record, row)
                reply.feed(token)
            if screen and stream:
                screen.update(replies)
            if all(reply.finish_reason for reply in replies):
                break
        reason = "length"
    except (KeyboardInterrupt, SystemExit):
        reason = "interrupted"
        raise
    finally:  # print what was generated so far, whatever ended it
        for reply in replies:
            reply.finish(reason)
        facts = {
            "tokens_per_second": round(throughput.tokens_per_second, 2),
            "prompt_tokens": len(ids),
            "model": str(loaded.folder),
            "seed": sampling.seed,
        } | ({"adapters": [str(path) for path in adapters]} if adapters else {})
        if screen:
            screen.end(replies, facts)
            if trace:
                _show_traces(choices, loaded.tokenizer)
        else:
            asked = [
                chosen.facts(len(reply.ids), loaded.tokenizer, logprobs, trace)
                for reply, chosen in zip(replies, choices, strict=True)
            ]
            _print_json(replies, facts, asked)


def _require_nothing_else(prompts: Path, given: dict[str, object]) -> None:
    """Raise UsageError for what does not go with --prompts."""
    for name, value in given.items():
        if value:
            fix = f"gpt2 generate --prompts {shlex.quote(str(prompts))}"
            raise UsageError(f"--prompts with {name}", "its prompts are the lines of a file", fix)


def _in_template(
    text: str, loaded: "LoadedModel", fix: str | None, special: bool
) -> "tuple[list[int], tuple[str, ...]]":
    """The ids of the prompt in the model's chat template, and the texts that end an answer."""
    from gpt2cli.generation.chat_prompt import ChatFormat
    from gpt2cli.jinja_template import JinjaTemplate, read_chat_template

    found = read_chat_template(loaded.folder)
    if found is None:
        raise UsageError(
            f"--template: {loaded.folder} has no chat template",
            "it is a base model, which continues text",
            "leave out --template",
        )
    if not special:
        warn_of_control_tokens(text, loaded.tokenizer, isinstance(found, JinjaTemplate))
    ids = ChatFormat(loaded.tokenizer, found, None, special).prompt([], text)
    return fit_prompt(ids, loaded, fix), found.stops


def _hint_at_template(loaded: "LoadedModel") -> None:
    """An instruction-tuned model continues a bare prompt with nonsense."""
    from gpt2cli.jinja_template import read_chat_template
    from gpt2cli.templates import TEMPLATES

    if found := read_chat_template(loaded.folder):
        name = f"the {found.name}" if found.name in TEMPLATES else "its own"
        say(f"instruction-tuned with {name} template: use gpt2 chat, or --template", "faint")


@dataclass(frozen=True)
class _Choices:
    """What was asked for of one continuation's tokens. The one that ended it is the last trace."""

    logprobs: list[float]
    traces: "list[ChoiceTrace]"

    def add(self, record: "ChoiceRecord", row: int) -> None:
        self.logprobs.append(record.logprobs[row])
        self.traces.extend(record.traces[row : row + 1])

    def facts(self, n: int, tokenizer: "Tokenizer", logprobs: bool, trace: bool) -> dict[str, Any]:
        """For JSON; `n` is the number of ids that the continuation has."""
        found: dict[str, Any] = {"logprobs": self.logprobs[:n]} if logprobs else {}
        return found | ({"trace": [one.as_json(tokenizer) for one in self.traces]} if trace else {})


def _print_json(
    replies: "Sequence[Continuation]", facts: dict[str, Any], asked: "Sequence[dict[str, Any]]"
) -> None:
    """One object per line, one line per continuation."""
    for number, (reply, more) in enumerate(zip(replies, asked, strict=True), 1):
        own = {"text": reply.text, "ids": reply.ids, "finish_reason": reply.finish_reason}
        print_json(own | facts | {"sample": number} | more)


def _show_traces(choices: "Sequence[_Choices]", tokenizer: "Tokenizer") -> None:
    """To stderr, after all the text: between its pieces they would tear it apart."""
    from gpt2cli.ui.tables import trace_lines

    for number, chosen in enumerate(choices, 1):
        if len(choices) > 1:
            say(f"--- {number}/{len(choices)} ---", "faint")
        for place, one in enumerate(chosen.traces, 1):
            for line in trace_lines(one, place, tokenizer):
                say(line)


def _timed(steps: "Iterator[DecodeStep]", throughput: "Throughput") -> "Iterator[DecodeStep]":
    """The same steps; says once that the window has moved."""
    moved = False
    for step in steps:
        if step.window_moved:
            throughput.start_prefill()
            if not moved:
                say("the context is full: continuing from its last half", "warn")
            moved = True
        throughput.add(sum(token is not None for token in step.ids))
        yield step


class _Screen:
    """Continuations one after another on stdout, though they are decoded as one batch.

    The first that has not ended is shown as it grows; the others wait. Their headings go to stderr; on
    stdout each ends with a line feed.
    """

    def __init__(self, prompt: str, raw: bool) -> None:
        self._prompt, self._raw = prompt, raw
        self._err, self._on_terminal = err(), err().is_terminal and sys.stdout.isatty()
        self._row, self._n_shown = 0, -1  # the continuation that is shown; -1: not begun

    def update(self, replies: "Sequence[Continuation]") -> None:
        for row in range(self._row, len(replies)):
            if self._n_shown < 0:
                self._introduce(row, len(replies))
            self._write(replies[row].text[self._n_shown :])
            self._n_shown = len(replies[row].text)
            if not replies[row].finish_reason or row + 1 == len(replies):
                return
            self._write("\n")
            self._row, self._n_shown = row + 1, -1

    def end(self, replies: "Sequence[Continuation]", facts: dict[str, Any]) -> None:
        if not any(reply.ids for reply in replies):
            return
        self.update(replies)
        self._write("" if self._raw else "\n")
        if self._on_terminal:
            from gpt2cli.ui.chat import throughput_line

            throughput = throughput_line(sum(len(reply.ids) for reply in replies), facts["tokens_per_second"])
            self._err.print(f"{throughput}, seed {facts['seed']}", style="faint")

    def _introduce(self, row: int, n_rows: int) -> None:
        self._n_shown = 0
        if n_rows > 1:
            self._err.print(f"--- {row + 1}/{n_rows} ---", style="faint")
        if self._on_terminal:
            self._err.print(printable(self._prompt[-LONGEST_ECHO:]), style="faint", end="")

    def _write(self, text: str) -> None:
        stream(text, exact=self._raw)
