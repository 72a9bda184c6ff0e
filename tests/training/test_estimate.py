"""Out of memory in every dialect is one error, with a batch that keeps the product."""

import errno

import pytest
import torch

from gpt2cli.errors import ResourceError
from gpt2cli.model.config import PRESETS
from gpt2cli.recipe.schema import Batch
from gpt2cli.training.estimate import estimate_bytes, explained, out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_each_dialect_is_understood(error: Exception) -> None:
    with (
        pytest.raises(ResourceError, match="out of memory with micro_batch 8"),
        explained(Batch(micro_batch=8)),
    ):
        raise error


def test_other_errors_pass() -> None:
    for error in (RuntimeError("shape mismatch"), OSError(errno.ENOSPC, "full")):
        with pytest.raises(type(error)), explained(Batch()):
            raise error


@pytest.mark.parametrize(
    ("micro_batch", "accumulation", "fix"),
    [
        (8, 1, "micro_batch=4 batch.accumulation=2"),
        (9, 2, "micro_batch=3 batch.accumulation=6"),
        (7, 1, "micro_batch=1 batch.accumulation=7"),
    ],
)
def test_the_proposal_keeps_the_sequences_of_a_step(micro_batch: int, accumulation: int, fix: str) -> None:
    assert fix in out_of_memory(Batch(micro_batch=micro_batch, accumulation=accumulation)).fix


def test_a_single_sequence_can_only_be_shorter() -> None:
    assert "model.context" in out_of_memory(Batch(micro_batch=1)).fix


def test_the_states_of_124m_are_sixteen_bytes_a_parameter() -> None:
    config = PRESETS["124M"]
    parts = estimate_bytes(config, 2, 2, n_learning=config.n_parameters, n_outputs=2048)
    states = parts["weights"] + parts["gradients"] + parts["AdamW moments"]
    assert states == 16 * 124_439_808
    assert sum(parts.values()) > states


def test_recomputation_keeps_one_block_and_the_inputs_of_all() -> None:
    config = PRESETS["124M"]
    sizes = {"n_learning": config.n_parameters, "n_outputs": 2048}
    whole, less = (estimate_bytes(config, 2, 2, recompute=on, **sizes) for on in (False, True))
    inputs = config.n_layer * 2 * config.n_positions * config.n_embd * 4
    assert less["activations"] == inputs + whole["activations"] // config.n_layer
    assert less["activations"] < whole["activations"] / 3
    assert {**less, "activations": 0} == {**whole, "activations": 0}


def test_what_is_frozen_has_no_states_and_what_meets_no_vocabulary_no_logits() -> None:
    config = PRESETS["124M"]
    whole = estimate_bytes(config, 2, 2, n_learning=config.n_parameters, n_outputs=2048)
    part = estimate_bytes(config, 2, 2, n_learning=1000, n_outputs=0)
    assert (part["gradients"], part["AdamW moments"], part["logits"]) == (4000, 8000, 0)
    assert part["weights"] == whole["weights"] and whole["logits"] > 0
    few = estimate_bytes(config, 2, 2, n_learning=1000, n_outputs=10)
    assert few["logits"] == 10 * config.vocab_size * 8
