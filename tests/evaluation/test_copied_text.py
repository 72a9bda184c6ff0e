"""The longest copied run against str.find, over small alphabets and blocks, and in several files."""

import random
from collections.abc import Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from gpt2cli.data.manifest import Shard
from gpt2cli.data.token_dataset import TokenSplit
from gpt2cli.evaluation.copied_text import CopiedRun, longest_copied_run


def split_of(folder: Path, ids: Sequence[int], shard_tokens: int = 1000) -> TokenSplit:
    shards = []
    for first in range(0, len(ids), shard_tokens):
        part = np.array(ids[first : first + shard_tokens], "<u2")
        file = f"train-{len(shards):05d}.bin"
        (folder / file).write_bytes(part.tobytes())
        shards.append(Shard(file, len(part), sha256(part.tobytes()).hexdigest()))
    return TokenSplit(folder, shards, "uint16", 100)


def longest_by_find(sample: Sequence[int], ids: Sequence[int]) -> int:
    text, wanted = "".join(map(chr, ids)), "".join(map(chr, sample))
    lengths = (
        j - i for i in range(len(wanted)) for j in range(i + 1, len(wanted) + 1) if wanted[i:j] in text
    )
    return max(lengths, default=0)


def test_the_length_is_that_of_a_search_for_every_part(tmp_path: Path) -> None:
    lengths = set()
    for seed in range(150):
        draw = random.Random(seed)
        letters, block = range(draw.randint(1, 5)), draw.choice([1, 2, 3, 7, 20, 1000])
        ids = draw.choices(letters, k=draw.randint(0, 70))
        sample = draw.choices([*letters, 9], k=draw.randint(0, 18))
        most = draw.choice([1000, draw.randint(0, 80)])
        with closing(split_of(tmp_path, ids, draw.choice([5, 1000]))) as split:
            found = longest_copied_run(sample, split, most=most, block=block)
        lengths.add(found.length)
        assert found.length == longest_by_find(sample, ids[:most]), f"seed {seed}"
        assert found.n_searched == min(most, len(ids))
        run = sample[found.start : found.start + found.length]
        assert len(run) == found.length == longest_by_find(run, ids[:most]), f"seed {seed}"
    assert {0, 1, 2, 5, 9} < lengths


@pytest.mark.parametrize("block", [16, 7, 1])
def test_a_run_over_the_border_of_blocks_counts(tmp_path: Path, block: int) -> None:
    sample = [7, 8, *range(20, 30), 8]  # 10 of them are copied
    for place in range(40):
        ids = random.Random(place).choices(range(5), k=50)
        ids[place : place + 10] = range(20, 30)
        with closing(split_of(tmp_path, ids)) as split:
            assert longest_copied_run(sample, split, block=block) == CopiedRun(2, 10, 50)


def test_tokens_beyond_the_most_are_not_searched(tmp_path: Path) -> None:
    with closing(split_of(tmp_path, [0, 1, 2, 3, 4, 5, 6, 7])) as split:
        assert longest_copied_run([9, 3, 4, 5, 6], split, most=6, block=4) == CopiedRun(1, 3, 6)
        assert longest_copied_run([6, 7], split, most=6) == CopiedRun(0, 0, 6)
        assert longest_copied_run([6, 7], split) == CopiedRun(0, 2, 8)
