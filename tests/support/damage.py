"""Files damaged in one of many ways, at random: bytes, and JSON that stays JSON."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def damage(generator: random.Random, path: Path) -> str:
    """Change the file in one of many ways; returns which."""
    data = path.read_bytes()
    if path.suffix == ".json" and generator.random() < 0.7:
        how, changed = damaged_json(generator, data)
    elif path.suffix == ".safetensors" and generator.random() < 0.5:
        length = int.from_bytes(data[:8], "little")
        how, header = damaged_json(generator, data[8 : 8 + length])
        changed = len(header).to_bytes(8, "little") + header + data[8 + length :]
    else:
        how, changed = damaged_bytes(generator, data)
    path.write_bytes(changed)
    return f"{path.name}, {how}"


def damaged_bytes(generator: random.Random, data: bytes) -> tuple[str, bytes]:
    # Headers, directories and pickles lie at either end.
    at = generator.choice(
        (
            generator.randrange(len(data)),
            generator.randrange(min(2_500, len(data))),
            len(data) - 1 - generator.randrange(min(1_500, len(data))),
        )
    )
    n_bytes = generator.choice((1, 2, 4, 8, 64, 1000))
    noise = generator.randbytes(n_bytes)
    ways = {
        "a bit flipped": data[:at] + bytes([data[at] ^ 1 << generator.randrange(8)]) + data[at + 1 :],
        "overwritten": data[:at] + noise + data[at + n_bytes :],
        "all ones": data[:at] + b"\xff" * n_bytes + data[at + n_bytes :],
        "zeros": data[:at] + bytes(n_bytes) + data[at + n_bytes :],
        "inserted": data[:at] + noise + data[at:],
        "cut out": data[:at] + data[at + n_bytes :],
        "doubled": data[: at + n_bytes] + data[at:],
        "truncated": data[:at],
        "swapped": data[at:] + data[:at],
    }
    how = generator.choice(list(ways))
    return f"{how} at {at}, {n_bytes} bytes", ways[how]


ODD_VALUES = (
    *(0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), 0.5),
    *(None, True, False, "", "x" * 3000, "../model.safetensors", "F64", "BF16", [], [[]], {}, [0, 2**62]),
)


def damaged_json(generator: random.Random, data: bytes) -> tuple[str, bytes]:
    value = json.loads(data)
    places = [(table, key) for table in tables(value) for key in keys(table)]
    table, key = generator.choice(places)
    other, its_key = generator.choice(places)
    match how := generator.choice(("odd", "gone", "swapped", "copied", "nested", "renamed", "doubled")):
        case "odd":
            table[key] = generator.choice(ODD_VALUES)
        case "gone":
            del table[key]
        case "swapped":
            table[key], other[its_key] = copy.deepcopy(other[its_key]), copy.deepcopy(table[key])
        case "copied":
            table[key] = copy.deepcopy(other[its_key])
        case "nested":
            return how, b'{"a":' * 100_000 + b"1" + b"}" * 100_000
        case "renamed" if isinstance(table, dict):
            table[f"{key}x"] = table.pop(key)
        case _:
            text = json.dumps(value)
            return how, (text[:-1] + "," + text[1:]).encode()
    return f"{how}: {key!r}"[:80], json.dumps(value).encode()


def tables(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)) and value:
        yield value
        for child in value.values() if isinstance(value, dict) else value:
            yield from tables(child)


def keys(table: Any) -> list[Any]:
    return list(table) if isinstance(table, dict) else list(range(len(table)))
