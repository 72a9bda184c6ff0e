"""Owns how much of a GPU a training step uses: model FLOPs utilisation (Chowdhery et al. 2022, PaLM)."""

import re

import torch

from gpt2cli.model.config import GPT2Config
from gpt2cli.runtime import Runtime
from gpt2cli.training.task import Task

# Dense 16-bit tensor-core operations a second, by words of the device's name, from the makers' data
# sheets; the first that matches counts. What is not here gets no share: a guess would mislead.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}


def utilisation(task: Task, tokens_per_s: float, runtime: Runtime) -> float | None:
    """The share of the device's peak that the model's own operations come to.

    Recomputed blocks do not count. None on a CPU, in fp32, on an unknown device, and for rows of
    changing length, whose padding would count as work.
    """
    if runtime.device.type != "cuda" or runtime.precision == "fp32" or task.row_length is None:
        return None
    peak = peak_of(torch.cuda.get_device_name(runtime.device))
    return None if peak is None else tokens_per_s * flops_per_token(task.config, task.row_length) / peak


def peak_of(name: str) -> float | None:
    return next((peak for part, peak in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def flops_per_token(config: GPT2Config, n_positions: int) -> float:
    """Forward and backward of one token: 6 a parameter that multiplies, 12 a channel and position in
    attention, which is counted whole, as that paper does.
    """
    multiplying = config.n_parameters - config.n_positions * config.n_embd  # positions are only added
    return 6.0 * multiplying + 12.0 * config.n_layer * config.n_embd * n_positions
