"""Owns what is asked of the Hugging Face hub: which files a repository has, and what vouches for them.

Endpoint, token, addresses and cache are huggingface_hub's, with its own environment variables
(HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE). The bytes go through `download.py`, because the
hub's own transfer compares no hash.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from gpt2cli import files as disk
from gpt2cli.errors import InputError, UsageError
from gpt2cli.hub.registry import Expected, hub_files

CONFIG = "config.json"
# What lies beside the weights and has a use here. The last three are of folders that gpt2cli wrote.
_BESIDE = (
    *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "manifest.json", "recipe.yaml", "conversion.json"),
)
_WEIGHTS = (("model", "safetensors"), ("pytorch_model", "bin"))  # the first that is there is taken
MAX_LISTING = 32 << 20  # bytes
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class Listing:
    """A repository at one commit: the files that a GPT-2 needs of it, and what is known of each."""

    repository: str
    commit: str
    files: dict[str, Expected]


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def endpoint(base_url: str | None) -> str:
    from huggingface_hub import constants

    return (base_url or constants.ENDPOINT).rstrip("/")


def headers(base_url: str | None) -> dict[str, str]:
    """The token for the hub itself. A mirror that was named on the command line is not told it."""
    from huggingface_hub import constants, get_token

    if endpoint(base_url) != endpoint(None) or constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return {}
    token = get_token()
    return {"authorization": f"Bearer {token}"} if token else {}


def check_name(repository: str) -> None:
    if not _NAME.fullmatch(repository) or ".." in repository or "--" in repository:
        raise UsageError(
            f"{repository}: is not a name of the hub", "it would be owner/name", "gpt2 download --list"
        )


def listing_address(repository: str, revision: str, base_url: str | None) -> str:
    place = f"{endpoint(base_url)}/api/models/{repository}/revision/{quote(revision, safe='')}"
    return f"{place}?blobs=true"


def file_address(listing: Listing, name: str, base_url: str | None) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(listing.repository, name, revision=listing.commit, endpoint=endpoint(base_url))


def read_listing(path: Path, repository: str) -> Listing:
    """The hub's answer as it was stored. Raises InputError where it is none, or no GPT-2's."""
    with disk.open_regular(path) as file:
        try:
            answer = json.loads(file.read(MAX_LISTING))
            commit = answer["sha"]
            known = {entry["rfilename"]: _expected(entry) for entry in answer["siblings"]}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            path.unlink(missing_ok=True)  # another process may have been quicker
            raise InputError(
                f"{repository}: the hub's list of files cannot be read",
                "the server's answer is not the hub's",
                "look at HF_ENDPOINT and --base-url",
            ) from None
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise InputError(f"{repository}: the hub names no commit", f"but {commit!r}"[:100])
    known |= hub_files(repository, commit)
    return Listing(repository, commit, {name: known[name] for name in needed(repository, known)})


def needed(repository: str, names: Collection[str]) -> list[str]:
    """What of a repository makes a GPT-2, small files first. Raises InputError where that is not there."""
    beside = [name for name in _BESIDE if name in names]
    for stem, suffix in _WEIGHTS:
        single = f"{stem}.{suffix}"
        index, shard = f"{single}.index.json", re.compile(rf"{stem}-\d{{5}}-of-\d{{5}}\.{suffix}")
        weights = [single] if single in names else sorted(filter(shard.fullmatch, names))
        if CONFIG in names and weights and (weights == [single] or index in names):
            return [CONFIG, *beside, *([] if weights == [single] else [index]), *weights]
    raise InputError(
        f"{repository}: holds no model that can be read here",
        "a config.json and model.safetensors or pytorch_model.bin are needed, whole or in shards",
        "gpt2 download --list",
    )


def in_cache(repository: str, commit: str, name: str) -> Path | None:
    """The file in the cache that huggingface_hub's users share."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name, revision=commit)
    return Path(found).resolve() if isinstance(found, str) else None


def listing_from_cache(repository: str, revision: str) -> Listing | None:
    """What the shared cache holds of a revision, for whoever has no network."""
    config = in_cache(repository, revision, CONFIG)
    if config is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    snapshot = Path(str(try_to_load_from_cache(repository, CONFIG, revision=revision))).parent
    known = {path.name: _named_by_hash(path) for path in snapshot.iterdir() if path.is_file()}
    known |= hub_files(repository, snapshot.name)
    return Listing(repository, snapshot.name, {name: known[name] for name in needed(repository, known)})


def _named_by_hash(path: Path) -> Expected:
    """A blob of the cache bears the hash that the hub published for it."""
    return _by_hash(path.resolve().name)


def _expected(entry: dict[str, object]) -> Expected:
    size, lfs, blob = entry.get("size"), entry.get("lfs"), entry.get("blobId")
    n_bytes = size if isinstance(size, int) and size >= 0 else None
    if isinstance(lfs, dict):
        known = _by_hash(str(lfs.get("sha256") or lfs.get("oid") or ""))
        return Expected(n_bytes, known.sha256)
    return Expected(n_bytes, None, _by_hash(str(blob or "")).git_sha1)


def _by_hash(digits: str) -> Expected:
    if not _HEX.fullmatch(digits) or len(digits) not in (40, 64):
        return Expected()
    return Expected(sha256=digits) if len(digits) == 64 else Expected(git_sha1=digits)
