"""Owns prompt.json, by which a model folder says how it wants to be spoken to.

The templates themselves are in `prompts.py`; the folder names one of them.
"""

import json
from pathlib import Path

from gpt2cli.errors import InputError
from gpt2cli.files import open_regular, sha256_of, write_json
from gpt2cli.templates import TEMPLATES, Template

PROMPT = "prompt.json"


def write_prompt(folder: Path, name: str) -> dict[str, str]:
    """Write the template's name; returns {file name: SHA-256} for the manifest."""
    assert name in TEMPLATES
    write_json(folder / PROMPT, {"template": name})
    return {PROMPT: sha256_of(folder / PROMPT)}


def read_prompt(folder: Path) -> str | None:
    """The template's name, or None for a model that was never taught to answer.

    Raises InputError for a file that names none of the templates.
    """
    path = folder / PROMPT
    if not path.exists():
        return None
    with open_regular(path) as file:
        try:
            name = json.loads(file.read(1 << 20))["template"]
        except (ValueError, RecursionError, KeyError, TypeError):
            name = None
    if not isinstance(name, str) or name not in TEMPLATES:
        raise InputError(
            f"{path}: names no prompt template that is known here",
            f"they are {', '.join(TEMPLATES)}",
            "pip install --upgrade gpt2cli, if a newer version wrote it",
        )
    return name


def template_of(folder: Path) -> Template | None:
    """The template that the folder names, if it names one."""
    name = read_prompt(folder)
    return None if name is None else TEMPLATES[name]
