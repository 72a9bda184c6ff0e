"""The fix of an error as a whole command line to paste: the one that was typed, with its mistake corrected.

Library code names what is wrong, not the command: its fix may be "did you mean WORD?", an option or
KEY=VALUE to add, or "leave out --option". Only this file knows what was typed.
"""

import difflib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from gpt2cli.cli.choose_recipe import FIRST_RECIPES
from gpt2cli.cli.examples import EXAMPLES
from gpt2cli.errors import Gpt2Error

_TAKES_OVERRIDES = ("pretrain", "finetune-classify", "finetune-instruct", "grid", "recipes")
_OVERRIDE = re.compile(r"[a-z_0-9]+(\.[a-z_0-9]+)?=.*", re.DOTALL)

# Choices, and other words for them that are spelt like another choice, or like none.
MEANT = {
    "folder": ("hf", "huggingface", "hugging-face", "transformers", "safetensors"),
    "gguf": ("ollama", "llama.cpp"),
}


def whole_fix(error: Gpt2Error, typed: Sequence[str]) -> str:
    """The error's fix, as the whole command where it names only a part of it."""
    if meant := re.fullmatch(r"did you mean (.+)\?", error.fix):
        wrong = _wrong_word(error, typed)
        if wrong and re.match(rf"{re.escape(wrong)}:\d+ ", error.what):
            return error.fix  # the mistake stands in that file, not in its name
        return _joined(_replaced(typed, wrong, meant[1])) or error.fix
    if left_out := re.fullmatch(r"leave out (--[\w-]+)", error.fix):
        return _joined([word for word in typed if word.partition("=")[0] != left_out[1]])
    if split := re.search(r"override (\S+): is not key=value", error.what):
        return _joined(_with_equals(typed, split[1])) or error.fix
    if error.fix.startswith("ls -l ") and (near := _near_file(_wrong_word(error, typed))):
        return _joined(_replaced(typed, _wrong_word(error, typed), near))
    # An option, and the key of a recipe that does the same.
    option, _, key = error.fix.partition(", in a recipe ")
    parts = _parts(key if key and typed and typed[0] in _TAKES_OVERRIDES else option)
    if typed and typed[0] in _TAKES_OVERRIDES and parts[:1] == ["--device"]:
        parts = [f"run.device={parts[1]}"]
    return _joined(_with_parts(typed, parts)) or error.fix


def usage_fix(error: typer.TyperException, typed: Sequence[str]) -> str:
    """The command that the user probably meant, for an error from Typer; '' if it cannot be guessed."""
    context: Any = getattr(error, "ctx", None)
    text = error.format_message()
    command = context.command if context else None
    if named := getattr(error, "possibilities", None) is not None and str(getattr(error, "option_name", "")):
        return _joined(_without_unknown(str(named), command, typed))
    if unknown := re.match(r"No such command '(.*?)'", text):
        return _joined(_known_command(unknown[1], text, typed))
    if text.startswith("Got unexpected extra argument"):
        return _as_one_text(context, typed)
    if choice := re.search(r"'([^']*)' is not one of (.*)", text, re.DOTALL):
        words = re.findall(r"'(.*?)'", choice[2])
        meant = [word for word in words if choice[1].lower() in MEANT.get(word, ())]
        near = meant or difflib.get_close_matches(choice[1], words, 1, 0.3)
        return _joined(_replaced(typed, choice[1], near[0])) if near else ""
    if text.startswith("Invalid value") and (default := _default(getattr(error, "param", None))):
        return _joined(_with_parts(typed, default))
    if missing := re.match(r"Missing (argument|option) '([^']+)'", text):
        return _joined(_completed(missing[2].split()[0], context, typed))
    return ""


def _joined(words: Sequence[str] | None) -> str:
    """As a shell reads it. `runs/x` and KEY=VALUE need no quotes, a text with spaces does."""
    return (
        " ".join(
            [
                "gpt2",
                *(word if re.fullmatch(r"[\w@%+=:,./~-]+", word) else shlex.quote(word) for word in words),
            ]
        )
        if words
        else ""
    )


def _wrong_word(error: Gpt2Error, typed: Sequence[str]) -> str:
    """The longest part of the command line that the error's first words name."""
    parts = [part for word in typed for part in (word, *word.split("=", 1)) if part]
    named = [part for part in parts if re.search(rf"(?<![\w.-]){re.escape(part)}(?![\w-])", error.what)]
    overrides = [part for part in named if f"override {part}" in error.what]
    if overrides:  # of key=value the key is meant
        return max(overrides, key=len).partition("=")[0]
    return max(named, key=len, default="")


def _replaced(typed: Sequence[str], wrong: str, meant: str) -> list[str]:
    """The words with one of them, its key or its value replaced; [] if it was not typed."""

    def corrected(word: str) -> str:
        key, equals, value = word.partition("=")
        if word == wrong:
            return meant
        if equals and wrong in (key, value):
            return f"{meant}={value}" if key == wrong else f"{key}={meant}"
        return word

    if meant.startswith("--"):  # an option with its value
        return [part for word in typed for part in (shlex.split(meant) if word == wrong else [word])]
    words = [corrected(word) for word in typed]
    return words if wrong and words != list(typed) else []


def _with_equals(typed: Sequence[str], key: str) -> list[str]:
    """`optim.lr 1e-3` as one word."""
    at = list(typed).index(key) if key in typed else len(typed)
    value = "".join(typed[at + 1 : at + 2])
    if not re.fullmatch(r"[a-z_0-9.]*[a-z_]", key) or not value or value.startswith("--") or "=" in value:
        return []
    return [*typed[:at], f"{key}={value}", *typed[at + 2 :]]


def _parts(fix: str) -> list[str]:
    """The options and KEY=VALUE that a fix consists of, else []."""
    try:
        words = shlex.split(fix)
    except ValueError:
        return []
    for n, word in enumerate(words):
        is_value = n > 0 and words[n - 1].startswith("--") and not word.isupper()
        if not (word.startswith("--") or _OVERRIDE.fullmatch(word) or is_value):
            return []
    return words


def _with_parts(typed: Sequence[str], parts: Sequence[str]) -> list[str]:
    """The words with options and KEY=VALUE added, in the place of the same ones."""
    words = list(typed)
    for n, part in enumerate(parts):
        if part.startswith("--"):
            value = parts[n + 1 : n + 2] if n + 1 < len(parts) and not parts[n + 1].startswith("--") else []
            at = words.index(part) if part in words else len(words)
            words[at : at + 1 + len(value)] = [part, *value]
        elif n and parts[n - 1].startswith("--"):
            continue  # its value
        elif typed and typed[0] in _TAKES_OVERRIDES:
            key = part.partition("=")[0]
            words = [word for word in words if word.partition("=")[0] != key] + [part]
        else:
            return []
    return words if parts else []


def _near_file(name: str) -> str:
    """A file that is there, of nearly this name; else ''."""
    path = Path(os.path.expanduser(name))
    if not name or not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), 1, 0.75)
    return str(path.with_name(near[0])) if near else ""


def _without_unknown(name: str, command: Any, typed: Sequence[str]) -> list[str]:
    """An unknown option as KEY=VALUE, as an argument, or as the option it resembles."""
    at = next((n for n, word in enumerate(typed) if word.partition("=")[0] == name), -1)
    if at < 0:
        return []
    arguments = [one.metavar for one in command.params if one.param_type_name == "argument"]
    _, equals, value = typed[at].partition("=")
    end = at + 1 if equals else at + 2
    value = value if equals else " ".join(typed[at + 1 : at + 2])
    options = [option for one in command.params for option in one.opts if option.startswith("--")]
    is_misspelt = bool(difflib.get_close_matches(name, options, 1, 0.8))
    takes_key = "KEY=VALUE" in arguments and value and not is_misspelt
    if takes_key and (key := _key_called(name.lstrip("-"), typed)):
        return [*typed[:at], f"{key}={value}", *typed[end:]]
    if name in ("--model", "-m") and "MODEL" in arguments and value:
        return [*typed[:at], value, *typed[end:]]
    if near := difflib.get_close_matches(name, options, 1, 0.5):
        return [*typed[:at], near[0] + (f"={value}" if equals else ""), *typed[at + 1 :]]
    return []


def _key_called(word: str, typed: Sequence[str]) -> str:
    """The recipe's key that an option of another program stands for, such as --learning-rate."""
    from gpt2cli.recipe.key_hints import RecipeKeys
    from gpt2cli.recipe.schema import RECIPES

    kind = RECIPES.get(typed[0], RECIPES["pretrain"])
    return RecipeKeys(kind).nearest(word.replace("-", "_"))


def _default(option: Any) -> list[str]:
    """An option with its default; [] if it has none, or one that only words describe: "all"."""
    default = getattr(option, "show_default", None)
    default = default if isinstance(default, str) else getattr(option, "default", None)
    kind = getattr(getattr(option, "type_descriptor", None), "annotation", None)
    described = kind in (int, float) and str(default)[:1].isalpha()
    name = next((name for name in getattr(option, "opts", ()) if name.startswith("--")), "")
    has_default = name and default not in (None, "", True, False) and not described
    return [name, str(default)] if has_default else []


def _known_command(word: str, text: str, typed: Sequence[str]) -> list[str]:
    from gpt2cli.recipe.shipped import read_header, shipped_recipes

    if path := shipped_recipes().get(word.removesuffix(".yaml")):
        return [read_header(path).task, *typed]
    if near := re.search(r"Did you mean '([^']+)'", text):
        return _replaced(typed, word, near[1])
    if word == "help":
        return [*typed[1:2], "--help"]
    return []


def _as_one_text(context: Any, typed: Sequence[str]) -> str:
    """Words of a prompt that were not quoted, as one; a message to chat, through a pipe."""
    name, given = context.info_name, _positional(context.command, typed[1:])
    if name == "generate":
        others = [word for n, word in enumerate(typed) if n not in {at + 1 for at, _ in given}]
        return _joined([*others, " ".join(word for _, word in given)])
    if name == "chat":
        message = " ".join(word for _, word in given[1:])
        places = {at + 1 for at, _ in given[1:]}
        chat = [word for n, word in enumerate(typed) if n not in places]
        return f"echo {shlex.quote(message)} | {_joined(chat)}"
    return ""


def _positional(command: Any, words: Sequence[str]) -> list[tuple[int, str]]:
    """The places and words that are neither options nor their values."""
    valued = {name for one in command.params if not getattr(one, "is_flag", True) for name in one.opts}
    return [
        (n, word)
        for n, word in enumerate(words)
        if not (word.startswith("-") and word != "-") and not (n and words[n - 1] in valued)
    ]


def _completed(missing: str, context: Any, typed: Sequence[str]) -> list[str]:
    """The command with what is missing, from what is here or as in its example."""
    path = context.command_path.partition(" ")[2]
    if missing == "RECIPE":
        return [*typed, FIRST_RECIPES.get(path, "verdict")]
    if missing == "DEST":
        return [*typed, f"{Path(typed[-1]).stem}-copy.yaml"]
    if missing == "--out":
        named = re.sub(r"\W+", "-", Path(typed[1]).stem).strip("-") if len(typed) > 1 else ""
        return [*typed, "--out", f"data/{named or 'prepared'}"]
    example = shlex.split(EXAMPLES[path][0].partition(" <")[0])[1:]
    return example if len(typed) <= len(path.split()) else []
