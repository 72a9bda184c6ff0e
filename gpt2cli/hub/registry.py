"""Owns the facts that others published about GPT-2's files: sizes, addresses, hashes, repositories.

A published hash is held only for the file it belongs to. What has none is recorded at the first
download; `fetching.py` does that. Imports nothing heavy: `gpt2 download --list` reads this table.
"""

from dataclasses import dataclass

OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/models"
CHECKPOINT_DATA = "model.ckpt.data-00000-of-00001"
BYTES_A_PARAMETER = 4  # fp32 and nothing else lies in the data file
_MIB = 1 << 20


@dataclass(frozen=True)
class Expected:
    """What is known about a file before it comes; None is unknown. Hashes are in hex.

    `git_sha1` is git's name for a blob: the hub gives it for files that are not in Git LFS.
    A body that passes `n_bytes`, or `at_most` where that is unknown, is not read to its end.
    """

    n_bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    at_most: int = 64 << 30  # bytes; larger than any GPT-2

    @property
    def has_hash(self) -> bool:
        return bool(self.sha256 or self.git_sha1)


@dataclass(frozen=True)
class Size:
    """One of OpenAI's four models. `revision` is the hub's commit whose hashes stand below."""

    name: str
    n_parameters: int
    repository: str
    revision: str | None = None

    @property
    def data_bytes(self) -> int:
        return BYTES_A_PARAMETER * self.n_parameters


_ROWS = (
    Size("124M", 124_439_808, "openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    Size("355M", 354_823_168, "openai-community/gpt2-medium"),
    Size("774M", 774_030_080, "openai-community/gpt2-large"),
    Size("1558M", 1_557_611_200, "openai-community/gpt2-xl"),
)
SIZES = {size.name: size for size in _ROWS}

# {(repository, commit): {file: what is known}}
HUB = {
    ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"): {
        "model.safetensors": Expected(
            548_105_171, "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"
        ),
        "config.json": Expected(
            sha256="0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4", at_most=_MIB
        ),
    },
}


def openai_files(size: Size) -> dict[str, Expected]:
    """The files of OpenAI's layout, small ones first, so that a wrong address is noticed at once."""
    return {
        "hparams.json": Expected(at_most=_MIB),
        "checkpoint": Expected(at_most=_MIB),
        "encoder.json": Expected(
            1_042_301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
        ),
        "vocab.bpe": Expected(456_318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
        "model.ckpt.index": Expected(at_most=16 * _MIB),
        "model.ckpt.meta": Expected(at_most=2048 * _MIB),  # a protocol buffer ends there
        CHECKPOINT_DATA: Expected(n_bytes=size.data_bytes),
    }


def hub_files(repository: str, commit: str) -> dict[str, Expected]:
    """What is published about this repository's files at this very commit; often nothing."""
    return HUB.get((repository, commit), {})
