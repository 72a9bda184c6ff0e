"""The validation split of `prepare`: its share of the tokens, apart from the training split, at the end
of a document where one is near.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from gpt2cli.data.prepare_pipeline import PrepareProgress
from gpt2cli.data.token_dataset import open_dataset
from gpt2cli.errors import InputError

Run = Callable[..., list[PrepareProgress]]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ."
SORTED = sorted(LETTERS)
END = len(LETTERS)  # of the character vocabulary: one id per character in their order, then end-of-text


def drawn(draw: random.Random, size: int) -> str:
    """`size` letters, each of LETTERS among them; no sixteen in a row come twice in a test."""
    return "".join(draw.choices(LETTERS, k=size - len(LETTERS)) + draw.sample(LETTERS, len(LETTERS)))


def write(folder: Path, texts: Sequence[str]) -> list[Path]:
    """Each text as a file of its own."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:02}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def ids_of(folder: Path, split: str) -> np.ndarray:
    """The ids of a split, (N,), from its files."""
    parts = [np.fromfile(path, "<u2") for path in sorted(folder.glob(f"{split}-*.bin"))]
    return np.concatenate([np.empty(0, "<u2"), *parts]).astype(np.int64)


def encoded(text: str) -> np.ndarray:
    """Its character ids and the end of the document, by hand."""
    return np.append(np.searchsorted(np.array(SORTED), np.array(list(text))), END)


def sixteens(ids: np.ndarray) -> np.ndarray:
    """A number for each window of sixteen ids, which tells it from others: a polynomial modulo 2**64."""
    found = np.zeros(max(0, len(ids) - 15), np.uint64)
    for i in range(16):
        found = found * np.uint64(1_000_003) + ids[i : i + len(found)].astype(np.uint64)
    return found


def check_split(seed: int, largest: float, folder: Path, run: Run, tokenizer: str = "chars") -> None:
    draw = random.Random(seed)
    sizes = [round(100 * (largest / 100) ** draw.random()) for _ in range(draw.randint(1, 30))]
    share = draw.uniform(0.01, 0.3)
    texts = [drawn(draw, size) for size in sizes]
    source, out = folder / f"{seed}.jsonl", folder / f"out-{seed}"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    steps = run([source], out, validation=share, tokenizer=tokenizer, shard_tokens=50_021, seed=seed)
    train, validation = ids_of(out, "train"), ids_of(out, "validation")
    wanted = share * (len(train) + len(validation))
    assert abs(len(validation) - wanted) <= wanted / 5, (seed, sizes, share, len(validation), wanted)
    assert not [step.warning for step in steps if "asked for" in step.warning], seed
    assert len(np.intersect1d(sixteens(train), sixteens(validation))) == 0, seed
    if tokenizer == "chars":
        whole = np.concatenate([encoded(text) for text in texts])
        both = np.concatenate([train, validation])
        assert np.array_equal(np.bincount(both), np.bincount(whole)), seed


def test_validation_has_its_share_of_the_tokens_and_none_of_the_training_text(
    tmp_path: Path, run: Run
) -> None:
    """Mutations: no tail is moved; a moved tail is not cut off; the share is that of documents."""
    for seed in range(60):
        check_split(seed, 10_000, tmp_path, run)


@pytest.mark.proofs
@pytest.mark.parametrize("tokenizer", ["chars", "gpt2"])
def test_the_share_of_large_documents(tokenizer: str, tmp_path: Path, run: Run) -> None:
    for seed in range(100, 112):
        check_split(seed, 1_000_000, tmp_path, run, tokenizer)


@pytest.mark.parametrize("seed", [21, 1337])  # 21 draws the second document, 1337 neither
@pytest.mark.parametrize("sizes", [(20_000, 300_000), (300_000, 20_000), (50_000, 50_000)])
def test_two_books(sizes: tuple[int, int], seed: int, tmp_path: Path, run: Run) -> None:
    """A tail moves from either split to the other; the rest of both stays in order."""
    draw = random.Random(5)
    texts = [drawn(draw, size) for size in sizes]
    run(write(tmp_path, texts), tmp_path / "out", tokenizer="chars", validation=0.1, seed=seed)
    train, validation = ids_of(tmp_path / "out", "train"), ids_of(tmp_path / "out", "validation")
    first, second = map(encoded, texts)
    whole = np.concatenate([first, second])
    n = round(len(whole) / 10)
    if seed == 1337:
        expected = whole[:-n], whole[-n:]
    elif len(second) > n:
        expected = np.concatenate([first, second[n:]]), second[:n]
    else:  # all of it is 6 %
        n_first = len(whole) - n
        expected = first[:n_first], np.concatenate([second, first[n_first:]])
    assert np.array_equal(train, expected[0]) and np.array_equal(validation, expected[1])


def test_the_cut_is_at_the_end_of_a_document_where_one_is_near(tmp_path: Path, run: Run) -> None:
    """Documents of 100 tokens, of which 535 are wanted: only whole ones are moved, and none is shared."""
    draw = random.Random(6)
    texts = [drawn(draw, 99) for _ in range(50)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(rows, encoding="utf-8")
    for seed, n in ((1, 5), (7, 5), (10, 5), (12, 6)):  # the hash draws 5, 10, 0 and 6 of them
        out = tmp_path / f"{seed}"
        run([tmp_path / "a.jsonl"], out, tokenizer="chars", validation=0.107, seed=seed, shard_tokens=930)
        train, validation = (ids_of(out, split).reshape(-1, 100) for split in ("train", "validation"))
        assert len(validation) == n and (validation[:, -1] == END).all() and (train[:, -1] == END).all()
        found = sorted(map(tuple, np.concatenate([train, validation]).tolist()))
        assert found == sorted(tuple(encoded(text).tolist()) for text in texts)
        shards = sorted(path.stat().st_size // 2 for path in out.glob("train-*.bin"))
        assert shards[1:] == [930] * (len(shards) - 1), "all shards but the last are full"


@pytest.mark.parametrize(
    ("text", "share", "found", "asked"),
    [
        ("a", 0.01, "50.00%", "1.00%"),  # two tokens
        ("abcdefghi", 0.02, "10.00%", "2.00%"),  # a fifth of a token
        ("abcdefghi", 0.14, "10.00%", "14.00%"),  # 1.4 tokens
        ("abc", 0.99, "75.00%", "99.00%"),
    ],
)
def test_a_share_that_cannot_be_met_is_told(
    text: str, share: float, found: str, asked: str, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "a.txt").write_text(text)
    steps = run([tmp_path / "a.txt"], tmp_path / "out", tokenizer="chars", validation=share)
    (warning,) = [step.warning for step in steps if "asked for" in step.warning]
    assert found in warning and asked in warning
    with open_dataset(tmp_path / "out") as data:
        assert data.train.n_tokens >= 1 and data.validation.n_tokens >= 1


@pytest.mark.parametrize("block", [0, 1, 81])
def test_no_split_leaves_too_little_to_train_on(block: int, tmp_path: Path, run: Run) -> None:
    """Of 100 tokens, a validation of 20 % may have 16 to 24: a block of 81 is met by 19 of them."""
    (tmp_path / "a.txt").write_text(drawn(random.Random(1), 99))
    run([tmp_path / "a.txt"], tmp_path / "out", tokenizer="chars", validation=0.2, block=block)
    assert len(ids_of(tmp_path / "out", "train")) == max(80, block)
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(InputError, match="0 training tokens"):
        run([tmp_path / "b.txt"], tmp_path / "empty", block=block)
    with pytest.raises(InputError, match="80 training tokens") as caught:
        run([tmp_path / "a.txt"], tmp_path / "short", tokenizer="chars", validation=0.2, block=90)
    assert caught.value.fix.endswith("--block 80")


def test_the_first_and_the_last_id_at_the_borders_of_shards(tmp_path: Path, run: Run) -> None:
    """65,536 ids in two bytes each: 0 begins a shard and 65,535, the end of the text, closes one."""
    characters = "".join(chr(code) for code in range(0x10000, 0x10000 + 65_535))
    rows = [characters, characters[0], characters[:2]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    document = [*range(65_536)]  # seed 4 draws none of the others, so that their order stays
    for share, n in ((0.00006, 4), (0.5, 32770)):
        out = tmp_path / str(share)
        run([tmp_path / "a.jsonl"], out, tokenizer="chars", validation=share, shard_tokens=32768, seed=4)
        train, validation = ids_of(out, "train").tolist(), ids_of(out, "validation").tolist()
        assert train + validation == [*document, 0, 65_535, 0, 1, 65_535]
        with open_dataset(out) as data:
            assert data.manifest.dtype == "uint16" and data.manifest.n_vocab == 65_536
            assert abs(data.validation.n_tokens - n) <= n / 5
            assert data.train.read(32767, 2).tolist() == [32767, 32768]


def test_the_split_is_the_same_in_every_run(tmp_path: Path, run: Run) -> None:
    sources = write(tmp_path, [drawn(random.Random(i), 3000 * (i + 1)) for i in range(3)])
    for seed in (1, 21):
        for out in ("one", "two"):
            workers = 1 + (out == "two")
            run(sources, tmp_path / f"{out}-{seed}", tokenizer="chars", seed=seed, workers=workers)
        for name in ("manifest.json", "train-00000.bin", "validation-00000.bin"):
            assert (tmp_path / f"one-{seed}" / name).read_bytes() == (
                tmp_path / f"two-{seed}" / name
            ).read_bytes()
