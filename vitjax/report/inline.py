"""Figures and tables of runs as objects that a notebook shows by itself.

from vitjax.report.inline import pictures, tables
pictures(run)["change"]        # as the last line of a cell
"""

import base64
import dataclasses
import functools
import html
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vitjax.report import faithfulness, figures, gallery, overlays, probes
from vitjax.report import pictures as sheets
from vitjax.report.document import run_names
from vitjax.report.gallery import Reduced
from vitjax.report.reduction import summary_table
from vitjax.report.tables import (
    intervention_table,
    published,
    significant,
    test_table,
)
from vitjax.report.wording import number
from vitjax.runner.results import Results

Make = Callable[[], Sequence[Mapping[str, Any]]]
"""Makes the rows of a table."""

DPI, SCREEN = 144, 96
"""Dots per inch: drawn with, shown at."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Picture:
    """A figure with its caption; drawn when it is first shown.

    Args:
        key: name of its file in a report.
        title: above it.
        caption: what is drawn and how to read it.
        draw: dots per inch -> a PNG file.
        rows: the numbers in it; empty for maps.
    """

    key: str
    title: str
    caption: str
    draw: Callable[[int], bytes]
    rows: Sequence[Mapping[str, Any]] = ()

    @functools.cached_property
    def png(self) -> bytes:
        """The file."""
        return self.draw(DPI)

    def __repr__(self) -> str:
        return f"Picture({self.key!r}: {self.title})"

    def _repr_png_(self) -> bytes:
        return self.png

    def _repr_html_(self) -> str:
        (pixels,) = struct.unpack(">I", self.png[16:20])
        data = base64.b64encode(self.png).decode()
        title, caption = html.escape(self.title), html.escape(self.caption)
        return (
            f"<figure><b>{title}</b><br>"
            f'<img alt="{title}" src="data:image/png;base64,{data}" '
            f'style="width:{pixels * SCREEN // DPI}px;max-width:100%;height:auto">'
            f'<figcaption style="max-width:50rem">{caption}</figcaption></figure>'
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Table:
    """Rows that a notebook shows as a table; computed when they are first needed.

    Args:
        key: name of its file in a report.
        make: makes the rows.
        several: whether they are of several runs, each named in "run".
    """

    key: str
    make: Make
    several: bool = False

    @functools.cached_property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """All numbers, more than are shown."""
        return self.make()

    @property
    def columns(self) -> dict[str, str]:
        """Key of a row -> heading, of those that are shown."""
        shown = COLUMNS.get(self.key) or {"method": "", **faithfulness.COLUMNS}
        there = {key for row in self.rows for key in row}
        present = {key: text for key, text in shown.items() if key in there}
        return {"run": "run", **present} if self.several else present

    def __repr__(self) -> str:
        return f"Table({self.key!r}: {TITLES[self.key]})"

    def _repr_html_(self) -> str:
        head = line(self.columns.values(), tag="th")
        body = "".join(line(cell(r, key) for key in self.columns) for r in self.rows)
        title = html.escape(TITLES[self.key])
        return f"<table><caption>{title}</caption>{head}{body}</table>"


def line(texts: Iterable[str], *, tag: str = "td") -> str:
    """A row of a table in HTML."""
    cells = "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)
    return f"<tr>{cells}</tr>"


def cell(row: Mapping[str, Any], key: str) -> str:
    """One entry of a table, for people."""
    value = row[key]
    if isinstance(value, Mapping):  # of a table of several columns, with its interval
        return cell(value, "value")
    if value is None or isinstance(value, str):
        return value or ""
    cost = key in COLUMNS["probe_costs"] or isinstance(value, int)  # no fraction
    text = f"{value:,.4g}" if cost and value == value else number(value)
    low = row.get("low", float("nan"))
    spread = key in ("value", "change") and low == low
    return f"{text} [{number(low)}, {number(row['high'])}]" if spread else text


def pictures(*runs: Results) -> dict[str, Picture]:
    """Every figure that `vitjax report` would write of some runs.

    Args:
        runs: rows of any recipe, finished or not; several stand side by side.

    Returns:
        Name of its file -> the figure; a notebook shows it as the last line of a cell,
        or by `display`. Nothing is drawn before.

    Raises:
        ValueError: no run, or one holds no ranks.
    """
    read = opened(runs)
    found = {
        one.key: Picture(
            key=one.key,
            title=one.title,
            caption=one.caption,
            draw=functools.partial(draw_panels, one.panels),
            rows=one.rows,
        )
        for one in gallery.drawings(read)
    }
    return found | maps(read)


def opened(runs: Sequence[Results]) -> Reduced:
    """Runs with their names and per-image values."""
    if not runs:
        raise ValueError("Give at least one run, as vitjax.open_results returns it.")
    return gallery.reduced(run_names([run.manifest for run in runs]), runs)


def draw_panels(panels, dpi: int) -> bytes:
    """Panels as one PNG."""
    return figures.png(panels, dpi=dpi)


def maps(read: Reduced, *, most: int = 4) -> dict[str, Picture]:
    """The pictures that runs kept, with the identifiability of their tokens."""
    several = len(read.runs) > 1
    rows = [
        (name if several else "", one)
        for name, run, digest in zip(read.names, read.runs, read.digests)
        for one in overlays.picture_maps(run, digest, most=most)
        if one.ranks is not None
    ]
    if not rows:
        return {}
    caption = f"Identifiability of every image token; {overlays.explanation(rows)}."
    picture = Picture(
        key="maps",
        title="Image by image",
        caption=caption,
        draw=lambda dpi: overlays.png(rows, dpi=dpi),
    )
    return {"maps": picture}


def tables(*runs: Results) -> dict[str, Table]:
    """Every table of numbers that `vitjax report` would write of some runs.

    Args:
        runs: rows of any recipe, finished or not.

    Returns:
        summary; edits and tests of the recipe `paper`; published, where model and data
        are the paper's; faithfulness and probe_costs of those recipes.

    Raises:
        ValueError: no run, or one holds no ranks.
    """
    read = opened(runs)
    makers: dict[str, list[tuple[str, Make]]] = {}
    for name, *one in zip(*read):
        for key, make in tables_of(name, *one):
            makers.setdefault(key, []).append((name, make))
    return {
        key: Table(key=key, make=functools.partial(joined, each), several=len(runs) > 1)
        for key, each in makers.items()
    }


def joined(makers: Sequence[tuple[str, Make]]) -> list[dict[str, Any]]:
    """The rows of every run, one run after the other."""
    return [{"run": name, **row} for name, make in makers for row in make()]


def tables_of(name, run, digest, found) -> Iterator[tuple[str, Make]]:
    """Names of the tables that a run has rows for, with what makes these."""
    yield "summary", lambda: summary_table(digest)
    if found is not None and found.interventions:
        yield "edits", lambda: intervention_table(found)
    if found is not None or "class" in digest.tokens:
        yield "tests", lambda: significant(test_table(digest, found))
    if beside(run, digest, None):
        yield "published", lambda: beside(run, digest, found)
    if faithfulness.is_faithfulness(run):
        yield "faithfulness", lambda: methods(run, name)
    if probes.is_probes(run):
        yield "probe_costs", lambda: probes.cost_table(run, name=name)


def beside(run, digest, found) -> Sequence[Mapping[str, Any]]:
    """The paper's numbers and ours; none for other models and data."""
    edits = intervention_table(found) if found is not None else []
    told = published(run.manifest, digest, summary_table(digest), edits)
    return told["rows"] if told else []


def methods(run: Results, name: str) -> list[dict[str, Any]]:
    """A line per explanation method, a cell with its interval per measure."""
    lines: dict[str, dict[str, Any]] = {}
    for row in faithfulness.table(run, name=name):
        line = lines.setdefault(row["method"], {"method": row["method"]})
        line[row["column"]] = row
    return list(lines.values())


TITLES = {
    "summary": "In numbers: means over images [95 % bootstrap interval]",
    "edits": "Interventions: identifiable image tokens in the last block",
    "tests": "Larger than chance at 0.05 after Holm's correction over blocks",
    "published": "Beside the published numbers",
    "faithfulness": "How faithful each method is [95 % bootstrap interval]",
    "probe_costs": "What probes and projection cost",
}
COLUMNS = {
    "summary": {"quantity": "", "value": "mean", "chance": "chance"},
    "edits": {
        "words": "",
        "before": "before",
        "after": "after",
        "change": "change",
        "accuracy_before": "accuracy before",
        "accuracy_after": "accuracy after",
    },
    "tests": {"quantity": "", "blocks": "blocks"},
    "published": {"quantity": "", "ours": "here", "theirs": "published"},
    "probe_costs": {"quantity": "", "probes": "probes", "projection": "projection"},
}


def sheet(
    images: Sequence[UInt8[np.ndarray, "height width 3"]],
    titles: Sequence[str],
    maps: Mapping[str, Float[np.ndarray, "picture row column"]],
    *,
    title: str = "",
) -> Picture:
    """Pictures with maps beside them, such as those of `vitjax.explain`.

    Args:
        images: as the model saw them.
        titles: words above each, one or two lines.
        maps: name of the method, block or head -> a map of each picture.
        title: above all.

    Returns:
        A row per picture, a column per map; the colours of two maps do not compare.
    """
    arrays = {name: np.asarray(values) for name, values in maps.items()}
    stacked = np.stack(images)
    return Picture(
        key="sheet",
        title=title,
        caption="",
        draw=lambda dpi: sheets.png(stacked, titles, arrays, dpi=dpi),
    )
