"""The facts about a model folder that need no forward pass: modules, sizes, tokenizer, manifest,
tensor statistics. Only the header of the weights is read, unless statistics are asked for; then
one tensor at a time.

Where the model came from is in training/lineage.py; ui/inspect.py displays both.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gpt2cli.checkpoints.folder import (
    CONFIG,
    MANIFEST,
    TRANSPOSED,
    WEIGHTS,
    read_config,
    read_manifest,
    require_matching_vocabulary,
    require_stored,
    require_weights,
    stored_shapes,
)
from gpt2cli.checkpoints.safetensors_bytes import require_sha256
from gpt2cli.checkpoints.safetensors_file import open_tensors
from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of
from gpt2cli.json_files import read_json_object
from gpt2cli.model.config import PRESETS, GPT2Config, size_of
from gpt2cli.model.gpt2 import empty_model
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.files import load_tokenizer

CHUNK = 1 << 18  # values that are widened to float64 at a time
BODY_PREFIX = "transformer."  # before each name but the output layer's
BESIDE_BLOCKS = ("n_positions", "vocab_size", "tie_word_embeddings")


@dataclass(frozen=True)
class ModuleInfo:
    """One module that has parameters. Shapes are as the model multiplies them, matrices (out, in)."""

    name: str  # "h.0.attn.c_attn": Hugging Face's, without "transformer."
    weight: tuple[int, ...]
    stored: tuple[int, ...]  # of the weight in the file
    transposed: bool  # the file has it as (in, out); a square matrix does not show that
    bias: tuple[int, ...] | None
    n_parameters: int  # 0 where the weight is another module's


@dataclass(frozen=True)
class ManifestInfo:
    """The content of our manifest.json. The small files are verified; `sha256` is that of the weights."""

    written_by: str
    n_files: int
    sha256: str | None


@dataclass(frozen=True)
class ModelInfo:
    folder: Path
    config: GPT2Config
    modules: tuple[ModuleInfo, ...]  # in order of computation, every block written out
    dtypes: dict[str, int]  # {"float32": how many tensors of the file}
    n_bytes: int  # the weights file
    tokenizer: Tokenizer
    manifest: ManifestInfo | None  # None: another program wrote the folder

    @property
    def n_parameters(self) -> int:
        return sum(module.n_parameters for module in self.modules)

    def weight_bytes(self, width: int) -> int:
        """Memory of the weights at `width` bytes per number."""
        return self.n_parameters * width

    def cache_bytes(self, width: int, n_tokens: int = 1) -> int:
        """Memory of the keys and values of `n_tokens` in all blocks, for one row."""
        return 2 * self.config.n_layer * self.config.n_embd * n_tokens * width


@dataclass(frozen=True)
class TensorStatistics:
    """Statistics of the finite values; None if there are none. `std` divides by n, not n - 1."""

    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    n_nan: int
    n_inf: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file, its shape as stored."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    statistics: TensorStatistics


def read_model_info(folder: Path) -> ModelInfo:
    """Read everything in a model folder except the weights.

    Raises InputError if a file is missing, damaged or fits the others badly.
    """
    config = read_config(folder)
    hashes = read_manifest(folder)
    for name, sha256 in hashes.items():
        if not name.endswith(".safetensors"):
            require_sha256(folder / name, sha256_of(folder / name), sha256)
    tokenizer = load_tokenizer(folder)
    require_matching_vocabulary(folder, tokenizer, config.vocab_size)
    require_weights(folder)
    path, n_bytes = folder / WEIGHTS, (folder / WEIGHTS).stat().st_size
    with open_tensors(path) as file:
        entries = file.entries
    # A wild config.json must not make us build a billion blocks only to see that they are missing.
    if config.n_layer > len(entries) or config.n_parameters > n_bytes:
        raise InputError(
            f"{path}: is too small for the model of {CONFIG}",
            f"{config.n_parameters:,} parameters in {config.n_layer:,} blocks,"
            f" and {n_bytes:,} bytes in {len(entries):,} tensors",
        )
    require_stored(path, stored_shapes(config), {name: entry.shape for name, entry in entries.items()})
    dtypes = Counter(_name_of(entry.dtype) for entry in entries.values())
    manifest = None
    if hashes:
        written_by = read_json_object(folder / MANIFEST).get("written_by")
        manifest = ManifestInfo(str(written_by or "an unnamed program"), len(hashes), hashes.get(WEIGHTS))
    return ModelInfo(folder, config, modules_of(config), dict(dtypes), n_bytes, tokenizer, manifest)


def modules_of(config: GPT2Config) -> tuple[ModuleInfo, ...]:
    """Every module of the language model that has parameters, in order of computation."""
    stored = stored_shapes(config)
    found = []
    for name, module in empty_model(config).named_modules():
        own = {key: tuple(parameter.shape) for key, parameter in module.named_parameters(recurse=False)}
        if own:
            # A tied output layer is in no file: it has the shape of the matrix that it shares.
            in_file = stored.get(f"{name}.weight")
            n_parameters = sum(p.numel() for p in module.parameters(recurse=False)) if in_file else 0
            bias, weight = own.get("bias"), own["weight"]
            turned = f"{name}.weight".endswith(TRANSPOSED)
            short = name.removeprefix(BODY_PREFIX)
            found.append(ModuleInfo(short, weight, in_file or weight, turned, bias, n_parameters))
    return tuple(found)


def nearest_size(config: GPT2Config) -> tuple[str, tuple[str, ...]] | None:
    """OpenAI's size with the same blocks, such as "124M", and the other numbers that differ."""
    for size, preset in PRESETS.items():
        beside = {name: getattr(preset, name) for name in BESIDE_BLOCKS}
        if size_of(replace(config, **beside)) == size:
            return size, tuple(name for name, value in beside.items() if getattr(config, name) != value)
    return None


def tensor_statistics(summary: ModelInfo) -> Iterator[TensorInfo]:
    """The tensors of the weights file in its order, read one by one.

    Raises InputError if the file is not the one that the manifest describes.
    """
    path = summary.folder / WEIGHTS
    with open_tensors(path) as file:
        if summary.manifest and summary.manifest.sha256:
            require_sha256(path, file.sha256, summary.manifest.sha256)
        for name, entry in file.entries.items():
            yield TensorInfo(name, entry.shape, _name_of(entry.dtype), statistics(file.read(name)))


def statistics(tensor: Tensor) -> TensorStatistics:
    """Computed in float64, a part at a time; the parts' means and spreads are joined without the
    cancellation of sum(x^2) - sum(x)^2 / n (Chan, Golub and LeVeque 1979).
    """
    n, mean, spread = 0, 0.0, 0.0  # spread: sum of squared distances from the mean
    lowest, highest, n_nan, n_inf = float("inf"), float("-inf"), 0, 0
    for part in torch.split(tensor.detach().flatten(), CHUNK):
        values = part.double()
        low, high = (float(t) for t in torch.aminmax(part))  # both are NaN where one value is
        if not math.isfinite(low) or not math.isfinite(high):
            n_nan += int(values.isnan().sum())
            n_inf += int(values.isinf().sum())
            values = values[values.isfinite()]
            low, high = (float(t) for t in torch.aminmax(values)) if values.numel() else (low, high)
        if not values.numel():
            continue
        variance, center = (float(t) for t in torch.var_mean(values, correction=0))
        n_more = values.numel()
        away = center - mean
        mean += away * n_more / (n + n_more)
        spread += variance * n_more + away * away * n * n_more / (n + n_more)
        n += n_more
        lowest, highest = min(lowest, low), max(highest, high)
    if not n:
        return TensorStatistics(None, None, None, None, n_nan, n_inf)
    return TensorStatistics(mean, (spread / n) ** 0.5, lowest, highest, n_nan, n_inf)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
