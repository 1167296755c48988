"""Distributions drawn: boxes, a dot per class, and histograms.

Every painter fills one pair of axes with one series of a panel, as `figures` asks it
to, and returns what stands for it in a legend.
"""

from collections.abc import Sequence
from typing import Any

from vitjax.report.ink import COLOURS, INK, MUTED, PAPER
from vitjax.report.panels import Panel, Series

DASHED: dict[str, Any] = {"linewidth": 1, "linestyle": (0, (5, 3))}
"""How chance looks in every figure."""

VECTOR = 2000
"""Dots that a page holds as shapes; more are one picture, or the page grows by MBs."""


def boxes(axes: Any, panel: Panel, series: Series, before: Sequence[Series]) -> Any:
    """One box per block, beside those of the other series; stars above."""
    width = 0.8 / len(panel.series)
    shift = (len(before) - (len(panel.series) - 1) / 2) * width
    there = [row for row in series.rows if row["median"] == row["median"]]
    colour = COLOURS[series.style % len(COLOURS)]
    keys = {"med": "median", "q1": "q25", "q3": "q75"}
    keys |= {"whislo": "whisker_low", "whishi": "whisker_high"}
    drawn = axes.bxp(
        [{name: row[key] for name, key in keys.items()} for row in there],
        positions=[row["block"] + shift for row in there],
        widths=0.8 * width,
        patch_artist=True,
        showfliers=False,
        manage_ticks=False,
        boxprops={"facecolor": (colour, 0.35), "edgecolor": colour, "linewidth": 0.9},
        medianprops={"color": INK, "linewidth": 1.4, "solid_capstyle": "butt"},
        whiskerprops={"color": colour, "linewidth": 0.9},
        capprops={"color": colour, "linewidth": 0.9},
        zorder=2,
    )
    for row in there:
        if row["p_holm"] <= 0.05:  # NaN is not
            star(axes, row["block"])
    return drawn["boxes"][0] if there else None


def star(axes: Any, block: int) -> None:
    """Says above a block that its test is significant."""
    place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top"}
    axes.annotate("*", (block, 1.0), color=INK, fontsize=11, **place)


def dots(axes: Any, panel: Panel, series: Series, before: Sequence[Series]) -> Any:
    """A dot per class and block, side by side; the mean and its interval over them."""
    colour = COLOURS[series.style % len(COLOURS)]
    x, y = [], []
    for row in series.rows:
        # Multiples of the golden ratio spread any number of classes evenly.
        places = [n * 0.618034 % 1 for n in range(len(row["values"]))]
        x += [row["block"] - 0.32 + 0.64 * place for place in places]
        y += row["values"]
    axes.plot(
        *(x, y),
        linestyle="none",
        marker="o",
        color=colour,
        alpha=0.3 if len(y) <= VECTOR else 0.5,  # a picture stays dark on a dark page
        markersize=3.2 if len(y) <= VECTOR else 1.8,
        markeredgewidth=0,
        rasterized=len(y) > VECTOR,
        zorder=2,
    )
    blocks = series.column("block")
    low, high = series.column("low"), series.column("high")
    axes.vlines(blocks, low, high, color=INK, linewidth=1.2, zorder=3)
    (line,) = axes.plot(
        *(blocks, series.column("mean")),
        color=INK,
        linewidth=1.1,
        marker="D",
        markersize=4,
        markerfacecolor=colour,
        markeredgewidth=0.8,
        zorder=4,
        clip_on=False,
    )
    return line


def histogram(axes: Any, panel: Panel, series: Series, before: Sequence[Series]) -> Any:
    """Bars from one number to the next, their intervals, and the mean."""
    colour = COLOURS[series.style % len(COLOURS)]
    left = series.column("from")
    widths = [row["to"] - row["from"] + 1 for row in series.rows]
    drawn = axes.bar(
        [start - 0.5 for start in left],
        series.column("mean"),
        widths,
        align="edge",
        color=colour,
        edgecolor=PAPER,
        linewidth=0.4,
        zorder=2,
    )
    middle = [start + (width - 1) / 2 for start, width in zip(left, widths)]
    axes.vlines(
        *(middle, series.column("low"), series.column("high")),
        color=INK,
        linewidth=0.8,
        zorder=3,
    )
    axes.set_xlim(left[0] - 0.5, left[-1] + widths[-1] - 0.5)
    axes.axvline(series.rows[0]["centre"], color=INK, linewidth=1.2, zorder=3.5)
    return drawn


def named(axes: Any, panel: Panel, series: Series, before: Sequence[Series]) -> Any:
    """Horizontal bars, one below the other, each with its name in it and its number."""
    colour = COLOURS[series.style % len(COLOURS)]
    places, means = series.column("block"), series.column("mean")
    bars = axes.barh(places, means, 0.82, color=colour, alpha=0.35, zorder=2)
    low, high = series.column("low"), series.column("high")
    axes.hlines(places, low, high, color=INK, linewidth=1.2, zorder=3)
    size = min(8.5, 110 / len(places))
    look: dict[str, Any] = {"va": "center_baseline", "fontsize": size, "color": INK}
    for row, place, mean in zip(series.rows, places, means):
        axes.text(max(min(0, mean), -1) + 0.015, place, row["tick"], zorder=4, **look)
        # Correlations crowd below 1, where three digits say nothing.
        axes.text(1.02, place, f"{mean:.4f}", zorder=4, **look)
    return bars


def name_axes(axes: Any, panel: Panel, label: str) -> None:
    """Axes of `named`: the numbers run to the right, up to 1."""
    columns = [s.column(name) for s in panel.series for name in ("low", "mean")]
    lowest = min([0.0, *(v for column in columns for v in column if v == v)])
    count = max(series.rows[-1]["block"] for series in panel.series)
    axes.set_xlim(1.05 * lowest, 1.17)
    axes.set_ylim(count + 0.6, 0.4)
    axes.set_yticks([])
    axes.set_xticks([tick / 5 for tick in range(-5, 6) if tick / 5 >= 1.05 * lowest])
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.set_xlabel(label)


PAINTERS = {"boxes": boxes, "dots": dots, "histogram": histogram, "named": named}


PALE = 0.45
"""Opacity of bars that chance alone would give."""


def chance_mark(axes: Any, panel: Panel) -> Any:
    """Chance along the blocks, where it differs between them: of the first series.

    Bars have their own, pale ones beside them; they only need an entry in a legend.
    """
    if panel.stacked:
        from matplotlib.patches import Patch

        look = {"facecolor": (MUTED, PALE), "edgecolor": MUTED, "linestyle": "--"}
        return Patch(linewidth=0.6, **look)
    series = panel.series[0]
    (line,) = axes.plot(
        *(panel.x(series), series.column("chance")), color=MUTED, zorder=3.5, **DASHED
    )
    return line


KEYS = {
    "boxes": ("whisker_low", "whisker_high"),
    "dots": ("least", "most"),
    "histogram": ("mean", "high"),
    "named": ("mean",),
}


def limits(panel_list: Sequence[Panel]) -> tuple[float, float]:
    """Vertical range from zero that holds what is drawn, with room for stars."""
    values = [0.0, 0.01]
    for panel in panel_list:
        keys = KEYS[panel.drawn] + ("chance",) * (panel.drawn != "histogram")
        values += [v for s in panel.series for key in keys for v in s.column(key)]
    values = [value for value in values if value == value]
    return min(values), 1.09 * max(values)
