"""What `gpt2 evaluate --json` and `--out` write: the facts of a result, and of one item of a benchmark."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2cli.evaluation.benchmarks import BenchmarkData, ItemResult
    from gpt2cli.runtime import Runtime
    from gpt2cli.ui.benchmarks import BenchmarkRow
    from gpt2cli.ui.tables import EvaluationRow


def result_facts(row: "EvaluationRow | BenchmarkRow", runtime: "Runtime") -> dict[str, object]:
    """Of one model on one text or benchmark."""
    from gpt2cli.ui.tables import EvaluationRow

    return {
        **(_text_facts(row) if isinstance(row, EvaluationRow) else _benchmark_facts(row)),
        "device": str(runtime.device),
        "precision": runtime.precision,
    }


def item_facts(model: str, data: "BenchmarkData", result: "ItemResult") -> dict[str, object]:
    """A line of --out: per choice the summed log-probability in nats, its tokens, and whether they are those
    that greedy decoding gives.
    """
    return {
        "model": model,
        "on": data.benchmark.name,
        "item": result.item.where,
        "answer": result.item.answer,
        "logprobs": [score.logprob for score in result.scores],
        "n_tokens": [len(score.logprobs) for score in result.scores],
        "greedy": [score.is_greedy for score in result.scores],
        "n_truncated": result.n_cut,
        **{metric: value for metric, value in result.values.items() if metric != "perplexity"},
    }


def _text_facts(row: "EvaluationRow") -> dict[str, object]:
    return {
        "on": row.source.name,
        "split": row.source.split,
        "sha256": row.source.sha256,
        "loss": row.result.loss,
        "perplexity": row.result.perplexity,
        "word_perplexity": row.result.word_perplexity(row.text),
        "bits_per_byte": row.result.bits_per_byte(row.text),
        "n_tokens": row.result.n_tokens,
        "n_words": row.text.n_words,
        "n_bytes": row.text.n_bytes,
        "context": row.sliding.context,
        "stride": row.sliding.stride,
        "windows": row.result.n_windows,
        "tokens_per_second": round(row.result.tokens_per_second, 2),
        "paper_perplexity": row.paper,
    }


def _benchmark_facts(row: "BenchmarkRow") -> dict[str, object]:
    """Accuracies from 0 to 1; published figures as they were published, in percent."""
    from gpt2cli.evaluation.published import PUBLISHED

    benchmark = row.data.benchmark
    return {
        "on": benchmark.name,
        "protocol": benchmark.protocol,
        "source": row.data.source,
        "sha256": row.data.sha256,
        "miniature": row.data.is_miniature,
        "n_items": row.n_items,
        "n_all": row.data.n_all,
        "n_truncated": row.n_cut,
        "metrics": {
            metric: {
                "value": found.value,
                "interval_95": [found.low, found.high],
                "published": row.published(metric),
            }
            for metric, found in row.metrics.items()
        },
        "published": [vars(one) for one in PUBLISHED if one.benchmark == benchmark.name],
        "items_per_second": round(row.items_per_second, 2),
    }
