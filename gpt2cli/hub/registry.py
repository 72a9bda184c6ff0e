"""The published files of GPT-2, at OpenAI and on the Hugging Face hub: sizes, URLs, hashes, repositories.

A published hash counts only for its own file. The hash of any other file is recorded at its first
download. Imports nothing heavy: `gpt2 download --list` reads this table.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

OPENAI_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
_MIB = 1 << 20


@dataclass(frozen=True)
class Expected:
    """The known facts about a file before its download; None is unknown. Sizes in bytes, hashes in hex.

    `git_sha1` is git's name for a blob: the hub gives it for files that are not in Git LFS. A body
    that passes `size`, or `max_size` where that is unknown, is not read to its end.
    """

    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    max_size: int = 64 << 30  # more than any GPT-2

    @property
    def has_hash(self) -> bool:
        return bool(self.sha256 or self.git_sha1)

    def check(self, path: Path) -> tuple[str, str]:
        """SHA-256 of a file ("" where its size is wrong), and in words what is wrong, "" for nothing."""
        size = path.stat().st_size
        if self.size not in (None, size):
            return "", f"it has {size:,} bytes, not {self.size:,}"
        sha256, git_sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_MIB):
                sha256.update(block)
                if self.git_sha1:
                    git_sha1.update(block)
        for kind, digest, wanted in (
            ("SHA-256", sha256, self.sha256),
            ("git's SHA-1", git_sha1, self.git_sha1),
        ):
            if wanted and digest.hexdigest() != wanted:
                problem = f"{kind} of its {size:,} bytes: {digest.hexdigest()}, not {wanted}"
                return sha256.hexdigest(), problem
        return sha256.hexdigest(), ""


@dataclass(frozen=True)
class Size:
    """One of OpenAI's four models. `revision` is the hub's commit whose hashes stand below."""

    name: str
    n_parameters: int
    repository: str
    revision: str | None = None

    @property
    def data_bytes(self) -> int:
        return 4 * self.n_parameters  # fp32 and nothing else


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
            sha256="0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4", max_size=_MIB
        ),
    },
}


def openai_files(size: Size) -> dict[str, Expected]:
    """The files of OpenAI's layout, small ones first, so that a wrong URL fails at once."""
    return {
        "hparams.json": Expected(max_size=_MIB),
        "checkpoint": Expected(max_size=_MIB),
        "encoder.json": Expected(
            1_042_301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
        ),
        "vocab.bpe": Expected(456_318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
        "model.ckpt.index": Expected(max_size=16 * _MIB),
        "model.ckpt.meta": Expected(max_size=2048 * _MIB),  # a protocol buffer ends there
        "model.ckpt.data-00000-of-00001": Expected(size.data_bytes),
    }


def hub_files(repository: str, commit: str) -> dict[str, Expected]:
    """The published facts about this repository's files at this commit; often none."""
    return HUB.get((repository, commit), {})
