"""Labels for many texts from a classifier: predicted in batches by length, returned in order."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from gpt2cli.checkpoints.classifier import LoadedClassifier
from gpt2cli.data.labelled_texts import encode_text, pad_right
from gpt2cli.data.sft_batches import batches_by_length
from gpt2cli.errors import Gpt2Error, InputError

WINDOW = 2048  # texts that are sorted by length together
N_ROWS = 64  # at most in a batch
# Tokens of a batch, padding counted, by device: a CPU gains nothing by more, and short batches pad less.
N_TOKENS = {"cpu": 512, "cuda": 8192, "mps": 8192}


@dataclass(frozen=True)
class LabelPrediction:
    """A probability for each label, in order."""

    probabilities: tuple[float, ...]
    was_cut: bool  # the text was longer than the classifier reads

    @property
    def best(self) -> int:
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)


def predict_labels(
    loaded: LoadedClassifier, texts: Iterable[str], where: Callable[[int], str]
) -> Iterator[LabelPrediction]:
    """A prediction for each text, in order.

    Raises InputError for a text that cannot be encoded; `where` names text i in it.
    """
    numbered = enumerate(texts)
    while window := list(islice(numbered, WINDOW)):
        rows = [_encoded(loaded, text, where(i)) for i, text in window]
        found = label_probabilities(loaded, [row[: loaded.max_tokens] for row in rows])
        for row, probabilities in zip(rows, found, strict=True):
            yield LabelPrediction(probabilities, was_cut=len(row) > loaded.max_tokens)


@torch.no_grad()
def label_probabilities(loaded: LoadedClassifier, rows: list[tuple[int, ...]]) -> list[tuple[float, ...]]:
    """The same for texts as ids, none longer than the context."""
    device = loaded.model.score.weight.device
    found: list[tuple[float, ...]] = [()] * len(rows)
    for batch in batches_by_length([len(row) for row in rows], N_ROWS, N_TOKENS[device.type]):
        input_ids, lengths = pad_right([rows[i] for i in batch], loaded.tokenizer.end_of_text)
        logits = loaded.model(input_ids.to(device), lengths.to(device))  # (B, K)
        for i, row in zip(batch, logits.float().softmax(dim=-1).tolist(), strict=True):
            found[i] = tuple(row)
    return found


def _encoded(loaded: LoadedClassifier, text: str, where: str) -> tuple[int, ...]:
    try:
        return encode_text(loaded.tokenizer, text)
    except Gpt2Error as error:
        raise InputError(f"{where}: {error.what}", error.why, error.fix) from None
