"""What every test may use: pinned threads, a private home, and the command line in-process."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Two threads everywhere: bit-for-bit comparisons between processes need the same number.
os.environ.update(
    OMP_NUM_THREADS="2", MKL_NUM_THREADS="2", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
)
# On a busy machine, threads that spin while they wait cost more than the work they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell starts a background job with SIGINT ignored, and so would each process of a test be.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch
from hypothesis import settings
from loud import loud
from matplotlib.figure import Figure
from words import BYTES

from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model

torch.set_num_threads(2)
# The same examples in every run, however slow the machine is.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

# What a person may have set, and the test runner (COLUMNS).
FOREIGN = ("COLUMNS", "GPT2_RUNS", "HF_TOKEN", "OLLAMA_HOST", "OPENAI_API_KEY")

# These go first, the longest first: at the end both workers then have short files left.
LONGEST = (
    *("test_tour.py", "training/test_crashes.py", "cpu/test_aot_packages.py", "cli/test_pretrain.py"),
    *("convert/test_tensorflow.py", "ui/test_attention_map.py", "cli/test_chat_terminal.py"),
    *("process/test_ignored_interrupt.py", "cli/test_download.py", "hostile/test_mutations.py"),
    *("cli/test_finetune_instruct.py", "cli/test_generate_process.py", "hub/test_network_faults.py"),
)


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # xdist's own order: the files of the most tests first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.path.as_posix()
        return next((n for n, name in enumerate(LONGEST) if file.endswith(name)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees or leaves anything outside its own folder, nor the network."""
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "gpt2-home"))
    monkeypatch.setenv("NO_COLOR", "1")
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in FOREIGN:
            monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.chdir(tmp_path)
    yield


@pytest.fixture(autouse=True)
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib draws nothing: its pictures of losses would take most of the time of a tiny training.

    Where pictures are the subject, a fixture of this name takes its place.
    """
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: file.write(b"\x89PNG"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a generator of its own is the same in every run of it."""
    torch.manual_seed(1)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def gpt2(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`gpt2("pretrain", "verdict")` runs the command line in this process."""

    def call(*arguments: str | Path) -> Outcome:
        from gpt2cli.cli.app import run

        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny_config() -> GPT2Config:
    return GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=64, vocab_size=BYTES.n_vocab)


@pytest.fixture(scope="session")
def loud_model(tiny_config: GPT2Config) -> GPT2LMHead:
    """A random GPT-2 over BYTES, with weights of standard deviation 0.14. Do not change it."""
    return loud(new_model(tiny_config, seed=1))
