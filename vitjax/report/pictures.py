"""Pictures with maps beside them: what speaks for a class, patch by patch."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from vitjax.report import ink

SIGNED, POSITIVE = "RdBu_r", "viridis"
SIDE, GAP, WORDS, FOOT = 1.7, 0.12, 0.42, 0.42
"""Inches: a picture's width, the room between two, for words above it, at the foot."""

LEGEND = (
    "red: for the class, blue: against it, white: 0\n"
    "maps without a minus: dark is least, bright is most"
)


def png(
    pictures: UInt8[np.ndarray, "picture height width 3"],
    titles: Sequence[str],
    maps: Mapping[str, Float[np.ndarray, "picture row column"]],
    *,
    dpi: int = 150,
) -> bytes:
    """A grid: a row per picture, a column per method.

    A map that has negative values is drawn from blue over white (0) to red, scaled by
    its own largest magnitude; one that has none from dark (its least) to bright (its
    largest). Scaling is for the eye only: colours of two maps do not compare.

    Args:
        pictures: as the model saw them.
        titles: words above each, one or two lines.
        maps: name of the method -> its maps.
        dpi: dots per inch.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    tall = SIDE * pictures[0].shape[0] / pictures[0].shape[1]
    width = (1 + len(maps)) * (SIDE + GAP) + GAP
    height = len(pictures) * (tall + WORDS + GAP) + FOOT
    with ink.style():
        figure = Figure(figsize=(width, height))
        sheet = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        sheet.set_axis_off()
        for row, (picture, title) in enumerate(zip(pictures, titles)):
            bottom = height - (row + 1) * (tall + WORDS + GAP)
            cells = [(picture, title)]
            cells += [(coloured(values[row]), name) for name, values in maps.items()]
            for column, (image, words) in enumerate(cells):
                left = GAP + column * (SIDE + GAP)
                extent = left, left + SIDE, bottom, bottom + tall
                sheet.imshow(image, interpolation="nearest", extent=extent)
                above = bottom + tall + 0.05
                sheet.text(left, above, words, fontsize=7.5, parse_math=False)
        sheet.set(xlim=(0, width), ylim=(0, height), aspect="auto")
        sheet.text(GAP, 0.1, LEGEND, fontsize=7)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def coloured(
    values: Float[np.ndarray, "row column"],
) -> UInt8[np.ndarray, "row column 3"]:
    """A map in colours, scaled to itself; a flat or undefined one in one colour."""
    from matplotlib import colormaps

    values = np.nan_to_num(np.asarray(values, np.float64))
    if values.min() < 0:
        scaled = 0.5 + values / (2 * np.abs(values).max())
        return colormaps[SIGNED](scaled, bytes=True)[..., :3]
    spread = np.ptp(values)
    scaled = (values - values.min()) / spread if spread > 0 else 0 * values
    return colormaps[POSITIVE](scaled, bytes=True)[..., :3]
