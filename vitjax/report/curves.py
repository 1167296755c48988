"""Rows of figures: means over images with their 95 % bootstrap intervals."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from vitjax.report.figure import Figure
from vitjax.report.marks import Frame
from vitjax.report.per_image import Run
from vitjax.statistics import bootstrap_mean

BAND = "Line: mean over images; band: its 95 % bootstrap interval."


def intervals(values: np.ndarray) -> dict[str, np.ndarray]:
    """images, mean, low and high over the first axis, each flat."""
    interval = bootstrap_mean(values.astype(np.float64))
    images = np.isfinite(values).sum(0)
    columns = {"images": images, **interval._asdict()}
    return {name: np.ravel(column) for name, column in columns.items()}


def mean(values: Float[np.ndarray, "unit ..."]) -> Float[np.ndarray, "..."]:
    """Mean over the first axis of the values that exist; NaN where none does."""
    exists = np.isfinite(values)
    total = np.where(exists, values, 0).sum(0)
    return np.divide(
        total, exists.sum(0), out=np.full(total.shape, np.nan), where=exists.any(0)
    )


def line(
    run: Run,
    panel: str,
    series: str,
    style: int,
    values: Shaped[np.ndarray, "unit x"],
    *,
    chance: float | Float[np.ndarray, " x"] = np.nan,
    axis: Mapping[str, Any] | None = None,
) -> Frame:
    """The rows of one series of a run; its horizontal axis are blocks by default.

    Values are NaN where an image (or class) has none; `chance` is a level, or one for
    each x.
    """
    columns = {
        "run": run.name,
        "panel": panel,
        "series": series,
        "style": style,
        **(axis or {"layer": np.arange(values.shape[1])}),
        **intervals(values),
        "chance": chance,
    }
    return pd.DataFrame(columns)


Rows = Iterator[Frame]
"""The rows of a figure, series by series."""

FigureTable = Mapping[str, tuple[Callable[[Run], Rows], str, str, Mapping[str, Any]]]
"""Key: (rows of a run, title, caption, how they are drawn: fields of `Figure`)."""


def figures_of(runs: Sequence[Run], table: FigureTable) -> list[Figure]:
    """The figures that some run has rows for."""
    figures = []
    for key, (rows_of, title, caption, drawing) in table.items():
        rows = [rows for run in runs if len(run.image) for rows in rows_of(run)]
        if rows:
            data = pd.concat(rows, ignore_index=True)
            words = {"key": key, "title": title, "caption": caption}
            figures.append(Figure(**words, data=data, **drawing))
    return figures
