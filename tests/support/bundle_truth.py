"""What TensorFlow was given, beside what it wrote: tensors of our reading are compared with it bit by bit."""

from pathlib import Path

import numpy as np
import torch
from openai_checkpoint import TRUTH

from gpt2cli.convert.tensorflow_bundle import DTYPES, read_index, read_tensor


def truth_of(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """{name: (type, bits)}."""
    with np.load(folder / TRUTH) as arrays:
        return {key.split(" ", 1)[1]: (key.split(" ", 1)[0], array) for key, array in arrays.items()}


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def require_truth(prefix: Path, truth: dict[str, tuple[str, np.ndarray]]) -> None:
    entries = read_index(prefix)
    assert entries.keys() == truth.keys()
    for name, (dtype, array) in truth.items():
        assert (entries[name].dtype, entries[name].shape) == (dtype, array.shape), name
        if dtype in DTYPES:
            tensor = read_tensor(entries[name])
            assert (tensor.dtype, tensor.shape) == (DTYPES[dtype], array.shape), name
            assert bits_of(tensor) == array.tobytes(), name
