"""What was read, forgotten and read again, down to the steps in which it was read."""

from collections.abc import Sequence

import pytest
from conversing import after, counted, require_same, require_true, tiny

from gpt2cli.generation.engine import read
from gpt2cli.generation.memory import NOTHING, Memory, Read
from gpt2cli.model.gpt2 import GPT2LMHead

FIRST, OTHER = [[5, 6, 7, 8], [9], [10], [11, 12]], [[5, 6], [7, 8, 9], [1]]


@pytest.fixture(scope="module")
def model() -> GPT2LMHead:
    return tiny(32)


def having_read(model: GPT2LMHead, steps: Sequence[list[int]]) -> Memory:
    memory = Memory(model)
    for ids in steps:
        read(model, memory.past, ids)
    return memory


def ids_of(steps: Sequence[list[int]]) -> list[int]:
    return [token for ids in steps for token in ids]


def test_what_is_still_there_is_cut(model: GPT2LMHead) -> None:
    memory = having_read(model, FIRST)
    with counted(model) as widths:
        memory.return_to(Read((5, 6, 7, 8, 9), (4, 1)))
        assert memory.n_missing([5, 6, 7, 8, 9, 1]) == memory.recall([5, 6, 7, 8, 9, 1], after(99)) == 0
    assert widths == []
    require_same(memory.past, having_read(model, FIRST[:2]).past)


@pytest.mark.parametrize("n_steps", [1, 2, 4])
def test_what_was_read_in_other_steps_is_read_again(model: GPT2LMHead, n_steps: int) -> None:
    then = having_read(model, FIRST[:n_steps])
    memory = having_read(model, OTHER)  # the same ids at first
    memory.return_to(then.now)
    assert memory.now == then.now
    prompt = [*ids_of(FIRST[:n_steps]), 3]
    with counted(model) as widths:
        n_missing = memory.n_missing(prompt)
        assert memory.recall(prompt, after(99)) == n_missing == sum(widths)
    assert widths == [len(ids) for ids in FIRST[:n_steps]]
    require_same(memory.past, then.past)


def test_only_the_missing_steps_are_read(model: GPT2LMHead) -> None:
    then = having_read(model, FIRST)
    memory = having_read(model, [*FIRST[:2], [3, 3]])
    memory.return_to(then.now)
    with counted(model) as widths:
        assert memory.recall([*ids_of(FIRST), 3], after(1)) == 1
        assert memory.n_missing([*ids_of(FIRST), 3]) == 2
        assert memory.recall([*ids_of(FIRST), 3], after(99)) == 2
    assert widths == [1, 2]
    require_same(memory.past, then.past)


def test_for_another_prompt_nothing_is_kept(model: GPT2LMHead) -> None:
    memory = having_read(model, FIRST)
    assert memory.recall([5, 6, 7, 8, 9, 1], after(99)) == 0
    assert memory.past.ids == []
    memory = having_read(model, OTHER)
    memory.return_to(Read((1, 2), (2,)))
    prompt = [*ids_of(OTHER), 3]  # goes on from what is there, but that was taken back
    assert memory.n_missing(prompt) == memory.recall(prompt, after(99)) == 0
    assert memory.past.ids == []


def test_asked_to_stop_first_nothing_changes(model: GPT2LMHead) -> None:
    memory, then = having_read(model, OTHER), having_read(model, FIRST).now
    memory.return_to(then)
    assert memory.recall([*ids_of(FIRST), 3], after(0)) == 0
    assert memory.now == then
    require_true(model, memory.past)


def test_keep_forgets_whole_steps(model: GPT2LMHead) -> None:
    memory = having_read(model, FIRST)
    memory.keep([*ids_of(FIRST), 1])
    assert memory.past.ids == ids_of(FIRST)
    memory.keep([5, 6, 7, 8, 9, 1])
    assert memory.past.steps == [4, 1]
    memory.keep([5, 6, 7])
    assert memory.past.ids == [] and memory.now == NOTHING
