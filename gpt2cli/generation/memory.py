"""Owns what a model has read of a conversation, so that it reads nothing twice and forgets exactly.

Keys and values depend, in their last bits, on how many ids were read together. Going back to an
earlier time therefore means the same ids read in the same steps: what is still in the cache is
cut, what has left it is read again. What the ids say is conversation.py's business.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt2cli.generation.engine import cut, n_common, new_past, read
from gpt2cli.model.gpt2 import GPT2LMHead


@dataclass(frozen=True)
class Read:
    """What had been read at some time, and how many ids at each step."""

    ids: tuple[int, ...]
    steps: tuple[int, ...]


NOTHING = Read((), ())


class Memory:
    """`past` is the cache. It lags behind only after `return_to` a time that it no longer holds."""

    def __init__(self, model: GPT2LMHead) -> None:
        self.past = new_past(model)
        self._model = model
        self._lost: Read | None = None  # what should be in the cache and is not

    @property
    def now(self) -> Read:
        return self._lost or Read(tuple(self.past.ids), tuple(self.past.steps))

    def return_to(self, then: Read) -> None:
        """Be as at that time; what is missing is read when a prompt needs it."""
        n = self._n_alike(then)
        if n == len(then.ids):
            cut(self.past, n)
            self._lost = None
        else:
            self._lost = then

    def n_missing(self, prompt: Sequence[int]) -> int:
        """How many ids `recall` will read for this prompt."""
        lost = self._lost
        return len(lost.ids) - self._n_alike(lost) if lost and _begins(prompt, lost.ids) else 0

    def recall(self, prompt: Sequence[int], stop: Callable[[], object]) -> int:
        """Leave in the cache what was read if the prompt goes on from it, else nothing; how many
        ids were read for that. Where `stop` ends it early, the rest stays missing.

        Of a past that fits only in part nothing is kept, or the cache would depend on what was
        said there before.
        """
        n_missing = self.n_missing(prompt)
        if self._lost and n_missing:
            cut(self.past, self._n_alike(self._lost))
            n_read = 0
            for n in self._lost.steps[len(self.past.steps) :]:
                if stop():
                    return n_read
                done = len(self.past.ids)
                read(self._model, self.past, self._lost.ids[done : done + n])
                n_read += n
        elif self._lost or not _begins(prompt, self.past.ids):
            cut(self.past, 0)
        self._lost = None
        return n_missing

    def keep(self, ids: Sequence[int]) -> None:
        """Forget every step, from the first on that does not belong to the beginning of `ids`."""
        n = n_common(self.past.ids, ids)
        cut(self.past, self._n_alike(Read(tuple(self.past.ids[:n]), tuple(self.past.steps))))

    def _n_alike(self, then: Read) -> int:
        """How many of the first ids in the cache were read as they were then."""
        n = 0
        for ours, theirs in zip(self.past.steps, then.steps, strict=False):
            end = n + ours
            if ours != theirs or tuple(self.past.ids[n:end]) != then.ids[n:end]:
                break
            n = end
        return n


def _begins(ids: Sequence[int], beginning: Sequence[int]) -> bool:
    return n_common(ids, beginning) == len(beginning)
