"""Random weights that hide nothing."""

import torch

from gpt2cli.model.gpt2 import GPT2LMHead


def loud(model: GPT2LMHead, std: float = 0.14, seed: int = 0) -> GPT2LMHead:
    """Fill every weight with noise large enough that a mistake anywhere shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            parameter.normal_(center, std, generator=generator)
    return model.eval()
