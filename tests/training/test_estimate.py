"""Memory and MFU by hand; out of memory in every dialect is one error with a smaller micro-batch."""

import errno
from types import SimpleNamespace

import pytest
import torch

from gpt2cli.errors import ResourceError
from gpt2cli.model.config import PRESETS
from gpt2cli.recipe.sections import BatchConfig
from gpt2cli.runtime import Runtime
from gpt2cli.training.estimate import (
    estimate_memory,
    explain_out_of_memory,
    flops_per_token,
    model_flops_utilisation,
    out_of_memory,
    peak_flops,
)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
    ],
)
def test_each_dialect_is_understood(error: Exception) -> None:
    with (
        pytest.raises(ResourceError, match=r"out of memory .*micro_batch.*8"),
        explain_out_of_memory(BatchConfig(micro_batch=8)),
    ):
        raise error


def test_other_errors_pass() -> None:
    for error in (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"), OSError(errno.ENOSPC, "full")):
        with pytest.raises(type(error)), explain_out_of_memory(BatchConfig()):
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
    assert fix in out_of_memory(BatchConfig(micro_batch=micro_batch, accumulation=accumulation)).fix


def test_a_single_sequence_can_only_be_shorter() -> None:
    assert "model.context" in out_of_memory(BatchConfig(micro_batch=1)).fix


def test_the_states_of_124m_are_sixteen_bytes_a_parameter() -> None:
    config = PRESETS["124M"]
    parts = estimate_memory(config, 2, 2, n_trainable=config.n_parameters, n_outputs=2048)
    states = parts["weights"] + parts["gradients"] + parts["AdamW moments"]
    assert states == 16 * 124_439_808
    assert sum(parts.values()) > states


def test_recomputation_keeps_one_block_and_the_inputs_of_all() -> None:
    config = PRESETS["124M"]
    sizes = {"n_trainable": config.n_parameters, "n_outputs": 2048}
    whole, less = (
        estimate_memory(config, 2, 2, activation_checkpointing=on, **sizes) for on in (False, True)
    )
    inputs = config.n_layer * 2 * config.n_positions * config.n_embd * 4
    assert less["activations"] == inputs + whole["activations"] // config.n_layer
    assert less["activations"] < whole["activations"] / 3
    assert {**less, "activations": 0} == {**whole, "activations": 0}


def test_what_is_frozen_has_no_states_and_what_meets_no_vocabulary_no_logits() -> None:
    config = PRESETS["124M"]
    whole = estimate_memory(config, 2, 2, n_trainable=config.n_parameters, n_outputs=2048)
    part = estimate_memory(config, 2, 2, n_trainable=1000, n_outputs=0)
    assert (part["gradients"], part["AdamW moments"], part["logits"]) == (4000, 8000, 0)
    assert part["weights"] == whole["weights"] and whole["logits"] > 0
    few = estimate_memory(config, 2, 2, n_trainable=1000, n_outputs=10)
    assert few["logits"] == 10 * config.vocab_size * 8


def test_operations_of_a_token_are_those_of_its_products() -> None:
    blocks = 12 * 12 * 768**2  # four matrices of 12 C^2 numbers in all, a block
    assert flops_per_token(PRESETS["124M"], 1024) == pytest.approx(
        6 * (blocks + 50257 * 768) + 12 * 12 * 768 * 1024, rel=0.002
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_a_device_is_known_by_whole_words(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_it_is_a_share_of_the_peak_and_is_told_only_where_it_means_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    gpu = Runtime(torch.device("cuda"), "bf16", 2, compile=True)
    task = SimpleNamespace(config=PRESETS["124M"], row_length=1024)
    at_peak = 312e12 / flops_per_token(PRESETS["124M"], 1024)
    assert model_flops_utilisation(task, at_peak / 2, gpu) == pytest.approx(0.5)  # type: ignore[arg-type]
    changing = SimpleNamespace(config=PRESETS["124M"], row_length=None)
    assert model_flops_utilisation(changing, at_peak, gpu) is None  # type: ignore[arg-type]
    for device, precision in (("cpu", "bf16"), ("cuda", "fp32")):
        other = Runtime(torch.device(device), precision, 2, compile=True)
        assert model_flops_utilisation(task, at_peak, other) is None  # type: ignore[arg-type]
