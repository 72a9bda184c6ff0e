"""gpt2cli: from raw text to a GPT-2 you can chat with. This file holds only the version."""

__version__ = "0.1.0"
