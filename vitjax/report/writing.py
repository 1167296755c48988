"""What a report leaves in its folder: figures as PNG, numbers as CSV."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vitjax.report import figures
from vitjax.report.panels import Panel


class Captioned(NamedTuple):
    """A figure with its words and numbers, ready to be written.

    Args:
        key: name of its files.
        title: above it.
        caption: what is drawn and how to read it.
        panels: its axes.
        rows: its numbers; all have the same columns.
    """

    key: str
    title: str
    caption: str
    panels: Sequence[Panel]
    rows: Sequence[Mapping[str, Any]]


def draw(
    folder: Any,
    key: str,
    panels: Sequence[Panel],
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Write panels as KEY.png and their numbers as KEY.csv.

    Args:
        folder: where to; `etils.epath.Path` or alike.
        key: name of both files.
        panels: at least one.
        rows: their numbers, at least one; all have the same columns.

    Returns:
        What the page shows of them.
    """
    (folder / f"{key}.png").write_bytes(figures.png(panels))
    return {
        "key": key,
        "panels": panels,
        "drawings": [
            figures.svg(panel, key=f"{key}{place}", among=panels)
            for place, panel in enumerate(panels)
        ],
        "legend": figures.legend(panels),
        "chance": figures.chance_text(panels),
        "quartiles": panels[0].quartiles,
        "relative": panels[0].relative,
        "csv": write_csv(folder / f"{key}.csv", rows),
    }


def draw_captioned(folder: Any, figure: Captioned) -> dict[str, Any]:
    """Write a figure's files.

    Args:
        folder: where to; `etils.epath.Path` or alike.
        figure: with at least one of its axes and of its numbers.

    Returns:
        What `draw` returns, "title" and "caption".
    """
    made = draw(folder, figure.key, figure.panels, figure.rows)
    return made | {"title": figure.title, "caption": figure.caption}


def write_csv(path: Any, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows that all have the same columns.

    Args:
        path: of the file.
        rows: at least one; NaN and None are left empty.

    Returns:
        The file as a link for the page.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    content = buffer.getvalue().encode()
    path.write_bytes(content)
    return "data:text/csv;base64," + base64.b64encode(content).decode()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if value != value else f"{value:.8g}"
    return "" if value is None else value
