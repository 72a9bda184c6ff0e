"""The losses of the learning rate finder as a table with bars."""

from collections.abc import Sequence

from gpt2cli.training.find_lr import RateTried
from gpt2cli.ui.console import aligned
from gpt2cli.ui.progress import State

ROWS, BAR = 20, 40


def trying(tried: RateTried) -> State:
    """Its progress."""
    from gpt2cli.training.find_lr import STEPS

    return State("learning rates", tried.step, STEPS, f"lr {tried.lr:.1e}  loss {tried.smoothed:.3f}")


def rate_lines(tried: Sequence[RateTried]) -> list[str]:
    """Every so many steps a line: rate, loss, its running mean, and that as a bar from the lowest one on."""
    best = min(tried, key=lambda one: one.smoothed)
    shown = [one for one in tried if one.step % max(1, len(tried) // ROWS) == 0 or one is best]
    lowest, highest = best.smoothed, max(one.smoothed for one in shown)
    rows = [("lr", "loss", "smoothed", "")]
    for one in shown:
        share = (one.smoothed - lowest) / (highest - lowest) if highest > lowest else 0.0
        bar = "#" * round(share * BAR) + " lowest" * (one is best)
        rows.append((f"{one.lr:.1e}", f"{one.loss:.3f}", f"{one.smoothed:.3f}", bar))
    return aligned(rows, right=range(3))
