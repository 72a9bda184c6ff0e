"""The picture of attention: the mean of all heads, and below it a mosaic with a tile per head.

In each tile the rows attend to the columns. Tiles are drawn pixel by pixel, one square per weight, so that
1,200 heads are as exact as one and cost one `imshow`. The picture is made to be read at 1,200 pixels.
"""

import io
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2cli import files
from gpt2cli.errors import counted
from gpt2cli.ui.console import shortened
from gpt2cli.ui.plots import font_list_beside

MOST_TOKENS = 64  # that are drawn; beyond, squares and names become too small to read
_INK, _GREY, _FUTURE, _BROKEN = "#1f2933", "#616e7c", (237, 240, 242, 255), "#2ec4b6"
_DPI = 100
# Pixels. The mosaic leaves room for names of tokens at its left and of layers at its right.
_MOSAIC_WIDTH, _MOSAIC_HEIGHT, _PANEL = 1000, 3000, 704
_LARGEST_SQUARE, _MARGIN, _TILE_NAME = 40, 15, 28
_WRAPPED_FROM = 5  # tiles in one line
_SMALLEST_NAME, _LARGEST_NAME = 11, 15  # pixels of a token's name
# A $ in a token is a dollar.
_FONT: dict[str, Any] = {"family": "DejaVu Sans", "parse_math": False, "usetex": False}
_LONGEST_TOKEN, _LONGEST_TITLE, _LONGEST_PROMPT = 14, 60, 75  # characters


def draw_attention(
    weights: NDArray[np.floating],
    tokens: Sequence[str],
    out: Path,
    *,
    layers: Sequence[int],
    heads: Sequence[int],
    title: str = "",
    prompt: str = "",
    n_before: int = 0,
) -> None:
    """Write `attention_png` to `out`, which is replaced atomically."""
    with font_list_beside(out):
        import matplotlib.figure  # noqa: F401
    picture = attention_png(
        weights, tokens, layers=layers, heads=heads, title=title, prompt=prompt, n_before=n_before
    )
    with files.replacing_file(out) as file:
        file.write(picture)


def attention_png(
    weights: NDArray[np.floating],
    tokens: Sequence[str],
    *,
    layers: Sequence[int],
    heads: Sequence[int],
    title: str = "",
    prompt: str = "",
    n_before: int = 0,
) -> bytes:
    """Weights (layers, heads, T, T) of `tokens` (T) as a PNG.

    `layers` and `heads` are the numbers to print, `title` names the model; `n_before` tokens came before
    those drawn. One colour scale, 0 to 1, for all tiles. Of more than one, the mean comes first.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert weights.shape == (len(layers), len(heads), len(tokens), len(tokens))
    n_layers, n_heads, n, _ = weights.shape
    is_one = n_layers == n_heads == 1
    # One layer or one head alone fills a grid, in which each tile bears its name.
    wraps = min(n_layers, n_heads) == 1 and max(n_layers, n_heads) >= _WRAPPED_FROM
    n_columns = math.ceil(math.sqrt(n_layers * n_heads)) if wraps else n_heads
    n_rows = math.ceil(n_layers * n_heads / n_columns)
    gap_pixels = _TILE_NAME if wraps else 8 if max(n_rows, n_columns) <= 16 else 4
    square = _square(n_rows, n_columns, n, gap_pixels)
    gap = max(1, round(gap_pixels / square))  # squares
    mosaic = _mosaic(weights.reshape(-1, n, n), n_columns, gap)
    height, width = (square * side for side in mosaic.shape[:2])
    zoom = max(1.0, width / _MOSAIC_WIDTH)  # a wider picture is shrunk to be read
    names = list(map(_token_name, tokens))
    panel = square  # of the first panel
    if not is_one:
        panel = max(round(min(_PANEL // n, _LARGEST_SQUARE) * zoom), 1)
    side = panel * n
    longest = max(map(len, names)) * 0.75 * _name_size(panel, zoom)
    between = round(longest + 70 * zoom)  # names below the mean, heads above the mosaic
    size = max(width, side), height if is_one else height + between + side
    figure = Figure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)  # labels lie outside; saving makes room for them

    axes = _show(figure, mosaic, (0, 0, width, height), size)
    rows, columns = ([i * (n + gap) for i in range(n_tiles)] for n_tiles in (n_rows, n_columns))
    if is_one or square >= _SMALLEST_NAME * zoom - 2:  # else they are read beside the mean
        _name_tokens(axes, names, square, rows, columns, zoom)
    if wraps:
        corners = [(column, row) for row in rows for column in columns]
        for (layer, head), corner in zip(itertools.product(layers, heads), corners, strict=False):
            _name_tile(axes, f"layer {layer}, head {head}", corner)
    else:
        _name_tiles(axes.secondary_xaxis("top").xaxis, "head", heads, columns, n, (n + gap) * square, zoom)
        _name_tiles(axes.secondary_yaxis("right").yaxis, "layer", layers, rows, n, math.inf, zoom)
    first = axes
    if not is_one:
        mean = _mosaic(weights.mean((0, 1))[None], 1, 1)
        first = _show(figure, mean, (0, size[1] - side, side, side), size)
        _name_tokens(first, names, panel, [0], [0], zoom)
        said = f"mean of {counted(n_layers, 'layer')} x {counted(n_heads, 'head')}"
        if n_layers == 1:
            said = f"layer {layers[0]}, mean of {counted(n_heads, 'head')}"
        elif n_heads == 1:
            said = f"head {heads[0]}, mean of {counted(n_layers, 'layer')}"
        _name_tiles(first.secondary_xaxis("top").xaxis, said, [""], [0], n, math.inf, zoom)
    _add_colour_bar(figure, (side + (90 if is_one else 16) * zoom, size[1], side), size, zoom)
    _write_heading(first, title, prompt, _caption(n_before, broken=bool(np.isnan(weights).any())), zoom)
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches=_whole_pixels(figure))
    return file.getvalue()


def _square(n_rows: int, n_columns: int, n_tokens: int, gap: int) -> int:
    """Pixels of a weight's side in the mosaic."""
    tile = _PANEL
    if max(n_rows, n_columns) > 1:
        tile = min(_MOSAIC_WIDTH // n_columns, _MOSAIC_HEIGHT // n_rows) - gap
    return max(min(tile // n_tokens, _LARGEST_SQUARE), 1)


def _show(figure: Any, picture: NDArray[np.uint8], box: tuple[float, ...], size: tuple[float, float]) -> Any:
    """Axes over a box of pixels (left, bottom, width, height) of a figure of that size, with the picture."""
    left, bottom, width, height = box
    axes = figure.add_axes((left / size[0], bottom / size[1], width / size[0], height / size[1]))
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.set(xticks=[], yticks=[])
    return axes


def _add_colour_bar(
    figure: Any, corner: tuple[float, float, float], size: tuple[float, float], zoom: float
) -> None:
    """At the right of the first panel: its left and upper edge, and its length at most."""
    from matplotlib.cm import ScalarMappable

    left, top, longest = corner
    width, length = 14 * zoom, min(longest, 320 * zoom)
    box = (left / size[0], (top - length) / size[1], width / size[0], length / size[1])
    bar = figure.colorbar(ScalarMappable(cmap=_colour_map()), cax=figure.add_axes(box))
    bar.ax.tick_params(labelsize=9 * zoom, labelcolor=_INK)


def _whole_pixels(figure: Any) -> Any:
    """All that is drawn, with a margin; half a pixel would move weights of one pixel onto each other."""
    from matplotlib.transforms import Bbox

    low, high = figure.get_tightbbox().get_points() * _DPI
    return Bbox([np.floor(low - _MARGIN) / _DPI, np.ceil(high + _MARGIN) / _DPI])


def _mosaic(weights: NDArray[np.floating], n_columns: int, gap: int) -> NDArray[np.uint8]:
    """Tiles (N, T, T) in rows as one picture, a pixel per weight (rows, columns, RGBA), with white gaps."""
    n_tiles, n, _ = weights.shape
    n_rows = -(-n_tiles // n_columns)
    tiles = _colour_map()(np.clip(weights, 0, 1), bytes=True)  # (N, T, T, 4)
    tiles[:, np.triu(np.ones((n, n), dtype=bool), 1)] = _FUTURE
    missing = n_rows * n_columns - n_tiles
    tiles = np.pad(tiles, [(0, missing), (0, gap), (0, gap), (0, 0)], constant_values=255)
    side = n + gap
    tiles = tiles.reshape(n_rows, n_columns, side, side, 4)
    mosaic = tiles.transpose(0, 2, 1, 3, 4).reshape(n_rows * side, n_columns * side, 4)
    return np.ascontiguousarray(mosaic[:-gap, :-gap])


def _colour_map() -> Any:
    from matplotlib import colormaps

    return colormaps["magma_r"].with_extremes(bad=_BROKEN)


def _name_size(square: int, zoom: float) -> float:
    """Pixels of a token's name beside squares of this size."""
    return min(max(square * 0.8, _SMALLEST_NAME * zoom), _LARGEST_NAME * zoom)


def _name_tokens(
    axes: Any, names: Sequence[str], square: int, rows: Sequence[int], columns: Sequence[int], zoom: float
) -> None:
    """Names left of the rows and below the columns; as many as fit beside one another."""
    size = _name_size(square, zoom)
    shown = list(enumerate(names))[:: math.ceil(size * 0.95 / square)]
    for axis, starts, rotation in ((axes.yaxis, rows, 0), (axes.xaxis, columns, 90)):
        places = [start + i for start in starts for i, _ in shown]
        labels = [name for _ in starts for _, name in shown]
        axis.set_ticks(places, labels, fontsize=size * 72 / _DPI, rotation=rotation, color=_INK, **_FONT)
        axis.set_tick_params(length=0)


def _name_tile(axes: Any, name: str, corner: tuple[int, int]) -> None:
    """Above a tile's upper left corner."""
    where: dict[str, Any] = {"xytext": (0, 6), "textcoords": "offset pixels", "color": _INK}
    axes.annotate(name, (corner[0] - 0.5, corner[1] - 0.5), fontsize=10, **where, **_FONT)


def _name_tiles(
    axis: Any, what: str, numbers: Iterable[object], starts: Sequence[int], n: int, room: float, zoom: float
) -> None:
    """Layers right of the mosaic and heads above it; in less room than names need, numbers and one name."""
    is_narrow = room < 62 * zoom
    names = [f"{number}" if is_narrow else f"{what} {number}".rstrip() for number in numbers]
    if is_narrow:
        axis.set_label_text(what, fontsize=10 * zoom, color=_INK, **_FONT)
    axis.set_ticks([start + (n - 1) / 2 for start in starts], names, fontsize=10 * zoom, color=_INK, **_FONT)
    axis.set_tick_params(length=0)
    axis.axes.spines[:].set_visible(False)


def _write_heading(axes: Any, title: str, prompt: str, caption: str, zoom: float) -> None:
    """The model, the prompt and how to read the picture, above its upper left corner."""
    where: dict[str, Any] = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset pixels"}
    asked = f"prompt: {_cut(prompt, _LONGEST_PROMPT)}" if prompt else ""
    for text, up, size, style in (
        (_cut(title, _LONGEST_TITLE), 92, 11, {"weight": "bold", "color": _INK}),
        (asked, 72, 10, {"color": _INK}),
        (caption, 32, 9, {"color": _GREY, "linespacing": 1.4}),
    ):
        axes.annotate(text, xytext=(0, up * zoom), fontsize=size * zoom, **style, **where, **_FONT)


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
    return shortened(visible, most)
