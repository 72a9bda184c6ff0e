"""The recipes that come with gpt2cli, and what their headers say. Imports nothing heavy: a list of them, or
the completion of a name, needs no YAML.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RecipeHeader:
    """What a list shows of a recipe: the first comment, its task, and the line `# time:`."""

    title: str
    task: str
    time: str


def shipped_recipes() -> dict[str, Path]:
    """The recipes of gpt2cli: those of the checkout, else those in the wheel."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "recipes"
    # Beside an installed package, a folder `recipes` belongs to another project.
    inside = (package.parent / "pyproject.toml").is_file() and checkout.is_dir()
    folder = checkout if inside else package / "recipes_shipped"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def read_header(path: Path) -> RecipeHeader:
    """The header of a recipe; what is missing there is ''."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    written = [line for line in lines if line.lstrip("# \t").strip()]
    title = written[0].lstrip("# \t").rstrip() if written and written[0].startswith("#") else ""

    def after(label: str) -> str:
        return next((line[len(label) :].strip() for line in lines if line.startswith(label)), "")

    return RecipeHeader(title, after("task:"), after("# time:"))
