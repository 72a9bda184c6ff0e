"""The model card of a model that was trained here: README.md of its folder, as the Hugging Face hub shows it.

Unknown facts, such as the licence of a private text, are marked as such, for the author to fill in.
"""

import math
from pathlib import Path
from typing import Any

from gpt2cli import __version__, paths
from gpt2cli.checkpoints.folder import read_config
from gpt2cli.data.corpora import CORPORA
from gpt2cli.evaluation.perplexity import perplexity_of
from gpt2cli.recipe.schema import SCRATCH
from gpt2cli.templates import read_template
from gpt2cli.training.lineage import Facts, Lineage, read_lineage

# OpenAI's models are under their own version of the MIT licence; their repositories on the hub.
_OPENAI = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}


def model_card(folder: Path, name: str) -> str:
    """The card of the model or adapter in `folder`; "" for one that was not trained here."""
    lineage = read_lineage(folder)
    if not lineage.recipe:
        return ""
    recipe = lineage.recipe
    init = str(recipe.get("init") or SCRATCH)
    size = paths.canonical_size(Path(init).name)
    base = f"openai-community/{_OPENAI[size]}" if size in _OPENAI else ""
    head = ["library_name: transformers", "pipeline_tag: text-generation", "tags:", "- gpt2"]
    head += [f"base_model: {base}"] if base else []
    is_rotary = not paths.is_adapter(folder) and read_config(folder).positions == "rotary"
    if is_rotary:  # transformers has no such model
        head[0] = "library_name: gpt2cli"
    rows = _facts(folder, lineage, init, base)
    table = [f"| {label} | {value.replace('|', chr(92) + '|')} |" for label, value in rows]
    return "\n".join(
        [
            *("---", *head, "---", "", f"# {name}", ""),
            f"A GPT-2, trained with gpt2cli {__version__}.",
            *("", "| | |", "|---|---|", *table, ""),
            *(_USE_HERE if is_rotary else _use(name if "/" in name else "OWNER/NAME")),
        ]
    )


_USE_HERE = (
    "Its positions are rotary, which transformers' GPT-2 has not: it is used with gpt2cli alone.",
    *("", "## Use", "", "```sh", 'gpt2 generate --model FOLDER "Every effort moves you"', "```", ""),
)


def _use(name: str) -> list[str]:
    return [
        *("## Use", "", "```python", "from transformers import pipeline", ""),
        f'generator = pipeline("text-generation", model="{name}")',
        'print(generator("Every effort moves you")[0]["generated_text"])',
        *("```", ""),
    ]


def _facts(folder: Path, lineage: Lineage, init: str, base: str) -> list[tuple[str, str]]:
    """The rows of the card; those of which nothing is known are left out."""
    recipe, progress = lineage.recipe, lineage.progress
    session: Facts = lineage.sessions[-1] if lineage.sessions else {}
    data: Any = recipe.get("data")
    source = str(session.get("data.source") or (data.get("source") if isinstance(data, dict) else None) or "")
    corpus = next((corpus for name, corpus in CORPORA.items() if name == source), None)
    rows = [
        ("Task", str(recipe.get("task", ""))),
        ("Base", "random weights" if init == SCRATCH else base or Path(init).name),
        ("Data", source if corpus else Path(source).name),
        ("Licence of the data", corpus.licence if corpus else "not known to gpt2cli"),
        ("SHA-256 of the data", str(session.get("data.sha256", ""))),
        ("Steps", str(progress.get("progress.step", ""))),
    ]
    template = read_template(folder)
    rows += [("Chat template", template.name)] if template else []
    loss = progress.get("progress.best_loss")
    if isinstance(loss, float | int) and math.isfinite(loss):
        step = progress.get("progress.best_step", "")
        rows.append(("Validation loss", f"{loss:.3f} (perplexity {perplexity_of(loss):,.1f}) at step {step}"))
    if not paths.is_adapter(folder):
        rows.append(("Parameters", f"{read_config(folder).n_parameters:,}"))
    return [(label, value) for label, value in rows if value]
