"""The model of the two tasks that train a language model: all of its weights, or adapters over its base."""

from pathlib import Path

from gpt2cli.checkpoints.folder import load_model, write_model
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.training.base_model import BaseLM
from gpt2cli.training.task import TrainingTask, add_adapters
from gpt2cli.training.train_state import RunIdentity


class LanguageModelTask(TrainingTask):
    """A task whose model is a GPT2LMHead; `recipe.train` is "all" or "lora"."""

    base: BaseLM

    @property
    def config(self) -> GPT2Config:
        return self.base.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.base.tokenizer

    def lora_identity(self) -> RunIdentity:
        """What a resume of adapters needs unchanged."""
        if self.recipe.train != "lora":
            return {}
        lora = self.recipe.lora
        return {
            "init": self.base.sha256[:16],
            "lora.rank": lora.rank,
            "lora.alpha": lora.alpha,
            "lora.dropout": lora.dropout,
            "lora.targets": ",".join(lora.targets),
        }

    def fresh_model(self, attention: str) -> GPT2LMHead:
        model = self.base.model(attention)
        if self.recipe.train == "lora":
            add_adapters(model, self.recipe.lora, self.recipe.seed)
        return model

    def saved_model(self, checkpoint: Path, attention: str) -> GPT2LMHead:
        if self.recipe.train != "lora":
            return load_model(checkpoint, attention=attention, dropout=self.config.dropout).model
        from gpt2cli.checkpoints.lora_adapter import load_adapter

        model = self.fresh_model(attention)
        load_adapter(checkpoint, model)
        return model

    def write_model(self, folder: Path, model: GPT2LMHead, recipe: str) -> dict[str, str]:
        """The whole model, or its adapters alone."""
        if self.recipe.train != "lora":
            return write_model(folder, model, self.tokenizer, recipe)
        from gpt2cli.checkpoints.lora_adapter import write_adapter

        return write_adapter(
            folder,
            model,
            dropout=self.recipe.lora.dropout,
            targets=self.recipe.lora.targets,
            base=self.base.folder,
            base_sha256=self.base.sha256,
            tokenizer=self.tokenizer,
            recipe=recipe,
        )
