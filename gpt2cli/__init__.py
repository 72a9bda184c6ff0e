"""gpt2cli: from raw text to a GPT-2 you talk to. This file owns the version and nothing else."""

__version__ = "0.1.0"
