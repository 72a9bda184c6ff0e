"""One package is built for the whole session: fp32, whose ids must be those of the plain path."""

import copy
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from loud import loud

from gpt2cli.generation.cpu import aot_packages, export_step
from gpt2cli.generation.cpu.aot_packages import BuildError, build_package, find_package, use_package
from gpt2cli.generation.cpu.swap_linears import swap_for_decoding
from gpt2cli.generation.engine import generate
from gpt2cli.generation.sampling import SamplingOptions
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model

CONFIG = GPT2Config(n_layer=2, n_head=4, n_embd=64, n_positions=64, vocab_size=211)
GREEDY = SamplingOptions(temperature=0)
Packed = Callable[[str], GPT2LMHead]
needs_compiler = pytest.mark.skipif(not aot_packages.can_build(), reason="there is no C++ compiler")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT2_HOME with a package for CONFIG in fp32 and one thread."""
    if not aot_packages.can_build():
        pytest.skip("there is no C++ compiler")
    place = tmp_path_factory.mktemp("compiled") / "gpt2-home"
    before, threads = os.environ.get("GPT2_HOME"), torch.get_num_threads()
    os.environ["GPT2_HOME"] = str(place)
    torch.set_num_threads(1)
    try:
        build_package(CONFIG, "fp32")
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("GPT2_HOME") if before is None else os.environ.update(GPT2_HOME=before)
    return place


@pytest.fixture
def at_home(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GPT2_HOME", str(built))
    yield built


def compiled_model(model: GPT2LMHead, precision: str = "fp32") -> GPT2LMHead:
    package = find_package(model.config, precision)
    assert package is not None
    packed = swap_for_decoding(copy.deepcopy(model), precision, use="compiled")
    use_package(packed, precision, package)
    return packed


def ids_of(
    model: GPT2LMHead, prompt: list[int], n: int, decoding: SamplingOptions = GREEDY
) -> list[int | None]:
    return [step.ids[0] for step in generate(model, [prompt], decoding, n)]


@pytest.mark.parametrize("prompt", [[17], [5, 80, 210, 3], list(range(64))])
def test_greedy_ids_are_those_of_the_plain_model(
    model: GPT2LMHead, prompt: list[int], at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, n = compiled_model(model), 1000  # the window moves some thirty times
    n_eager = 0
    trunk = fast.transformer

    def counted(*inputs: object) -> None:
        nonlocal n_eager
        n_eager += 1

    trunk.register_forward_pre_hook(counted)
    assert ids_of(fast, prompt, n) == ids_of(model, prompt, n)
    assert 0 < n_eager < n / 10  # prompts, windows and the ends of the context; else it was not compiled


def test_sampled_ids_are_those_of_the_plain_model(model: GPT2LMHead, at_home: Path) -> None:
    decoding = SamplingOptions(temperature=1.2, top_k=20, repetition_penalty=1.1, seed=5)
    assert ids_of(compiled_model(model), [9, 9], 60, decoding) == ids_of(model, [9, 9], 60, decoding)


@torch.no_grad()
def test_scores_and_cache_are_those_of_the_plain_model(model: GPT2LMHead, at_home: Path) -> None:
    fast = compiled_model(model)
    ours, theirs = fast.new_cache(1, 3), model.new_cache(1, 64)
    ids = torch.randint(0, 211, (1, 64))
    for place in range(64):
        scores = fast.extend(ids[:, place : place + 1], ours)
        assert torch.allclose(scores, model.extend(ids[:, place : place + 1], theirs), atol=2e-5)
        assert ours.length == theirs.length == place + 1
    for a, b in zip(ours.keys + ours.values, theirs.keys + theirs.values, strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_batches_and_other_caches_take_the_plain_path(model: GPT2LMHead, at_home: Path) -> None:
    fast, prompts = compiled_model(model), [[5, 80, 210, 3], [17], [9, 9, 30, 41]]
    assert list(generate(fast, prompts, GREEDY, 80)) == list(generate(model, prompts, GREEDY, 80))
    short = GPT2LMHead.new_cache(fast, 1, 10)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        fast.extend(ids, short)
        expected = model(torch.tensor([[1, 2, 3, 4]]))[:, -1]
        assert torch.allclose(fast.extend(torch.tensor([[4]]), short), expected, atol=2e-5)


def test_a_package_is_for_one_config_precision_thread_count_and_torch(
    at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_package(CONFIG, "fp32")
    assert not find_package(CONFIG, "bf16")
    assert not find_package(GPT2Config(2, 4, 64, 65, 211), "fp32")
    assert not find_package(GPT2Config(2, 4, 64, 64, 211, layer_norm_epsilon=1e-6), "fp32")
    assert not find_package(GPT2Config(2, 4, 64, 64, 211, activation_function="gelu"), "fp32")
    assert find_package(GPT2Config(2, 4, 64, 64, 211, dropout=0.3, attn_pdrop=0.1), "fp32")
    torch.set_num_threads(2)
    assert not find_package(CONFIG, "fp32")
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "__version__", "2.99")
    assert not find_package(CONFIG, "fp32")


@pytest.fixture
def copied(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's folder in a home that may be damaged."""
    import shutil

    home = tmp_path / "copy"
    shutil.copytree(built, home)
    monkeypatch.setenv("GPT2_HOME", str(home))
    (home / "compiled").chmod(0o700)
    package = find_package(CONFIG, "fp32")
    assert package is not None
    return package.parent


def _flip(folder: Path) -> None:
    data = bytearray((folder / aot_packages.PACKAGE).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / aot_packages.PACKAGE).write_bytes(data)


def _swap_facts(folder: Path) -> None:
    facts = json.loads((folder / aot_packages.FACTS).read_text())
    facts["facts"]["torch"] = "0.1"
    (folder / aot_packages.FACTS).write_text(json.dumps(facts))


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        _swap_facts,
        lambda folder: (folder / aot_packages.PACKAGE).unlink(),
        lambda folder: (folder / aot_packages.FACTS).write_text("{"),
        lambda folder: (folder / aot_packages.FACTS).write_text("[]"),
        lambda folder: folder.parent.chmod(0o770),
        lambda folder: (folder / aot_packages.PACKAGE).unlink() or (folder / aot_packages.PACKAGE).mkdir(),
    ],
    ids=["bit", "facts", "no-package", "cut-facts", "other-facts", "open-folder", "folder"],
)
def test_what_is_not_exactly_ours_is_never_run(copied: Path, damage: Callable[[Path], object]) -> None:
    damage(copied)
    assert find_package(CONFIG, "fp32") is None


def test_a_package_that_does_not_open_is_an_error_to_go_on_from(model: GPT2LMHead, tmp_path: Path) -> None:
    (tmp_path / "step.pt2").write_bytes(b"no archive")
    packed = swap_for_decoding(model, "fp32", use="compiled")
    with pytest.raises(BuildError, match="does not open"):
        use_package(packed, "fp32", tmp_path / "step.pt2")
    assert len(ids_of(packed, [1, 2], 5)) == 5


def test_without_a_compiler_there_is_an_error_to_go_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not aot_packages.can_build()
    with pytest.raises(BuildError, match=r"no C\+\+ compiler"):
        build_package(CONFIG, "fp32")


@needs_compiler
def test_a_failed_build_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_step, "__name__", "gpt2cli.no_such_module")
    with pytest.raises(BuildError, match=r"the compiler failed .*no_such_module"):
        build_package(CONFIG, "fp32")
    home = Path(os.environ["GPT2_HOME"]) / "compiled"
    assert not find_package(CONFIG, "fp32")
    assert {path.suffix for path in home.iterdir()} == {"", ".failed"}  # the lock, and the failure
    assert home.stat().st_mode & 0o777 == 0o700


def test_an_opened_package_leaves_nothing_behind(
    model: GPT2LMHead, at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    fast = compiled_model(model)
    assert os.environ["TMPDIR"] == str(tmp_path) and not list(tmp_path.iterdir())
    assert ids_of(fast, [17], 20) == ids_of(model, [17], 20)


@needs_compiler
@pytest.mark.parametrize("place", ["a file", "not writable"])
def test_a_place_that_cannot_be_written_is_a_build_that_fails(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2_HOME", str(tmp_path))
    if place == "a file":
        (tmp_path / "compiled").write_text("mine")
    else:

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BuildError, match="cannot be kept"):
        build_package(CONFIG, "fp32")


def test_a_failed_build_is_remembered_until_one_succeeds_and_older_packages_go(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: GPT2Config, precision: str, path: Path, scratch: Path) -> None:
        raise BuildError("the compiler failed")

    def succeed(config: GPT2Config, precision: str, path: Path, scratch: Path) -> None:
        path.write_bytes(b"code")

    before = (copied / aot_packages.PACKAGE).read_bytes()
    monkeypatch.setattr(torch, "__version__", "2.99")  # what was built before is now an older one
    monkeypatch.setattr(aot_packages, "_compile", fail)
    with pytest.raises(BuildError):
        build_package(CONFIG, "fp32")
    assert aot_packages.has_failed(CONFIG, "fp32")
    assert (copied / aot_packages.PACKAGE).read_bytes() == before
    monkeypatch.setattr(aot_packages, "_compile", succeed)
    torch.set_num_threads(2)
    other = build_package(CONFIG, "fp32")
    torch.set_num_threads(1)
    package = build_package(CONFIG, "fp32")
    assert package == find_package(CONFIG, "fp32") and other.exists()
    assert not aot_packages.has_failed(CONFIG, "fp32")
    assert package.parent == copied and package.read_bytes() == b"code"
    with monkeypatch.context() as newer:
        newer.setattr(torch, "__version__", "3.0")
        assert not aot_packages.has_failed(CONFIG, "fp32") and not find_package(CONFIG, "fp32")


@pytest.mark.proofs
@pytest.mark.parametrize(("precision", "largest"), [("bf16", 1e-4), ("int8", 5e-3)])
@torch.no_grad()
def test_fewer_bits_compiled_stay_near_fp32(model: GPT2LMHead, precision: str, largest: float) -> None:
    build_package(CONFIG, precision)
    fast = compiled_model(model, precision)
    cache, ids = fast.new_cache(1, 64), torch.randint(0, 211, (1, 63))
    ours = torch.stack([fast.extend(i, cache).double() for i in ids.split(1, dim=1)], dim=1).log_softmax(-1)
    expected = model(ids).double().log_softmax(-1)
    assert 0 < (expected.exp() * (expected - ours)).sum(-1).mean() < largest


@pytest.mark.proofs
@needs_compiler
def test_rotary_positions_are_compiled_until_the_window_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GPT2Config(2, 4, 64, 64, 211, positions="rotary")
    model = loud(new_model(config, 1))
    build_package(config, "fp32")
    fast, n_eager = compiled_model(model), 0

    def counted(*inputs: object) -> None:
        nonlocal n_eager
        n_eager += 1

    fast.transformer.register_forward_pre_hook(counted)
    assert ids_of(fast, [5, 80, 210, 3], 150) == ids_of(model, [5, 80, 210, 3], 150)
    assert n_eager == 1 + 150 - 60  # the prefill, and what came after the window was full
