"""Owns the picture of attention: a tile a head, rows that look at columns. It computes no weight.

Drawn in whole pixels: every weight is a square of the same size, never resampled, so that a grid
of 1,200 heads is as exact as one head. matplotlib writes the letters and knows the colours; with
a subplot for each head it would take minutes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2cli import files

MOST_TOKENS = 64  # that are drawn; beyond, squares and names become too small to read
_INK, _GREY, _HIDDEN, _BROKEN = "#1f2933", "#616e7c", (237, 240, 242, 255), "#2ec4b6"
_DPI = 100
_LONGEST_SIDE = 3000  # pixels of the tiles, unless they would be too small for their names
_LARGEST_SQUARE, _LARGEST_TILE, _SMALLEST_TILE = 40, 1000, 68  # pixels
_HEADING = 530  # pixels that the caption needs, in its longest form
_GAP, _TITLE = 8, 15  # pixels between tiles, and for the name above each
_LETTER = 0.62  # width of a letter by its height, in the font below
_FONT = "DejaVu Sans"  # comes with matplotlib
_LONGEST_NAME = 14  # letters of a token on an axis


@dataclass(frozen=True)
class _Plan:
    """Where everything lies, in pixels."""

    n_rows: int
    n_columns: int
    n_tokens: int
    square: int  # side of one weight
    left: int  # room for the names of tokens
    bottom: int
    top: int
    right: int

    @property
    def tile(self) -> int:
        return self.square * self.n_tokens

    @property
    def width(self) -> int:
        return self.left + self.n_columns * (self.tile + _GAP) + self.right

    @property
    def height(self) -> int:
        return self.top + self.n_rows * (self.tile + _TITLE + _GAP) + self.bottom

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Upper left corner of a tile, from the picture's upper left."""
        return self.left + column * (self.tile + _GAP), self.top + _TITLE + row * (self.tile + _TITLE + _GAP)

    @property
    def scale(self) -> tuple[int, int, int]:
        """Upper left corner and height of the bar of colours, right of the tiles."""
        x, y = self.corner(0, self.n_columns)
        every = self.n_rows * (self.tile + _TITLE + _GAP) - _TITLE - _GAP
        return x + 14, y, max(min(every, 320), self.tile)


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    assert weights.shape == (len(layers), len(heads), len(tokens), len(tokens))
    names = [_drawable(token) for token in tokens]
    plan = _plan(len(layers), len(heads), names)
    figure = Figure(figsize=(plan.width / _DPI, plan.height / _DPI), dpi=_DPI, facecolor="white")
    canvas: Any = FigureCanvasAgg(figure)
    write = _writer(figure, plan)
    _name_tiles(write, plan, layers, heads)
    _name_tokens(write, plan, names)
    write(plan.left, 12, _heading(title, plan), size=15, weight="bold", va="top")
    for line, text in enumerate(_caption(n_before, broken=bool(np.isnan(weights).any()))):
        write(plan.left, 34 + 15 * line, text, size=11, color=_GREY, va="top")
    _name_scale(write, plan)
    canvas.draw()
    pixels = np.array(canvas.buffer_rgba())  # (height, width, 4)
    _paint(pixels, weights, plan)
    with files.replacing_file(out) as file:
        imsave(file, pixels, format="png", dpi=_DPI)


def _heading(title: str, plan: _Plan) -> str:
    """As much of the title as there is room for; letters in bold are wider than those measured."""
    text, room = _letters(title), 0.85 * (plan.width - plan.left)
    if _text_width(text, 15) <= room:
        return text
    return next(part for n in range(len(text), 0, -1) if _text_width(part := text[:n] + "…", 15) <= room)


def _caption(n_before: int, *, broken: bool) -> tuple[str, str]:
    looks = "A row is the token that looks, a column the token it looks at; grey is the future."
    cut = f"{n_before} earlier tokens are left out, and with them a part of each row."
    return looks, (cut if n_before else "Each row sums to 1.") + (
        " Turquoise is no number." if broken else ""
    )


def _plan(n_rows: int, n_columns: int, names: Sequence[str]) -> _Plan:
    n = len(names)
    room = min(
        (_LONGEST_SIDE - n_rows * (_TITLE + _GAP)) // n_rows, (_LONGEST_SIDE - n_columns * _GAP) // n_columns
    )
    square = max(min(min(room, _LARGEST_TILE) // n, _LARGEST_SQUARE), math.floor(_SMALLEST_TILE / n), 1)
    margin = round(max(_text_width(name, _text_size(square)) for name in names)) + 16
    tiles = margin + n_columns * (square * n + _GAP)
    right = max(92, margin + _HEADING - tiles)
    return _Plan(n_rows, n_columns, n, square, left=margin, bottom=margin, top=72, right=right)


def _text_size(square: int) -> float:
    """Height of a token's name in pixels: that of its square, between legible and large."""
    return min(max(square * 0.8, 9), 15)


def _paint(pixels: NDArray[np.uint8], weights: NDArray[np.floating], plan: _Plan) -> None:
    """Put the weights and the scale where no letter stands."""
    colour_of = _colour_map()
    colours = colour_of(np.clip(weights, 0, 1), bytes=True)  # (layers, heads, T, T, 4)
    colours[:, :, np.triu(np.ones((plan.n_tokens, plan.n_tokens), dtype=bool), 1)] = _HIDDEN
    for row in range(plan.n_rows):
        for column in range(plan.n_columns):
            x, y = plan.corner(row, column)
            tile = colours[row, column].repeat(plan.square, axis=0).repeat(plan.square, axis=1)
            pixels[y : y + plan.tile, x : x + plan.tile] = tile
    x, y, height = plan.scale
    pixels[y : y + height, x : x + 14] = colour_of(np.linspace(1, 0, height), bytes=True)[:, None]


def _colour_map() -> Any:
    from matplotlib import colormaps

    return colormaps["magma_r"].with_extremes(bad=_BROKEN)


def _writer(figure: Any, plan: _Plan) -> Any:
    """A function that puts a text at pixels from the upper left, in pixels of height."""

    def write(x: float, y: float, text: str, *, size: float, color: str = _INK, **style: Any) -> None:
        figure.text(
            x / plan.width,
            1 - y / plan.height,
            text,
            fontsize=size * 72 / _DPI,
            color=color,
            family=_FONT,
            parse_math=False,  # a $ in a token is a dollar
            usetex=False,
            **style,
        )

    return write


def _name_tiles(write: Any, plan: _Plan, layers: Sequence[int], heads: Sequence[int]) -> None:
    size = min(12, plan.tile / (_LETTER * 7))  # "L47 H24"
    for row, layer in enumerate(layers):
        for column, head in enumerate(heads):
            x, y = plan.corner(row, column)
            write(x, y - 3, f"L{layer} H{head}", size=size, color=_GREY, va="bottom")


def _name_tokens(write: Any, plan: _Plan, names: Sequence[str]) -> None:
    """Names left of the first column and below the last row; some are left out where they would touch."""
    size = _text_size(plan.square)
    stride = math.ceil(size * 1.05 / plan.square)
    places = [(i * plan.square + plan.square / 2, name) for i, name in enumerate(names)][::stride]
    for row in range(plan.n_rows):
        x, y = plan.corner(row, 0)
        for offset, name in places:
            write(x - 5, y + offset, name, size=size, ha="right", va="center_baseline")
    for column in range(plan.n_columns):
        x, y = plan.corner(plan.n_rows - 1, column)
        for offset, name in places:
            below = y + plan.tile + 5
            write(
                *(x + offset, below, name),
                **{"size": size, "rotation": 90, "rotation_mode": "anchor"},
                **{"ha": "right", "va": "center_baseline"},
            )


def _name_scale(write: Any, plan: _Plan) -> None:
    x, y, height = plan.scale
    for value in (0, 0.25, 0.5, 0.75, 1):
        write(x + 20, y + (1 - value) * height, f"{value:g}", size=11, va="center")


def _drawable(token: str) -> str:
    """The name of a token: spaces as dots, cut where it is long."""
    visible = _letters(token).replace(" ", "·")
    return visible if len(visible) <= _LONGEST_NAME else visible[: _LONGEST_NAME - 1] + "…"


def _letters(text: str) -> str:
    """The text with what the font cannot draw, or would break the line with, as <U+....>."""
    known = _known_letters()
    return "".join(c if ord(c) in known and c.isprintable() else f"<U+{ord(c):04X}>" for c in text)


def _known_letters() -> frozenset[int]:
    return frozenset(_font().get_charmap())


def _text_width(text: str, size: float) -> float:
    """Pixels that a text of this height takes."""
    font = _font()
    font.set_size(size * 72 / _DPI, _DPI)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64


def _font() -> Any:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties(family=_FONT)))
