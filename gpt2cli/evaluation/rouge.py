"""ROUGE (Lin 2004): the overlap of an answer with its reference, by Google's optional `rouge-score`."""

from collections.abc import Sequence
from statistics import fmean

from gpt2cli.errors import UsageError

# Our names and theirs: unigrams, bigrams, the longest common subsequence.
ROUGE_TYPES = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL"}


def rouge(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Mean F1, from 0 to 1, over (reference, answer) pairs, without stemming, which is English only.

    Raises UsageError without the package.
    """
    require_rouge()
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES.values()), use_stemmer=False)
    scores = [scorer.score(reference, response) for reference, response in pairs]
    return {
        ours: float(fmean(score[theirs].fmeasure for score in scores)) if scores else 0.0
        for ours, theirs in ROUGE_TYPES.items()
    }


def require_rouge() -> None:
    """Raise UsageError without the package: before training, not after it."""
    try:
        import rouge_score.rouge_scorer  # noqa: F401
    except ImportError:
        raise UsageError(
            "eval.rouge needs rouge-score",
            "it is not installed",
            "pip install rouge-score, or eval.rouge=false",
        ) from None
