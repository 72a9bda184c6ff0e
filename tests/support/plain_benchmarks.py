"""LAMBADA and HellaSwag written once more, plainly: transformers' model and tokenizer, one text at a time.

Nothing of gpt2cli is imported here: this is what its benchmarks are compared with.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Scored:
    logprob: float
    greedy: bool
    n_tokens: int


class Plain:
    """A model folder as transformers opens it."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def score(self, context: list[int], ids: list[int]) -> Scored:
        """The ids after the context, which loses its beginning where both are too long."""
        whole = (context + ids)[-(self.model.config.n_positions + 1) :]
        with torch.no_grad():
            logits = self.model(torch.tensor([whole[:-1]])).logits[0, -len(ids) :]  # (n, V)
        wanted = torch.tensor(ids)
        logprobs = logits.log_softmax(-1)[torch.arange(len(ids)), wanted]
        greedy = bool((logits.argmax(-1) == wanted).all())
        return Scored(logprobs.double().sum().item(), greedy, len(ids))

    def score_text(self, context: str, choice: str) -> Scored:
        """As lm-evaluation-harness: both in one text, cut where the context's own tokens end."""
        n_spaces = len(context) - len(context.rstrip())
        if n_spaces:
            context, choice = context[:-n_spaces], context[-n_spaces:] + choice
        alone = self.ids(context)
        return self.score(alone, self.ids(context + choice)[len(alone) :])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def lambada_word(plain: Plain, path: Path) -> list[list[Scored]]:
    texts = [record["text"].split(" ") for record in records(path)]
    return [[plain.score_text(" ".join(words[:-1]), f" {words[-1]}")] for words in texts]


def lambada_token(plain: Plain, path: Path) -> list[list[Scored]]:
    every = [plain.ids(record["text"]) for record in records(path)]
    return [[plain.score(ids[:-1], ids[-1:])] for ids in every]


def hellaswag(plain: Plain, path: Path) -> list[list[Scored]]:
    found = []
    for record in records(path):
        query = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
        choices = [f" {harness_text(ending)}" for ending in record["endings"]]
        found.append([plain.score_text(harness_text(query), choice) for choice in choices])
    return found


def harness_text(text: str) -> str:
    text = re.sub(r"\[[^\]]*\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def hellaswag_completion(plain: Plain, path: Path) -> list[list[Scored]]:
    return [
        [plain.score(plain.ids(record["ctx"]), plain.ids(" " + ending)) for ending in record["endings"]]
        for record in records(path)
    ]
