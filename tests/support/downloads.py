"""One file to download, what is known of it, and a policy for a server that answers at once or never."""

import random
from hashlib import sha256
from pathlib import Path

import pytest
from faulty_server import Site

from gpt2cli.errors import Gpt2Error
from gpt2cli.hub.fetch import RetryPolicy, Transfer, fetch
from gpt2cli.hub.registry import Expected

CONTENT = random.Random(1).randbytes(20_000)
KNOWN = Expected(len(CONTENT), sha256(CONTENT).hexdigest())
UNKNOWN = Expected(max_size=100_000)
QUICK = RetryPolicy(connect=2, stall=0.3, attempts=3, first_pause=0.01, longest_pause=0.02, longest_wait=2)


def get(site: Site, out: Path, expected: Expected = KNOWN, policy: RetryPolicy = QUICK) -> list[Transfer]:
    return list(fetch(f"{site.address}/file", out, expected, policy=policy))


def failure(site: Site, out: Path, expected: Expected = KNOWN, policy: RetryPolicy = QUICK) -> Gpt2Error:
    """The error of a fetch that must not install anything."""
    with pytest.raises(Gpt2Error) as caught:
        get(site, out, expected, policy)
    assert not out.exists()
    return caught.value
