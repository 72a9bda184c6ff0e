"""Words of a recipe become a machine's choices; what is missing is said and never fatal."""

import shutil

import pytest
import torch

from gpt2cli.errors import UsageError
from gpt2cli.runtime import (
    COMPILE_FROM_FLOPS,
    choose_attention,
    choose_runtime,
    describe_machine,
    peak_memory,
)


@pytest.fixture(autouse=True)
def two_threads() -> object:
    yield
    torch.set_num_threads(2)


def machine(
    monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False, bf16: bool = True
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    # As a T4 answers: it has none, and emulates it.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
    )
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.mark.parametrize(
    ("has", "device", "training", "decoding"),
    [
        ({"cuda": True, "mps": True}, "cuda", "bf16", "bf16"),
        ({"cuda": True, "bf16": False}, "cuda", "fp32", "fp32"),
        ({"mps": True}, "mps", "fp32", "fp32"),
        ({}, "cpu", "bf16", "fp32"),
        ({"bf16": False}, "cpu", "fp32", "fp32"),
    ],
)
def test_auto_takes_what_the_machine_does_well(
    has: dict[str, bool], device: str, training: str, decoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, **has)
    chosen = choose_runtime(threads=2, training=True)
    assert (chosen.device.type, chosen.precision, chosen.notices) == (device, training, ())
    assert choose_runtime(threads=2, decoding=True).precision == decoding
    assert choose_runtime(threads=2).precision == "fp32", "what measures takes its time"


def test_what_is_missing_becomes_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=True, bf16=False)
    chosen = choose_runtime("cuda", "bf16", 2)
    assert chosen.precision == "fp16" and "no bf16" in chosen.notices[0]
    chosen = choose_runtime("cpu", "fp16", 2, training=True)
    assert chosen.precision == "fp32" and "loss scaling" in chosen.notices[0]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    chosen = choose_runtime("cpu", "fp32", 2, "on")
    assert not chosen.compile and "no C++ compiler" in chosen.notices[0]


def test_a_recipe_for_cuda_trains_on_an_apple_gpu_with_two_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, mps=True)
    chosen = choose_runtime("auto", "bf16", 2, "on", training=True)
    assert (chosen.device.type, chosen.precision, chosen.compile) == ("mps", "fp32", False)
    assert ["bf16" in notice for notice in chosen.notices] == [True, False] and "compile" in chosen.notices[1]
    assert choose_runtime("auto", "auto", 2, "auto", training=True, flops=1e30).notices == ()


@pytest.mark.parametrize("device", ["tpu", "mps"])
def test_a_device_that_is_not_there_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    with pytest.raises(UsageError):
        choose_runtime(device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiling_is_left_to_long_runs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    machine(monkeypatch, cuda=True)
    long, short = COMPILE_FROM_FLOPS[device] * 2, COMPILE_FROM_FLOPS[device] / 2
    answers = {
        (word, flops): choose_runtime(device, "fp32", 2, word, flops=flops).compile
        for word in ("auto", "on", "off")
        for flops in (long, short)
    }
    assert [word for word, yes in answers.items() if yes] == [("auto", long), ("on", long), ("on", short)]
    an_hour_of_an_h100 = 3600 * 0.3 * 989e12
    assert choose_runtime("cuda", "bf16", 2, "auto", flops=an_hour_of_an_h100).compile
    assert not choose_runtime("cuda", "bf16", 2, "auto", flops=an_hour_of_an_h100 / 1e4).compile


def test_attention_is_written_out_where_that_is_faster() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    chosen = [choose_attention("auto", device, n) for device in (cpu, cuda) for n in (256, 1024)]
    assert chosen == ["formula", "sdpa", "sdpa", "sdpa"]
    chosen = [choose_attention("auto", device, 1024, compiled=True) for device in (cpu, cuda)]
    assert chosen == ["blocks", "sdpa"]
    assert choose_attention("auto", torch.device("mps"), 256) == "blocks"
    assert choose_attention("sdpa", cpu, 8) == "sdpa" and choose_attention("formula", cuda, 8) == "formula"


def test_a_record_of_the_machine_names_what_decides_speed_and_bits() -> None:
    record = describe_machine(choose_runtime("cpu", "fp32", 2))
    assert record["threads"] == 2 and record["torch"] == torch.__version__ and record["device"] == "cpu"


def test_the_peak_is_that_of_the_device_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 30)
    assert peak_memory(torch.device("cuda"))[0] == 3 << 30
    assert 50 << 20 < peak_memory(torch.device("cpu"))[0] < 1 << 40, "bytes, also where the system counts KiB"
