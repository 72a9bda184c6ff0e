"""The verification that a converted model is the model it was made from.

Both compute logits for the same fixed texts in float64: the source through `numpy_gpt2.py`, the
converted model through its own modules. In float64 rounding can neither hide a mistake nor feign
one: an exact conversion differs by 1e-10, a wrong one by whole units. What the converted model
computes in fp32, as it is used, is in the receipt too.

A file for another program is opened again, by that program's own reader where there is one, and every
tensor is compared.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpt2cli.checkpoints.folder import EMBEDDING, HEAD, transposed
from gpt2cli.convert.detect_format import open_foreign
from gpt2cli.convert.foreign_model import ForeignModel, expand_blocks, same_bits
from gpt2cli.convert.gguf import NAMES
from gpt2cli.convert.numpy_gpt2 import ROWS, Array, loss_of, reference_logits
from gpt2cli.convert.torch_file import read_torch_file
from gpt2cli.errors import InputError
from gpt2cli.json_files import finite_json
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import empty_model
from gpt2cli.tokenizer.base import Tokenizer

TOLERANCE = 1e-4
PROMPTS = (
    "Every effort moves you",
    "The capital of France is",
    "def add(a, b):\n    return",
)
# Plain English, so that a trained model finds it easy and a broken one does not.
PARAGRAPH = (
    "When the rain stopped, the two children went out to look for their dog. They walked down to the"
    " river, where the water was high and brown, and called his name. An old man who was mending a net"
    " said that he had seen a dog that morning on the other side of the bridge. They thanked him and ran"
    " across. The dog was sitting in front of the bakery, waiting for somebody to open the door."
)

# What a number becomes in each kind of GGUF storage that rounds one by one.
ROUNDED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Verification:
    """The result of a comparison. Differences are the largest over all logits."""

    tokens: int
    max_difference: float  # both sides in float64
    max_difference_fp32: float  # the converted model as it is used
    tolerance: float
    passed: bool
    perplexity: float  # of the converted model on the fixed paragraph
    perplexity_of_source: float

    def as_json(self) -> dict[str, Any]:
        """For the receipt. JSON has no infinity, which an untrained model's perplexity may reach."""
        facts: dict[str, Any] = finite_json(asdict(self))
        return facts


@dataclass(frozen=True)
class ExpectedLogits:
    """The source's logits, computed before its tensors are freed."""

    prompts: list[list[int]]  # the last is the paragraph
    logits: list[NDArray[np.float64]]  # (T, V) each


def expected_logits(source: ForeignModel, dtype: torch.dtype) -> ExpectedLogits:
    """The source's logits, its tensors brought to `dtype` as the converted ones are.

    Raises InputError if the source itself holds the attention's square matrices transposed: no
    shape shows that, only that the model makes sense the other way round.
    """
    prompts = [_encode(text, source.tokenizer, source.config.n_positions) for text in (*PROMPTS, PARAGRAPH)]

    def rounded(array: Array) -> Array:
        if dtype == torch.float32:
            return array.astype(np.float32, copy=False)
        return torch.from_numpy(array.astype(np.float32)).to(dtype).float().numpy()

    logits_of = partial(
        reference_logits,
        source.raw,
        source.format,
        source.config,
        rounded=rounded,
        score_scales=source.score_scales,
    )
    logits = logits_of(prompts)
    loss, knows_nothing = loss_of(logits[-1], prompts[-1]), math.log(source.config.vocab_size)
    if loss > 0.5 * knows_nothing:  # hardly trained, or broken
        (other,) = logits_of(prompts[-1:], transposed=True)
        transposed = loss_of(other, prompts[-1])
        if transposed < 0.95 * knows_nothing and transposed < loss - 0.5:
            name = next(t.source for n, t in source.tensors.items() if n.endswith("attn.c_proj.weight"))
            raise InputError(
                f"{source.path}: {name} and its like in each block are stored transposed",
                f"the loss on plain English is {loss:.2f}, and {transposed:.2f} with them transposed",
                "write the checkpoint again with these square matrices transposed",
            )
    return ExpectedLogits(prompts, logits)


def compare_logits(expected: ExpectedLogits, converted: ForeignModel) -> Verification:
    """Run the converted model on the same ids. Raises nothing: the caller handles a failure."""
    prompts, differences, losses = expected.prompts, [], []

    def logits(dtype: torch.dtype) -> Iterator[NDArray[np.float64]]:
        return converted_logits(converted.config, lambda name: converted.tensors[name].load(), prompts, dtype)

    for ids, wanted, found in zip(prompts, expected.logits, logits(torch.float64), strict=True):
        differences.append(_difference(wanted, found))
        losses.append(loss_of(found, ids))
    difference = _largest(differences)
    pairs = zip(expected.logits, logits(torch.float32), strict=True)
    in_use = _largest(_difference(wanted, found) for wanted, found in pairs)
    return Verification(
        tokens=sum(len(ids) for ids in prompts),
        max_difference=difference,
        max_difference_fp32=in_use,
        tolerance=TOLERANCE,
        passed=difference < TOLERANCE and math.isfinite(in_use),  # False for NaN too
        perplexity=_perplexity(losses[-1]),
        perplexity_of_source=_perplexity(loss_of(expected.logits[-1], prompts[-1])),
    )


@torch.inference_mode()
def converted_logits(
    config: GPT2Config, load: Callable[[str], Tensor], prompts: Sequence[Sequence[int]], dtype: torch.dtype
) -> Iterator[NDArray[np.float64]]:
    """Logits (T, V) of each prompt of T ids, by the model's own modules in `dtype`.

    `load` gives a tensor by Hugging Face's name, in Hugging Face's layout. Two blocks
    and one embedding are in memory at most: a machine that can convert a model can verify it.
    """
    transformer = empty_model(config).eval().transformer
    block, last_norm = transformer.h[0], transformer.ln_f

    def fill(module: nn.Module, prefix: str) -> None:
        state = {name: load(f"{prefix}.{name}").to(torch.float32).to(dtype) for name in module.state_dict()}
        module.load_state_dict({name: transposed(name, t) for name, t in state.items()}, assign=True)

    tokens = load(EMBEDDING)
    streams = [tokens[[*ids]].to(dtype)[None] for ids in prompts]  # (1, T, C) each
    del tokens
    if config.positions == "learned":
        positions = load("transformer.wpe.weight")
        streams = [x + positions[: x.shape[1]].to(dtype) for x in streams]
        del positions
    rotations = [transformer.rotation(torch.arange(len(ids))) for ids in prompts]
    del transformer  # whose other blocks stay empty
    for layer in range(config.n_layer):
        fill(block, f"transformer.h.{layer}")
        streams = [block(x, rotation=r) for x, r in zip(streams, rotations, strict=True)]
    del block
    fill(last_norm, "transformer.ln_f")
    head = load(EMBEDDING if config.tie_word_embeddings else HEAD)  # (V, C)
    for x in streams:
        yield _logits(last_norm(x)[0], head).double().numpy()


def verify_export(place: Path, to: str, source: ForeignModel, out: Path) -> dict[str, Any]:
    """Compare every tensor of the export at `place` with the source's; returns the entry for the receipt.

    Raises InputError for the first that differs; it calls the export `out`.
    """
    match to:
        case "gguf":
            _compare_gguf(place, source, out)
        case "nanogpt":  # which holds no tokenizer, so that only GPT-2's could be opened as a model
            stored = read_torch_file(place)["model"]
            _compare(source, lambda name: transposed(name, stored[name]), out)
        case _:
            with open_foreign(place) as written:
                _compare(source, lambda name: written.tensors[name].load(), out)
    return {"tensors": len(source.tensors), "equal": True}


def _compare(source: ForeignModel, read: Callable[[str], Tensor], out: Path) -> None:
    for name, tensor in source.tensors.items():
        if not same_bits(read(name), tensor.load().to(torch.float32)):
            raise _differs(out, name)


def _compare_gguf(place: Path, source: ForeignModel, out: Path) -> None:
    import gguf

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(place).tensors}
    names = expand_blocks(NAMES, source.config.n_layer)
    if len(stored) != len(source.tensors):
        raise _differs(out, f"the number of tensors, {len(stored)},")
    for name, tensor in source.tensors.items():
        entry = stored[names[name]]
        values = gguf.quants.dequantize(entry.data, entry.tensor_type)
        found, wanted = torch.from_numpy(np.array(values, dtype=np.float32)), tensor.load().to(torch.float32)
        wanted = transposed(name, wanted)
        kind = entry.tensor_type.name
        if kind in ROUNDED:
            is_close = same_bits(found, wanted.to(ROUNDED[kind]).to(torch.float32))
        else:  # q8_0: 32 numbers share a scale, which has 127 steps
            step = wanted.abs().reshape(-1, 32).amax(dim=1) / 127
            error = (found - wanted).abs().view(-1, 32).amax(dim=1)
            # Half a step by rounding, and what the scale loses by being an f16.
            is_close = bool((error <= step * 0.6 + 1e-6).all())
        if not is_close:
            raise _differs(out, name)


def _differs(out: Path, what: str) -> InputError:
    return InputError(
        f"{out}: {what} is not what was written",
        "the file was read back and compared with the source",
        "look at the disk, then convert once more with --force",
    )


def _logits(x: Tensor, head: Tensor) -> Tensor:
    """x (T, C) times head (V, C) transposed, in the precision of x, with few rows of it cast at a time."""
    logits = x.new_empty(len(x), len(head))
    for row in range(0, len(head), ROWS):
        logits[:, row : row + ROWS] = x @ head[row : row + ROWS].to(torch.float32).to(x.dtype).T
    return logits  # (T, V)


def _encode(text: str, tokenizer: Tokenizer, limit: int) -> list[int]:
    """The ids of a text, without the characters that a small vocabulary lacks; at least two."""
    try:
        ids = tokenizer.encode(text)
    except InputError:
        ids = []
        for character in text:
            try:
                ids += tokenizer.encode(character)
            except InputError:
                continue
    ids = ids[:limit]
    return ids if len(ids) > 1 else [0, tokenizer.end_of_text][:limit]


def _difference(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    difference = wanted - found
    return float(np.abs(difference, out=difference).max())


def _largest(differences: Iterable[float]) -> float:
    return float(np.max([*differences]))  # NaN where one is NaN, unlike max()


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
