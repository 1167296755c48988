"""Figures, tables and sections: what a report consists of.

A figure is a table in long form with a mark; it writes itself as PNG, SVG, CSV and
HTML, and a notebook shows it. A mark draws all series of one panel, name -> rows in
order, into axes, and returns what stands for each in a legend. Whatever a run says in
text is escaped here.
"""

import base64
import dataclasses
import functools
import html
import io
import re
import textwrap
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgba
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from vitjax.report.per_image import Frame, Run, interval_of, mean

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
        "pdf.fonttype": 42,
    }
    return rc_context(shared | more)


class Canvas(matplotlib.figure.Figure):
    """A drawing in the style of all figures that a notebook shows."""

    def savefig(self, *args: Any, **options: Any) -> None:
        with settings():
            super().savefig(*args, **options)

    def content(self, **options: Any) -> bytes:
        """Its file."""
        buffer = io.BytesIO()
        self.savefig(buffer, **options)
        return buffer.getvalue()

    def png(self, dpi: float | int | str = "figure") -> bytes:
        """Its pixels, compressed nearly as far in two thirds of the time."""
        options = {"pil_kwargs": {"compress_level": 4}}
        return self.content(format="png", dpi=dpi, **options)

    def _repr_png_(self) -> bytes:
        return self.png()


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
    rows: Frame = pd.concat(series.values())
    means = figure.data["mean"]
    scale = means.abs().max() or 1
    shape = rows["layer"].max() + 1, rows[figure.x].max() + 1
    cells = np.full(shape, np.nan)
    cells[rows["layer"], rows[figure.x]] = rows["mean"]
    positive, negative = COLORS[:2]
    steps = ((negative, 1), (negative, 0), (positive, 0), (positive, 1))
    colors = list(zip((0, 0.5, 0.5, 1), steps))
    mesh = axes.pcolormesh(
        *(np.arange(count + 1) - 0.5 for count in shape[::-1]),
        cells,
        cmap=LinearSegmentedColormap.from_list("signs", colors, N=STEPS),
        vmin=-scale,
        vmax=scale,
        rasterized=cells.size > MANY_DOTS,
    )
    sure = rows[(rows["low"] > 0) | (rows["high"] < 0)]
    look = {"linestyle": "none", "marker": ".", "markersize": 3, "color": INK}
    axes.plot(sure[figure.x], sure["layer"], **look)
    bar = axes.figure.colorbar(
        mesh,
        cax=axes.inset_axes((1.05, 0, 0.05, 1)),
        ticks=[-scale, 0, scale],
        format="%.2g",
    )
    bar.set_label(figure.bar_label, fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.set_ylim(-scale * (means < 0).any(), scale * (means >= 0).any())
    return {name: Patch(facecolor=color(own)) for name, own in series.items()}


STEPS = 48
"""Cells of a color bar, half of them for either sign."""


def swatch(handle: Any) -> str:
    """What stands for a series in the legend of a page."""
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


CELL = (3.6, 2.4)
MARGIN = (0.66, 0.47, 0.12, 0.14)
TITLE, TITLE_LETTERS = 0.2, 40
BAR = 0.6
"""Inches: a panel with its labels; room left of, below, right of and above its axes,
for a line of its title, of so many letters, and for a color bar.
"""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Numbers of a report, in a file named `key`.

    `shown` is what people read, with headings as columns, by default `data`; a column
    `run` is left out where there is a single one.
    """

    key: str
    title: str
    caption: str
    data: Frame
    shown: Frame | None = None

    def csv(self) -> str:
        """All its numbers."""
        return to_csv(self.data)

    def html(self) -> str:
        """The table with its caption and a link to its CSV; fractions as `number`."""
        shown = self.data if self.shown is None else self.shown
        if "run" in shown and shown["run"].nunique() == 1:
            shown = shown.drop(columns="run")
        shown = shown.rename_axis(columns=None)  # a pivot's would be one more column
        table = shown.to_html(
            classes="numbers", index=False, border=0, na_rep="–", float_format=number
        )
        caption = f"{csv_link(self)}. {html.escape(self.caption)}"
        return f'<div class="scroll">{table}</div><p class="muted">{caption}</p>'


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Figure:
    """A table in long form and how it is drawn, in files named `key`.

    Rows, at least one, hold the columns named below, `panel`, `series`, `chance`, what
    the mark draws, and `style`: which color and marker, modulo their number.
    """

    key: str
    title: str
    caption: str
    data: Frame
    y_label: str
    see: str = ""
    """What to look for: a sentence above the figure; the caption stands below."""
    mark: str = "line"
    """How rows are drawn, a key of `MARKS`."""
    x: str = "layer"
    x_label: str = "block"
    chance_label: str = ""
    """If chance differs along the horizontal axis, and is not one level: its legend."""
    share_y: bool = True
    bar_label: str = ""
    """What the color of a `grid` says."""
    hidden: Sequence[str] = ("style",)
    """Columns that are drawn and are not in the CSV."""

    def panels(self) -> dict[str, Frame]:
        """Title -> rows of each pair of axes, those of each run unless it is a line."""
        runs = self.data["run"]
        if runs.nunique() == 1 or (self.data["series"] == runs).all():
            titles = self.data["panel"]
        else:
            titles = self.data["panel"] + " (" + runs + ")"
        return dict(list(self.data.groupby(titles, sort=False)))

    def series(self, rows: Frame) -> dict[str, Frame]:
        """Name -> rows of each series."""
        return {str(name): line for name, line in rows.groupby("series", sort=False)}

    def csv(self) -> str:
        """All its numbers."""
        return to_csv(self.data.drop(columns=list(self.hidden)))

    def png(self, *, dpi: int = 200) -> bytes:
        """The drawing for print."""
        return self._drawing[0].png(dpi)

    def svg(self) -> str:
        """The drawing as an element of a page, with its font and its colors."""
        options = {"transparent": True, "metadata": {"Date": None}}
        with settings(**{"svg.fonttype": "none", "svg.hashsalt": self.key}):
            text = self._drawing[0].content(format="svg", **options).decode()
        text = text[text.index("<svg") :]
        text = re.sub("(?s)<(metadata|style).*?</\\1>", "", text)
        text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{self.key}-", text)
        text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
        for color, variable in VARIABLES.items():
            text = text.replace(color, variable)
        return text.replace("<svg", f"<svg {self._role(', '.join(self.panels()))}", 1)

    def html(self) -> str:
        """The figure for a page: panels that stand below each other where it is
        narrow, their legend, and a link to the CSV.
        """
        drawing, (_, handles, boxes) = self.svg(), self._drawing
        # Indentation tells the axes from what they hold; the first defines all clips.
        axes = re.findall(r'(?ms)^  <g id="[^"]*axes_\d+">.*?^  </g>', drawing)
        axes[0] += "".join(re.findall("(?ms)^ <defs>.*?^ </defs>", drawing))
        panels = [
            f'<svg {self._role(title)} viewBox="{box}">{shapes}</svg>'
            for title, box, shapes in zip(self.panels(), boxes, axes)
        ]
        legend = [
            f"<li>{swatch(handle)} {html.escape(name)}</li>"
            for name, handle in handles.items()
        ]
        return self._frame(
            f'<div class="panels" style="--columns: {columns_of(len(panels))}">'
            f'{"".join(panels)}</div><ul class="legend">{"".join(legend)}</ul>',
            csv_link(self),
        )

    def _role(self, what: str) -> str:
        """Attributes that say what a drawing shows."""
        label = html.escape(f"{self.y_label} by {self.x_label}: {what}")
        return f'role="img" aria-label="{label}"'

    def _frame(self, body: str, source: str) -> str:
        """The element of a page: what to look for, the figure, its caption."""
        return (
            f"<figure>{paragraph(self.see)}{body}<figcaption>"
            f"<p>{html.escape(self.caption)} {source}</p></figcaption></figure>"
        )

    def __repr__(self) -> str:
        return f"Figure({self.key!r}: {self.title})"

    def _repr_html_(self) -> str:
        png = self.png(dpi=144)
        width = int.from_bytes(png[16:20], "big") * 96 // 144
        title, caption = html.escape(self.title), html.escape(self.caption)
        return (
            f"<figure><b>{title}</b><br>{paragraph(self.see)}"
            f'<img alt="{title}" src="{data_url(png)}" '
            f'style="width:{width}px;max-width:100%;height:auto">'
            f'<figcaption style="max-width:50rem">{caption}</figcaption></figure>'
        )

    @functools.cached_property
    def _drawing(self) -> tuple[Canvas, Handles, list[str]]:
        """The drawing with titles and a legend, what that explains, and the `viewBox`
        of each panel.
        """
        panels = self.panels()
        columns = columns_of(len(panels))
        names = [*filter(None, [*self.series(self.data), self._chance_text])]
        titles = [textwrap.fill(title, TITLE_LETTERS) for title in panels]
        wide, tall = CELL[0], CELL[1] + TITLE * (1 + max(t.count("\n") for t in titles))
        width = columns * wide + 0.1
        # About 15 characters an inch, in lines as even as possible.
        fit = max(1, int(15 * width / (max(map(len, names)) + 7)))
        lines = -(-len(names) // fit)
        height = tall * -(-len(panels) // columns) + 0.21 * lines + 0.12
        handles, boxes = {}, []
        with settings():
            canvas = Canvas(figsize=(width, height))
            for place, (title, data) in enumerate(zip(titles, panels.values())):
                x, y = wide * (place % columns), tall * (place // columns)
                boxes.append(" ".join(f"{72 * size:g}" for size in (x, y, wide, tall)))
                # Axes in inches: solving a layout takes seconds.
                left, bottom = x + MARGIN[0], height - y - tall + MARGIN[1]
                room, high = (CELL[i] - MARGIN[i] - MARGIN[i + 2] for i in (0, 1))
                room -= BAR * (self.mark == "grid")
                box = left / width, bottom / height, room / width, high / height
                axes = canvas.add_axes(box)
                handles |= self._draw(axes, data)
                axes.set_title(title)
            handles = {name: handles[name] for name in names if name in handles}
            canvas.legend(
                handles.values(),
                handles,
                loc="lower center",
                ncols=-(-len(handles) // lines),
                borderpad=0.6,
            )
        return canvas, handles, boxes

    @property
    def _chance_text(self) -> str:
        """What the legend says of chance; empty without any."""
        levels = sorted(self.data["chance"].dropna().unique())
        text = "chance " + ", ".join(f"{level:.4g}" for level in levels)
        return self.chance_label or (text if levels else "")

    def _draw_chance(self, axes: Any, rows: Frame) -> Handles:
        """Dashed lines, at levels or along the axis; pale bars have a legend alone."""
        if self.mark == "stacked" and self.chance_label:
            look = {"facecolor": (MUTED, PALE), "edgecolor": MUTED, "linestyle": "--"}
            handles = [Patch(linewidth=0.6, **look)]
        elif self.chance_label:
            chance = rows.groupby(self.x)["chance"].mean()
            handles = axes.plot(chance, color=MUTED, zorder=3.5, **DASHED)
        else:  # a level for each number of classes
            upright = self.mark == "histogram"
            draw, order = (axes.axvline, 3.5) if upright else (axes.axhline, 1.5)
            levels = sorted(map(float, rows["chance"].dropna().unique()))
            look = {"color": MUTED, "zorder": order, **DASHED}
            handles = [draw(level, **look) for level in levels]
        return {self._chance_text: handles[-1]} if handles else {}

    def _draw(self, axes: Any, rows: Frame) -> Handles:
        """Fill one pair of axes; handles of a legend by name."""
        handles = MARKS[self.mark][0](axes, self.series(rows), self)
        handles |= self._draw_chance(axes, rows)
        axes.set(xlabel=self.x_label, ylabel=self.y_label)
        if self.mark == "grid":
            for axis in (axes.xaxis, axes.yaxis):  # a locator belongs to one axis
                axis.set_major_locator(MaxNLocator(nbins=12, integer=True))
            axes.set_xlim(-0.5, rows[self.x].max() + 0.5)
            axes.set_ylim(rows["layer"].max() + 0.5, -0.5)
            axes.grid(visible=False)
            return handles
        if self.x == "layer":
            axes.set_xlim(-0.5, rows["layer"].max() + 0.5)
            whole = MaxNLocator(nbins=12, integer=True, min_n_ticks=1)
            axes.xaxis.set_major_locator(whole)
        elif self.mark != "histogram":
            axes.set_xlim(0, 1.03)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.set_ylim(*self._limits(self.data if self.share_y else rows))
        return handles

    def _limits(self, rows: Frame) -> tuple[float, float]:
        """Vertical range from zero that holds all that is drawn, and a margin."""
        if self.mark == "stacked":
            sums = rows.groupby(["panel", "run", self.x], sort=False)["mean"].sum()
            return 0.0, 1.02 * max(1.0, sums.max())
        values = rows[MARKS[self.mark][1]].stack().dropna()
        low, high = min(0.0, values.min()), max(0.01, values.max())
        return low - 0.04 * (low < 0) * (high - low), high + 0.08 * (high - low)


def columns_of(panels: int) -> int:
    """In how many columns panels stand."""
    return panels if panels < 4 else 2 if panels == 4 else 3


def paragraph(text: str) -> str:
    """An element of a page, none of an empty text."""
    return f"<p>{html.escape(text)}</p>" if text else ""


def number(value: float) -> str:
    """A fraction as people read it."""
    if value != value:
        return "–"
    fine = 0 < abs(value) < 0.01 or 0.99 < value < 1
    return f"{value:.{4 if fine else 3}f}".replace("-", "−")


def quote(values: Mapping[str, Any], *, unit: str = " %", mean: str = "mean") -> str:
    """A mean in the usual form, of a fraction 82.5 % (95 % CI 70.0 to 92.5, n = 40).

    `values` holds it, its interval (MEAN_low and MEAN_high, or low and high) and the
    number of images.
    """
    scale = 100 if unit in (" %", " points") else 1
    ends = [scale * float(values[name]) for name in with_ends(values, mean)]
    digits = 1 if scale > 1 else 2 if max(map(abs, ends)) > 1 else 3
    center, low, high = (f"{end:.{digits}f}".replace("-", "−") for end in ends)
    interval = f"95 % CI {low} to {high}, " if ends[1] == ends[1] else ""
    return f"{center}{unit} ({interval}n = {int(values['images']):,})"


def with_ends(names: Container[str], mean: str) -> list[str]:
    """The name of a mean and of the ends of its interval."""
    prefix = f"{mean}_" if f"{mean}_low" in names else ""
    return [mean, f"{prefix}low", f"{prefix}high"]


def most(
    values: Float[np.ndarray, "image layer column"],
    *,
    shares: bool = True,
    unit: str = " %",
) -> tuple[int, int, str]:
    """Block and column of the largest mean, and it in the usual form."""
    means = np.nan_to_num(mean(values), nan=-np.inf)
    layer, column = map(int, np.unravel_index(means.argmax(), means.shape))
    interval = interval_of(values[:, layer, column], shares=shares)
    return layer, column, quote(interval, unit=unit)


def with_interval(rows: Frame, mean: str) -> list[str]:
    """A column of means with their intervals, as people read them."""
    columns = rows[with_ends(rows, mean)]
    return [
        number(value) + (f" [{number(low)}, {number(high)}]" if low == low else "")
        for value, low, high in columns.itertuples(index=False)
    ]


def to_csv(data: Frame) -> str:
    """Rows as CSV; missing numbers are left empty."""
    return data.to_csv(index=False, float_format="%.8g", lineterminator="\n")


def data_url(content: bytes, kind: str = "image/png") -> str:
    """A file within a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def csv_link(item: Table | Figure) -> str:
    """A link that saves KEY.csv from within the page."""
    url, name = data_url(item.csv().encode(), "text/csv"), f"{item.key}.csv"
    return f'<a download="{name}" href="{url}">{name}</a>'


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """A part of the page; its sentences stand at the beginning of the page."""

    key: str
    title: str
    sentences: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


Rows = Iterator[Frame]
"""The rows of a figure, series by series."""

FigureTable = Mapping[
    str, tuple[Callable[[Run], Rows], str, str, str, Mapping[str, Any]]
]
"""Key: (rows of a run, title, what to look for, caption, how they are drawn: fields of
`Figure`).
"""


def rows_of_all(runs: Sequence[Run], rows_of: Callable[[Run], Rows]) -> Frame:
    """The rows of all runs that have some; empty without any."""
    rows = [rows for run in runs if len(run.image) for rows in rows_of(run)]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["run"])


def with_name(run: Run, runs: Sequence[Run], sentences: Iterable[str]) -> Iterator[str]:
    """Sentences about one of several runs, with its name."""
    name = f"{run.name}: " if len(runs) > 1 else ""
    return (name + sentence for sentence in sentences)


def sentences_of(
    runs: Sequence[Run],
    used: Sequence[Run],
    describe: Callable[..., Iterable[str]],
    *tables: Frame,
) -> list[str]:
    """What `describe` says of labeled images of the used runs of a page, from the rows
    that tables have of each.
    """
    lines = []
    for run in used:
        if len(run.image):
            own = (rows[rows["run"] == run.name] for rows in tables)
            lines += with_name(run, runs, describe(run, *own))
    return lines


def figures_of(runs: Sequence[Run], table: FigureTable) -> list[Figure]:
    """The figures that some run has rows for."""
    return [
        Figure(key=key, title=title, see=see, caption=caption, data=data, **drawing)
        for key, (rows_of, title, see, caption, drawing) in table.items()
        if len(data := rows_of_all(runs, rows_of))
    ]
