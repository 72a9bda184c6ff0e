"""One file to download, what is known of it, and little patience."""

import random
from hashlib import sha256
from pathlib import Path

import pytest
from faulty_server import Site

from gpt2cli.errors import Gpt2Error
from gpt2cli.hub.fetch import Transferred, fetch
from gpt2cli.hub.registry import Expected
from gpt2cli.patience import Patience

CONTENT = random.Random(1).randbytes(20_000)
KNOWN = Expected(len(CONTENT), sha256(CONTENT).hexdigest())
UNKNOWN = Expected(at_most=100_000)
QUICK = Patience(
    connect=2,
    stall=0.3,
    window=0.3,
    slowest=1000,
    attempts=3,
    progress=4000,
    first_pause=0.01,
    longest_pause=0.02,
    longest_wait=2,
)


def get(site: Site, out: Path, expected: Expected = KNOWN, patience: Patience = QUICK) -> list[Transferred]:
    return list(fetch(f"{site.address}/file", out, expected=expected, patience=patience))


def failure(site: Site, out: Path, expected: Expected = KNOWN, patience: Patience = QUICK) -> Gpt2Error:
    """The error of a fetch that must not install anything."""
    with pytest.raises(Gpt2Error) as caught:
        get(site, out, expected, patience)
    assert not out.exists()
    return caught.value
