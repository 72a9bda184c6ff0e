"""The loss and the step on a GPU, of which there is none here: its launches, and how often the host waits."""

from pathlib import Path

import pytest
import torch
from fake_device import fake_device
from runs import scratch_task, tiny
from torch.profiler import ProfilerActivity, profile

from gpt2cli.training import fused_cross_entropy
from gpt2cli.training.fused_cross_entropy import CHUNK, ROWS, cross_entropy_sum
from gpt2cli.training.loop import train_step
from gpt2cli.training.setup import set_up_training

# Operations that launch nothing: views, and memory without content.
FREE = {
    f"aten::{name}"
    for name in (
        *(
            "empty",
            "empty_like",
            "empty_strided",
            "new_empty",
            "as_strided",
            "slice",
            "narrow",
            "split",
            "select",
        ),
        *(
            "transpose",
            "t",
            "numpy_T",
            "permute",
            "unsqueeze",
            "view",
            "reshape",
            "detach",
            "expand",
            "alias",
        ),
        *("result_type", "lift_fresh", "to", "resolve_conj", "resolve_neg", "unsafe_split", "numel"),
    )
}


def launches_of_a_loss(device: str) -> int:
    """The kernels of a forward and backward over 16,384 positions, cut as on that device."""
    hidden, weight = torch.randn(16384, 4, requires_grad=True), torch.randn(65, 4, requires_grad=True)
    targets = torch.zeros(16384, dtype=torch.long)
    with pytest.MonkeyPatch.context() as patch, profile(activities=[ProfilerActivity.CPU]) as profiled:
        patch.setitem(fused_cross_entropy.CHUNK, "cpu", CHUNK[device])
        patch.setitem(fused_cross_entropy.ROWS, "cpu", ROWS[device])
        cross_entropy_sum(hidden, weight, targets, torch.bfloat16).backward()
    # An operation that calls others launches their kernels, not one of its own.
    events = profiled.events() or []
    return sum(
        event.name.startswith("aten::")
        and event.name not in FREE
        and not any(child.name not in FREE for child in event.cpu_children)
        for event in events
    )


def test_the_loss_of_16384_positions_is_few_launches_on_a_gpu() -> None:
    few = {device: launches_of_a_loss(device) for device in ("cuda", "mps")}
    assert max(few.values()) < 1000, few
    assert launches_of_a_loss("cpu") > 4000, "where 32 rows fit the cache of a CPU"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_a_gradient_half_precision_gives_logits_in_fp32(dtype: torch.dtype) -> None:
    with fake_device() as launches:
        hidden, weight = torch.empty(8192, 768, device="cuda"), torch.empty(50257, 768, device="cuda")
        loss = cross_entropy_sum(hidden, weight, torch.zeros(8192, dtype=torch.long, device="cuda"), dtype)
    assert loss.dtype is torch.float32 and not launches.waits
    matmuls = [name for name in launches.launched if name.startswith("aten.mm")]
    assert matmuls == ["aten.mm.dtype"] * 2, "tensor cores, and sums in fp32"


def reads_in_a_step(folder: Path, accumulation: int) -> int:
    """How often a step asks a tensor for its number, besides one look at all losses and the norm."""
    folder.mkdir()
    recipe, data = tiny(folder, f"batch.accumulation={accumulation}", "run.compile=off", "optim.clip=0.01")
    with data:
        setup = set_up_training(scratch_task(recipe, data), recipe, None)
        train_step(setup)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            train_step(setup)
    return sum(event.name == "aten::_local_scalar_dense" for event in profiled.events() or [])


def test_the_host_waits_once_per_step_however_many_micro_batches(tmp_path: Path) -> None:
    # The rest are the clipping's one, a number of the host's own, and those inside of AdamW on a CPU.
    assert reads_in_a_step(tmp_path / "whole", 1) == reads_in_a_step(tmp_path / "cut", 4)
