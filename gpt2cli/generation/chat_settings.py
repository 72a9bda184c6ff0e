"""The settings of a chat: what they are called, and what a typed value means."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.generation.sampling import SamplingOptions

# Their names and types, in the order in which they are shown.
SETTINGS: dict[str, Any] = {
    **{field.name: field.type for field in fields(SamplingOptions)},
    "max_new_tokens": int,
}


@dataclass(frozen=True)
class ChatSettings:
    """How replies are sampled, and how long they may be. UsageError for values that mean nothing."""

    sampling: SamplingOptions
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens is {self.max_new_tokens}", "it must be at least 1")

    @property
    def values(self) -> dict[str, int | float]:
        return {**asdict(self.sampling), "max_new_tokens": self.max_new_tokens}

    def changed(self, name: str, value: str) -> "ChatSettings":
        """With one of SETTINGS as it was typed; UsageError says what it can be."""
        kind = SETTINGS[name]
        try:
            if "_" in value or not value.isascii():
                raise ValueError  # Python would take 1_0 and the digits of all scripts
            return from_values({**self.values, name: kind(value)})
        except ValueError:
            must = "a whole number" if kind is int else "a number"
            raise UsageError(f"{name} is '{value[:40]}'", f"it must be {must}") from None


def from_values(values: dict[str, Any]) -> ChatSettings:
    """From a value for each of SETTINGS."""
    sampling = {name: value for name, value in values.items() if name != "max_new_tokens"}
    return ChatSettings(SamplingOptions(**sampling), values["max_new_tokens"])
