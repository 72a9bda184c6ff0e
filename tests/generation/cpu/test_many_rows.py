"""fp32 with hundreds of rows: what was measured decides, is remembered, and changes no number."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gpt2cli.evaluation.scoring import score_texts
from gpt2cli.generation.cpu import many_rows
from gpt2cli.generation.cpu.linear import BlockedLinear, RowLinear, SplitLinear
from gpt2cli.generation.cpu.many_rows import (
    BLOCKED,
    LARGE,
    MANY,
    MKL,
    REORDERED,
    REORDERED_COLUMNS,
    faster_ways,
    linear,
    pays_to_keep_blocks,
)
from gpt2cli.generation.cpu.swap_linears import swap_for_many_rows
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.model.layers import Linear
from gpt2cli.runtime import Runtime, processor_digest

WAYS = (BLOCKED, REORDERED, REORDERED_COLUMNS)
WIDE = GPT2Config(n_layer=2, n_head=4, n_embd=512, n_positions=320, vocab_size=211)
Remember = Callable[..., Path]

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN"
)


@pytest.fixture
def remember(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remember]:
    """Write what an earlier measurement found: the ways given are twice as fast as F.linear."""
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))

    def write(*faster: str, **other: Any) -> Path:
        n = torch.get_num_threads()
        facts = {"torch": torch.__version__, "processor": processor_digest(), "threads": n} | other
        path = tmp_path / "home" / "measured" / f"linear-{n}-threads.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**facts, "seconds": {MKL: 1.0} | dict.fromkeys(faster, 0.5)}))
        faster_ways.cache_clear()
        return path

    faster_ways.cache_clear()
    yield write
    faster_ways.cache_clear()


def wide() -> GPT2LMHead:
    """Weights of a trained scale, so that a wrong number would show."""
    torch.manual_seed(0)
    model = new_model(WIDE, seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= 4 if name.endswith("c_proj.weight") else 1
            parameter += 0.1 * torch.randn_like(parameter) if parameter.dim() == 1 else 0
    return model


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n_rows", [MANY - 1, MANY])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_each_way_gives_the_product(remember: Remember, way: str, n_rows: int, bias: bool) -> None:
    remember(way)
    x, weight = torch.randn(1, n_rows, 512), torch.randn(LARGE // 512, 512) / 20
    b = torch.randn(len(weight)) if bias else None
    wanted = F.linear(x, weight, b)
    for stored in (weight, weight.t().contiguous().t()):
        assert torch.allclose(linear(x, stored, b), wanted, atol=1e-5)


@torch.no_grad()
def test_the_way_is_the_measured_one(remember: Remember) -> None:
    """A reordered weight is summed in another order, which shows in the last digits."""
    x, weight = torch.randn(MANY, 1024), torch.randn(1024, 1024)
    columns = weight.t().contiguous().t()
    plain = F.linear(x, weight)
    reordered = many_rows.blocked_linear(x, many_rows.reorder(weight), None)
    if torch.equal(plain, reordered):
        pytest.skip("here both ways sum in the same order")
    remember(REORDERED)
    assert torch.equal(linear(x, weight), reordered)
    assert torch.equal(linear(x, columns), F.linear(x, columns))
    assert torch.equal(linear(x[:-1], weight), F.linear(x[:-1], weight))
    remember(BLOCKED)
    assert torch.equal(linear(x, weight), plain)
    remember(REORDERED_COLUMNS)
    assert torch.equal(linear(x, weight), plain)


@torch.no_grad()
@pytest.mark.parametrize(("n_rows", "columns"), [(MANY - 1, LARGE), (MANY, LARGE), (MANY, LARGE // 64 - 1)])
def test_one_input_meets_many_weights(remember: Remember, n_rows: int, columns: int) -> None:
    """As in the output layer, whose last part has any number of rows."""
    x, weights = torch.randn(n_rows, 64), torch.randn(701, 64).split(300)
    for ways in ((), WAYS):
        remember(*ways)
        times = many_rows.matmul_with(x, columns)
        for weight in weights:
            y = times(weight)
            is_reordered = bool(ways) and n_rows == MANY and columns == LARGE
            assert y.is_contiguous() != is_reordered  # then it is a transposed result
            assert torch.allclose(y, x @ weight.t(), atol=1e-4)


@torch.no_grad()
def test_layers_for_one_row_read_prompts_in_the_measured_way(remember: Remember) -> None:
    remember(*WAYS)
    plain, x = Linear(1024, 1024), torch.randn(1, MANY, 1024)
    torch.nn.init.normal_(plain.weight, std=0.05)
    torch.nn.init.normal_(plain.bias)
    for kind in (RowLinear, SplitLinear):
        assert torch.allclose(kind(copy.deepcopy(plain))(x), plain(x), atol=1e-5)


@torch.no_grad()
def test_a_swapped_transformer_gives_the_same_logits_and_its_old_weights_are_given_back(
    remember: Remember,
) -> None:
    remember(BLOCKED)
    model, ids = wide(), torch.randint(0, 211, (1, 300))
    wanted = model(ids)
    old = model.transformer.h[1].mlp.c_fc.weight.detach()
    swap_for_many_rows(model.transformer, "fp32")
    kinds = {name: type(m) for name, m in model.transformer.h[1].named_modules() if "c_" in name}
    assert kinds["attn.c_attn"] is kinds["mlp.c_fc"] is kinds["mlp.c_proj"] is BlockedLinear
    assert kinds["attn.c_proj"] is Linear  # too small to matter
    found = model(ids)
    assert (found - wanted).abs().max() < 1e-5 and wanted.std() > 0.3
    if os.uname().sysname == "Linux":
        assert (old == 0).float().mean() > 0.99


@pytest.mark.parametrize(("faster", "precision"), [((), "fp32"), (WAYS, "bf16"), ((REORDERED,), "fp32")])
def test_nothing_is_swapped_where_it_gains_nothing(
    remember: Remember, faster: tuple[str, ...], precision: str
) -> None:
    remember(*faster)
    model = wide()
    swap_for_many_rows(model.transformer, precision)
    assert type(model.transformer.h[0].mlp.c_fc) is Linear
    assert not pays_to_keep_blocks(torch.empty(2048, 512, device="meta"))


def test_scores_are_the_same_in_every_way(remember: Remember) -> None:
    texts = [torch.randint(0, 211, (n,)).tolist() for n in (321, 5, 290)]
    runtime = Runtime(torch.device("cpu"), "fp32", 1, False)
    remember()
    wanted = [*score_texts(wide(), texts, runtime)]
    remember(*WAYS)
    model = wide()
    swap_for_many_rows(model.transformer, "fp32")
    for one, other in zip(wanted, score_texts(model, texts, runtime), strict=True):
        assert other == pytest.approx(one, abs=1e-5)


def test_it_is_measured_once(remember: Remember) -> None:
    path = remember(torch="another")
    before = path.read_bytes()
    faster_ways(1)
    measured = path.read_bytes()
    assert measured != before
    stored = json.loads(measured)
    assert set(stored["seconds"]) == {MKL, *WAYS} and min(stored["seconds"].values()) > 0
    faster_ways.cache_clear()
    ways = faster_ways(1)
    assert path.read_bytes() == measured
    assert ways == {w for w in WAYS if stored["seconds"][w] * many_rows.MARGIN < stored["seconds"][MKL]}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"seconds": {}}'])
def test_a_damaged_record_is_measured_again(remember: Remember, content: str) -> None:
    path = remember()
    path.write_text(content)
    faster_ways(1)
    assert MKL in json.loads(path.read_bytes())["seconds"]


def test_what_cannot_be_remembered_is_not_used(remember: Remember, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder would be")
    assert faster_ways(1) == frozenset()
