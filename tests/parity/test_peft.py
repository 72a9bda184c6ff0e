"""Live parity with peft: its model over our folder, our model over its folder, a training step."""

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from adapters import CONFIG, IDS, Base, Lora, by_somebody_else, save_adapter, save_base
from torch.nn.functional import cross_entropy

from gpt2cli.convert.open_model import open_model
from gpt2cli.errors import InputError
from gpt2cli.model.lora import add_lora, lora_state
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum

LORAS = [
    Lora(targets=("c_attn",)),
    Lora(rank=3, alpha=1.5, targets=("c_proj",)),
    Lora(rank=8, alpha=4.0, targets=("c_fc",)),
    Lora(),
]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return save_base(tmp_path / "base")


def theirs_over(base: Base) -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel.from_pretrained(base.folder).eval()


def save_theirs(folder: Path, base: Base, **settings: Any) -> peft.PeftModel:
    """An adapter that peft made and wrote, loud."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **settings)
    model = peft.get_peft_model(theirs_over(base), config).eval()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2, generator=generator)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("lora", LORAS, ids=lambda lora: "+".join(lora.targets))
@torch.no_grad()
def test_peft_opens_our_folder(base: Base, lora: Lora, tmp_path: Path) -> None:
    ours = save_adapter(tmp_path / "adapter", base, lora)
    reference = peft.PeftModel.from_pretrained(theirs_over(base), tmp_path / "adapter").eval()
    plain, wanted = theirs_over(base)(IDS).logits, reference(IDS).logits
    assert (plain - wanted).abs().max() > 0.5, "a correction this small would hide mistakes"
    torch.testing.assert_close(ours(IDS), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(open_model(tmp_path / "adapter").model(IDS), wanted, atol=1e-4, rtol=0)
    merged = reference.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, wanted, atol=1e-4, rtol=0)


def test_peft_finds_base_and_tokenizer_by_our_folder_alone(base: Base, tmp_path: Path) -> None:
    ours = save_adapter(tmp_path / "adapter", base, Lora())
    with torch.no_grad():
        reference = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        torch.testing.assert_close(ours(IDS), reference(IDS).logits, atol=1e-4, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert tokenizer("some text.\n")["input_ids"] == base.tokenizer.encode("some text.\n")


def test_peft_takes_our_folder_without_a_warning(base: Base, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", base, Lora())
    model = theirs_over(base)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert [str(warning.message) for warning in caught if warning.category is UserWarning] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 12, "target_modules": ["c_attn"]},
        {"r": 4, "lora_alpha": 12, "target_modules": ["c_attn", "c_proj", "c_fc"]},
        {"r": 4, "lora_alpha": 12, "target_modules": ["attn.c_proj"]},
        {"r": 4, "lora_alpha": 12, "target_modules": ["mlp.c_proj", "h.0.attn.c_attn"]},
        {"r": 4, "lora_alpha": 12, "target_modules": r".*h\.1\.(attn|mlp)\.c_proj"},
        {"r": 4, "lora_alpha": 12, "target_modules": "all-linear"},
        {"r": 4, "lora_alpha": 12, "target_modules": ["c_attn"], "use_rslora": True, "lora_dropout": 0.3},
        {"r": 4, "lora_alpha": 12, "target_modules": ["c_attn"], "init_lora_weights": "gaussian"},
        {"r": 4, "lora_alpha": 12, "target_modules": ["c_proj", "c_fc"], "layers_to_transform": 1},
        {"r": 4, "lora_alpha": 12, "target_modules": ["c_attn"], "layers_to_transform": [0]},
        {"r": 4, "lora_alpha": 12, "target_modules": ["c_attn"], "layers_to_transform": []},
        {
            **{"r": 4, "lora_alpha": 12, "target_modules": ["c_attn", "c_fc"]},
            **{"layers_to_transform": [1], "layers_pattern": "h"},
        },
    ],
    ids=lambda settings: str(settings["target_modules"]) + str(len(settings)),
)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickled"])
@torch.no_grad()
def test_we_open_their_folder(base: Base, settings: dict[str, Any], safe: bool, tmp_path: Path) -> None:
    reference = save_theirs(tmp_path / "theirs", base, **settings)
    if not safe:
        (tmp_path / "theirs" / "adapter_model.safetensors").unlink()
        reference.save_pretrained(tmp_path / "theirs", safe_serialization=False)
    wanted = reference(IDS).logits
    assert (theirs_over(base)(IDS).logits - wanted).abs().max() > 0.5
    torch.testing.assert_close(open_model(tmp_path / "theirs").model(IDS), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["ln_f"]}, "modules_to_save"),
        ({"rank_pattern": {"h.0.attn.c_attn": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"h.0.attn.c_attn": 2}}, "alpha_pattern"),
        ({"exclude_modules": ["h.0.attn.c_attn"]}, "exclude_modules"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_we_cannot_express_is_refused_by_its_field(
    base: Base, settings: dict[str, Any], field: str, tmp_path: Path
) -> None:
    save_theirs(tmp_path / "theirs", base, r=4, target_modules=["c_attn"], **settings)
    with pytest.raises(InputError, match=rf"adapter_config\.json: {field} is "):
        open_model(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([7], "names no matrix of a GPT-2 block in layers_to_transform [7]"),
        ("1", "layers_to_transform is '1'"),
        ([0.5], "layers_to_transform is [0.5]"),
        ([True], "layers_to_transform is [True]"),
        ([0], "the tensors are not those"),
    ],
    ids=str,
)
def test_other_blocks_are_refused_by_name(base: Base, layers: Any, said: str, tmp_path: Path) -> None:
    save_theirs(tmp_path / "theirs", base, r=4, target_modules=["c_attn"], layers_to_transform=[1])
    by_somebody_else(tmp_path / "theirs", layers_to_transform=layers)
    with pytest.raises(InputError) as caught:
        open_model(tmp_path / "theirs")
    assert said in caught.value.what


def test_adapters_beyond_the_blocks_are_refused_by_name(base: Base, tmp_path: Path) -> None:
    save_theirs(tmp_path / "theirs", base, r=4, target_modules=["c_attn", "wte"])
    with pytest.raises(InputError, match="the tensors are not those") as caught:
        open_model(tmp_path / "theirs")
    assert "unknown: base_model.model.transformer.wte" in caught.value.why


@pytest.mark.parametrize(
    ("settings", "n_new", "said"),
    [
        ({"modules_to_save": ["wte", "lm_head"]}, 3, "modules_to_save is ['wte', 'lm_head']"),
        (
            {"modules_to_save": ["embed_tokens", "lm_head"]},
            0,
            "modules_to_save is ['embed_tokens', 'lm_head']",
        ),
        ({}, 3, "holds lm_head.weight [34, 16] beside its adapters"),
        ({"trainable_token_indices": {"wte": [1, 2]}}, 0, "trainable_token_indices is {'wte': [1, 2]}"),
    ],
    ids=["saved whole, resized", "another family's names", "resized alone", "some tokens"],
)
def test_an_embedding_of_its_own_is_refused_by_name(
    base: Base, settings: dict[str, Any], n_new: int, said: str, tmp_path: Path
) -> None:
    """What trl and peft save where tokens were added, or the embedding was trained."""
    theirs = theirs_over(base)
    theirs.resize_token_embeddings(CONFIG.vocab_size + n_new)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], **settings)
    model = peft.get_peft_model(theirs, config)
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=n_new > 0)
    with pytest.raises(InputError) as caught:
        open_model(tmp_path / "theirs")
    assert said in caught.value.what and "merge_and_unload" in caught.value.fix


def test_another_kind_of_adapter_is_refused(base: Base, tmp_path: Path) -> None:
    config = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["c_attn"], feedforward_modules=[])
    peft.get_peft_model(theirs_over(base), config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(InputError, match="peft_type is 'IA3'"):
        open_model(tmp_path / "theirs")


def test_a_training_step_is_pefts(base: Base, tmp_path: Path) -> None:
    """The same A and B, the same batch: the same loss, the same gradients, the same step."""
    lora = Lora(rank=3, alpha=8.0)
    ours = save_adapter(tmp_path / "adapter", base, lora)
    theirs = peft.PeftModel.from_pretrained(theirs_over(base), tmp_path / "adapter", is_trainable=True)
    inputs, targets = IDS[:, :-1], IDS[:, 1:].flatten()

    reference_loss = cross_entropy(theirs(inputs).logits.flatten(0, 1), targets)
    reference_loss.backward()
    hidden = ours.transformer(inputs).flatten(0, 1)
    loss = cross_entropy_sum(hidden, ours.lm_head.weight, targets, torch.float32) / targets.numel()
    loss.backward()
    assert loss.item() == pytest.approx(reference_loss.item(), abs=1e-5)

    reference = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    learning = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    assert learning.keys() == reference.keys() == lora_state(ours).keys()
    for name, parameter in learning.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-3, name
        torch.testing.assert_close(
            parameter.grad, reference[name].grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    for parameters in (learning, reference):
        torch.optim.SGD(parameters.values(), lr=0.1).step()
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=2e-4, rtol=0)


def test_a_fresh_adapter_begins_as_pefts_does(base: Base) -> None:
    """Both draw A from one distribution, whose spread depends on the matrix alone."""
    theirs = peft.get_peft_model(
        theirs_over(base), peft.LoraConfig(r=16, target_modules=["c_proj"], fan_in_fan_out=True)
    )
    fresh = open_model(base.folder).model  # type: ignore[arg-type]
    add_lora(fresh, rank=16, alpha=1.0, dropout=0.0, targets=("c_proj",), seed=0)
    for name, tensor in lora_state(fresh).items():
        other = theirs.get_parameter(f"base_model.model.{name}.default.weight")
        assert tensor.shape == other.shape
        bound = 1 / CONFIG.n_embd**0.5 if "attn" in name else 1 / CONFIG.mlp_width**0.5
        for drawn in (tensor, other):
            largest = float(drawn.detach().abs().max())
            assert largest == 0 if name.endswith("lora_B") else 0.9 * bound < largest <= bound
