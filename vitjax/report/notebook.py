"""Figures, tables and the token explorer as objects that a notebook shows.

from vitjax.report.notebook import explorer, pictures, tables
pictures(run)["change"]        # as the last line of a cell
"""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vitjax.report import map_grid, token_maps
from vitjax.report.explorer import explorer_html
from vitjax.report.figure import DPI, SCREEN, ReportOptions, Table, data_url
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
    """Show the images that runs kept and what every token of them says.

    Args:
        runs: of any recipe with ranks; only `tokens` writes all that can be shown.
        limit: images of each run, at most.
        height: of the explorer in pixels.

    Returns:
        An object that a notebook shows as the last line of a cell.

    Raises:
        ValueError: no run, or one holds no ranks, or none kept an image.
    """
    content = explorer_html(as_runs(runs), limit=limit)
    if not content:
        raise ValueError("Expected runs that kept images; these kept none.")
    page = html.escape(render_page((), (), content))
    size = f"width:100%;height:{height}px;border:0"
    return Html(
        f'<iframe srcdoc="{page}" title="token explorer" style="{size}"></iframe>'
    )


def pictures(*runs: Results) -> dict[str, Any]:
    """Name of its file -> figure, of every figure that `vitjax report` would write."""
    opened, options = as_runs(runs), ReportOptions()
    made = [*sections(opened, options), token_maps.section(opened, options)]
    return {one.key: one for section in made if section for one in section.figures}


def tables(*runs: Results) -> dict[str, Table]:
    """Name of its file -> table, of every table that `vitjax report` would write."""
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
        f'<b>{title}</b><br><img alt="{title}" src="{data_url(png, "image/png")}" '
        f'style="width:{width}px;max-width:100%;height:auto">'
    )
