"""The picture of attention: every weight is a square of its own colour, whatever the tokens are."""

import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from gpt2cli.ui import attention_map
from gpt2cli.ui.attention_map import MOST_TOKENS, draw_attention

HIDDEN = np.array([237, 240, 242]) / 255


def causal(n_layers: int, n_heads: int, n: int) -> NDArray[np.float64]:
    scores = np.random.default_rng(5).normal(scale=3, size=(n_layers, n_heads, n, n))
    weights = np.exp(scores) * np.tril(np.ones((n, n)))
    return weights / weights.sum(axis=-1, keepdims=True)


def draw(
    folder: Path, weights: NDArray[np.float64], tokens: list[str] | None = None, title: str = "", n: int = 0
) -> NDArray[np.float32]:
    out = folder / "out.png"
    names = [f"t{i}" for i in range(weights.shape[-1])] if tokens is None else tokens
    layers, heads = range(weights.shape[0]), range(weights.shape[1])
    draw_attention(weights, names, out, layers=layers, heads=heads, title=title, n_before=n)
    return matplotlib.image.imread(out)[..., :3]


@pytest.mark.parametrize(("n_layers", "n_heads", "n"), [(1, 1, 1), (1, 1, 14), (2, 3, 5), (12, 12, 9)])
def test_every_weight_has_its_colour(n_layers: int, n_heads: int, n: int, tmp_path: Path) -> None:
    weights = causal(n_layers, n_heads, n)
    picture = draw(tmp_path, weights)
    plan = attention_map._plan(n_layers, n_heads, [f"t{i}" for i in range(n)])
    assert picture.shape == (plan.height, plan.width, 3)
    wanted = matplotlib.colormaps["magma_r"](weights)[..., :3]
    wanted[:, :, np.triu(np.ones((n, n), dtype=bool), 1)] = HIDDEN
    for row in range(n_layers):
        for column in range(n_heads):
            x, y = plan.corner(row, column)
            tile = picture[y : y + plan.tile, x : x + plan.tile]
            expected = wanted[row, column].repeat(plan.square, axis=0).repeat(plan.square, axis=1)
            np.testing.assert_allclose(tile, expected, atol=1.01 / 255)


def test_every_tile_has_a_title_and_the_outer_ones_the_tokens(tmp_path: Path) -> None:
    picture = draw(tmp_path, causal(2, 3, 6))
    plan = attention_map._plan(2, 3, [f"t{i}" for i in range(6)])

    def inked(left: int, top: int, width: int, height: int) -> bool:
        return bool((picture[top : top + height, left : left + width] < 0.8).any())

    for row in range(2):
        for column in range(3):
            x, y = plan.corner(row, column)
            assert inked(x, y - 14, plan.tile, 13), "a title"
            below = (x, y + plan.tile + 2, plan.tile, 5)
            assert inked(*below) == (row == 1), "names below the last row alone"
        x, y = plan.corner(row, 0)
        for token in range(6):
            assert inked(0, y + token * plan.square, x - 2, plan.square), "a name beside each row"


def test_all_that_is_written_lies_in_the_picture(tmp_path: Path) -> None:
    for weights, tokens in (
        (causal(1, 1, 2), ["W" * 40, "M" * 14]),
        (causal(2, 2, 3), ["<|endoftext|>"] * 3),
    ):
        weights[0, 0, 0] = np.nan  # for the longest caption
        picture = draw(tmp_path, weights, tokens, title="W" * 99, n=1023)
        edges = [picture[:3], picture[-3:], picture[:, :3], picture[:, -8:]]
        assert all((edge == 1).all() for edge in edges)


NASTY = [
    "$x^2$",
    "$",
    "\\frac{",
    "a\nb",
    "\x1b[2J",
    "\x00",
    "東",
    "😂",
    "\u202e",
    "\ud800",
    "",
    " ",
    "_{",
    "%",
]


def test_tokens_of_any_kind_draw_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path, causal(1, 2, len(NASTY)), NASTY, title="".join(NASTY))


def test_names_of_tokens() -> None:
    assert attention_map._drawable(" the") == "·the"
    assert attention_map._drawable("\x1b\u6771") == "<U+001B><U+67…"
    assert attention_map._drawable("$1\n") == "$1<U+000A>"


def test_a_dollar_is_a_dollar(tmp_path: Path) -> None:
    weights = causal(1, 1, 2)
    assert not np.array_equal(draw(tmp_path, weights, ["$a$", "b"]), draw(tmp_path, weights, ["a", "b"]))


@pytest.mark.parametrize("n", [1, 9, MOST_TOKENS])
@pytest.mark.parametrize("shape", [(1, 1), (12, 12), (48, 25), (1, 25), (48, 1)])
def test_sizes_stay_readable_and_bounded(shape: tuple[int, int], n: int) -> None:
    plan = attention_map._plan(*shape, ["<|endoftext|>"] * n)
    assert plan.height <= 5000 and plan.width <= 3600
    assert plan.tile >= 60 and plan.square >= 1
    assert min(12, plan.tile / (0.62 * 7)) >= 11  # pixels of "L47 H24"


def test_the_largest_grid_in_reasonable_time(tmp_path: Path) -> None:
    assert draw(tmp_path, causal(48, 25, 6)).shape[0] > 3000


def test_what_is_no_number_has_a_colour_of_its_own(tmp_path: Path) -> None:
    weights = causal(1, 1, 3)
    weights[0, 0, 2] = np.nan
    picture = draw(tmp_path, weights)
    plan = attention_map._plan(1, 1, ["t0", "t1", "t2"])
    x, y = plan.corner(0, 0)
    bad = picture[y + plan.tile - 5, x + 5]
    np.testing.assert_allclose(bad, np.array([0x2E, 0xC4, 0xB6]) / 255, atol=0.01)


def test_the_caption_does_not_promise_sums_for_a_cut() -> None:
    assert "sums to 1" in attention_map._caption(0, broken=False)[1]
    cut = attention_map._caption(136, broken=True)[1]
    assert "136 earlier tokens" in cut and "sums to 1" not in cut and "no number" in cut


def test_an_old_picture_survives_a_failed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, causal(1, 1, 2))
    before = (tmp_path / "out.png").read_bytes()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.image.imsave", full)
    with pytest.raises(OSError, match="No space"):
        draw(tmp_path, causal(1, 1, 3))
    assert (tmp_path / "out.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_matplotlib_is_loaded_for_a_picture_only() -> None:
    code = "import sys, gpt2cli.ui.attention_map; assert not [m for m in sys.modules if 'matplotlib' in m]"
    subprocess.run([sys.executable, "-c", code], check=True)
