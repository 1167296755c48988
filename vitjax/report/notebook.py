"""Figures, tables and the token explorer as objects that a notebook shows.

from vitjax.report.notebook import explorer, pictures, tables
pictures(run)["change"]        # as the last line of a cell

Runs are of any recipe with predictions, others raise ValueError; an entry has the name
of the file that `vitjax report` would write.
"""

import dataclasses
import html
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from vitjax.report import map_grid, token_maps
from vitjax.report.explorer import explorer_data
from vitjax.report.figure import DPI, SCREEN, Figure, ReportOptions, Table, data_url
from vitjax.report.page import render_page
from vitjax.report.per_image import as_runs
from vitjax.report.section import sections
from vitjax.runner.results import Results


@dataclasses.dataclass(frozen=True)
class Html:
    """HTML that a notebook shows."""

    text: str

    def _repr_html_(self) -> str:
        return self.text


def explorer(*runs: Results, limit: int = 50, height: int = 900) -> Html:
    """Show up to `limit` images of each run and what every token of them says.

    Only the recipe `tokens` writes all that can be shown; `height` is in pixels.
    """
    content = explorer_data(as_runs(runs), limit=limit)
    if not content:
        raise ValueError("Expected runs that kept images; these kept none.")
    page = html.escape(render_page((), (), None, content))
    size = f"width:100%;height:{height}px;border:0"
    return Html(
        f'<iframe srcdoc="{page}" title="token explorer" style="{size}"></iframe>'
    )


def pictures(*runs: Results) -> dict[str, Figure]:
    """Name -> figure."""
    opened = as_runs(runs)
    made = [f for each in sections(opened, ReportOptions()) for f in each.figures]
    maps = token_maps.map_figure(opened)
    return {figure.key: figure for figure in (*made, maps) if figure}


def tables(*runs: Results) -> dict[str, Table]:
    """Name -> table."""
    made = sections(as_runs(runs), ReportOptions())
    return {table.key: table for section in made for table in section.tables}


def sheet(
    images: Sequence[UInt8[np.ndarray, "height width 3"]],
    titles: Sequence[str],
    maps: Mapping[str, Float[np.ndarray, "image row column"]],
    *,
    title: str = "",
) -> Html:
    """Images, and in a column per name maps such as those of `vitjax.explain`.

    Colors of two maps do not compare.
    """
    arrays = {name: np.asarray(values) for name, values in maps.items()}
    png = map_grid.png(np.stack(images), titles, arrays, dpi=DPI)
    width = int.from_bytes(png[16:20], "big") * SCREEN // DPI
    title = html.escape(title)
    return Html(
        f'<b>{title}</b><br><img alt="{title}" src="{data_url(png)}" '
        f'style="width:{width}px;max-width:100%;height:auto">'
    )
