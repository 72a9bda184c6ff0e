"""The picture of attention: one mosaic with a tile per head, whose rows attend to its columns.

The mosaic is drawn pixel by pixel, one square per weight, so that 1,200 heads are as exact as one and
cost one `imshow`.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2cli import files
from gpt2cli.ui.plots import font_list_beside

MOST_TOKENS = 64  # that are drawn; beyond, squares and names become too small to read
_INK, _GREY, _FUTURE, _BROKEN = "#1f2933", "#616e7c", (237, 240, 242, 255), "#2ec4b6"
_DPI = 100
_LONGEST_SIDE, _LARGEST_TILE, _LARGEST_SQUARE, _GAP, _MARGIN = 3000, 1000, 40, 8, 15  # pixels
# A $ in a token is a dollar.
_FONT: dict[str, Any] = {"family": "DejaVu Sans", "parse_math": False, "usetex": False}
_LONGEST_TOKEN, _LONGEST_TITLE = 14, 60  # characters


def draw_attention(
    weights: NDArray[np.floating],
    tokens: Sequence[str],
    out: Path,
    *,
    layers: Sequence[int],
    heads: Sequence[int],
    title: str = "",
    n_before: int = 0,
) -> None:
    """Draw weights (layers, heads, T, T) of `tokens` (T) as a PNG; `out` is replaced atomically.

    `layers` and `heads` are the numbers to print, `n_before` tokens came before those drawn. One
    colour scale, 0 to 1, for all tiles.
    """
    with font_list_beside(out):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.cm import ScalarMappable
        from matplotlib.figure import Figure

    assert weights.shape == (len(layers), len(heads), len(tokens), len(tokens))
    n_layers, n_heads, n, _ = weights.shape
    square = _square(max(n_layers, n_heads), n)
    gap = max(1, round(_GAP / square))  # squares
    mosaic = _mosaic(weights, gap)
    height, width = (square * side for side in mosaic.shape[:2])
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))  # labels lie outside; saving makes room for them
    axes.imshow(mosaic, interpolation="nearest", aspect="auto")
    axes.spines[:].set_visible(False)
    rows, columns = ([i * (n + gap) for i in range(n_tiles)] for n_tiles in (n_layers, n_heads))
    _name_tokens(axes, tokens, square, rows, columns)
    _name_tiles(axes.secondary_xaxis("top").xaxis, "head", heads, columns, n)
    _name_tiles(axes.secondary_yaxis("right").yaxis, "layer", layers, rows, n)
    _write_heading(axes, title, _caption(n_before, broken=bool(np.isnan(weights).any())))
    bar = (1 + 100 / width, 1 - min(height, 320) / height, 14 / width, min(height, 320) / height)
    figure.colorbar(ScalarMappable(cmap=_colour_map()), cax=figure.add_axes(bar))
    with files.replacing_file(out) as file:
        figure.savefig(file, format="png", bbox_inches=_whole_pixels(figure))


def _square(n_tiles: int, n_tokens: int) -> int:
    """Pixels of a weight's side, `n_tiles` being those of the longer side of the mosaic."""
    tile = min(_LONGEST_SIDE // n_tiles - _GAP, _LARGEST_TILE)
    return max(min(tile // n_tokens, _LARGEST_SQUARE), 1)


def _whole_pixels(figure: Any) -> Any:
    """All that is drawn, with a margin; half a pixel would move weights of one pixel onto each other."""
    from matplotlib.transforms import Bbox

    low, high = figure.get_tightbbox().get_points() * _DPI
    return Bbox([np.floor(low - _MARGIN) / _DPI, np.ceil(high + _MARGIN) / _DPI])


def _mosaic(weights: NDArray[np.floating], gap: int) -> NDArray[np.uint8]:
    """All tiles as one picture, a pixel per weight (rows, columns, RGBA), with gaps of white between them."""
    n_layers, n_heads, n, _ = weights.shape
    tiles = _colour_map()(np.clip(weights, 0, 1), bytes=True)  # (L, H, T, T, 4)
    tiles[:, :, np.triu(np.ones((n, n), dtype=bool), 1)] = _FUTURE
    tiles = np.pad(tiles, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)], constant_values=255)
    side = n + gap
    mosaic = tiles.transpose(0, 2, 1, 3, 4).reshape(n_layers * side, n_heads * side, 4)
    return np.ascontiguousarray(mosaic[:-gap, :-gap])


def _colour_map() -> Any:
    from matplotlib import colormaps

    return colormaps["magma_r"].with_extremes(bad=_BROKEN)


def _name_tokens(
    axes: Any, tokens: Sequence[str], square: int, rows: Sequence[int], columns: Sequence[int]
) -> None:
    """Names left of the rows and below the columns; as many as fit beside one another."""
    size = min(max(square * 0.8, 9), 15)  # pixels
    names = list(enumerate(map(_token_name, tokens)))[:: math.ceil(size * 0.95 / square)]
    for axis, starts, rotation in ((axes.yaxis, rows, 0), (axes.xaxis, columns, 90)):
        places = [start + i for start in starts for i, _ in names]
        labels = [name for _ in starts for _, name in names]
        axis.set_ticks(places, labels, fontsize=size * 72 / _DPI, rotation=rotation, color=_INK, **_FONT)
        axis.set_tick_params(length=0)


def _name_tiles(axis: Any, what: str, numbers: Iterable[int], starts: Sequence[int], n: int) -> None:
    """Layers right of the mosaic and heads above it."""
    names = [f"{what} {number}" for number in numbers]
    axis.set_ticks([start + (n - 1) / 2 for start in starts], names, fontsize=10, color=_INK, **_FONT)
    axis.set_tick_params(length=0)
    axis.axes.spines[:].set_visible(False)


def _write_heading(axes: Any, title: str, caption: str) -> None:
    where: dict[str, Any] = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset pixels"}
    axes.annotate(_cut(title, _LONGEST_TITLE), xytext=(0, 62), fontsize=11, weight="bold", **where, **_FONT)
    axes.annotate(caption, xytext=(0, 26), fontsize=8, color=_GREY, linespacing=1.4, **where, **_FONT)


def _caption(n_before: int, *, broken: bool) -> str:
    cut = f"{n_before} earlier tokens are left out, and with them a part of each row."
    return (
        "Each row is a token, its columns the tokens it attends to; grey is the future.\n"
        + (cut if n_before else "Each row sums to 1.")
        + (" Turquoise is not a number." if broken else "")
    )


def _token_name(token: str) -> str:
    return _cut(token, _LONGEST_TOKEN).replace(" ", "·")


def _cut(text: str, most: int) -> str:
    """At most so many characters; what the font cannot draw, and line feeds, become <U+....>."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    drawable = get_font(findfont(FontProperties(family=_FONT["family"]))).get_charmap()
    visible = "".join(c if ord(c) in drawable and c.isprintable() else f"<U+{ord(c):04X}>" for c in text)
    return visible if len(visible) <= most else visible[: most - 1] + "…"
