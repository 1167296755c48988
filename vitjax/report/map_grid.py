"""A grid of images with words above each, such as explanation maps beside a photo."""

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from vitjax.report.marks import settings

SIGNED, POSITIVE = "RdBu_r", "viridis"
"""Color maps of values around 0 and of values from 0."""

GAP, BAR, LINE = 0.12, 0.85, 0.13
"""Inches: the space between two images, for a color bar, and for a line of text."""

LEGEND = (
    "red: evidence for the class; blue: against it; white: 0\n"
    "maps without negative values: dark is lowest, bright is highest"
)


class Png(bytes):
    """A PNG file that a notebook shows."""

    def _repr_png_(self) -> bytes:
        return bytes(self)


def png(
    images: Iterable[UInt8[np.ndarray, "height width 3"]],
    titles: Sequence[str],
    maps: Mapping[str, Float[np.ndarray, "image row column"]],
    *,
    dpi: int = 150,
) -> Png:
    """Draw a row per image and a column per method.

    Each map is scaled by itself (`to_colors`): colors of two maps do not compare.
    """
    rows = [
        [(image, title), *((to_colors(one), name) for name, one in zip(maps, values))]
        for image, title, values in zip(images, titles, zip(*maps.values()))
    ]
    return grid_png(rows, legend=LEGEND, dpi=dpi)


def grid_png(
    rows: Sequence[Sequence[tuple[np.ndarray, str]]],
    *,
    legend: str,
    side: float = 1.7,
    bar_label: str = "",
    dpi: int = 150,
) -> Png:
    """Draw rows of (image, words above it).

    Images are `side` inches wide; with a label for it, a color bar from 0 to 1 stands
    to the right.
    """
    from matplotlib import cm, colors
    from matplotlib.figure import Figure

    heights = [side * row[0][0].shape[0] / row[0][0].shape[1] for row in rows]
    columns = max(len(row) for row in rows)
    width = columns * (side + GAP) + GAP + BAR * bool(bar_label)
    letters = int(16 * width)  # that fit into a line
    legend = "\n".join(textwrap.fill(line, letters) for line in legend.split("\n"))
    lines = max(text.count("\n") + 1 for row in rows for _, text in row)
    words, foot = LINE * lines + 0.09, LINE * (legend.count("\n") + 1) + 0.15
    height = sum(heights) + len(rows) * (words + GAP) + foot
    with settings():
        figure = Figure(figsize=(width, height))
        # One pair of axes, in inches: fifty of them would take seconds.
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        bottom = height
        for row, tall in zip(rows, heights):
            bottom -= words + tall
            for column, (image, text) in enumerate(row):
                left = GAP + (side + GAP) * column
                extent = left, left + side, bottom, bottom + tall
                axes.imshow(image, interpolation="nearest", extent=extent)
                axes.text(left, bottom + tall + 0.05, text, fontsize=7)
            bottom -= GAP
        axes.set(xlim=(0, width), ylim=(0, height), aspect="auto")
        axes.text(GAP, 0.08, legend, fontsize=7, va="bottom")
        if bar_label:
            tall = min(4.0, height - words - GAP - foot)
            left, low = width - BAR + GAP, height - words - tall
            box = left / width, low / height, GAP / width, tall / height
            scale = cm.ScalarMappable(colors.Normalize(0, 1), POSITIVE)
            bar = figure.colorbar(scale, cax=figure.add_axes(box))
            bar.set_label(bar_label)
            bar.outline.set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
    return Png(buffer.getvalue())


def to_colors(
    values: Float[np.ndarray, "row column"],
) -> UInt8[np.ndarray, "row column 3"]:
    """Color a map by its own scale; a constant or undefined map has one color.

    With negative values: blue, white (0), red, up to the largest magnitude. Without:
    dark (lowest) to bright (highest).
    """
    from matplotlib import colormaps

    values = np.nan_to_num(np.asarray(values, np.float64))
    low, high, name = values.min(), values.max(), POSITIVE
    if low < 0:
        high, name = np.abs(values).max(), SIGNED
        low = -high
    scaled = (values - low) / ((high - low) or 1)
    return colormaps[name](scaled, bytes=True)[..., :3]
