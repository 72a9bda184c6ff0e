"""Low-rank adapters: what they compute, what learns, what stays, and how they go into the weights."""

import copy

import pytest
import torch
from fake_device import fake_device
from loud import loud
from torch import Tensor

from gpt2cli.errors import UsageError
from gpt2cli.model.config import PRESETS, GPT2Config
from gpt2cli.model.cpu_ops import drop
from gpt2cli.model.gpt2 import GPT2LMHead, empty_model, new_model
from gpt2cli.model.layers import Linear
from gpt2cli.model.lora import (
    LoraLinear,
    add_lora,
    load_lora_state,
    lora_layers,
    lora_state,
    merge_lora,
    merged_state,
)
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=61)
ALL = ("c_attn", "c_proj", "c_fc")
IDS = torch.randint(0, 61, (3, 20), generator=torch.Generator().manual_seed(2))


def adapted(
    *, seed: int = 3, dropout: float = 0.0, targets: tuple[str, ...] = ALL, rank: int = 4
) -> GPT2LMHead:
    model = loud(new_model(CONFIG, 1))
    add_lora(model, rank=rank, alpha=10.0, dropout=dropout, targets=targets, seed=seed)
    return model


def make_loud(model: GPT2LMHead) -> GPT2LMHead:
    """Fill the zeros of B too, so that a mistake anywhere shows in the logits."""
    generator = torch.Generator().manual_seed(8)
    for tensor in lora_state(model).values():
        tensor.normal_(0.0, 0.3, generator=generator)
    return model


def loss_of(model: GPT2LMHead) -> Tensor:
    hidden = model.transformer(IDS[:, :-1]).flatten(0, 1)
    return cross_entropy_sum(hidden, model.lm_head.weight, IDS[:, 1:].flatten(), torch.float32)


@torch.no_grad()
def test_fresh_adapters_change_nothing() -> None:
    assert torch.equal(adapted()(IDS), loud(new_model(CONFIG, 1))(IDS))


@torch.no_grad()
def test_the_correction_is_that_of_the_paper() -> None:
    model = make_loud(adapted(targets=("c_fc",)))
    (name, adapter), *_ = lora_layers(model).items()
    assert name == "transformer.h.0.mlp.c_fc"
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    wanted = adapter.base(x)
    for r in range(4):  # a sum of `rank` outer products
        wanted = wanted + torch.outer(x @ adapter.lora_A[r], adapter.lora_B[:, r]) * 10.0 / 4
    torch.testing.assert_close(adapter(x), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (("c_attn",), ["attn.c_attn"]),
        (("c_proj",), ["attn.c_proj", "mlp.c_proj"]),
        (("attn.c_proj",), ["attn.c_proj"]),
        (ALL, ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
    ],
)
def test_targets_name_matrices_in_every_block(targets: tuple[str, ...], wanted: list[str]) -> None:
    model = loud(new_model(CONFIG, 1))
    names = add_lora(model, rank=2, alpha=1.0, dropout=0.0, targets=targets, seed=0)
    assert names == [f"transformer.h.{layer}.{name}" for layer in range(2) for name in wanted]
    assert list(lora_layers(model)) == names


def test_only_adapters_learn_and_get_gradients() -> None:
    model = make_loud(adapted())
    loss_of(model.train()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_the_seed_makes_the_adapters_and_the_global_generator_does_not() -> None:
    torch.manual_seed(1)
    one = lora_state(adapted(seed=5))
    torch.manual_seed(2)
    same, other = lora_state(adapted(seed=5)), lora_state(adapted(seed=6))
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name]), name
        if name.endswith("lora_A"):
            assert not torch.equal(tensor, other[name])
            bound = tensor.shape[1] ** -0.5  # of the uniform distribution that peft draws from
            assert 0.8 * bound < tensor.abs().max() <= bound
        else:
            assert not tensor.any()


@torch.no_grad()
def test_dropout_falls_on_what_enters_the_correction_and_in_training_only() -> None:
    model = make_loud(adapted(dropout=0.5, targets=("c_attn",)))
    adapter = model.transformer.h[0].attn.c_attn
    x = torch.ones(4, 16)
    assert torch.equal(adapter(x), adapter(x))
    model.train()
    torch.manual_seed(4)
    dropped = adapter(x)
    assert not torch.equal(dropped, adapter(x))
    torch.manual_seed(4)
    assert torch.equal(adapter(x), dropped)  # the global generator's, which the loop seeds
    torch.manual_seed(4)
    kept = drop(x, 0.5)
    wanted = adapter.base(x) + kept @ adapter.lora_A.T @ adapter.lora_B.T * 2.5
    torch.testing.assert_close(dropped, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_merged_weights_compute_the_same_under_the_plain_names() -> None:
    # In float64, where rounding can neither hide a mistake nor feign one.
    model, before = make_loud(adapted()).double(), loud(new_model(CONFIG, 1)).double()
    logits = model(IDS)
    assert (logits - before(IDS)).abs().max() > 1, "a correction this small would hide mistakes"
    merge_lora(model)
    torch.testing.assert_close(model(IDS), logits, atol=1e-10, rtol=0)
    assert list(model.state_dict()) == list(before.state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not lora_layers(model)
    assert model.lm_head.weight is model.transformer.wte.weight


@torch.no_grad()
def test_merged_in_fp32_too() -> None:
    model = adapted()
    generator = torch.Generator().manual_seed(8)
    for name, tensor in lora_state(model).items():
        if name.endswith("lora_B"):
            tensor.normal_(0.0, 0.1, generator=generator)
    logits = model(IDS)
    merge_lora(model)
    torch.testing.assert_close(model(IDS), logits, atol=1e-5, rtol=0)


def test_the_merged_state_is_that_of_a_merged_model_and_leaves_its_own_alone() -> None:
    model = make_loud(adapted())
    before, merged = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    merge_lora(merged)
    found, wanted = merged_state(model), merged.state_dict()
    assert list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_merging_for_a_file_computes_nothing_on_the_gpu() -> None:
    with fake_device() as launches, torch.device("cuda"):
        adapter = LoraLinear(Linear(16, 48), rank=2, alpha=8, dropout=0.0)
        launches.launched.clear()
        state = merged_state(torch.nn.ModuleDict({"c_attn": adapter}))
    assert {name: (t.device.type, tuple(t.shape)) for name, t in state.items()} == {
        "c_attn.weight": ("cpu", (48, 16)),
        "c_attn.bias": ("cpu", (48,)),
    }
    assert not launches.launched, "a second model there could be one too many"


def test_state_goes_from_one_model_to_another() -> None:
    one, other = make_loud(adapted()), adapted(seed=9)
    load_lora_state(other, copy.deepcopy(lora_state(one)))
    assert torch.equal(one(IDS), other(IDS))
    with pytest.raises(AssertionError, match="the adapters are other ones"):
        load_lora_state(adapted(targets=("c_fc",)), lora_state(one))


def test_a_model_with_adapters_cannot_be_stored_as_a_plain_one() -> None:
    plain = set(empty_model(CONFIG).state_dict())
    missing = plain - set(adapted(targets=("c_attn",)).state_dict())
    assert missing == {f"transformer.h.{i}.attn.c_attn.{part}" for i in (0, 1) for part in ("weight", "bias")}


def test_a_rank_beyond_the_matrix_is_refused_and_the_model_left_alone() -> None:
    model = new_model(CONFIG, 1)
    with pytest.raises(UsageError, match=r"lora\.rank is 17, and transformer\.h\.0\.attn\.c_attn is 16 x 48"):
        add_lora(model, rank=17, alpha=1.0, dropout=0.0, targets=("c_attn",), seed=0)
    assert not lora_layers(model) and all(parameter.requires_grad for parameter in model.parameters())


def test_a_target_that_is_no_matrix_is_refused() -> None:
    with pytest.raises(UsageError, match=r"lora\.targets: wte is not a matrix"):
        add_lora(new_model(CONFIG, 1), rank=1, alpha=1.0, dropout=0.0, targets=("c_attn", "wte"), seed=0)


def test_compiled_blocks_with_adapters_learn_the_same() -> None:
    """As far as the graphs that training compiles; the code made of them is a matter of the layers alone."""
    plain, compiled = make_loud(adapted(targets=("c_attn",))), make_loud(adapted(targets=("c_attn",)))
    for block in compiled.transformer.h:
        block.compile(backend="aot_eager")
    losses = [loss_of(model.train()) for model in (plain, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], atol=1e-3, rtol=1e-5)
    pairs = zip(plain.parameters(), compiled.parameters(), strict=True)
    for one, other in ((a, b) for a, b in pairs if a.requires_grad):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-2, rtol=1e-3)


def test_rank_8_on_c_attn_of_124m_is_294912_parameters() -> None:
    model = empty_model(PRESETS["124M"])
    add_lora(model, rank=8, alpha=16.0, dropout=0.0, targets=("c_attn",), seed=0)
    learns = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    assert sum(learns) == 12 * 8 * (768 + 3 * 768) == 294_912
