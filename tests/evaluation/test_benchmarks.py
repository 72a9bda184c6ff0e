"""The benchmarks against plain loops over transformers' model and tokenizer, item by item."""

import bz2
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import plain_benchmarks
import pytest
import torch
from loud import loud
from plain_benchmarks import Plain, Scored

from gpt2cli import bundled
from gpt2cli.checkpoints.folder import load_model, write_manifest, write_model
from gpt2cli.errors import DivergedError, InputError
from gpt2cli.evaluation.benchmark_items import (
    Item,
    read_cbt,
    read_hellaswag,
    read_hellaswag_completion,
    read_lambada,
    undo_treebank,
)
from gpt2cli.evaluation.benchmarks import (
    BENCHMARKS,
    ItemResult,
    encode_items,
    read_benchmark,
    run_benchmark,
    summarize,
)
from gpt2cli.evaluation.intervals import wilson_interval
from gpt2cli.evaluation.published import published_figure
from gpt2cli.evaluation.scoring import Branches, score_continuations
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.runtime import choose_runtime
from gpt2cli.tokenizer.bpe import gpt2

MINIATURES = Path(bundled.__file__).parent
CONTEXT = 64  # some of the miniatures' items do not fit
CPU = choose_runtime("cpu")
Reference = Callable[[Plain, Path], list[list[Scored]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=CONTEXT)
    path = tmp_path_factory.mktemp("model")
    write_manifest(path, write_model(path, loud(new_model(config, 1)), gpt2(), "task: pretrain\n"))
    return path


@pytest.fixture(scope="module")
def plain(folder: Path) -> Plain:
    return Plain(folder)


def results_of(folder: Path, name: str, source: str | Path) -> list[ItemResult]:
    loaded = load_model(folder)
    data = read_benchmark(BENCHMARKS[name], str(source), None, True)
    return list(run_benchmark(loaded.model, data, encode_items(data, loaded.tokenizer), CPU))


def compare(ours: list[ItemResult], theirs: list[list[Scored]]) -> None:
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert [len(score.logprobs) for score in mine.scores] == [score.n_tokens for score in other]
        assert [score.logprob for score in mine.scores] == pytest.approx(
            [score.logprob for score in other], abs=1e-4
        )
        assert [score.is_greedy for score in mine.scores] == [score.greedy for score in other]


@pytest.mark.parametrize(
    ("name", "miniature", "reference"),
    [
        ("lambada:word", "lambada-miniature", plain_benchmarks.lambada_word),
        ("lambada:token", "lambada-miniature", plain_benchmarks.lambada_token),
        ("hellaswag", "hellaswag-miniature", plain_benchmarks.hellaswag),
        ("hellaswag:completion", "hellaswag-miniature", plain_benchmarks.hellaswag_completion),
    ],
)
def test_each_item_has_the_scores_of_a_plain_loop(
    name: str,
    miniature: str,
    reference: Callable[[Plain, Path], list[list[Scored]]],
    folder: Path,
    plain: Plain,
) -> None:
    ours = results_of(folder, name, miniature)
    compare(ours, reference(plain, MINIATURES / f"{miniature}.jsonl"))
    assert any(result.n_cut for result in ours) and not all(result.n_cut for result in ours)


def test_a_word_of_several_tokens_counts_only_whole(folder: Path, plain: Plain, tmp_path: Path) -> None:
    """Words whose last token is the model's own choice after tokens that are not."""
    texts = []
    for word in ("cat", "dog", "house", "river", "stone", "bread", "window", "garden", "letter", "horse"):
        ids = plain.ids(f"They saw a {word}")
        last = int(plain.model(torch.tensor([ids])).logits[0, -1].argmax())
        text = plain.tokenizer.decode([*ids, last])
        if plain.ids(text) == [*ids, last] and not plain.tokenizer.decode([last]).startswith((" ", "\n")):
            texts.append(text)
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    token, word = results_of(folder, "lambada:token", path), results_of(folder, "lambada:word", path)
    compare(word, plain_benchmarks.lambada_word(plain, path))
    compare(token, plain_benchmarks.lambada_token(plain, path))
    assert {one.values["accuracy"] for one in token} == {1.0}
    assert {one.values["accuracy"] for one in word if len(one.scores[0].logprobs) > 1} == {0.0}


@pytest.mark.parametrize("kind", ["cn", "ne"])
def test_cbt_scores_a_candidate_and_the_rest_of_the_sentence(kind: str, folder: Path, plain: Plain) -> None:
    """The text of each item put together by hand from the first sentences of the file."""
    ours = results_of(folder, f"cbt-{kind}", f"cbt-{kind}-miniature")
    item = ours[0].item
    whole = 'Captain Voss leaned on his spade and said, "I only wanted a lake for my boat."'
    begin, answer, end = {"cn": whole.rpartition("boat"), "ne": whole.partition("Voss")}[kind]
    assert item.context.startswith(
        "Mira lived with her brother Tobin in a mill at the end of Hazelmere. Every"
    )
    assert item.context.endswith(f'and the village has no bread." {begin}')
    assert item.choices[item.answer] == answer + end and len(item.choices) == 10
    theirs = [[plain.score_text(one.item.context, choice) for choice in one.item.choices] for one in ours[:3]]
    compare(ours[:3], theirs)
    for one, scores in zip(ours, theirs, strict=False):
        best = max(range(len(scores)), key=lambda i: scores[i].logprob)
        assert one.values == {"accuracy": float(best == one.item.answer)}


def test_the_choice_is_by_sum_by_character_and_by_token(folder: Path, plain: Plain) -> None:
    path = MINIATURES / "hellaswag-miniature.jsonl"
    gold = [record["label"] for record in plain_benchmarks.records(path)]
    for name, theirs, lengths in (
        ("hellaswag", plain_benchmarks.hellaswag(plain, path), "characters"),
        ("hellaswag:completion", plain_benchmarks.hellaswag_completion(plain, path), "tokens"),
    ):
        ours = results_of(folder, name, "hellaswag-miniature")
        assert [one.values["acc"] for one in ours] == [
            float(max(range(4), key=lambda i, s=scores: s[i].logprob) == label)
            for scores, label in zip(theirs, gold, strict=True)
        ]
        for one, scores, record in zip(ours, theirs, plain_benchmarks.records(path), strict=True):
            texts = [plain_benchmarks.harness_text(ending) for ending in record["endings"]]
            sizes = [len(t) for t in texts] if lengths == "characters" else [s.n_tokens for s in scores]
            best = max(range(4), key=lambda i, s=scores, n=sizes: s[i].logprob / n[i])
            assert one.values["acc_norm"] == float(best == record["label"])


def test_continuations_of_one_context_do_not_see_each_other(folder: Path, plain: Plain) -> None:
    """Contexts and continuations of many lengths in one batch, each cut for itself where it is too long."""
    draw = random.Random(3)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(50257) for _ in range(n))

    sizes = [
        (1, [1]),
        (5, [1, 2, 9]),
        (40, [3, 3]),
        (50, [2, 8, 20]),
        (200, [1, 30]),
        (1, [CONTEXT, 2]),
        (7, [4]),
    ]
    items = [Branches(ids(n), tuple(map(ids, lengths))) for n, lengths in sizes]
    loaded = load_model(folder)
    found = list(score_continuations(loaded.model, items, CPU))
    for item, scores in zip(items, found, strict=True):
        theirs = [plain.score(list(item.context), list(one)) for one in item.continuations]
        assert [score.logprob for score in scores] == pytest.approx([s.logprob for s in theirs], abs=1e-4)
        assert [score.n_cut for score in scores] == [
            max(len(item.context) + len(one) - CONTEXT - 1, 0) for one in item.continuations
        ]
    with pytest.raises(InputError, match="65 tokens"):
        list(score_continuations(loaded.model, [Branches((1,), (ids(CONTEXT + 1),))], CPU))


def test_logits_that_are_not_finite_end_it(folder: Path) -> None:
    loaded = load_model(folder)
    loaded.model.transformer.ln_f.bias.data[3] = math.nan
    with pytest.raises(DivergedError, match="not finite"):
        list(score_continuations(loaded.model, [Branches((1, 2), ((3,),))], CPU))


def test_hellaswag_as_text_of_six_lines_packed_or_not(tmp_path: Path) -> None:
    lines = "Baking bread: Two children knead dough. one of them\n2\nsings.\nreads.\nrests.\nruns off.\n"
    (tmp_path / "hs.txt").write_text(lines)
    (tmp_path / "hs.txt.bz2").write_bytes(bz2.compress(lines.encode()))
    (plain_item,) = read_hellaswag(tmp_path / "hs.txt").items
    assert plain_item.context == "Baking bread: Two children knead dough. one of them"
    assert (plain_item.choices, plain_item.answer) == ((" sings.", " reads.", " rests.", " runs off."), 2)
    (packed,) = read_hellaswag(tmp_path / "hs.txt.bz2").items
    assert (packed.context, packed.choices) == (plain_item.context, plain_item.choices)
    (completion,) = read_hellaswag_completion(tmp_path / "hs.txt").items
    assert completion.context == "Two children knead dough. one of them"


GOOD = {"activity_label": "A", "ctx_a": "B.", "ctx_b": "c", "ctx": "B. c", "endings": ["d", "e"], "label": 1}
CBT = "".join(f"{n} Line .\n" for n in range(1, 21))


@pytest.mark.parametrize(
    ("read", "name", "content", "place"),
    [
        (read_lambada, "a.jsonl", '{"text": "fine word"}\n{"txt": "x y"}\n', ":2: no text"),
        (read_lambada, "a.jsonl", '{"text": "ends in a space "}\n', ":1: no text"),
        (read_lambada, "a.jsonl", '["x"]\n', ":1: not a JSON object"),
        (read_lambada, "a.jsonl", '{"text": \n', ":1: not a JSON record"),
        (read_hellaswag, "a.jsonl", json.dumps(GOOD | {"label": ""}) + "\n", ":1: label"),
        (read_hellaswag, "a.jsonl", json.dumps(GOOD | {"label": 2}) + "\n", ":1: label"),
        (read_hellaswag, "a.jsonl", json.dumps(GOOD | {"endings": "d"}) + "\n", ":1: no list"),
        (read_hellaswag, "a.jsonl", json.dumps({**GOOD, "ctx_b": None}) + "\n", ":1: no text 'ctx_b'"),
        (read_hellaswag_completion, "a.jsonl", json.dumps({**GOOD, "ctx": None}) + "\n", ":1: no text 'ctx'"),
        (read_hellaswag, "a.txt", "c\n1\na\nb\nc\nd\nc\n4\na\nb\nc\nd\n", ":7: not an item"),
        (read_hellaswag, "a.txt", "c\n1\na\nb\n", ":1: not an item"),
        (read_hellaswag, "a.txt.bz2", "no bzip2", ":1: damaged bzip2"),
        (read_cbt, "a.txt", CBT.replace("7 Line", "8 Line"), ":7: line 7"),
        (read_cbt, "a.txt", CBT, "its last item has 20 lines"),
        (read_cbt, "a.txt", CBT + "21 A XXXXX .\tcat\t\tdog|cow\n", ":21: not a question"),
        (read_cbt, "a.txt", CBT + "21 A cat .\tcat\t\tcat|cow\n", ":21: not a question"),
        (read_cbt, "a.txt", CBT + "21 A XXXXX .\n", ":21: not a question"),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_line(
    read: Callable[[Path], object], name: str, content: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert f"{tmp_path / name}{place if place.startswith(':') else ': ' + place}" in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize(
    ("tokenised", "typed"),
    [
        ("`` Do n't ! '' cried Tom 's aunt .", "\"Don't!\" cried Tom's aunt."),
        ("He said , `` I ca n't ; we 'll see ''", "He said, \"I can't; we'll see\""),
        ("a -LRB- small -RRB- dog , was it ?", "a (small) dog, was it?"),
        ("the boys ' hats and ` nothing '", "the boys' hats and 'nothing'"),
        ("an ordinary text stays as it is", "an ordinary text stays as it is"),
    ],
)
def test_the_penn_treebanks_tokens_are_undone(tokenised: str, typed: str) -> None:
    assert undo_treebank(tokenised) == typed


def test_wilsons_interval_holds_the_shares_that_the_sample_does_not_reject() -> None:
    """At each end the share itself lies 1.96 of its own standard errors from the observed one."""
    z = NormalDist().inv_cdf(0.975)
    for right, n in ((3, 10), (5, 10), (1678, 5153), (9, 10)):
        found = wilson_interval(right, n)
        assert found.value == right / n and found.low < found.value < found.high
        for end in (found.low, found.high):
            assert abs(end - right / n) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-9)
    none, all_of_them = wilson_interval(0, 10), wilson_interval(10, 10)
    assert none.low == 0 and none.high == pytest.approx(z * z / (10 + z * z))
    assert all_of_them.high == pytest.approx(1) and all_of_them.low == pytest.approx(10 / (10 + z * z))


def test_a_perplexity_is_of_the_mean_of_the_nats_and_so_is_its_interval() -> None:
    item = Item("x:1", "a", (" b",), 0)
    nats = [2.0, 3.0, 4.0, 7.0]
    results = [ItemResult(item, (), {"accuracy": float(n < 4), "perplexity": n}) for n in nats]
    found = summarize(BENCHMARKS["lambada:word"], results)
    half = 1.96 * math.sqrt((4 + 1 + 0 + 9) / 3 / 4)  # around the mean, 4
    perplexity = found["perplexity"]
    assert [math.log(x) for x in (perplexity.value, perplexity.low, perplexity.high)] == pytest.approx(
        [4, 4 - half, 4 + half], rel=1e-4
    )
    assert found["accuracy"].value == 0.5


def test_published_figures_are_of_the_same_protocol() -> None:
    table = {
        ("lambada:word", "accuracy"): 32.56,
        ("lambada:word", "perplexity"): 40.06,
        ("lambada:token", "accuracy"): 46.67,
        ("hellaswag", "acc"): 28.92,
        ("hellaswag", "acc_norm"): 31.14,
        ("hellaswag:completion", "acc"): 28.59,
        ("hellaswag:completion", "acc_norm"): 29.55,
        ("cbt-cn", "accuracy"): 87.65,
        ("cbt-ne", "accuracy"): 83.4,
        ("wikitext-2-test", "perplexity/word"): 29.41,
    }
    assert {key: published_figure(*key, "124M") for key in table} == table
    assert published_figure("lambada:word", "perplexity", "1558M") == 10.63
    assert published_figure("lambada:word", "accuracy", "355M") is None  # the paper's is of another protocol
    assert published_figure("lambada:word", "accuracy", None) is None
