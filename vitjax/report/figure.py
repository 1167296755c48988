"""Figures, tables and sections: what a report consists of.

A figure is a table in long form with a mark; it writes itself as PNG, SVG, CSV and
HTML. Whatever a run says in text is escaped here.
"""

import base64
import dataclasses
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from vitjax.report import marks, style

CELL = (4.1, 2.85)
MARGIN = (0.66, 0.47, 0.12, 0.34)
"""Inches: a panel with its labels; room left of, below, right of and above its axes."""

DPI, SCREEN = 144, 96
"""Dots per inch: drawn with, shown at."""


def number(value: float | None) -> str:
    """A fraction as people read it."""
    if value is None or value != value:
        return "–"
    fine = 0 < abs(value) < 0.01 or 0.99 < value < 1
    return f"{value:.{4 if fine else 3}f}".replace("-", "−")


def with_interval(mean: float, low: float, high: float) -> str:
    """A mean with its interval, where it has one."""
    return number(mean) + (f" [{number(low)}, {number(high)}]" if low == low else "")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Table:
    """Numbers of a report; a notebook shows it by itself.

    Args:
        key: name of its file.
        title: above it.
        caption: what the numbers are and how to read them.
        data: every number, as in the CSV.
        shown: as people read it, in words; by default `data`.
        headings: column of `shown` -> words above it, of the columns that are shown;
            by default all.
        downloadable: whether a report writes it as CSV.
    """

    key: str
    title: str
    caption: str
    data: pd.DataFrame
    shown: pd.DataFrame | None = None
    headings: Mapping[str, str] | None = None
    downloadable: bool = True

    def csv(self) -> str:
        """All its numbers; missing ones are left empty."""
        return csv(self.data)

    def html(self) -> str:
        """The table with its caption and a link to its CSV."""
        link = f"{csv_link(self.key, self.data)}. " if self.downloadable else ""
        caption = f'<p class="muted">{link}{html.escape(self.caption)}</p>'
        return html_table(self._shown, sortable=True) + caption

    @property
    def _shown(self) -> pd.DataFrame:
        shown = self.data if self.shown is None else self.shown
        if self.headings is not None:
            shown = shown[list(self.headings)].rename(columns=dict(self.headings))
        return shown

    def __repr__(self) -> str:
        return f"Table({self.key!r}: {self.title})"

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(self.title)}</b>{html_table(self._shown)}"


Mark = Literal["line", "stacked", "boxes", "dots", "histogram"]
"""How rows are drawn: see `marks`."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Figure:
    """A table in long form and how it is drawn; a notebook shows it by itself.

    Rows hold at least the columns of the mark (`mean`, `low`, `high` of a line),
    `chance`, the column on the horizontal axis, those of `facets` and `color`, and
    `style`: which color and marker, modulo their number.

    Args:
        key: name of its files.
        title: above it.
        caption: what is drawn and how to read it.
        data: rows, at least one, the points of a series in order.
        y_label: of the vertical axis.
        mark: how rows are drawn.
        x: column on the horizontal axis.
        x_label: of it.
        facets: columns whose combinations have axes of their own; where several runs
            differ, titles name the run.
        color: column of which each value is a series.
        limits: of the vertical axis; by default what holds all that is drawn.
        share_y: one vertical range for all panels.
        y: column of what is drawn as the middle.
        chance: column of the chance level.
        quartiles: draw the band from column `q25` to `q75` too.
        chance_label: legend of chance that differs along the horizontal axis; it is
            then drawn along it instead of as one level.
        hidden: columns that are drawn and are not in the CSV.
    """

    key: str
    title: str
    caption: str
    data: pd.DataFrame
    y_label: str
    mark: Mark = "line"
    x: str = "layer"
    x_label: str = "block"
    facets: Sequence[str] = ("panel", "run")
    color: str = "series"
    limits: tuple[float, float] | None = None
    share_y: bool = True
    y: str = "mean"
    chance: str = "chance"
    quartiles: bool = False
    chance_label: str = ""
    hidden: Sequence[str] = ("style",)

    def panels(self) -> dict[str, pd.DataFrame]:
        """Title -> rows of each pair of axes."""
        several = "run" in self.facets and self.data["run"].nunique() > 1
        panels = {}
        for values, rows in self.data.groupby(list(self.facets), sort=False):
            names = dict(zip(self.facets, values))
            run = f" ({names['run']})" if several else ""
            panels[f"{names['panel']}{run}"] = rows
        return panels

    def series(self, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Name -> rows of each series of some rows."""
        return {str(name): line for name, line in rows.groupby(self.color, sort=False)}

    def csv(self) -> str:
        """All its numbers; missing ones are left empty."""
        return csv(self._written)

    def png(self, *, dpi: int = 200) -> bytes:
        """All panels for print, with a legend below."""
        from matplotlib.figure import Figure as Canvas

        panels = self.panels()
        columns = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
        rows = -(-len(panels) // columns)
        names = [*self.series(self.data), *self._chance_text]
        width = columns * CELL[0] + 0.1
        legend_columns = _legend_columns(names, width)
        foot = 0.21 * -(-len(names) // legend_columns) + 0.12
        with style.settings():
            canvas = Canvas(figsize=(width, rows * CELL[1] + foot))
            handles = {}
            for place, (title, lines) in enumerate(panels.items()):
                row, column = divmod(place, columns)
                corner = CELL[0] * column, foot + CELL[1] * (rows - 1 - row)
                handles |= self._draw(_axes(canvas, *corner), title, lines)
            canvas.legend(
                [handles[name] for name in names if name in handles],
                [name for name in names if name in handles],
                loc="lower center",
                ncols=legend_columns,
                borderpad=0.6,
            )
            buffer = io.BytesIO()
            canvas.savefig(buffer, format="png", dpi=dpi)
        return buffer.getvalue()

    def svg(self) -> list[str]:
        """Each panel as an element of a page: its font, and its variables as colors."""
        from matplotlib.figure import Figure as Canvas

        drawings = []
        for place, (title, rows) in enumerate(self.panels().items()):
            key = f"{self.key}{place}"
            with style.settings(**{"svg.fonttype": "none", "svg.hashsalt": key}):
                canvas, buffer = Canvas(figsize=CELL), io.StringIO()
                self._draw(_axes(canvas, 0, 0), title, rows)
                metadata = {"Date": None}
                canvas.savefig(
                    buffer, format="svg", transparent=True, metadata=metadata
                )
            text = buffer.getvalue()
            text = text[text.index("<svg") :]
            text = re.sub(
                r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S
            )
            text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
            text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{key}-", text)
            text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
            for color, variable in style.VARIABLES.items():
                text = text.replace(color, variable)
            label = html.escape(f"{self.y_label} by {self.x_label}, {title}")
            label = f'<svg role="img" aria-label="{label}"'
            drawings.append(text.replace("<svg", label, 1))
        return drawings

    def html(self) -> str:
        """The figure for a page: legend, panels, caption, numbers, link to its CSV."""
        panels = "".join(f"<div>{drawing}</div>" for drawing in self.svg())
        link = csv_link(self.key, self._written)
        numbers = "".join(
            f"<h3>{html.escape(title)}</h3>{html_table(self._numbers(rows))}"
            for title, rows in self.panels().items()
        )
        return (
            f'<figure>{self._legend()}<div class="panels">{panels}</div>'
            f"<figcaption><p>{html.escape(self.caption)}</p></figcaption>"
            f"<details><summary>The numbers</summary><p>{link}, also in "
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
            f"<figure><b>{title}</b><br>"
            f'<img alt="{title}" src="{data_url(png, "image/png")}" '
            f'style="width:{width}px;max-width:100%;height:auto">'
            f'<figcaption style="max-width:50rem">{caption}</figcaption></figure>'
        )

    @property
    def _written(self) -> pd.DataFrame:
        return self.data.drop(columns=list(self.hidden), errors="ignore")

    def _levels(self, rows: pd.DataFrame) -> list[float]:
        """Chance levels of some rows, one for each number of classes."""
        if self.chance_label:
            return []
        return sorted(rows[self.chance].dropna().unique().tolist())

    @property
    def _chance_text(self) -> list[str]:
        """The legend of the dashed lines, if there are any."""
        if self.chance_label:
            return [self.chance_label]
        levels = [f"{level:.4g}" for level in self._levels(self.data)]
        return ["chance " + ", ".join(levels)] if levels else []

    def _draw(self, axes: Any, title: str, rows: pd.DataFrame) -> marks.Handles:
        """Fill one pair of axes; handles of a legend by name."""
        from matplotlib.ticker import MaxNLocator

        handles = marks.MARKS[self.mark](axes, self.series(rows), self)
        upright = self.mark == "histogram"
        if self.chance_label:
            handles[self.chance_label] = marks.chance_along(axes, rows, self)
        for level in self._levels(rows):
            draw, order = (axes.axvline, 3.5) if upright else (axes.axhline, 1.5)
            handle = draw(level, color=style.MUTED, zorder=order, **marks.DASHED)
            handles[self._chance_text[0]] = handle
        # Names of runs may be long: about 44 characters fit.
        axes.set_title(title, fontsize=max(5, min(9.5, 9.5 * 44 / len(title))))
        axes.set_ylabel(self.y_label)
        axes.set_xlabel(self.x_label)
        if self.x == "layer":
            last = int(rows["layer"].max())
            axes.set_xlim(-0.5, last + 0.5)
            whole = MaxNLocator(nbins=12, integer=True, min_n_ticks=1)
            axes.xaxis.set_major_locator(whole)
            if last < 12:
                axes.set_xticks(range(last + 1))
        elif not upright:
            axes.set_xlim(0, 1.03)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.set_ylim(*self._limits(self.data if self.share_y else rows))
        return handles

    def _limits(self, rows: pd.DataFrame) -> tuple[float, float]:
        """Vertical range from zero that holds all that is drawn, and a margin."""
        if self.limits is not None:
            return self.limits
        if self.mark == "stacked":
            sums = rows.groupby([*self.facets, self.x], sort=False)[self.y].sum()
            return 0.0, 1.02 * max(1.0, sums.max())
        columns = [*marks.EXTENT[self.mark]]
        columns += ["q25", "q75"] if self.quartiles else []
        columns += [] if self.mark == "histogram" else [self.chance]
        values = rows[columns].stack().dropna()
        low, high = min(0.0, values.min()), max(0.01, values.max())
        margin = high - low
        return low - 0.04 * (low < 0) * margin, high + 0.08 * margin

    def _legend(self) -> str:
        """The legend of a page: signs in the colors of its variables."""
        entries = []
        for name, rows in self.series(self.data).items():
            kind = int(rows["style"].iloc[0])
            ends = "╌" if kind >= len(style.COLORS) else "━"
            sign = style.SIGNS[kind % len(style.SIGNS)]
            sign = {"line": f"{ends}{sign}{ends}", "dots": "●"}.get(self.mark, "■")
            entries.append((style.VARIABLES[marks.color(rows)], sign, name))
        entries += [("var(--muted)", "╌╌╌", text) for text in self._chance_text]
        items = "".join(
            f'<li><i style="color: {color}" aria-hidden="true">{sign}</i>'
            f"{html.escape(name)}</li>"
            for color, sign, name in entries
        )
        return f'<ul class="legend">{items}</ul>'

    def _numbers(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Means with their intervals, a column per series."""
        columns = {}
        for name, line in self.series(rows).items():
            line = line.drop_duplicates(self.x).set_index(self.x)
            cells = line[[self.y, "low", "high"]].itertuples(index=False)
            columns[name] = pd.Series(
                [with_interval(*cell) for cell in cells], index=line.index
            )
        numbers = pd.DataFrame(columns).fillna("").rename_axis(self.x_label)
        return numbers.reset_index()


def _axes(canvas: Any, left: float, bottom: float) -> Any:
    """Axes in a cell with this corner, in inches: solving a layout takes seconds."""
    width, height = canvas.get_size_inches()
    return canvas.add_axes(
        (
            (left + MARGIN[0]) / width,
            (bottom + MARGIN[1]) / height,
            (CELL[0] - MARGIN[0] - MARGIN[2]) / width,
            (CELL[1] - MARGIN[1] - MARGIN[3]) / height,
        )
    )


def _legend_columns(names: Sequence[str], inches: float) -> int:
    """As many as fit, in rows as even as possible: about 15 characters an inch."""
    widest = max(len(name) for name in names) + 7
    fit = max(1, int(15 * inches / widest))
    return -(-len(names) // -(-len(names) // fit))


def csv(data: pd.DataFrame) -> str:
    """Rows as CSV; missing numbers are left empty."""
    return data.to_csv(index=False, float_format="%.8g", lineterminator="\n")


def data_url(content: bytes, kind: str) -> str:
    """A file within a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def csv_link(key: str, data: pd.DataFrame) -> str:
    """A link that saves rows as KEY.csv, without another file."""
    url = data_url(csv(data).encode(), "text/csv")
    return f'<a download="{key}.csv" href="{url}">{key}.csv</a>'


def html_table(data: pd.DataFrame, *, sortable: bool = False) -> str:
    """Rows as a table: numbers to the right, their intervals muted."""
    numeric = [
        data[name].map(lambda cell: bool(NUMBER.match(cell_text(cell)))).all()
        for name in data
    ]
    kinds = [' class="n"' if right else "" for right in numeric]

    def line(tag: str, cells: Iterable[Any]) -> str:
        texts = [html.escape(cell_text(cell)) for cell in cells]
        texts = [INTERVAL.sub(r'<span class="muted">\g<0></span>', t) for t in texts]
        pairs = zip(kinds, texts)
        return f"<tr>{''.join(f'<{tag}{k}>{t}</{tag}>' for k, t in pairs)}</tr>"

    rows = [line("td", row) for row in data.itertuples(index=False)]
    style_class = ' class="sortable"' if sortable else ""
    head = line("th", data.columns)
    return (
        f'<div class="scroll"><table{style_class}>{head}{"".join(rows)}</table></div>'
    )


NUMBER = re.compile(r"[–−\d.,]*( of | \[|$)")
INTERVAL = re.compile(r"\[[–−\d., ]+\]$")


def cell_text(cell: Any) -> str:
    """A cell as people read it: fractions with three digits, other text as it is."""
    if isinstance(cell, float):
        return number(cell)
    return "" if cell is None else str(cell)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """A part of the page.

    Args:
        key: letters for links.
        title: above it.
        sentences: what the numbers say, for the beginning of the page.
        figures: in order.
        tables: below them.
        notes: how to read it.
    """

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
        tests: what tests take for independent: "images"; besides, in the comparison of
            object with context tokens, tokens "within_images"; or tokens of all images
            as the published code, "vilas2023", which also tests right against wrong
            images. "published" is another name of "vilas2023".
        subset: on how many images tests with tokens as units rest.
        names: of the runs; by default what tells them apart.
    """

    tests: Literal["images", "within_images", "vilas2023", "published"] = "images"
    subset: int = 500
    names: Sequence[str] = ()
