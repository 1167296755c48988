"""Figures, tables and sections: what a report consists of.

A figure is a table in long form with a mark; it writes itself as PNG, SVG, CSV and
HTML, and a notebook shows it by itself, as it does a table. Whatever a run says in
text is escaped here.
"""

import base64
import dataclasses
import html
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from vitjax.report import marks
from vitjax.report.marks import Frame
from vitjax.report.per_image import Run

CELL = (4.1, 2.85)
MARGIN = (0.66, 0.47, 0.12, 0.34)
"""Inches: a panel with its labels; room left of, below, right of and above its axes."""

DPI, SCREEN = 144, 96
"""Dots per inch in a notebook: drawn with, shown at."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
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
        """All its numbers; missing ones are left empty."""
        return to_csv(self.data)

    def html(self) -> str:
        """The table with its caption and a link to its CSV."""
        shown = self.data if self.shown is None else self.shown
        if "run" in shown and shown["run"].nunique() == 1:
            shown = shown.drop(columns="run")
        caption = f"{csv_link(self)}. {html.escape(self.caption)}"
        return f'{to_html(shown, "sortable")}<p class="muted">{caption}</p>'

    def __repr__(self) -> str:
        return f"Table({self.key!r}: {self.title})"

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(self.title)}</b>{self.html()}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Figure:
    """A table in long form and how it is drawn, in files named `key`.

    Rows, at least one, hold the columns named below, `panel`, `series`, what the mark
    draws, and `style`: which color and marker, modulo their number.
    """

    key: str
    title: str
    caption: str
    data: Frame
    y_label: str
    mark: str = "line"
    """How rows are drawn, a key of `marks.MARKS`."""
    x: str = "layer"
    x_label: str = "block"
    y: str = "mean"
    facets: Sequence[str] = ("panel", "run")
    """Columns whose combinations have axes; titles name the run if there are more."""
    chance: str = "chance"
    chance_label: str = ""
    """If chance differs along the horizontal axis, and is not one level: its legend."""
    limits: tuple[float, float] | None = None
    """Of the vertical axis; by default what holds all that is drawn."""
    share_y: bool = True
    quartiles: bool = False
    """Whether to draw the band from column `q25` to `q75` too."""
    hidden: Sequence[str] = ("style",)
    """Columns that are drawn and are not in the CSV."""

    def panels(self) -> dict[str, Frame]:
        """Title -> rows of each pair of axes."""
        several = "run" in self.facets and self.data["run"].nunique() > 1
        panels = {}
        for (panel, *run), rows in self.data.groupby(list(self.facets), sort=False):
            panels[f"{panel} ({run[0]})" if several else panel] = rows
        return panels

    def series(self, rows: Frame) -> dict[str, Frame]:
        """Name -> rows of each series."""
        return {str(name): line for name, line in rows.groupby("series", sort=False)}

    def csv(self) -> str:
        """All its numbers; missing ones are left empty."""
        return to_csv(self.data.drop(columns=list(self.hidden), errors="ignore"))

    def png(self, *, dpi: int = 200) -> bytes:
        """All panels for print, with a legend below."""
        from matplotlib.figure import Figure as Canvas

        panels = self.panels()
        columns = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
        names = [*self.series(self.data), *self._chance_text]
        width = columns * CELL[0] + 0.1
        # About 15 characters an inch, in rows as even as possible.
        fit = max(1, int(15 * width / (max(map(len, names)) + 7)))
        lines = -(-len(names) // fit)
        foot = 0.21 * lines + 0.12
        with marks.settings():
            height = -(-len(panels) // columns) * CELL[1] + foot
            canvas, handles, buffer = Canvas(figsize=(width, height)), {}, io.BytesIO()
            for place, (title, rows) in enumerate(panels.items()):
                row, column = divmod(place, columns)
                corner = CELL[0] * column, height - CELL[1] * (row + 1)
                handles |= self._draw(_axes(canvas, *corner), title, rows)
            names = [name for name in names if name in handles]
            canvas.legend(
                [handles[name] for name in names],
                names,
                loc="lower center",
                ncols=-(-len(names) // lines),
                borderpad=0.6,
            )
            canvas.savefig(buffer, format="png", dpi=dpi)
        return buffer.getvalue()

    def svg(self) -> list[str]:
        """Each panel as an element of a page: its font, and its variables as colors."""
        from matplotlib.figure import Figure as Canvas

        drawings = []
        for place, (title, rows) in enumerate(self.panels().items()):
            key, buffer = f"{self.key}{place}", io.StringIO()
            with marks.settings(**{"svg.fonttype": "none", "svg.hashsalt": key}):
                canvas = Canvas(figsize=CELL)
                self._draw(_axes(canvas, 0.0, 0.0), title, rows)
                canvas.savefig(
                    buffer, format="svg", transparent=True, metadata={"Date": None}
                )
            text = buffer.getvalue()
            text = text[text.index("<svg") :]
            unused = r"<metadata>.*?</metadata>|<style.*?</style>"
            text = re.sub(unused, "", text, flags=re.S)
            text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
            text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{key}-", text)
            text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
            for color, variable in marks.VARIABLES.items():
                text = text.replace(color, variable)
            label = html.escape(f"{self.y_label} by {self.x_label}, {title}")
            label = f'<svg role="img" aria-label="{label}"'
            drawings.append(text.replace("<svg", label, 1))
        return drawings

    def html(self) -> str:
        """The figure for a page: legend, panels, caption, numbers, link to its CSV."""
        panels = "".join(f"<div>{drawing}</div>" for drawing in self.svg())
        numbers = "".join(
            f"<h3>{html.escape(title)}</h3>{to_html(self._numbers(rows))}"
            for title, rows in self.panels().items()
        )
        return (
            f'<figure>{self._legend()}<div class="panels">{panels}</div>'
            f"<figcaption><p>{html.escape(self.caption)}</p></figcaption>"
            f"<details><summary>The numbers</summary><p>{csv_link(self)}, also in "
            f"<code>figures/</code> with <code>{self.key}.png</code></p>{numbers}"
            "</details></figure>"
        )

    def __repr__(self) -> str:
        return f"Figure({self.key!r}: {self.title})"

    def _repr_png_(self) -> bytes:
        return self.png(dpi=DPI)

    def _repr_html_(self) -> str:
        png = self.png(dpi=DPI)
        width = int.from_bytes(png[16:20], "big") * SCREEN // DPI
        title, caption = html.escape(self.title), html.escape(self.caption)
        return (
            f'<figure><b>{title}</b><br><img alt="{title}" src="{data_url(png)}" '
            f'style="width:{width}px;max-width:100%;height:auto">'
            f'<figcaption style="max-width:50rem">{caption}</figcaption></figure>'
        )

    def _levels(self, rows: Frame) -> list[float]:
        """Chance levels of some rows, one for each number of classes."""
        levels = [] if self.chance_label else rows[self.chance].dropna().unique()
        return sorted(map(float, levels))

    @property
    def _chance_text(self) -> list[str]:
        """The legend of the dashed lines, if there are any."""
        levels = ", ".join(f"{level:.4g}" for level in self._levels(self.data))
        text = f"chance {levels}" if levels else self.chance_label
        return [text] if text else []

    def _draw(self, axes: Any, title: str, rows: Frame) -> marks.Handles:
        """Fill one pair of axes; handles of a legend by name."""
        from matplotlib.ticker import MaxNLocator

        handles = marks.MARKS[self.mark][0](axes, self.series(rows), self)
        upright = self.mark == "histogram"
        if self.chance_label:
            handles[self.chance_label] = marks.chance_along(axes, rows, self)
        for level in self._levels(rows):
            draw, order = (axes.axvline, 3.5) if upright else (axes.axhline, 1.5)
            handle = draw(level, color=marks.MUTED, zorder=order, **marks.DASHED)
            handles[self._chance_text[0]] = handle
        # Names of runs may be long: about 44 characters fit.
        axes.set_title(title, fontsize=max(5, min(9.5, 9.5 * 44 / len(title))))
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
        elif not upright:
            axes.set_xlim(0, 1.03)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.set_ylim(*self._limits(self.data if self.share_y else rows))
        return handles

    def _limits(self, rows: Frame) -> tuple[float, float]:
        """Vertical range from zero that holds all that is drawn, and a margin."""
        if self.limits is not None:
            return self.limits
        if self.mark == "stacked":
            sums = rows.groupby([*self.facets, self.x], sort=False)[self.y].sum()
            return 0.0, 1.02 * max(1.0, sums.max())
        values = rows[marks.MARKS[self.mark][1]].stack().dropna()
        low, high = min(0.0, values.min()), max(0.01, values.max())
        return low - 0.04 * (low < 0) * (high - low), high + 0.08 * (high - low)

    def _legend(self) -> str:
        """The legend of a page: signs in the colors of its variables."""
        entries = []
        for name, rows in self.series(self.data).items():
            kind = int(rows["style"].iloc[0])
            ends = "╌" if kind >= len(marks.COLORS) else "━"
            sign = marks.SIGNS[kind % len(marks.SIGNS)]
            sign = {"line": f"{ends}{sign}{ends}", "dots": "●"}.get(self.mark, "■")
            entries.append((marks.VARIABLES[marks.color(rows)], sign, name))
        entries += [("var(--muted)", "╌╌╌", text) for text in self._chance_text]
        items = "".join(
            f'<li><i style="color: {color}" aria-hidden="true">{sign}</i>'
            f"{html.escape(name)}</li>"
            for color, sign, name in entries
        )
        return f'<ul class="legend">{items}</ul>'

    def _numbers(self, rows: Frame) -> Frame:
        """Means with their intervals, a column per series."""
        columns = {}
        if self.mark == "grid":
            cells = map(with_interval, rows[self.y], rows["low"], rows["high"])
            table = rows.assign(cell=list(cells)).pivot(
                index="layer", columns=self.x, values="cell"
            )
            return table.fillna("–").rename_axis(self.y_label).reset_index()
        for name, line in self.series(rows).items():
            line = line.drop_duplicates(self.x)
            cells = zip(line[self.y], line["low"], line["high"])
            columns[name] = pd.Series([with_interval(*c) for c in cells], line[self.x])
        return pd.DataFrame(columns).fillna("").rename_axis(self.x_label).reset_index()


def _axes(canvas: Any, left: float, bottom: float) -> Any:
    """Axes in a cell with this corner, in inches: solving a layout takes seconds."""
    width, height = canvas.get_size_inches()
    x, y = left + MARGIN[0], bottom + MARGIN[1]
    wide, high = CELL[0] - MARGIN[0] - MARGIN[2], CELL[1] - MARGIN[1] - MARGIN[3]
    return canvas.add_axes((x / width, y / height, wide / width, high / height))


def number(value: float) -> str:
    """A fraction as people read it."""
    if value != value:
        return "–"
    fine = 0 < abs(value) < 0.01 or 0.99 < value < 1
    return f"{value:.{4 if fine else 3}f}".replace("-", "−")


def with_interval(mean: float, low: float, high: float) -> str:
    """A mean with its interval, where it has one."""
    return number(mean) + (f" [{number(low)}, {number(high)}]" if low == low else "")


def to_csv(data: Frame) -> str:
    """Rows as CSV; missing numbers are left empty."""
    return data.to_csv(index=False, float_format="%.8g", lineterminator="\n")


def to_html(data: Frame, *classes: str) -> str:
    """Rows as a table; fractions with three digits."""
    options: dict[str, Any] = {"index": False, "border": 0, "na_rep": "–"}
    classes = ("numbers", *classes)
    data = data.rename_axis(columns=None)  # a pivot's would be a column of its own
    table = data.to_html(classes=[*classes], float_format=number, **options)
    return f'<div class="scroll">{table}</div>'


def data_url(content: bytes, kind: str = "image/png") -> str:
    """A file within a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def csv_link(item: Table | Figure) -> str:
    """A link that saves KEY.csv from within the page."""
    url, name = data_url(item.csv().encode(), "text/csv"), f"{item.key}.csv"
    return f'<a download="{name}" href="{url}">{name}</a>'


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """A part of the page: sentences stand at its beginning, notes below the title."""

    key: str
    title: str
    sentences: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Choices of who writes a report.

    Args:
        tests: units of tests: "images"; besides, where object tokens are compared with
            context tokens, tokens "within_images"; or tokens of all images as in the
            published code, "vilas2023", which also tests right against wrong images.
            "published" is another name of it.
        subset: number of images in tests whose units are tokens.
        names: of the runs; by default what tells them apart.
    """

    tests: Literal["images", "within_images", "vilas2023", "published"] = "images"
    subset: int = 500
    names: Sequence[str] = ()


Rows = Iterator[Frame]
"""The rows of a figure, series by series."""

FigureTable = Mapping[str, tuple[Callable[[Run], Rows], str, str, Mapping[str, Any]]]
"""Key: (rows of a run, title, caption, how they are drawn: fields of `Figure`)."""


def figures_of(runs: Sequence[Run], table: FigureTable) -> Iterator[Figure]:
    """The figures that some run has rows for."""
    for key, (rows_of, title, caption, drawing) in table.items():
        rows = [rows for run in runs if len(run.image) for rows in rows_of(run)]
        if rows:
            data = pd.concat(rows, ignore_index=True)
            words = {"key": key, "title": title, "caption": caption}
            yield Figure(**words, data=data, **drawing)
