"""gpt2cli: from raw text to a GPT-2 you can chat with.

    import gpt2cli
    model = gpt2cli.load("runs/verdict")
    print(model.generate("Every effort moves you", seed=1))

The names below live in api/ and are imported on first use: `import gpt2cli` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2cli.api.classifier import TextClassifier as TextClassifier
    from gpt2cli.api.classifier import load_classifier as load_classifier
    from gpt2cli.api.models import LanguageModel as LanguageModel
    from gpt2cli.api.models import load as load
    from gpt2cli.api.training import train as train
    from gpt2cli.errors import Gpt2Error as Gpt2Error

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("TextClassifier", "load_classifier"), "gpt2cli.api.classifier"),
    **dict.fromkeys(("LanguageModel", "load"), "gpt2cli.api.models"),
    "train": "gpt2cli.api.training",
    "Gpt2Error": "gpt2cli.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gpt2cli' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
