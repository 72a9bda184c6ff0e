"""Perplexity against a plain loop over transformers' model on the same folder and windows."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from loud import loud
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2cli.checkpoints.folder import load_model, write_manifest, write_model
from gpt2cli.errors import DivergedError, UsageError
from gpt2cli.evaluation.eval_text import EncodedText, encode_documents
from gpt2cli.evaluation.perplexity import (
    PerplexityProgress,
    measure_perplexity,
    paper_perplexity,
    sliding_window_for,
)
from gpt2cli.evaluation.scoring import LOGIT_ROWS, SlidingWindow, target_logprobs, windows
from gpt2cli.model.config import PRESETS, GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.model.layers import OutputLayer
from gpt2cli.runtime import choose_runtime
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.chars import Chars

STORY = "Every effort moves you. Das Märchen 漢字 😀 begins here,\n\nand it's not over yet -- " * 9
CHARACTERS = Chars.from_text(STORY)


@pytest.fixture(scope="module", params=["gpt2", "chars"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer: Tokenizer = gpt2() if request.param == "gpt2" else CHARACTERS
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=48, vocab_size=tokenizer.n_vocab)
    path = tmp_path_factory.mktemp("models") / request.param
    path.mkdir()
    write_manifest(path, write_model(path, loud(new_model(config, 1)), tokenizer, "task: pretrain\n"))
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> transformers.GPT2LMHeadModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def last(steps: Iterator[PerplexityProgress]) -> PerplexityProgress:
    *_, result = steps
    return result


def ours(
    folder: Path, text: str, context: int, stride: int, batch: int = 4
) -> tuple[PerplexityProgress, EncodedText]:
    loaded = load_model(folder)
    measured = encode_documents([text], loaded.tokenizer, "story")
    return last(
        measure_perplexity(
            loaded.model, measured, SlidingWindow(context, stride, batch), choose_runtime("cpu")
        )
    ), measured


@torch.no_grad()
def plain_loop(
    model: transformers.GPT2LMHeadModel, ids: list[int], context: int, stride: int
) -> tuple[float, int]:
    """Mean loss and count: one window after another, its labels masked where they were predicted before."""
    text = torch.tensor(ids)
    total, count, done = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids) - 1)
        logits = model(text[None, begin:end]).logits[0].double()
        labels = text[begin + 1 : end + 1].clone()
        labels[: done - begin] = -100
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels != -100).sum())
        done = end
        if end == len(ids) - 1:
            return total / count, count
    raise AssertionError


GEOMETRIES = [(48, 24), (48, 48), (48, 7), (48, 1), (17, 5), (16, 16), (2, 1), (1, 1)]


@pytest.mark.parametrize(("context", "stride"), GEOMETRIES)
def test_the_loss_is_that_of_a_plain_loop(
    folder: Path, reference: transformers.GPT2LMHeadModel, context: int, stride: int
) -> None:
    text = STORY if stride > 2 else STORY[:80]
    result, measured = ours(folder, text, context, stride)
    theirs, count = plain_loop(reference, measured.ids.tolist(), context, stride)
    assert count == result.n_tokens == result.n_total == len(measured.ids) - 1
    assert result.loss == pytest.approx(theirs, abs=1e-4)
    assert theirs > 3, "a loss this small would hide mistakes"


@pytest.mark.parametrize("n_characters", [12, 47, 48, 49, 97])
def test_a_text_shorter_than_a_window_or_just_longer(
    folder: Path, reference: transformers.GPT2LMHeadModel, n_characters: int
) -> None:
    result, measured = ours(folder, STORY[:n_characters], 48, 24)
    ids = measured.ids.tolist()
    theirs, count = plain_loop(reference, ids, 48, 24)
    assert (result.n_tokens, result.loss) == (count, pytest.approx(theirs, abs=1e-4))
    # transformers' own loss of a single window, shifted by itself.
    if len(ids) <= 48:
        whole = reference(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
        assert result.loss == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize(("context", "stride"), [(48, 24), (48, 48), (17, 5)])
def test_windows_together_give_what_they_give_alone(folder: Path, context: int, stride: int) -> None:
    alone, _ = ours(folder, STORY, context, stride, batch=1)
    for batch in (2, 5, 1000):
        together, _ = ours(folder, STORY, context, stride, batch)
        assert together.loss == pytest.approx(alone.loss, abs=1e-6)
        assert together.n_windows == alone.n_windows


@pytest.mark.parametrize(("context", "stride"), [*GEOMETRIES, (1024, 512), (5, 4)])
@pytest.mark.parametrize("n_targets", [1, 2, 5, 16, 17, 33, 500])
def test_every_token_counts_once_with_enough_before_it(context: int, stride: int, n_targets: int) -> None:
    seen: list[int] = []
    for window in windows(n_targets, SlidingWindow(context, stride, 1)):
        assert 0 <= window.begin < window.end <= n_targets and window.end - window.begin <= context
        counted = range(window.end - window.n_scored + 1, window.end + 1)
        for target in counted:  # inputs begin .. target - 1
            assert target - window.begin >= min(context - stride + 1, target)
        seen += counted
    assert seen == list(range(1, n_targets + 1))


def test_progress_grows_to_the_end_and_the_figures_follow_from_the_sum(folder: Path) -> None:
    loaded = load_model(folder)
    text = encode_documents([STORY], loaded.tokenizer, "story")
    steps = list(measure_perplexity(loaded.model, text, SlidingWindow(48, 24, 2), choose_runtime("cpu")))
    counts = [step.n_tokens for step in steps]
    assert len(counts) > 3 and counts == sorted(set(counts)) and counts[-1] == text.n_targets
    result = steps[-1]
    assert result.n_windows == len(list(windows(text.n_targets, SlidingWindow(48, 24, 2))))
    assert result.perplexity == pytest.approx(math.exp(result.nats / text.n_targets))
    n_words, n_bytes = len(STORY.split()), len(STORY.encode())
    assert (text.n_words, text.n_bytes) == (n_words, n_bytes)
    assert result.word_perplexity(text) == pytest.approx(math.exp(result.nats / n_words))
    assert result.bits_per_byte(text) * n_bytes * math.log(2) == pytest.approx(result.nats)


def test_bf16_is_near_fp32(folder: Path) -> None:
    loaded = load_model(folder)
    text, sliding = encode_documents([STORY], loaded.tokenizer, "story"), SlidingWindow(48, 24, 4)
    exact = last(measure_perplexity(loaded.model, text, sliding, choose_runtime("cpu", "fp32")))
    rounded = last(measure_perplexity(loaded.model, text, sliding, choose_runtime("cpu", "bf16")))
    assert exact.loss != rounded.loss == pytest.approx(exact.loss, abs=0.05)


def test_numbers_that_are_not_finite_are_said(folder: Path) -> None:
    loaded = load_model(folder)
    with torch.no_grad():
        loaded.model.transformer.h[1].mlp.c_fc.bias[3] = math.nan
    text = encode_documents([STORY], loaded.tokenizer, "story")
    with pytest.raises(DivergedError, match="not finite within the first 48 tokens") as caught:
        last(measure_perplexity(loaded.model, text, SlidingWindow(48, 24, 1), choose_runtime("cpu")))
    assert "--precision fp32" in caught.value.fix


CONFIG = GPT2Config(n_positions=64)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((0, None, None), "--context is 0"),
        ((65, None, None), "--context is 65"),
        ((None, 0, None), "--stride is 0"),
        ((None, 65, None), "--stride 65 is larger than the context, 64"),
        ((8, 9, None), "--stride 9 is larger than the context, 8"),
        ((None, None, 0), "--batch is 0"),
    ],
)
def test_windows_that_make_no_sense_are_refused(
    asked: tuple[int | None, int | None, int | None], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        sliding_window_for(CONFIG, *asked)


def test_the_defaults_are_the_whole_context_and_half_of_it() -> None:
    assert sliding_window_for(CONFIG, None, None, None) == SlidingWindow(64, 32, 16)
    assert sliding_window_for(CONFIG, 1, None, None).stride == 1
    assert sliding_window_for(PRESETS["124M"], None, None, None) == SlidingWindow(1024, 512, 1)
    assert sliding_window_for(PRESETS["124M"], None, None, None, "cuda") == SlidingWindow(1024, 512, 2)


def test_the_papers_figures_are_for_its_sizes_and_vocabulary_only() -> None:
    found = {size: paper_perplexity(replace(config, dropout=0.1), gpt2()) for size, config in PRESETS.items()}
    assert found == {"124M": 29.41, "355M": 22.76, "774M": 19.93, "1558M": 18.34}
    small = PRESETS["124M"]
    assert paper_perplexity(small, CHARACTERS) is None
    assert paper_perplexity(replace(small, n_layer=11), gpt2()) is None
    assert paper_perplexity(replace(small, tie_word_embeddings=False), gpt2()) is None
    assert paper_perplexity(replace(small, n_inner=4 * 768), gpt2()) == 29.41


class Largest(TorchDispatchMode):
    """Sees how many numbers the largest result of an operation has."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result._is_view():
            self.numel = max(self.numel, result.numel())
        return result


def test_logits_exist_a_part_at_a_time() -> None:
    torch.manual_seed(1)
    head, hidden, targets = OutputLayer(8, 1000, bias=False), torch.randn(60, 8), torch.arange(60) * 16
    torch.nn.init.normal_(head.weight)
    with torch.no_grad():
        logits = hidden @ head.weight.T
        targets[::3] = logits.argmax(-1)[::3]
        wanted = -F.cross_entropy(logits, targets, reduction="none")
        for columns in (7, 64, 999, 1000, 5000):
            with Largest() as largest:
                found, is_largest = target_logprobs(head, hidden, targets, columns)
            assert torch.allclose(found, wanted, atol=1e-5)
            assert torch.equal(is_largest, logits.argmax(-1) == targets) and is_largest.sum() >= 20
            assert largest.numel == 60 * min(columns, 1000)


def test_an_output_layer_of_another_layout_gets_few_rows_at_a_time() -> None:
    torch.manual_seed(1)
    n = 2 * LOGIT_ROWS + 3
    head, hidden, targets = torch.nn.Linear(8, 50, bias=False), torch.randn(n, 8), torch.arange(n) % 50
    with torch.no_grad():
        wanted = -F.cross_entropy(head(hidden), targets, reduction="none")
        seen: list[int] = []
        head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        assert torch.allclose(target_logprobs(head, hidden, targets)[0], wanted, atol=1e-6)
    assert seen == [LOGIT_ROWS, LOGIT_ROWS, 3]
