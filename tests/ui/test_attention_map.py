"""The picture of attention: every weight is a square of its own colour, whatever the tokens are."""

import itertools
import warnings
from pathlib import Path

import matplotlib
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from gpt2cli.ui.attention_map import MOST_TOKENS, draw_attention

FUTURE = np.array([237, 240, 242]) / 255
BROKEN = np.array([0x2E, 0xC4, 0xB6]) / 255
Picture = NDArray[np.float32]  # (height, width, RGB)
Runs = list[tuple[int, int]]  # begin and end in pixels


def causal(n_layers: int, n_heads: int, n: int) -> NDArray[np.float64]:
    scores = np.random.default_rng(5).normal(scale=3, size=(n_layers, n_heads, n, n))
    weights = np.exp(scores) * np.tril(np.ones((n, n)))
    return weights / weights.sum(axis=-1, keepdims=True)


def draw(
    folder: Path,
    weights: NDArray[np.float64],
    tokens: list[str] | None = None,
    title: str = "",
    n: int = 0,
    prompt: str = "",
) -> Picture:
    out = folder / "out.png"
    names = [f"t{i}" for i in range(weights.shape[-1])] if tokens is None else tokens
    layers, heads = range(weights.shape[0]), range(weights.shape[1])
    draw_attention(weights, names, out, layers=layers, heads=heads, title=title, prompt=prompt, n_before=n)
    return matplotlib.image.imread(out)[..., :3]


def tiles(folder: Path, n_layers: int, n_heads: int, n: int) -> tuple[Runs, Runs]:
    """Where the tiles of such a picture lie, by one of weights that are not numbers: rows and columns.

    Above more than one lies their mean, which is the first of the rows.
    """
    picture = draw(folder, np.full((n_layers, n_heads, n, n), np.nan))
    is_weight = np.abs(picture - BROKEN).max(axis=-1) < 0.01

    def runs(lines: NDArray[np.bool_]) -> Runs:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], lines, [False]]).astype(int)))
        return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]

    rows = runs(is_weight.any(axis=1))
    return rows, runs(is_weight[rows[-1][0] : rows[-1][1]].any(axis=0))


def centres(begin: int, end: int, n: int) -> NDArray[np.int_]:
    return (begin + (np.arange(n) + 0.5) * (end - begin) / n).astype(int)


@pytest.mark.parametrize(("n_layers", "n_heads", "n"), [(1, 1, 1), (1, 1, 14), (2, 3, 5), (4, 6, 9)])
def test_every_weight_has_its_colour(n_layers: int, n_heads: int, n: int, tmp_path: Path) -> None:
    weights = causal(n_layers, n_heads, n)
    picture = draw(tmp_path, weights)
    rows, columns = tiles(tmp_path, n_layers, n_heads, n)
    all_of_them = weights.mean((0, 1), keepdims=True)
    is_one = n_layers * n_heads == 1
    shown = [weights] if is_one else [weights, all_of_them]
    wanted, mean = (matplotlib.colormaps["magma_r"](one)[..., :3] for one in (shown[0], shown[-1]))
    for picked in (wanted, mean):
        picked[:, :, np.triu(np.ones((n, n), dtype=bool), 1)] = FUTURE
    if not is_one:
        (top, bottom), *rows = rows
        left = columns[0][0]
        panel = picture[np.ix_(centres(top, bottom, n), centres(left, left + bottom - top, n))]
        np.testing.assert_allclose(panel, mean[0, 0], atol=1.01 / 255)
    assert (len(rows), len(columns)) == (n_layers, n_heads)
    for layer, head in itertools.product(range(n_layers), range(n_heads)):
        shown = picture[np.ix_(centres(*rows[layer], n), centres(*columns[head], n))]
        np.testing.assert_allclose(shown, wanted[layer, head], atol=1.01 / 255)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1)])
def test_one_layer_or_head_alone_fills_a_grid_of_named_tiles(shape: tuple[int, int], tmp_path: Path) -> None:
    weights = causal(*shape, 5)
    picture, ((_, *rows), columns) = draw(tmp_path, weights), tiles(tmp_path, *shape, 5)
    first = tiles(tmp_path, 3, 3, 5)[1]  # of the last row, a grid of seven has one
    assert len(rows) == 3 and len(columns) == 1 and len(first) == 3
    wanted = matplotlib.colormaps["magma_r"](weights.reshape(7, 5, 5))[..., :3]
    wanted[:, np.triu(np.ones((5, 5), dtype=bool), 1)] = FUTURE
    for place, (top, bottom) in zip((0, 3, 6), rows, strict=True):
        shown = picture[np.ix_(centres(top, bottom, 5), centres(*columns[0], 5))]
        np.testing.assert_allclose(shown, wanted[place], atol=1.01 / 255)
        assert (picture[top - 24 : top - 2, columns[0][0] : columns[0][1]] < 0.6).any(), "its layer and head"


def test_heads_stand_above_layers_right_and_tokens_at_the_left_and_below(tmp_path: Path) -> None:
    picture, ((mean, *rows), columns) = draw(tmp_path, causal(2, 3, 6)), tiles(tmp_path, 2, 3, 6)

    def inked(top: int, bottom: int, left: int, right: int) -> bool:
        return bool((picture[top:bottom, left:right] < 0.6).any())

    for place, (left, right) in enumerate(columns):
        assert inked(rows[0][0] - 20, rows[0][0] - 2, left, right), "the head"
        assert not inked(rows[0][1] + 1, rows[1][0] - 1, left, right), "nothing between tiles"
        for x in centres(left, right, 6):
            assert inked(rows[1][1] + 4, rows[1][1] + 30, x - 8, x + 8), "a token below"
        assert place == 0 or not inked(rows[0][0], rows[0][1], left - 4, left)
    assert inked(mean[0] - 20, mean[0] - 2, *columns[0]), "what the mean is of"
    for y in centres(*mean, 6):
        assert inked(y - 8, y + 8, 0, columns[0][0] - 4), "a token beside each row of the mean"
    for top, bottom in rows:
        assert inked(top, bottom, columns[-1][1] + 2, columns[-1][1] + 60), "the layer"
        for y in centres(top, bottom, 6):
            assert inked(y - 8, y + 8, 0, columns[0][0] - 4), "a token beside each row"


def test_all_that_is_written_lies_in_the_picture(tmp_path: Path) -> None:
    for weights, tokens in (
        (causal(1, 1, 2), ["W" * 40, "M" * 14]),
        (causal(2, 2, 3), ["<|endoftext|>"] * 3),
    ):
        weights[0, 0, 0] = np.nan  # for the longest caption
        picture = draw(tmp_path, weights, tokens, title="W" * 99, n=1023, prompt="W" * 200)
        edges = [picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]]
        assert all((edge == 1).all() for edge in edges)
        assert picture.shape[1] < 1400, "a long title is cut"


def test_the_caption_tells_of_tokens_that_are_left_out(tmp_path: Path) -> None:
    weights = causal(1, 1, 4)
    assert not np.array_equal(draw(tmp_path, weights), draw(tmp_path, weights, n=136))


def test_the_heading_names_model_and_prompt(tmp_path: Path) -> None:
    pictures = [
        draw(tmp_path, causal(1, 2, 4), title=title, prompt=prompt)
        for title, prompt in (("", ""), ("runs/x", ""), ("runs/x", "the cat"))
    ]
    n_inked = [int((picture < 0.6).sum()) for picture in pictures]
    assert n_inked[0] < n_inked[1] < n_inked[2]


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
        draw(tmp_path, causal(1, 2, len(NASTY)), NASTY, title="".join(NASTY), prompt="".join(NASTY))


def test_a_dollar_is_a_dollar(tmp_path: Path) -> None:
    weights = causal(1, 1, 2)
    assert not np.array_equal(draw(tmp_path, weights, ["$a$", "b"]), draw(tmp_path, weights, ["a", "b"]))


@pytest.mark.parametrize(
    ("n_layers", "n_heads", "n"), [(1, 1, MOST_TOKENS), (48, 25, 6), (1, 25, 9), (48, 1, 30)]
)
def test_sizes_stay_readable_and_bounded(n_layers: int, n_heads: int, n: int, tmp_path: Path) -> None:
    rows, columns = tiles(tmp_path, n_layers, n_heads, n)
    height, width = matplotlib.image.imread(tmp_path / "out.png").shape[:2]
    assert height <= 4000 and width <= (2400 if n > 30 else 1200), "read at 1,200 pixels"
    assert min(end - begin for begin, end in [*rows, *columns]) >= max(30, n)


def test_an_old_picture_survives_a_failed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, causal(1, 1, 2))
    before = (tmp_path / "out.png").read_bytes()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", full)
    with pytest.raises(OSError, match="No space"):
        draw(tmp_path, causal(1, 1, 3))
    assert (tmp_path / "out.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
