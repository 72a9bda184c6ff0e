"""The settings of a chat, and how a typed value is read."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.generation.sampling import SamplingOptions, require_length


@dataclass(frozen=True)
class ChatSettings(SamplingOptions):
    """How replies are sampled, and their longest length. Raises UsageError for invalid values."""

    max_new_tokens: int = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_length(self.max_new_tokens)

    def changed(self, name: str, value: str) -> "ChatSettings":
        """With one of SETTINGS as it was typed; UsageError says what it can be."""
        kind = SETTINGS[name]
        try:
            if "_" in value or not value.isascii():
                raise ValueError  # Python would take 1_0 and the digits of all scripts
            return replace(self, **{name: kind(value)})
        except ValueError:
            must = "a whole number" if kind is int else "a number"
            raise UsageError(f"{name} is '{value[:40]}'", f"it must be {must}") from None


# Their names and types, in the order in which they are shown.
SETTINGS: dict[str, Any] = {setting.name: setting.type for setting in fields(ChatSettings)}
