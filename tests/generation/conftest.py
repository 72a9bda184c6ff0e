"""A small GPT-2 with large weights, so that a wrong position, mask or cache entry changes the ids."""

from collections.abc import Iterator

import pytest
import torch

from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead

SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 64, "vocab_size": 211}


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> GPT2LMHead:
    """Fresh for each test, because packing exchanges its modules."""
    return new_loud()


@pytest.fixture(scope="module")
def shared() -> GPT2LMHead:
    """The same for many examples of one test. Do not change it."""
    return new_loud()


def new_loud() -> GPT2LMHead:
    torch.manual_seed(0)
    model = GPT2LMHead(GPT2Config(**SHAPE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.14)
    return model.eval()
