"""gpt2cli from Python: what the commands do, without a terminal. `import gpt2cli` finds these names.

With the same model, options and seed, a text is the one that the command line prints. Errors are Gpt2Error,
with what happened, why, and the fix. Notices become warnings of Python.

Examples run on a small model of characters, `runs/tiny`:

>>> import gpt2cli
>>> model = gpt2cli.load("runs/tiny")
>>> model
LanguageModel('runs/tiny': 3 blocks of 2 heads, 11,648 parameters, 31 tokens, context 80, cpu)
>>> len(model.generate("the cat", max_new_tokens=5, seed=1)) <= 5
True
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gpt2cli.api.loading import DECODING_PRECISIONS, notice, require_hardware
from gpt2cli.api.records import AttentionWeights, NextCandidate, RecordList, ScoredToken, TextToken
from gpt2cli.api.wording import python_words, require_text, reword
from gpt2cli.checkpoints.finite import bad_logits
from gpt2cli.checkpoints.folder import LoadedModel
from gpt2cli.data.conversations import ROLES, read_conversation
from gpt2cli.errors import InputError, UsageError
from gpt2cli.evaluation.scoring import after_beginning, score_texts
from gpt2cli.generation import engine
from gpt2cli.generation.activations import next_tokens, trace_forward
from gpt2cli.generation.chat_prompt import Exchange, plain_prompt
from gpt2cli.generation.chat_session import Conversation, ReplyDone
from gpt2cli.generation.chat_settings import ChatSettings
from gpt2cli.generation.cpu.aot_packages import build_package
from gpt2cli.generation.load import (
    NEW_TOKENS,
    REPLY_TOKENS,
    find_with_adapters,
    load_for_decoding,
)
from gpt2cli.generation.sampling import SamplingOptions, is_whole, require_length, sampling_options
from gpt2cli.generation.stop_text import Continuation
from gpt2cli.jinja_template import read_chat_template
from gpt2cli.runtime import Runtime
from gpt2cli.templates import Turn, read_turns
from gpt2cli.tokenizer.files import stopping_at_eos

NEXT = 10  # candidates of `next`


class LanguageModel:
    """A model that continues text, as `load` makes it. It holds its weights in memory until it is dropped.

    Sampling has the options and defaults of the command line: `temperature` (0 is greedy), `top_k` (0 is
    all), `top_p`, `min_p`, `repetition_penalty`, and `seed`, without which every call is another draw.
    """

    def __init__(self, loaded: LoadedModel, name: str) -> None:
        self._loaded, self._model, self._tokenizer = loaded, loaded.model, loaded.tokenizer
        self.name, self.folder, self.config = name, loaded.folder, loaded.config
        self._device = loaded.model.transformer.ln_f.weight.device

    def __repr__(self) -> str:
        c = self.config
        return (
            f"LanguageModel({self.name!r}: {c.n_layer} blocks of {c.n_head} heads,"
            f" {c.n_parameters:,} parameters, {self._tokenizer.n_vocab:,} tokens,"
            f" context {c.n_positions}, {self._device})"
        )

    def generate(
        self,
        text: str = "",
        *,
        max_new_tokens: int = NEW_TOKENS,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> str:
        """The continuation of a text, without the text itself; it ends before a text in `stop`.

        Raises UsageError for options out of their range, InputError for a text that is longer than the
        context or holds a character that a character model does not know.

        >>> text = model.generate("the cat", max_new_tokens=8, temperature=0.9, top_k=5, seed=3)
        >>> text == model.generate("the cat", max_new_tokens=8, temperature=0.9, top_k=5, seed=3)
        True
        """
        return "".join(
            self.stream(
                text,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                seed=seed,
                stop=stop,
            )
        )

    @python_words()
    def stream(
        self,
        text: str = "",
        *,
        max_new_tokens: int = NEW_TOKENS,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Iterator[str]:
        """The same continuation in pieces, each as soon as it is known. Raises what `generate` raises.

        >>> pieces = model.stream("the cat", max_new_tokens=8, temperature=0.9, top_k=5, seed=3)
        >>> "".join(pieces) == model.generate("the cat", max_new_tokens=8, temperature=0.9, top_k=5, seed=3)
        True
        """
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        for one in stops:
            require_text(one, "stop")
        if "" in stops:
            raise UsageError("stop is empty", "every text contains the empty text", 'stop=["TEXT"]')
        require_length(max_new_tokens)
        options = sampling_options(
            seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        return self._pieces(self._prompt(text), options, max_new_tokens, stops)

    @python_words()
    def tokens(self, text: str) -> RecordList[TextToken]:
        """The tokens of a text, without the beginning that some tokenizers put before it.

        >>> [token.text for token in model.tokens("the cat")]
        ['t', 'h', 'e', ' ', 'c', 'a', 't']
        """
        require_text(text)
        return RecordList(TextToken(id, self._text(id)) for id in self._tokenizer.encode(text))

    @python_words()
    def next(self, text: str, n: int = NEXT) -> RecordList[NextCandidate]:
        """The `n` likeliest next tokens, most likely first, under the model itself: no filter is applied.

        >>> best, *others = model.next("the cat", n=3)
        >>> best.probability > others[0].probability > 0
        True
        """
        if not is_whole(n) or n < 1:
            raise UsageError(f"n is {n!r}", "it must be a whole number, at least 1")
        ids = torch.tensor([self._prompt(text)], device=self._device)
        with torch.inference_mode():
            logits = self._model.extend(ids, self._model.new_cache(1, ids.shape[1]))  # (1, V)
        found = next_tokens(logits[0].float(), n)
        if not found:
            raise bad_logits("", 'precision="fp32", or an earlier checkpoint')
        return RecordList(NextCandidate(one.id, self._text(one.id), one.probability) for one in found)

    @python_words()
    def logprobs(self, text: str, after: str = "") -> RecordList[ScoredToken]:
        """The log-probability of each token of a text, in nats; the numbers of `gpt2 score`.

        The text follows `after`; without that it follows end-of-text, so that its first token counts too.

        >>> scored = model.logprobs("the cat")
        >>> [token.text for token in scored] == list("the cat")
        True
        >>> all(token.logprob < 0 for token in scored)
        True
        """
        require_text(text)
        require_text(after, "after")
        ids = self._tokenizer.encode(text)
        before = plain_prompt(self._tokenizer, after) if after else after_beginning(self._tokenizer, [])
        # The model has its precision already: autocast would round it again.
        (found,) = score_texts(self._model, [[*before, *ids]], Runtime(self._device, "fp32", 0, False))
        logprobs = found[len(found) - len(ids) :]
        return RecordList(
            ScoredToken(id, self._text(id), logprob) for id, logprob in zip(ids, logprobs, strict=True)
        )

    @python_words()
    def attention(self, text: str) -> AttentionWeights:
        """The attention weights of every layer and head over a text.

        >>> attention = model.attention("the cat")
        >>> attention
        AttentionWeights(3 layers x 2 heads x 7 x 7 tokens of 'runs/tiny')
        >>> float(attention[0, 0].sum().round(4))  # each of the 7 rows sums to 1
        7.0
        """
        ids = self._prompt(text)
        traced = trace_forward(self._model, torch.tensor([ids], device=self._device), len(ids), 0)
        weights = traced.attention.float().cpu().numpy()
        return AttentionWeights(weights, tuple(map(self._text, ids)), self.name)

    @python_words()
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_new_tokens: int = REPLY_TOKENS,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> str:
        """The reply to the last message, the user's, in the model's chat template.

        Messages are those of OpenAI's and Hugging Face's libraries: an optional system message, then user
        and assistant in turn. As in `gpt2 chat`, a model that was fine-tuned on single exchanges is shown the
        last message alone. Raises InputError for other messages and for what does not fit the context.

        >>> messages = [{"role": "user", "content": "the cat"}]
        >>> reply = model.chat(messages, max_new_tokens=4, seed=1)
        >>> messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": "sat"}]
        >>> isinstance(model.chat(messages, max_new_tokens=4, seed=1), str)
        True
        """
        system, exchanges, question = self._read(messages)
        options = sampling_options(
            seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        conversation = Conversation(
            self._model,
            stopping_at_eos(self._tokenizer),
            read_chat_template(self.folder),
            system,
            ChatSettings(**vars(options), max_new_tokens=max_new_tokens),
            history=0 if read_turns(self.folder) == "single" else None,
        )
        conversation.recall(exchanges)
        (done,) = (event for event in conversation.say(question) if isinstance(event, ReplyDone))
        return done.reply

    def _pieces(
        self, ids: list[int], options: SamplingOptions, max_new_tokens: int, stops: Sequence[str]
    ) -> Iterator[str]:
        reply = Continuation(self._tokenizer, stops)
        ends = set(self._tokenizer.special.stops)
        try:
            for step in engine.generate(self._model, [ids], options, max_new_tokens, ends):
                (token,) = step.ids
                if token is not None and (piece := reply.feed(token)):
                    yield piece
                if reply.finish_reason:
                    return
        except Exception as error:  # a builtin: it is there for a stream that is open at the end of Python
            reword(error)
            raise
        if rest := reply.finish():
            yield rest

    def _prompt(self, text: str) -> list[int]:
        """The ids of a text, at least one. Raises InputError for more than the context holds."""
        require_text(text)
        ids = plain_prompt(self._tokenizer, text)
        if len(ids) > self.config.n_positions:
            raise InputError(
                f"the text has {len(ids)} tokens",
                f"this model's context holds {self.config.n_positions}",
                "give a shorter text",
            )
        return ids

    def _text(self, id: int) -> str:
        return self._tokenizer.decode([id])

    def _read(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str | None, list[Exchange], str]:
        """The system text, the earlier turns, and the question."""
        if isinstance(messages, str | Mapping):
            raise UsageError("chat takes a list of messages", "this is one", "chat([MESSAGE])")
        given: list[Any] = [dict(one) if isinstance(one, Mapping) else one for one in messages]
        last = given[-1] if given and isinstance(given[-1], dict) else {}
        if ROLES.get(str(last.get("role", last.get("from"))).lower()) == "assistant":
            raise InputError("the last message is the assistant's", "the model replies to the user's")
        reply = [{"role": "assistant", "content": "?"}] if given else []  # the one that is asked for
        turns = list(read_conversation({"messages": given + reply}, "chat"))[:-1]
        system = turns.pop(0).text if turns[0].role == "system" else None
        if turns[0].role == "assistant":
            raise InputError("the first message is the assistant's", "a conversation begins with the user")
        *before, question = turns
        exchanges = [self._exchange(*pair) for pair in zip(before[::2], before[1::2], strict=True)]
        return system, exchanges, question.text

    def _exchange(self, question: Turn, reply: Turn) -> Exchange:
        ids = tuple(self._tokenizer.encode(reply.text))
        return Exchange(question.text, reply.text, ids, "end_of_text")


@python_words()
def load(
    model: str | Path | None = None,
    *,
    adapter: str | Path | Sequence[str | Path] = (),
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    compile: str = "auto",
) -> LanguageModel:
    """A run, a model folder or a name, ready to generate; None is the newest model.

    The options are those of `gpt2 generate`; with compile "auto" a compiled step is used that is there
    already. Raises InputError for a model that is missing or damaged, UsageError for a device that is not
    there.

    >>> gpt2cli.load("runs/nowhere")
    Traceback (most recent call last):
    gpt2cli.errors.InputError: runs/nowhere: no such model: ...
    """
    require_hardware(precision, DECODING_PRECISIONS, threads)
    adapters = [adapter] if isinstance(adapter, str | Path) else list(adapter)
    name = None if model is None else str(model)
    folder, folders = find_with_adapters(name, [str(one) for one in adapters])
    loaded = load_for_decoding(
        *(folder, device, precision, threads, compile),
        adapters=folders,
        n_rows=1,
        n_tokens=0,
        notice=notice,
        build=build_package,
    )
    return LanguageModel(loaded, name or str(folder))
