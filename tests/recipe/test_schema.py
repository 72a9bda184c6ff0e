"""The schema's own promises: every field described, frozen, strict, and its numbers consistent."""

import pytest
from pydantic import ValidationError

from gpt2cli.model.config import PRESETS
from gpt2cli.recipe.loader import load_recipe
from gpt2cli.recipe.schema import RECIPES, PretrainRecipe, in_reading_order, recipe_fields
from gpt2cli.recipe.sections import ModelConfig, RecipeSection


@pytest.mark.parametrize("kind", RECIPES.values())
def test_every_field_has_one_line_of_description(kind: type[RecipeSection]) -> None:
    for key, description, _ in recipe_fields(kind):
        assert description and "\n" not in description, key


def test_fields_are_the_leaves_of_a_resolved_recipe() -> None:
    values = in_reading_order(load_recipe("verdict").recipe.model_dump())
    leaves = [
        f"{key}.{name}" if isinstance(value, dict) else key
        for key, value in values.items()
        for name in (value if isinstance(value, dict) else [""])
    ]
    assert leaves == [key for key, _, _ in recipe_fields(PretrainRecipe)]


def test_defaults_satisfy_their_own_limits() -> None:
    recipe = load_recipe("verdict").recipe
    for section in (recipe.batch, recipe.eval, recipe.log, recipe.checkpoint, recipe.run):
        type(section).model_validate(type(section)().model_dump())


def test_a_recipe_cannot_be_changed() -> None:
    recipe = load_recipe("verdict").recipe
    with pytest.raises(ValidationError):
        recipe.optim.lr = 1.0  # type: ignore[misc]
    assert hash(recipe) == hash(load_recipe("verdict").recipe)


@pytest.mark.parametrize("size", PRESETS)
def test_a_size_is_that_of_the_preset(size: str) -> None:
    config = ModelConfig(size=size, context=64, dropout=0.1).config(vocab_size=100)
    preset = PRESETS[size]
    assert (config.n_layer, config.n_head, config.n_embd) == (preset.n_layer, preset.n_head, preset.n_embd)
    assert (config.n_positions, config.vocab_size, config.dropout) == (64, 100, 0.1)


def test_numbers_instead_of_a_size() -> None:
    config = ModelConfig(n_layer=2, n_head=8, n_embd=256, n_inner=512, context=128).config(vocab_size=65)
    assert (config.n_layer, config.n_head, config.n_embd, config.mlp_width) == (2, 8, 256, 512)


def test_half_a_million_tokens_per_step() -> None:
    recipe: PretrainRecipe = load_recipe("gpt2-124m").recipe
    assert recipe.batch.rows_per_step * recipe.model.context == 524_288  # GPT-2's own
