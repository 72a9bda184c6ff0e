"""Owns ROUGE (Lin 2004): how many words and word orders an answer shares with the one it should be.

The numbers are those of Google's `rouge-score`, an optional package.
"""

from collections.abc import Sequence
from statistics import fmean

from gpt2cli.errors import UsageError

# Our name and theirs: single words, pairs of words, the longest common subsequence.
MEASURES = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL"}


def rouge(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Mean F1, from 0 to 1, over pairs of (what should be said, what was said).

    Without stemming, which is for English alone. Raises UsageError without the package.
    """
    require_rouge()
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(MEASURES.values()), use_stemmer=False)
    scores = [scorer.score(reference, response) for reference, response in pairs]
    return {
        ours: float(fmean(score[theirs].fmeasure for score in scores)) if scores else 0.0
        for ours, theirs in MEASURES.items()
    }


def require_rouge() -> None:
    """Raise UsageError without the package: known before hours of training, not after."""
    try:
        import rouge_score.rouge_scorer  # noqa: F401
    except ImportError:
        raise UsageError(
            "eval.rouge needs rouge-score",
            "it is not installed here",
            "pip install rouge-score, or eval.rouge=false",
        ) from None
