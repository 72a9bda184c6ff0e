"""run.json: the sessions of a run, its start and its resumes. Read here without torch."""

import json
import shlex
from pathlib import Path
from typing import Any

from gpt2cli.errors import InputError
from gpt2cli.json_files import read_own_json
from gpt2cli.paths import RUN_RECORD

RECORD_FORMAT = 1


def read_sessions(run: Path) -> list[dict[str, Any]]:
    """The sessions of the run in a folder, oldest first; none without the file.

    Raises NewerFormatError for a later version's, InputError for a damaged one.
    """
    path = run / RUN_RECORD
    if not path.exists():
        return []
    empty = json.dumps({"format": RECORD_FORMAT, "sessions": []})
    fix = (
        f"echo {shlex.quote(empty)} > {shlex.quote(str(path))}, then resume with"
        f" {shlex.quote(str(run / 'recipe.yaml'))}, which has every value"
    )
    sessions = read_own_json(path, RECORD_FORMAT, fix).get("sessions")
    if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
        raise InputError(f"{path}: is damaged", "sessions is not a list of objects", fix)
    if not all(_is_words(session.get("overrides", [])) for session in sessions):
        raise InputError(f"{path}: is damaged", "the overrides of a session are not a list of words", fix)
    return sessions


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)
