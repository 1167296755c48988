"""Marks, colors and matplotlib settings of figures.

A mark draws all series of one panel, name -> rows in order, into axes, and returns what
stands for each in a legend.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # pandas has no stubs, and what it infers is often wrong
    Frame: TypeAlias = Any
else:
    Frame = pd.DataFrame

Series = Mapping[str, Frame]
Handles = dict[str, Any]

SIGNED, POSITIVE = "RdBu_r", "viridis"
"""Color maps of values around 0 and of values from 0."""

SERIES = {
    "blue": ("#1f6fc4", "#6cb0ff"),
    "vermilion": ("#c75109", "#ff9a5c"),
    "green": ("#0b8060", "#45c79c"),
    "purple": ("#a5378f", "#e68bd2"),
    "ochre": ("#8c6d00", "#d9b84a"),
    "indigo": ("#5750c9", "#aaa5ff"),
    "crimson": ("#b3263d", "#ff8494"),
    "slate": ("#4f6b75", "#a3b7c0"),
}
"""On a light and a dark page: distinct for the color-blind, contrast 4.5 : 1."""

COLORS, DARK = zip(*SERIES.values())
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, MUTED, GRID, PAPER = "#1b1f24", "#5d6670", "#dfe3e8", "#fefeff"

VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{color: f"var(--series-{i})" for i, color in enumerate(COLORS)},
}
"""Color in print -> variable of the page, which differs in light and dark."""


def settings(**more: Any) -> AbstractContextManager:
    """A context with the settings that all figures share, and more."""
    from matplotlib import rc_context

    shared: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": INK,
        "text.parse_math": False,  # names of runs may hold a dollar
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.facecolor": "none",
        "axes.linewidth": 0.7,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    return rc_context(shared | more)


KIND_STYLES = {"cls": 0, "image": 1, "register": 5, "object": 3, "context": 2}
"""Kind of tokens -> its number among colors and markers, in figures of a single run."""

DASHED: dict[str, Any] = {"linewidth": 1, "linestyle": (0, (5, 3))}
"""How chance looks in every figure."""

PALE = 0.45
"""Opacity of bars that chance alone would give."""

MANY_DOTS = 2000
"""More dots become an image within an SVG, or a page grows by megabytes."""


CROWD = 5
"""More lines in one panel have pale bands and fewer markers."""


def color(rows: Frame) -> str:
    """The color of a series."""
    return COLORS[rows["style"].iloc[0] % len(COLORS)]


def line(axes: Any, series: Series, figure: Any) -> Handles:
    """A line through the means with the band of their intervals."""
    handles, crowded = {}, len(series) > CROWD
    for name, rows in series.items():
        shade, kind = color(rows), rows["style"].iloc[0]
        look = {"alpha": 0.08 if crowded else 0.32, "linewidth": 0}
        x, every = rows[figure.x], 1
        if crowded and len(x) > 2 * CROWD:
            every = (kind % CROWD, CROWD)  # markers apart from those of other lines
        draw = axes.fill_between
        if len(x) == 1:  # a band has no width there
            draw, look = axes.vlines, {"alpha": 0.64, "linewidth": 1.5}
        draw(x, rows["low"], rows["high"], color=shade, **look)
        (handles[name],) = axes.plot(
            x,
            rows["mean"],
            color=shade,
            linewidth=1.6,
            linestyle="-" if kind < len(COLORS) else "--",
            marker=MARKERS[kind % len(MARKERS)],
            markersize=5 if len(x) <= 16 else 3.6,
            markevery=every,
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
            zorder=3,
            clip_on=False,  # whole markers at 0 and 1
        )
    return handles


def stacked(axes: Any, series: Series, figure: Any) -> Handles:
    """Bars on top of each other; beside them, pale, what chance would give."""
    handles, bottom, chance_bottom = {}, 0.0, 0.0
    for name, rows in series.items():
        x = rows[figure.x].to_numpy()
        mean, chance = rows["mean"].to_numpy(), rows["chance"].to_numpy()
        center, width = x, 0.8
        if np.isfinite(chance).all():
            center, width = x - 0.1, 0.58
            axes.bar(
                x + 0.33,
                chance,
                0.2,
                chance_bottom,
                facecolor=(color(rows), PALE),
                edgecolor=MUTED,
                linewidth=0.6,
                linestyle="--",
            )
            chance_bottom = chance_bottom + chance
        look = {"color": color(rows), "zorder": 2}
        handles[name] = axes.bar(center, mean, width, bottom, **look)
        low, high = bottom + rows["low"], bottom + rows["high"]
        axes.vlines(center, low, high, color=INK, linewidth=1, zorder=3)
        bottom = bottom + mean
    return handles


BOX_COLUMNS = {
    "med": "median",
    "q1": "q25",
    "q3": "q75",
    "whislo": "whisker_low",
    "whishi": "whisker_high",
}
"""What matplotlib says of a box -> its column."""


def boxes(axes: Any, series: Series, figure: Any) -> Handles:
    """Box plots side by side; a star where the corrected p-value is at most 0.05."""
    handles, width = {}, 0.8 / len(series)
    for place, (name, rows) in enumerate(series.items()):
        shade = color(rows)
        present = rows[rows["median"].notna()]
        if present.empty:
            continue
        stats = present.rename(columns={v: k for k, v in BOX_COLUMNS.items()})
        parts = axes.bxp(
            stats.to_dict("records"),
            positions=present[figure.x] + (place - (len(series) - 1) / 2) * width,
            widths=0.8 * width,
            patch_artist=True,
            showfliers=False,
            manage_ticks=False,
            boxprops={"facecolor": (shade, 0.35), "edgecolor": shade, "linewidth": 0.9},
            medianprops={"color": INK, "linewidth": 1.4, "solid_capstyle": "butt"},
            whiskerprops={"color": shade, "linewidth": 0.9},
            capprops={"color": shade, "linewidth": 0.9},
            zorder=2,
        )
        handles[name] = parts["boxes"][0]
        for x in present[figure.x][present["p_holm"] <= 0.05]:
            where = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top"}
            axes.annotate("*", (x, 1.0), color=INK, fontsize=11, **where)
    return handles


def dots(axes: Any, series: Series, figure: Any) -> Handles:
    """A dot for every row; a line through their means."""
    handles = {}
    for name, rows in series.items():
        # Multiples of the golden ratio spread any number of dots evenly.
        shift = rows.groupby(figure.x).cumcount() * 0.618034 % 1 - 0.5
        many = len(rows) > MANY_DOTS
        axes.plot(
            rows[figure.x] + 0.64 * shift,
            rows["mean"],
            linestyle="none",
            marker="o",
            color=color(rows),
            alpha=0.5 if many else 0.3,  # an image stays dark on a dark page
            markersize=1.8 if many else 3.2,
            markeredgewidth=0,
            rasterized=many,
            zorder=2,
        )
        means = rows.groupby(figure.x)["mean"].mean()
        (handles[name],) = axes.plot(
            means, color=INK, marker="D", markerfacecolor=color(rows), zorder=4
        )
    return handles


def histogram(axes: Any, series: Series, figure: Any) -> Handles:
    """Bars over ranges of whole numbers with intervals; a line at the mean number."""
    handles = {}
    for name, rows in series.items():
        left, width = rows["from"], rows["to"] - rows["from"] + 1
        handles[name] = axes.bar(
            left - 0.5,
            rows["mean"],
            width,
            align="edge",
            color=color(rows),
            edgecolor=PAPER,
            linewidth=0.4,
            zorder=2,
        )
        middle = left + (width - 1) / 2
        axes.vlines(middle, rows["low"], rows["high"], color=INK, linewidth=0.8)
        axes.set_xlim(left.iloc[0] - 0.5, rows["to"].iloc[-1] + 0.5)
        number = rows["mean_number"].iloc[0]
        axes.axvline(number, color=INK, linewidth=1.2, zorder=3.5)
    return handles


def grid(axes: Any, series: Series, figure: Any) -> Handles:
    """A cell for every block and column, the larger the number the fuller its color.

    Series differ in sign; a dot stands where the interval does not hold 0.
    """
    from matplotlib.patches import Patch

    handles, means = {}, figure.data["mean"]
    scale = max(rows["mean"].abs().max() for rows in series.values())
    if figure.share_y:
        scale = means.abs().max()
    for name, rows in series.items():
        shade, x, layer = color(rows), rows[figure.x], rows["layer"]
        shares = rows["mean"].abs() / (scale or 1)
        fills = [(shade, share) for share in shares]
        axes.bar(x, 1, 1, layer - 0.5, color=fills, rasterized=len(rows) > MANY_DOTS)
        sure = (rows["low"] > 0) | (rows["high"] < 0)
        look = {"linestyle": "none", "marker": ".", "markersize": 3, "color": INK}
        axes.plot(x[sure], layer[sure], **look)
        handles[name] = Patch(facecolor=shade)
    signs = {1: (means >= 0).any(), -1: (means < 0).any()}
    shades = {sign: COLORS[sign < 0] for sign, present in signs.items() if present}
    color_bar(axes, scale, shades, figure.bar_label)
    return handles


STEPS = 24
"""Cells of one sign in a color bar."""


def color_bar(axes: Any, scale: float, shades: Mapping[int, str], label: str) -> None:
    """Draw what the colors of cells stand for, to their right; sign -> color."""
    bar = axes.inset_axes((1.05, 0, 0.05, 1))
    share = (np.arange(STEPS) + 0.5) / STEPS
    for sign, shade in shades.items():
        fills = [(shade, one) for one in share]
        bar.barh(sign * share, 1, 1 / STEPS, color=fills, linewidth=0)
    ends = [sign * (sign in shades) for sign in (-1, 1)]
    bar.set(xlim=(0, 1), ylim=ends, xticks=[], yticks=sorted({0, *ends}))
    bar.set_yticklabels([f"{tick * scale:.2g}" for tick in sorted({0, *ends})])
    bar.yaxis.tick_right()
    bar.set_ylabel(label, fontsize=8)
    bar.yaxis.set_label_position("right")
    bar.grid(visible=False)
    bar.spines[:].set_visible(False)


def swatch(handle: Any) -> str:
    """What stands for a series in the legend of a page."""
    from matplotlib.colors import to_hex, to_rgba
    from matplotlib.lines import Line2D
    from matplotlib.markers import MarkerStyle

    if not isinstance(handle, Line2D):
        patch = getattr(handle, "patches", [handle])[0]
        *_, alpha = to_rgba(patch.get_facecolor())
        shade = VARIABLES[to_hex(patch.get_facecolor())]
        look = f'fill="{shade}" fill-opacity="{alpha:.2g}" stroke="{shade}"'
        shape = f'<rect x="6" y="1.5" width="16" height="9" {look}/>'
    else:
        shade = VARIABLES[to_hex(handle.get_color())]
        dashes = ' stroke-dasharray="6 3"' if handle.is_dashed() else ""
        line = f'stroke="{shade}" stroke-width="2"{dashes}'
        shape = f'<line x1="0" y1="6" x2="28" y2="6" {line}/>'
        marker = handle.get_marker()
        if marker in MARKERS:
            style = MarkerStyle(marker)
            path = style.get_path().transformed(style.get_transform())
            points = np.asarray(path.to_polygons()[0])
            face = VARIABLES[to_hex(handle.get_markerfacecolor())]
            corners = " ".join(f"{14 + 8 * x:.1f},{6 - 8 * y:.1f}" for x, y in points)
            shape += f'<polygon points="{corners}" fill="{face}"/>'
    return f'<svg class="key" viewBox="0 0 28 12" aria-hidden="true">{shape}</svg>'


MARKS = {
    "line": (line, ["mean", "low", "high", "chance"]),
    "stacked": (stacked, []),
    "boxes": (boxes, ["whisker_low", "whisker_high", "chance"]),
    "dots": (dots, ["mean", "chance"]),
    "histogram": (histogram, ["mean", "high"]),
    "grid": (grid, []),
}
"""Mark -> (how it is drawn, columns that the vertical axis holds)."""


def chance_along(axes: Any, rows: Frame, figure: Any) -> Any:
    """Chance that differs along the axis: a line, or the legend of pale bars."""
    if figure.mark == "stacked":
        from matplotlib.patches import Patch

        look = {"facecolor": (MUTED, PALE), "edgecolor": MUTED, "linestyle": "--"}
        return Patch(linewidth=0.6, **look)
    chance = rows.groupby(figure.x)["chance"].mean()
    (handle,) = axes.plot(chance, color=MUTED, zorder=3.5, **DASHED)
    return handle
