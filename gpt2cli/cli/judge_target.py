"""Who judges and what is judged, as the arguments of `gpt2 judge` name them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2cli import paths
from gpt2cli.errors import InputError, UsageError
from gpt2cli.ui.console import say

if TYPE_CHECKING:
    from gpt2cli.judge.server import JudgeServer

EXAMPLE = "gpt2 judge --ollama llama3.2"


def server_of(name: str | None, base_url: str | None, judge_model: str | None) -> "JudgeServer":
    from gpt2cli.judge import server

    if name is not None and (base_url is not None or judge_model is not None):
        raise UsageError(
            "there are two judges", "--ollama is one, --base-url with --judge-model another", EXAMPLE
        )
    if name is not None:
        return server.ollama(name)
    if base_url is None and judge_model is None:
        raise UsageError(
            "there is no judge",
            "a model that Ollama runs, or one behind any OpenAI-compatible server",
            f"{EXAMPLE}, or gpt2 judge --base-url URL --judge-model NAME",
        )
    if base_url is None or judge_model is None:
        missing = "--base-url" if base_url is None else "--judge-model"
        raise UsageError(
            f"{missing} is missing",
            "--base-url and --judge-model go together",
            "gpt2 judge --base-url http://127.0.0.1:8080/v1 --judge-model NAME",
        )
    return server.openai_compatible(base_url, judge_model)


def responses_of(target: str) -> Path:
    """The file of responses that a target means. Raises InputError."""
    given = Path(os.path.expanduser(target))
    if target and os.path.lexists(given) and not given.is_dir():
        return given  # reading it says what is wrong with it
    hidden = any(part.startswith(".") for part in Path(target).parts)
    for folder in [given, *([] if hidden else [paths.runs() / target])]:
        # A checkpoint's answers are its run's.
        for place in (folder, folder.resolve().parent.parent):
            if (place / paths.RESPONSES).is_file() and (place == folder or paths.is_run(place)):
                return place / paths.RESPONSES
    raise InputError(
        f"{target or repr(target)}: no responses here",
        f"neither a file, nor a folder or a run under {paths.runs()} with a {paths.RESPONSES}",
        "gpt2 finetune-instruct RECIPE writes them at its end",
    )


def newest_responses() -> Path:
    found = [path for path in paths.runs().glob(f"*/{paths.RESPONSES}") if path.is_file()]
    found = [path for path in found if not path.parent.name.startswith(".")]
    if not found:
        raise InputError(
            "there are no responses here yet",
            f"no run under {paths.runs()} has a {paths.RESPONSES}",
            "gpt2 finetune-instruct RECIPE, or name a file",
        )
    newest = max(found, key=lambda path: path.stat().st_mtime)
    say(f"responses: {newest}", "faint")
    return newest


def label_of(path: Path) -> str:
    """What a file of responses is called in another's name."""
    name = path.resolve().parent.name if path.name == paths.RESPONSES else path.stem
    return "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in name)[:100] or "other"


def kept_of(path: Path, other: Path | None = None) -> Path:
    """Where the judgements of a file of responses are kept, or the comparisons with another one.

    Only a run's own responses leave out their name, so that two files in one folder do not share one.
    """
    own = "" if path.name == paths.RESPONSES else f"{path.stem}."
    versus = "" if other is None else f"-vs-{label_of(other)}"
    return path.parent / f"{own}judgements{versus}.jsonl"
