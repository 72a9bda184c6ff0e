"""Owns the second look at an export: what lies in the written file, against what was to be written.

Folders are proved by their logits (verification.py). A file for another program is opened again, by
that program's own reader where there is one, and every tensor is compared.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2cli.checkpoints.folder import TRANSPOSED
from gpt2cli.convert.detect_format import open_foreign
from gpt2cli.convert.foreign_model import ForeignModel, expand_blocks
from gpt2cli.convert.gguf import NAMES
from gpt2cli.errors import InputError

BLOCK, LEVELS = 32, 127  # q8_0: numbers that share a scale, and steps from zero to the largest of them
# What a number becomes in each kind of storage that rounds one by one.
ROUNDED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def verify_export(out: Path, to: str, source: ForeignModel) -> dict[str, Any]:
    """Compare every tensor of the export at `out` with the source's; returns what the receipt says of it.

    Raises InputError for the first that differs.
    """
    if to == "gguf":
        _read_gguf(out, source)
    else:
        _reopen(out, source)
    return {"tensors": len(source.tensors), "equal": True}


def _reopen(out: Path, source: ForeignModel) -> None:
    with open_foreign(out) as written:
        for name, tensor in source.tensors.items():
            if not _same_bits(written.tensors[name].load(), tensor.load().to(torch.float32)):
                raise _differs(out, name)


def _read_gguf(out: Path, source: ForeignModel) -> None:
    import gguf

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    names = expand_blocks(NAMES, source.config.n_layer)
    if len(stored) != len(source.tensors):
        raise _differs(out, f"the number of tensors, {len(stored)},")
    for name, tensor in source.tensors.items():
        entry = stored[names[name]]
        values = gguf.quants.dequantize(entry.data, entry.tensor_type)
        found = torch.from_numpy(np.array(values, dtype=np.float32))
        wanted = tensor.load().to(torch.float32)
        wanted = wanted.T.contiguous() if name.endswith(TRANSPOSED) else wanted
        if found.shape != wanted.shape or not _close(found, wanted, entry.tensor_type.name):
            raise _differs(out, name)


def _close(found: Tensor, wanted: Tensor, kind: str) -> bool:
    if kind in ROUNDED:
        return _same_bits(found, wanted.to(ROUNDED[kind]).to(torch.float32))
    blocks = (found - wanted).abs().view(-1, BLOCK)
    step = wanted.abs().view(-1, BLOCK).amax(dim=1) / LEVELS
    # Half a step by rounding, and what the scale loses by being an f16.
    return bool((blocks.amax(dim=1) <= step * 0.6 + 1e-6).all())


def _same_bits(found: Tensor, wanted: Tensor) -> bool:
    return torch.equal(found.view(torch.int32), wanted.contiguous().view(torch.int32))  # NaN equals itself


def _differs(out: Path, what: str) -> InputError:
    return InputError(
        f"{out}: {what} is not what was written",
        "the file was read back and compared with the source",
        "look at the disk, then convert once more with --force",
    )
