"""A classifier of texts from Python."""

from collections.abc import Iterable
from pathlib import Path

from gpt2cli.api.loading import PRECISIONS, notice, require_hardware
from gpt2cli.api.records import RecordList, TextLabel
from gpt2cli.api.wording import python_words, require_text
from gpt2cli.checkpoints.classifier import LoadedClassifier
from gpt2cli.errors import UsageError
from gpt2cli.generation.label_texts import predict_labels
from gpt2cli.generation.load import load_for_classifying


class TextClassifier:
    """A classifier of texts, as `load_classifier` makes it."""

    def __init__(self, loaded: LoadedClassifier, name: str) -> None:
        self._loaded, self.name = loaded, name

    @property
    def labels(self) -> tuple[str, ...]:
        return self._loaded.labels

    def __repr__(self) -> str:
        n, most = len(self.labels), 5
        labels = ", ".join(self.labels[:most]) + f" and {n - most} more" * (n > most)
        return f"TextClassifier({self.name!r}: {labels}; reads {self._loaded.max_tokens} tokens)"

    @python_words()
    def classify(self, texts: Iterable[str]) -> RecordList[TextLabel]:
        """The label of each text, in order; longer texts are cut, as in training.

        >>> classifier = gpt2cli.load_classifier("runs/labels")
        >>> [answer.label in classifier.labels for answer in classifier.classify(["win cash", "see you"])]
        [True, True]
        """
        if isinstance(texts, str):
            raise UsageError("classify takes a list of texts", "this is one text", "classify([text])")
        texts = list(texts)
        for number, text in enumerate(texts):
            require_text(text, f"text {number}")
        found = predict_labels(self._loaded, texts, lambda i: f"text {i}")
        return RecordList(
            TextLabel(
                self.labels[one.best],
                one.probabilities[one.best],
                dict(zip(self.labels, one.probabilities, strict=True)),
            )
            for one in found
        )


@python_words()
def load_classifier(
    model: str | Path, *, device: str = "auto", precision: str = "auto", threads: int = 0
) -> TextClassifier:
    """A finetune-classify run, a model folder or a name, ready to classify. Raises as `load`.

    >>> gpt2cli.load_classifier("runs/labels")
    TextClassifier('runs/labels': bank, ham, spam; reads 20 tokens)
    """
    require_hardware(precision, PRECISIONS, threads)
    loaded = load_for_classifying(str(model), device, precision, threads, notice)
    return TextClassifier(loaded, str(model))
