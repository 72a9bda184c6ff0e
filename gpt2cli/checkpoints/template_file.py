"""prompt.json, the chat template of a model folder: the name of one of `templates.py`'s."""

from pathlib import Path

from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of, write_json
from gpt2cli.json_files import read_json_object
from gpt2cli.templates import TEMPLATES, Template

TEMPLATE_FILE = "prompt.json"


def write_template(folder: Path, name: str) -> dict[str, str]:
    """Write the template's name; returns {file name: SHA-256} for the manifest."""
    assert name in TEMPLATES
    write_json(folder / TEMPLATE_FILE, {"template": name})
    return {TEMPLATE_FILE: sha256_of(folder / TEMPLATE_FILE)}


def read_template_name(folder: Path) -> str | None:
    """The template's name, or None for a model that was never instruction-tuned.

    Raises InputError for a file that names none of the templates.
    """
    path = folder / TEMPLATE_FILE
    if not path.exists():
        return None
    name = read_json_object(path).get("template")
    if not isinstance(name, str) or name not in TEMPLATES:
        raise InputError(
            f"{path}: names no known chat template",
            f"they are {', '.join(TEMPLATES)}",
            "pip install --upgrade gpt2cli, if a newer version wrote it",
        )
    return name


def read_template(folder: Path) -> Template | None:
    """The template that the folder names, if it names one."""
    name = read_template_name(folder)
    return None if name is None else TEMPLATES[name]
