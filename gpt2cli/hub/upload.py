"""Uploading to the Hugging Face hub, by huggingface_hub's own client: one commit of a model's files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpt2cli.errors import ServiceError, UsageError
from gpt2cli.hub import hf_hub

ANSWER_SECONDS = 60.0  # that the hub may take for one answer; huggingface_hub waits for ever


def upload(files: Mapping[str, Path], repository: str, again: str) -> str:
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
    if urlsplit(hf_hub.endpoint(None)).hostname != "huggingface.co":
        constants.HF_HUB_DISABLE_XET = True
    api = HfApi(endpoint=hf_hub.endpoint(None))
    added = [CommitOperationAdd(name, path) for name, path in files.items()]
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

    hf_hub.require_name(repository)
    if hf_hub.is_offline():
        raise UsageError("--push-to needs the network", "HF_HUB_OFFLINE forbids it", "unset HF_HUB_OFFLINE")
    if not get_token():
        raise UsageError("--push-to: no token for the hub", "an upload needs an account", "hf auth login")
