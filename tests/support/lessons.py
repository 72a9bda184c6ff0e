"""A finetune small enough to run in a second: a little language model, and labelled texts to learn."""

from pathlib import Path

from loud import loud

from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.data.labelled_splits import split_labelled
from gpt2cli.data.labelled_texts import read_labelled
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.recipe.loader import load_recipe
from gpt2cli.recipe.schema import ClassifyRecipe
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.training.base_model import find_base
from gpt2cli.training.classify_task import ClassifyTask

RECIPE = """\
task: finetune-classify
seed: 7
init: {init}
train: last-block
data: {{source: {source}}}
model: {{size: 124M, dropout: 0.1}}
batch: {{micro_batch: 3, accumulation: 2}}
optim: {{steps: 40, lr: 3e-3, warmup_steps: 2}}
eval: {{every: 10}}
log: {{every: 5}}
checkpoint: {{every: 3, keep: 2}}
run: {{threads: 2, device: cpu}}
"""
WORDS = ("win", "cash", "now"), ("see", "you", "soon", "then"), ("bill", "due")


def messages(folder: Path, n: int = 60) -> Path:
    """Texts of three classes, of lengths from 0 to 40 characters, as CSV."""
    lines = ["label,text"]
    for i in range(n):
        words = WORDS[i % 3]
        text = " ".join(words[(i // 3 + k * k) % len(words)] for k in range(i % 9))
        lines.append(f"{['spam', 'ham', 'bank'][i % 3]},{text}")
    path = folder / "messages.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def language_model(folder: Path) -> Path:
    """A loud random model over the letters of those texts."""
    path = folder / "letters"
    if not path.exists():
        tokenizer = Chars.from_text(["abcdefghijklmnopqrstuvwxyz 0123456789"])
        config = GPT2Config(n_layer=3, n_head=2, n_embd=16, n_positions=24, vocab_size=tokenizer.n_vocab)
        path.mkdir(parents=True)
        model = loud(new_model(config, seed=1))
        write_manifest(path, write_model(path, model, tokenizer, "task: pretrain\n"))
    return path


def write_lesson(folder: Path) -> Path:
    path = folder / "lesson.yaml"
    path.write_text(RECIPE.format(init=language_model(folder), source=messages(folder)), encoding="utf-8")
    return path


def lesson(folder: Path, *overrides: str) -> tuple[ClassifyRecipe, ClassifyTask]:
    """The recipe and its task, the texts read."""
    recipe = load_recipe(str(write_lesson(folder)), overrides).recipe
    assert isinstance(recipe, ClassifyRecipe)
    start, wanted = find_base(recipe), recipe.data
    labelled = read_labelled(Path(wanted.source), wanted.text, wanted.label)
    data = split_labelled(labelled, wanted, start.tokenizer, start.config.n_positions, recipe.seed)
    return recipe, ClassifyTask(recipe, data, start)
