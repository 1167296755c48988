"""Curves over blocks, drawn for print (PNG) and for the page (SVG)."""

import html
import io
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vitjax.report import boxes
from vitjax.report.ink import (
    COLOURS,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    SIGNS,
    VARIABLES,
    style,
)
from vitjax.report.panels import MEASURE_LABELS, Panel

CELL = (4.1, 2.85)
MARGIN = (0.66, 0.47, 0.12, 0.34)
"""Inches: a panel with its labels; room left of, below, right of and above its axes."""


def legend(panel_list: Sequence[Panel]) -> list[dict[str, str]]:
    """What the lines of some panels mean, for the page: name, colour, sign."""
    entries = {}
    drawn = panel_list[0].drawn
    for series in (series for panel in panel_list for series in panel.series):
        colour = VARIABLES[COLOURS[series.style % len(COLOURS)]]
        line = "╌" if series.style >= len(COLOURS) else "━"
        sign = line + SIGNS[series.style % len(SIGNS)] + line
        sign = sign if drawn == "lines" else "●" if drawn == "dots" else "■"
        entries[series.name] = {"name": series.name, "colour": colour, "sign": sign}
    return list(entries.values())


def chance_text(panel_list: Sequence[Panel]) -> str:
    """The legend of the dashed lines: every chance level among some panels."""
    levels = sorted({level for panel in panel_list for level in panel.chance})
    if not levels:
        return panel_list[0].chance_name
    return "chance " + ", ".join(f"{level:.4g}" for level in levels)


def png(panel_list: Sequence[Panel], *, dpi: int = 200) -> bytes:
    """All panels as one figure for print, with a legend below."""
    from matplotlib.figure import Figure

    columns = _columns(panel_list)
    rows = -(-len(panel_list) // columns)
    names = list(dict.fromkeys(s.name for p in panel_list for s in p.series))
    names += [text] if (text := chance_text(panel_list)) else []
    width = columns * CELL[0] + 0.1
    in_a_row = _legend_columns(names, width)
    foot = 0.21 * -(-len(names) // in_a_row) + 0.12
    height = rows * CELL[1] + foot
    with style():
        figure = Figure(figsize=(width, height))
        limits, handles = _shared_limits(panel_list), {}
        for place, panel in enumerate(panel_list):
            row, column = divmod(place, columns)
            corner = CELL[0] * column, foot + CELL[1] * (rows - 1 - row)
            handles |= _draw(_axes(figure, *corner), panel, limits)
        lines: list[Any] = [handles.get(n, handles.get(None)) for n in names]
        figure.legend(lines, names, loc="lower center", ncols=in_a_row, borderpad=0.6)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _axes(figure, left, bottom):
    """Axes in a cell with this corner, in inches: solving a layout takes seconds."""
    width, height = figure.get_size_inches()
    return figure.add_axes(
        (
            (left + MARGIN[0]) / width,
            (bottom + MARGIN[1]) / height,
            (CELL[0] - MARGIN[0] - MARGIN[2]) / width,
            (CELL[1] - MARGIN[1] - MARGIN[3]) / height,
        )
    )


def _columns(panel_list) -> int:
    """One stream a row, or two rows of two: streams stay below each other."""
    most = max(Counter(panel.stream for panel in panel_list).values())
    return most if most < 4 else 2 if most == 4 else 3


def _legend_columns(names, inches) -> int:
    """As many as fit, in rows as even as possible: about 15 characters an inch."""
    widest = max(len(name) for name in names) + 7
    fit = max(1, int(15 * inches / widest))
    return -(-len(names) // -(-len(names) // fit))


def svg(panel: Panel, *, key: str, among: Sequence[Panel] = ()) -> str:
    """One panel for the page: scales with it, text in its font, colours its variables.

    Args:
        panel: what to draw.
        key: letters that no other drawing of the page uses, for its identifiers.
        among: panels that share the vertical axis.

    Returns:
        An `<svg>` element.
    """
    from matplotlib.figure import Figure

    with style(**{"svg.fonttype": "none", "svg.hashsalt": key}):
        figure = Figure(figsize=CELL)
        _draw(_axes(figure, 0, 0), panel, _shared_limits(among or [panel]))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{key}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    label = f"{MEASURE_LABELS[panel.measure]} by {panel.axis}, {panel.title}"
    label = html.escape(label)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _draw(axes, panel, limits) -> dict[str, Any]:
    """Fill one pair of axes; handles for a legend, by name."""
    from matplotlib.ticker import MaxNLocator

    handles = {}
    draw = {"lines": _line, "bars": _bars, **boxes.PAINTERS}[panel.drawn]
    for place, series in enumerate(panel.series):
        handles[series.name] = draw(axes, panel, series, panel.series[:place])
    upright = panel.drawn == "histogram"
    level_line, order = (axes.axvline, 3.5) if upright else (axes.axhline, 1.5)
    for level in panel.chance:
        handles[None] = level_line(level, color=MUTED, zorder=order, **boxes.DASHED)
    if panel.chance_name:
        handles[None] = boxes.chance_mark(axes, panel)
    # Names of runs may be long: about 44 characters fit.
    axes.set_title(panel.title, fontsize=max(5, min(9.5, 9.5 * 44 / len(panel.title))))
    if panel.drawn == "named":
        boxes.name_axes(axes, panel, MEASURE_LABELS[panel.measure])
        return handles
    axes.set_ylabel(MEASURE_LABELS[panel.measure])
    axes.set_xlabel("block / depth" if panel.relative else panel.axis)
    if panel.relative or panel.shares:
        axes.set_xlim(0, 1.03)
    elif not upright:
        axes.set_xlim(0.5, panel.depth + 0.5)
        whole = MaxNLocator(nbins=12, integer=True, min_n_ticks=1)
        axes.xaxis.set_major_locator(whole)
        if panel.depth <= 12:
            axes.set_xticks(range(1, panel.depth + 1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_ylim(*(limits or _limits([panel])))
    return handles


def _bars(axes, panel, series, below):
    """One category's part of every bar, on top of those below it."""
    colour = COLOURS[series.style % len(COLOURS)]
    bottoms, x = _bottoms(panel, below, "mean"), panel.x(series)
    low, high = (
        [b + v for b, v in zip(bottoms, series.column(key))] for key in ("low", "high")
    )
    chance = series.column("chance")
    if chance[0] == chance[0]:  # beside it, narrow and pale, what chance would give
        below_it = _bottoms(panel, below, "chance")
        look = {"facecolor": (colour, boxes.PALE), "edgecolor": MUTED}
        beside = [place + 0.33 for place in x]
        axes.bar(
            *(beside, chance, 0.2, below_it), linewidth=0.6, linestyle="--", **look
        )
        x, wide = [place - 0.1 for place in x], 0.58
    else:
        wide = 0.8
    axes.vlines(x, low, high, color=INK, linewidth=1, zorder=3)
    return axes.bar(x, series.column("mean"), wide, bottoms, color=colour, zorder=2)


def _bottoms(panel, below, key) -> list[float]:
    """Where the parts of every bar begin that stand on those below."""
    sums = [0.0] * panel.depth
    for series in below:
        sums = [total + value for total, value in zip(sums, series.column(key))]
    return sums


def _line(axes, panel, series, _):
    colour = COLOURS[series.style % len(COLOURS)]
    x, low, high = panel.x(series), series.column("low"), series.column("high")
    short = len(x) == 1  # a band has no width there
    if panel.quartiles:
        q25, q75 = series.column("q25"), series.column("q75")
        if short:
            axes.vlines(x, q25, q75, color=colour, alpha=0.25, linewidth=9)
        else:
            axes.fill_between(x, q25, q75, color=colour, alpha=0.13, linewidth=0)
    if short:
        axes.vlines(x, low, high, color=colour, linewidth=1.5)
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.32, linewidth=0)
    (line,) = axes.plot(
        x,
        series.column("mean"),
        color=colour,
        linewidth=1.6,
        linestyle="-" if series.style < len(COLOURS) else "--",
        marker=MARKERS[series.style % len(MARKERS)],
        markersize=5 if len(x) <= 16 else 3.6,
        markeredgecolor=PAPER,
        markeredgewidth=0.6,
        zorder=3,
        clip_on=False,  # whole markers at 0 and 1
    )
    return line


def _shared_limits(panel_list) -> tuple[float, float] | None:
    """Scores share their vertical range; rates differ too much between kinds."""
    alone = panel_list[0].measure == "rate"
    return None if alone else _limits(panel_list)


def _limits(panel_list) -> tuple[float, float]:
    """Vertical range that holds all lines, bands and chance levels."""
    if panel_list[0].drawn in boxes.PAINTERS:
        return boxes.limits(panel_list)
    keys = ["mean", "low", "high"] + ["q25", "q75"] * panel_list[0].quartiles
    values = [
        v for p in panel_list for s in p.series for k in keys for v in s.column(k)
    ]
    values += [level for panel in panel_list for level in panel.chance]
    values = [v for v in values if v == v]
    if panel_list[0].stacked:
        sums = [
            sum(s.column("mean")[i] for s in p.series)
            for p in panel_list
            for i in range(p.depth)
        ]
        return 0.0, max(1.0, *sums) * 1.02
    if panel_list[0].fitted:
        low, high = min(0.0, *values), max(0.01, *values)
        return low - 0.04 * (low < 0) * (high - low), high + 0.06 * (high - low)
    if panel_list[0].measure == "rate":
        top = max(max(values) * 1.08, 2 * min(panel_list[0].chance))
        return 0.0, min(1.03, top)
    bottom = 0.0 if panel_list[0].quartiles else int(10 * min(values)) / 10
    return bottom, 1.03
