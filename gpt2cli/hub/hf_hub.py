"""A repository on the Hugging Face hub: the files that a GPT-2 needs, with their published hashes, and the
upload of a model's files.

Endpoint, token, addresses and cache are huggingface_hub's, with its environment variables (HF_ENDPOINT,
HF_TOKEN, HF_HOME, HF_HUB_OFFLINE). The bytes come through `fetch.py`: huggingface_hub 2.4 compares no
hash, drops the bytes of a killed download, and mixes two versions of a file that changes meanwhile. An
upload is its own client's, in one commit.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from gpt2cli import files
from gpt2cli.errors import InputError, ServiceError, UsageError
from gpt2cli.hub.registry import Expected, hub_files
from gpt2cli.tokenizer.base import OTHER_KINDS

CONFIG = "config.json"
# What lies beside the weights and has a use here. The last four are of folders that gpt2 wrote.
_BESIDE = (
    *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "generation_config.json", "chat_template.jinja", "README.md"),
    *OTHER_KINDS,  # small, and by them it is known that a tokenizer is of another kind
    *("manifest.json", "recipe.yaml", "conversion.json", "prompt.json"),
)
_WEIGHTS = (("model", "safetensors"), ("pytorch_model", "bin"))  # the first that is there is taken
_TENSORS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")  # files that convert can look into
MAX_LISTING = 32 << 20  # bytes
ANSWER_SECONDS = 60.0  # that the hub may take for one answer to an upload; huggingface_hub waits for ever
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Listing:
    """A repository at one commit: the files that a GPT-2 needs, and their known sizes and hashes."""

    repository: str
    commit: str
    files: dict[str, Expected]


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def endpoint(base_url: str | None) -> str:
    from huggingface_hub import constants

    return (base_url or constants.ENDPOINT).rstrip("/")


def headers(base_url: str | None) -> dict[str, str]:
    """The token for the hub itself. It is not sent to a mirror named on the command line."""
    from huggingface_hub import constants, get_token

    if endpoint(base_url) != endpoint(None) or constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return {}
    token = get_token()
    return {"authorization": f"Bearer {token}"} if token else {}


def require_name(repository: str) -> None:
    """Raise UsageError for an invalid repository name."""
    if not _NAME.fullmatch(repository) or ".." in repository or "--" in repository:
        raise UsageError(
            f"{repository}: is not a name of the hub", "it would be owner/name", "gpt2 download --list"
        )


def require_revision(revision: str) -> None:
    """Raise UsageError for an invalid name of a branch, tag or commit."""
    if not revision or not revision.isprintable() or set(revision) & set(" ~^:?*[\\"):
        why = "it would be a branch, a tag or a commit"
        raise UsageError(f"--revision {revision!r} is not a name of git", why, "leave out --revision")


def listing_url(repository: str, revision: str, base_url: str | None) -> str:
    return f"{endpoint(base_url)}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"


def dataset_url(repository: str, base_url: str | None) -> str:
    """The hub's answer about a data set of this name, if there is one."""
    return f"{endpoint(base_url)}/api/datasets/{repository}"


def file_url(listing: Listing, name: str, base_url: str | None) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(listing.repository, name, revision=listing.commit, endpoint=endpoint(base_url))


def read_listing(path: Path, repository: str) -> Listing:
    """The stored answer of the hub. Raises InputError if it is not one, or not about a GPT-2."""
    with files.open_regular(path) as file:
        try:
            answer = json.loads(file.read(MAX_LISTING))
            commit = answer["sha"]
            known = {str(entry["rfilename"]): _expected(entry) for entry in answer["siblings"]}
            tags = [tag for tag in answer.get("tags") or () if isinstance(tag, str)]
            if not re.fullmatch(r"[0-9a-f]{40}", commit):
                raise ValueError(commit)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            path.unlink(missing_ok=True)  # another process may have been quicker
            raise InputError(
                f"{repository}: the list of its files cannot be read",
                "the server's answer is not the hub's",
                "look at HF_ENDPOINT and --base-url",
            ) from None
    # "base_model:quantized:openai-community/gpt2", or without the word between
    bases = [tag.rpartition(":")[2] for tag in tags if tag.startswith("base_model:")]
    return _listing(repository, commit, known, next(filter(_NAME.fullmatch, bases), ""))


def fetching(repository: str) -> str:
    """huggingface_hub's own command, which fetches a whole repository."""
    return f"hf download {repository} --local-dir {repository.partition('/')[2]}"


def is_weights(name: str) -> bool:
    """Whether a file of a listing holds weights, or is their index."""
    return name.startswith(tuple(f"{stem}{end}" for stem, _ in _WEIGHTS for end in ".-"))


def listing_from_cache(repository: str, revision: str) -> Listing | None:
    """The files of a revision in huggingface_hub's shared cache."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, CONFIG, revision=revision)
    if not isinstance(config, str):
        return None
    snapshot = Path(config).parent
    # A blob of the cache bears the hash that the hub published for it.
    known = {path.name: _by_hash(path.resolve().name) for path in snapshot.iterdir() if path.is_file()}
    return _listing(repository, snapshot.name, known)


def listing_of_folder(repository: str, folder: Path) -> Listing | None:
    """The files put by hand into the folder of a revision."""
    if not (folder / CONFIG).is_file():
        return None
    names = [path.name for path in folder.iterdir() if path.is_file()]
    return _listing(repository, folder.name, {name: Expected() for name in names})


def in_cache(repository: str, commit: str, name: str) -> Path | None:
    """The file in huggingface_hub's shared cache."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name, revision=commit)
    return Path(found).resolve() if isinstance(found, str) else None


def upload(paths: Mapping[str, Path], repository: str, again: str) -> str:
    """Commit {name in the repository: file}, and make the repository if there is none; returns its URL.

    `again` is the command that uploads them later. Raises UsageError without a token or network,
    ServiceError if the hub refuses it or is out of reach.
    """
    require_upload(repository)
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi, constants, set_client_factory
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils._http import default_client_factory
    from huggingface_hub.utils.tqdm import disable_progress_bars

    def client() -> Any:
        made = default_client_factory()
        made.timeout = ANSWER_SECONDS
        return made

    set_client_factory(client)
    disable_progress_bars()
    # huggingface_hub takes Xet storage for granted, and tries for minutes where a hub has Git LFS alone.
    if urlsplit(endpoint(None)).hostname != "huggingface.co":
        constants.HF_HUB_DISABLE_XET = True
    api = HfApi(endpoint=endpoint(None))
    added = [CommitOperationAdd(name, path) for name, path in paths.items()]
    try:
        url = api.create_repo(repository, exist_ok=True)
        api.create_commit(repository, added, commit_message="Upload from gpt2cli")
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        why = str(error.server_message or error).strip().partition("\n")[0]
        refused = code in (401, 403)
        raise ServiceError(
            f"{repository}: the hub refuses the upload{f' ({code})' if code else ''}",
            why[:300],
            f"hf auth login, with a token that may write to it; then: {again}" if refused else again,
        ) from None
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        why = f"{error}".partition("\n")[0][:300]
        raise ServiceError(f"{repository}: the upload failed", why, again) from None
    except (LookupError, TypeError, AttributeError):
        raise ServiceError(
            f"{repository}: the upload failed", "the server's answer is not the hub's", again
        ) from None
    return str(url)


def require_upload(repository: str) -> None:
    """Raise UsageError for what can be known before any work: the name, the token, the network."""
    from huggingface_hub import get_token

    require_name(repository)
    if is_offline():
        raise UsageError("--push-to needs the network", "HF_HUB_OFFLINE forbids it", "unset HF_HUB_OFFLINE")
    if not get_token():
        raise UsageError("--push-to: no token for the hub", "an upload needs an account", "hf auth login")


def _listing(repository: str, commit: str, known: dict[str, Expected], base: str = "") -> Listing:
    known = known | hub_files(repository, commit)
    return Listing(repository, commit, {name: known[name] for name in _needed(repository, known, base)})


def _needed(repository: str, names: Collection[str], base: str) -> list[str]:
    """The files that make a GPT-2, small ones first. Raises InputError if some are missing."""
    beside = [name for name in _BESIDE if name in names]
    for stem, suffix in _WEIGHTS:
        single = f"{stem}.{suffix}"
        index, shard = f"{single}.index.json", re.compile(rf"{stem}-\d{{5}}-of-\d{{5}}\.{suffix}")
        shards = sorted(filter(shard.fullmatch, names)) if index in names else []
        if CONFIG in names and (single in names or shards):
            return [CONFIG, *beside, *([single] if single in names else [index, *shards])]
    raise _no_model(repository, names, base)


def _no_model(repository: str, names: Collection[str], base: str) -> InputError:
    """What a repository is instead of a whole model, and what to do; `base` is what its card names."""
    from gpt2cli.convert.hf_folder import OTHERS, unread_weights

    folder = repository.partition("/")[2]
    fetch = fetching(repository)
    if "adapter_config.json" in names:
        return InputError(
            f"{repository}: holds an adapter, no whole model",
            f"it is added to its base{', ' + base if base else ''}, which is downloaded too",
            f"{fetch} && gpt2 convert {folder} --merge",
        )
    if others := [name for name in OTHERS if name in names and CONFIG in names]:
        return unread_weights(f"{repository}/{others[0]}", folder, fetch)
    if any(name.endswith(".gguf") for name in names):
        return InputError(
            f"{repository}: holds GGUF files alone",
            "GGUF is an export only: its numbers may have been rounded",
            f"gpt2 download {base}" if base else "download the repository that they were made from",
        )
    why = "a config.json and model.safetensors or pytorch_model.bin are needed, whole or in shards"
    weights = sorted(
        (name for name in names if name.endswith(_TENSORS)), key=lambda name: (name.count("/"), name)
    )
    whole = [name.rpartition("/")[0] for name in weights if f"{name.rpartition('/')[0]}/{CONFIG}" in names]
    if whole:  # a Trainer's checkpoints, say
        place = max(whole, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
        listed, fix = place, f"{fetch} --include '{place}/*' && gpt2 convert {folder}/{place}"
    elif weights:
        listed, fix = ", ".join(weights[:4]), f"{fetch} {weights[0]} && gpt2 convert {folder}/{weights[0]}"
    else:
        listed, fix = "", "gpt2 download --list"
    why += f"; there is {listed}" if listed else ""
    return InputError(f"{repository}: holds no model that can be read here", why, fix)


def _expected(entry: dict[str, object]) -> Expected:
    size, lfs = entry.get("size"), entry.get("lfs")
    digits = str(lfs.get("sha256") or lfs.get("oid")) if isinstance(lfs, dict) else str(entry.get("blobId"))
    known = _by_hash(digits)
    n_bytes = size if isinstance(size, int) and size >= 0 else None
    return Expected(n_bytes, known.sha256, None if isinstance(lfs, dict) else known.git_sha1)


def _by_hash(digits: str) -> Expected:
    """The hash that the hub gives: SHA-256 for a file in Git LFS, else git's blob SHA-1."""
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digits):
        return Expected()
    return Expected(sha256=digits) if len(digits) == 64 else Expected(git_sha1=digits)
