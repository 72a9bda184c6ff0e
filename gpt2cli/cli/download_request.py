"""The request that `gpt2 download` was given: model, source and name, and the errors that refuse it.

All checks come before any download.
"""

import difflib
import os
import shlex
from pathlib import Path

from gpt2cli import paths
from gpt2cli.checkpoints.provenance import Origin
from gpt2cli.errors import UsageError
from gpt2cli.hub.downloads import SOURCES, command, model_name
from gpt2cli.hub.hf_hub import require_revision
from gpt2cli.hub.inventory import origin_of
from gpt2cli.hub.registry import SIZES, Size
from gpt2cli.hub.responses import shown

WHO = {"openai": "OpenAI", "hf": "the Hugging Face hub"}


def find(name: str | None) -> tuple[Size | None, str]:
    """One of the four sizes or None, and the repository on the hub."""
    if name is None:
        raise UsageError("which model?", f"there are {', '.join(SIZES)}", "gpt2 download 124M")
    # 124 and 1.5 are sizes too; as the name of a run or a model they stay free.
    spellings = map(paths.canonical_size, (name, f"{name}M", f"{name}B"))
    size = SIZES.get(next(filter(None, spellings), ""))
    if size:
        return size, size.repository
    plain, at, revision = name.partition("@")
    if at:
        raise UsageError(f"{name}: a revision is an option here", "", command(plain, revision=revision))
    if "/" not in name:
        near = difflib.get_close_matches(name, paths.ALIASES, n=1)
        raise UsageError(
            f"{name}: no such model",
            f"there are {', '.join(SIZES)}, and owner/name of the Hugging Face hub",
            f"gpt2 download {near[0]}" if near else "gpt2 download --list",
        )
    return None, name


def sources(repository: str, source: str | None, size: Size | None, revision: str | None) -> tuple[str, ...]:
    """Where to look, in order."""
    if source == "openai" and size is None:
        raise UsageError(
            "OpenAI has only its own sizes",
            "owner/name is of the Hugging Face hub",
            command(repository, revision=revision),
        )
    if source == "openai" and revision is not None:
        raise UsageError(
            "--revision goes with --source hf",
            "OpenAI's files have no revisions",
            command(repository, "hf", revision=revision),
        )
    if source:
        return (source,)
    return ("hf",) if revision is not None or size is None else SOURCES


def called(name: str, revision: str | None) -> str:
    """The model's name: NAME@REVISION, unless the model NAME exists and was made from that commit."""
    if revision is None:
        return name
    require_revision(revision)
    plain = paths.model_path(name)
    origin = origin_of(plain) if paths.is_model(plain) else None
    return name if origin and origin.revision == revision else model_name(name, revision)


def require_asked(
    name: str, origin: Origin | None, source: str | None, base_url: str | None, again: str
) -> None:
    """Refuse an existing model that came from another source than requested."""
    if source and (origin is None or origin.source != source):
        where = f"from {WHO[origin.source]}" if origin and origin.source in WHO else "not from a download"
        raise UsageError(
            f"{name} already exists, {where}", f"--source {source} asks for another; this replaces it", again
        )
    require_address(name, origin.address if origin else "", base_url, again)


def require_address(name: str, address: str, base_url: str | None, again: str) -> None:
    """Refuse existing files that came from another server than requested."""
    if base_url and not f"{address}/".startswith(f"{shown(base_url).rstrip('/')}/"):
        raise UsageError(
            f"{name} already exists, from {address or 'an unknown place'}",
            "--base-url asks for another; this replaces it",
            again,
        )


def require_place(model: Path) -> None:
    """Refuse, before the download, a place that could not be replaced afterwards."""
    if os.path.lexists(model) and not paths.is_model(model):
        raise UsageError(
            f"{model}: is in the model's place, and is not a model",
            "it would be deleted",
            shlex.join(["mv", str(model), f"{model}.old"]),
        )
