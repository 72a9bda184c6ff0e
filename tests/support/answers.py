"""Six responses for `gpt2 judge`, what the stub of judge_server.py says of them, and how it is asked."""

import json
from pathlib import Path
from typing import Any

from judge_server import MODEL, Judge, grade

Record = dict[str, str]
RECORDS = [
    {"instruction": f"Name {i} things.", "input": "", "output": f"{i} things", "response": f"thing {i}" * i}
    for i in range(1, 7)
]


def low(fields: Record) -> dict[str, Any]:
    """The usual grade, but little for the canaries."""
    if "response" not in fields:
        return {"reason": "Both.", "better": "tie"}
    is_canary = not fields["response"].startswith("thing")
    return grade(fields) | ({"score": 0} if is_canary else {})


def write(path: Path, records: list[Record]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records) if lines else json.dumps(records))
    return path


def at(server: Judge) -> tuple[str, ...]:
    return ("--base-url", server.base_url, "--judge-model", MODEL)


def scores() -> list[int]:
    return [expected(one)["score"] for one in RECORDS]


def expected(record: Record) -> dict[str, Any]:
    fields = {name: record[name] for name in ("instruction", "input", "response")}
    return grade({**fields, "reference": record["output"]})


def rows(text: str) -> dict[str, str]:
    """The first line of each title."""
    return {line[:13].strip(): line[13:] for line in text.splitlines() if line[:13].strip()}
