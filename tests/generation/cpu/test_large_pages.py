import mmap
import sys

import pytest
import torch

from gpt2cli.generation.cpu.large_pages import HUGE_PAGE, in_huge_pages


def test_huge_pages_hold_what_they_are_given() -> None:
    for shape, dtype in (((3, 5), torch.float32), ((1 << 20, 3), torch.int8), ((700, 801), torch.float32)):
        memory = in_huge_pages(shape, dtype)
        assert memory.shape == shape and memory.dtype is dtype and memory.is_contiguous()
        values = torch.randint(-100, 100, shape).to(dtype)
        assert torch.equal(memory.copy_(values), values)
        assert memory.numel() * memory.element_size() < HUGE_PAGE or memory.data_ptr() % HUGE_PAGE == 0


def test_they_are_large_where_the_system_has_them() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux says how large the pages of a process are")
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
        if "[never]" in file.read():
            pytest.skip("this system gives no large pages")
    before = _large_kib()
    memory = in_huge_pages((64 << 20,), torch.int8).fill_(1)
    assert _large_kib() - before >= 32 << 10  # a crowded machine may not have all of them
    del memory


def _large_kib() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return int(next(line.split()[1] for line in file if line.startswith("AnonHugePages")))


def test_a_kernel_that_has_none_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12_345, raising=False)  # it answers as to nonsense
    assert in_huge_pages((3 << 20,), torch.int8).fill_(1).sum() == 3 << 20
