"""What instruction tuning learns of its records, from a recipe to the gradient, against a plain loop.

Weights that stay as they are let each step show which records it saw, by its loss and gradient norm.
"""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_loop import Example, find, gradient_norm, load, mean_loss, n_targets
from tiny_base import chat_example, save_base
from tiny_run import FROZEN, PRETRAIN, Call, column, events, train
from transformers import AutoTokenizer

N, N_TRAIN = 10, 7
RECORDS = [
    {
        "instruction": f"Say {'ab' * (i % 3)}{i}!",
        "input": "to me" * (i % 2),
        "output": "xyz"[: i % 4] + str(i),
    }
    for i in range(N)
]
RECIPE: dict[str, Any] = {
    "task": "finetune-instruct",
    "seed": 7,
    "init": "base",
    "template": "chat",
    "data": {"source": "records.json", "validation": 0.2, "test": 0.1},
    "batch": {"micro_batch": 1, "accumulation": 1},
    "optim": {"steps": N_TRAIN, "lr": 1e-3},
    "eval": {"every": 100, "max_new_tokens": 1},
    "run": PRETRAIN["run"],
}


@pytest.fixture
def base(gpt2: Call) -> Path:
    Path("records.json").write_text(json.dumps(RECORDS), encoding="utf-8")
    return save_base(gpt2, Path("base"))


def examples(base: Path, *, mask_prompt: bool = True) -> list[Example]:
    return [chat_example(base, record, mask_prompt=mask_prompt) for record in RECORDS]


def learn(gpt2: Call, name: str, *more: str) -> Path:
    return train(gpt2, RECIPE, name, *more, command="finetune-instruct")


def held_out(run: Path, base: Path, rows: list[Example]) -> tuple[set[int], set[int]]:
    """The records of the validation split, found by the loss before the first step, and of the test split."""
    (first, *_), model = events(run, "EvalDone"), load(base)
    pairs = list(combinations(range(N), 2))
    with torch.no_grad():
        losses = [mean_loss(model, [rows[i] for i in pair]).item() for pair in pairs]
    fitting = [
        set(pair)
        for pair, loss in zip(pairs, losses, strict=True)
        if abs(loss - first["loss"]) < 1e-5 and n_targets([rows[i] for i in pair]) == first["n_tokens"]
    ]
    assert len(fitting) == 1, f"the loss {first['loss']} fits the records {fitting}"
    answered = (run / "responses.jsonl").read_text(encoding="utf-8").splitlines()
    return fitting[0], {json.loads(line)["index"] for line in answered}


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_answers_and_their_ends_are_learned_and_prompts_if_asked(
    mask_prompt: bool, gpt2: Call, base: Path
) -> None:
    rows = examples(base, mask_prompt=mask_prompt)
    run = learn(gpt2, "run", *FROZEN, f"mask_prompt={str(mask_prompt).lower()}")
    validation, test = held_out(run, base, rows)
    seen = find(load(base), [[row] for row in rows], column(run, "loss"), column(run, "grad_norm"))
    assert sorted([*seen, *validation, *test]) == list(range(N)), "an epoch has the other records once each"


def conversation(i: int) -> list[dict[str, Any]]:
    """One to three exchanges; in some, earlier answers have the weight 0."""
    texts = [f"{'pq' * (i % 4)}{i}.{part}" + "z" * ((i + part) % 5) for part in range(6)]
    messages: list[dict[str, Any]] = []
    for part in range(1 + i % 3):
        messages += [{"role": "user", "content": texts[2 * part]}]
        messages += [{"role": "assistant", "content": texts[2 * part + 1]}]
    for message in messages[1:-1:2][: 1 + i % 2]:
        message["weight"] = 0
    return messages


def plain(base: Path, messages: list[dict[str, Any]], *, mask_prompt: bool) -> Example:
    """Its tokens by transformers, one message after the other."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids, targets = list[int](), list[int]()
    for message in messages:
        if message["role"] == "user":
            more = tokenizer(f"User:\n{message['content']}\n\nAssistant:\n")["input_ids"]
            learned = not mask_prompt
        else:
            more = [*tokenizer(message["content"])["input_ids"], tokenizer.eos_token_id]
            learned = message.get("weight") != 0
        ids, targets = [*ids, *more], [*targets, *(more if learned else [-100] * len(more))]
    return Example(ids[:-1], targets[1:])


@pytest.mark.parametrize("mask_prompt", ["true", "false"])
@pytest.mark.parametrize("packing", ["false", "true"])
def test_answers_of_weight_0_are_read_and_not_learned(packing: str, mask_prompt: str, gpt2: Call) -> None:
    """Losses, gradient norms and target counts of whole conversations, several to a row or not."""
    base = save_base(gpt2, Path("base"), context=144)
    known = [conversation(i) for i in range(N)]
    assert sum(message.get("weight") == 0 for messages in known for message in messages) > 5
    lines = [json.dumps({"messages": messages}) for messages in known]
    Path("records.json").write_text(f"[{','.join(lines)}]", encoding="utf-8")
    rows = [plain(base, messages, mask_prompt=mask_prompt == "true") for messages in known]
    sizes = (1, 2, 3) if packing == "true" else (1,)
    groups = [group for size in sizes for group in combinations(range(N), size)]
    asked = (f"packing={packing}", f"mask_prompt={mask_prompt}")
    run = learn(gpt2, "run", *FROZEN, *asked, "optim.steps=30")
    validation, test = held_out(run, base, rows)
    first = column(run, "loss")
    epoch = next(n for n in range(1, 30) if sorted(first[:n]) == sorted(first[n : 2 * n]))
    losses, norms = first[:epoch], column(run, "grad_norm")[:epoch]
    found = find(load(base), [[rows[i] for i in group] for group in groups], losses, norms)
    assert sorted([*sum((groups[i] for i in found), ()), *validation, *test]) == list(range(N))
    assert packing == "false" or max(len(groups[i]) for i in found) > 1, "some share a row"


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_packed_records_do_not_see_each_other(compiled: str, gpt2: Call, base: Path) -> None:
    rows = examples(base)
    several = [group for size in (1, 2, 3) for group in combinations(range(N), size)]
    run = learn(gpt2, "run", *FROZEN, "packing=true", "optim.steps=3", f"run.compile={compiled}")
    validation, test = held_out(run, base, rows)
    candidates = [[rows[i] for i in group] for group in several]
    found = find(load(base), candidates, column(run, "loss"), column(run, "grad_norm"))
    seen = [several[i] for i in found]
    assert max(map(len, seen)) > 1, "some records share a row"
    assert sorted([*sum(seen, ()), *validation, *test]) == list(range(N))


def test_each_target_weighs_the_same_in_whatever_micro_batch(gpt2: Call, base: Path) -> None:
    """Records have 2 to 5 targets; a step of all of them is the same however it is cut."""
    rows = examples(base)
    for micro, accumulation in ((7, 1), (1, 7)):
        batch = (f"batch.micro_batch={micro}", f"batch.accumulation={accumulation}", "optim.steps=1")
        run = learn(gpt2, f"by-{micro}", *FROZEN, *batch)
        validation, test = held_out(run, base, rows)
        learned = [rows[i] for i in range(N) if i not in validation | test]
        assert column(run, "loss") == pytest.approx([mean_loss(load(base), learned).item()], abs=1e-5)
        assert column(run, "grad_norm") == pytest.approx([gradient_norm(load(base), learned)], rel=1e-5)


def test_the_last_evaluation_is_that_of_the_last_weights(gpt2: Call, base: Path) -> None:
    rows = examples(base)
    run = learn(gpt2, "run")
    validation, _ = held_out(run, base, rows)
    held = [rows[i] for i in sorted(validation)]
    last = events(run, "EvalDone")[-1]
    assert last["step"] == N_TRAIN and last["n_tokens"] == n_targets(held)
    with torch.no_grad():
        assert last["loss"] == pytest.approx(mean_loss(load(run / "last"), held).item(), abs=1e-5)
