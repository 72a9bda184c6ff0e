"""Owns the random models that are measured, and the forms in which the contestants read them.

A size is a name, 124M and the like, or for a trial LAYERSxWIDTH: 2x128.
"""

import time
from pathlib import Path
from typing import Any

GGUF = {"fp32": "f32", "bf16": "f16", "int8": "q8_0"}  # what llama.cpp calls the equal of our precisions
CTRANSLATE2 = {"fp32": "float32", "int8": "int8"}  # bf16 it has on no CPU


def config_of(size: str) -> Any:
    from gpt2cli.model.config import PRESETS, GPT2Config

    if size in PRESETS:
        return PRESETS[size]
    n_layer, width = map(int, size.split("x"))
    return GPT2Config(n_layer=n_layer, n_embd=width, n_head=max(width // 64, 1))


def random_model(size: str, seed: int = 0) -> Any:
    from gpt2cli.model.gpt2 import new_model

    return new_model(config_of(size), seed).eval()


def write_folder(folder: Path, size: str, seed: int = 0) -> Path:
    """A model folder as ours and as transformers reads it."""
    from gpt2cli.checkpoints.folder import write_manifest, write_model
    from gpt2cli.tokenizer.bpe import gpt2

    folder.mkdir()
    write_manifest(folder, write_model(folder, random_model(size, seed), gpt2(), ""))
    return folder


def write_model_folder(folder: Path, size: str, precision: str) -> Path:
    """The weights of `random_model` in a folder under this one; once for all engines and precisions."""
    return folder / "model" if (folder / "model").exists() else write_folder(folder / "model", size)


def write_settled_folder(folder: Path, size: str) -> Path:
    """The same, old enough for its hash to be remembered."""
    from gpt2cli.checkpoints.safetensors_bytes import SETTLED_NS

    write_folder(folder, size, seed=1)
    time.sleep(SETTLED_NS / 1e9)
    return folder


def transformers_model(size: str) -> Any:
    """GPT2LMHeadModel with the weights of `random_model`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2cli.checkpoints.folder import TRANSPOSED
    from gpt2cli.model.config import to_hugging_face

    ours = random_model(size)
    model = GPT2LMHeadModel(GPT2Config(**to_hugging_face(ours.config)))
    state = ours.state_dict().items()
    model.load_state_dict({name: t.T if name.endswith(TRANSPOSED) else t for name, t in state})
    return model.eval()


def write_gguf_file(folder: Path, size: str, precision: str) -> Path:
    """The same weights for llama.cpp."""
    from gpt2cli.checkpoints.folder import TRANSPOSED, stored_shapes
    from gpt2cli.convert.foreign_model import ForeignModel, ForeignTensor, RawTensors
    from gpt2cli.convert.gguf import write_gguf
    from gpt2cli.tokenizer.bpe import gpt2

    model = random_model(size)
    state = model.state_dict()

    def stored(name: str) -> Any:
        return state[name].T if name.endswith(TRANSPOSED) else state[name]

    tensors = {
        name: ForeignTensor(name, shape, False, lambda name=name: stored(name))
        for name, shape in stored_shapes(model.config).items()
    }
    raw = RawTensors(list(tensors), lambda name: stored(name).numpy())
    path = folder / f"{GGUF[precision]}.gguf"
    source = ForeignModel(folder, "gpt2cli", model.config, gpt2(), tensors, raw, ())
    write_gguf(path, source, GGUF[precision], size)
    return path


def write_ctranslate2(folder: Path, size: str, precision: str) -> Path:
    """The same weights for CTranslate2, which reads a Hugging Face folder and writes its own."""
    from ctranslate2.converters import TransformersConverter
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    source = write_model_folder(folder, size, precision)
    converted = folder / f"ctranslate2-{precision}"
    quantization = None if precision == "fp32" else CTRANSLATE2[precision]
    TransformersConverter(str(source)).convert(str(converted), quantization=quantization)
    return converted
