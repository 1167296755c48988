"""Rows of the recipe `faithfulness` -> one table of methods and protocols, and curves.

Areas and measures are taken image by image, so that their means have bootstrap
intervals over images and differences between methods are paired.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from vitjax.report import writing
from vitjax.report.panels import Panel, accuracy_panels
from vitjax.report.writing import Captioned
from vitjax.runner.results import Results
from vitjax.statistics import bootstrap_mean, sign_flip_test
from vitjax.types import Config

ORDERS = {
    "negative": "the least important patches go first",
    "positive": "the most important patches go first",
}
AXES = {
    "removal": "share of image tokens removed",
    "pixels": "share of pixels black",
}
COLUMNS = {
    "removal_negative": "removal, negative ↑",
    "removal_positive": "removal, positive ↓",
    "removable": "removable at no loss ↑",
    "pixels_negative": "pixels, negative ↑",
    "pixels_positive": "pixels, positive ↓",
    "pixel_accuracy": "pixel accuracy ↑",
    "mean_iou": "mean IoU ↑",
    "average_precision": "AP ↑",
}
"""Columns of the table; the arrow says where better is."""

LEVELS = 10


class Curves(NamedTuple):
    """Right or wrong along one protocol's way, image by image.

    Args:
        x: share taken away, increasing from 0.
        correct: [image step].
    """

    x: Float[np.ndarray, " step"]
    correct: Float[np.ndarray, "image step"]

    @property
    def areas(self) -> Float[np.ndarray, " image"]:
        """Area under each image's own curve, over the way it covers; in [0, 1]."""
        return np.trapezoid(self.correct, self.x, axis=1) / (self.x[-1] - self.x[0])


def is_faithfulness(run: Results) -> bool:
    """Whether a run holds the rows that this file reads."""
    return run.manifest.get("recipe") == "faithfulness"


def methods(run: Results) -> list[str]:
    """Methods of a run, in the order in which they were asked for."""
    return [str(name) for name in run.manifest["recipe_options"]["methods"]]


def usable(run: Results) -> Bool[np.ndarray, " image"]:
    """Images that are done, valid and labelled."""
    return run["done"][:] & run["valid"][:] & (run["label"][:] >= 0)


def curves(run: Results, kind: str, order: str, method: str) -> Curves | None:
    """One method's curve in one order, both ends included where they are known.

    Args:
        run: its rows.
        kind: "removal" or "pixels".
        order: key of `ORDERS`.
        method: its name.
    """
    name = f"{kind}_{order}_{method}"
    if name not in run:
        return None
    use = usable(run)
    label = run["label"][:][use]
    intact = (run["prediction"][:][use] == label).astype(float)[:, None]
    steps = run[name][:][use].astype(float)
    if kind == "pixels":
        x = np.arange(LEVELS) / LEVELS
        return Curves(x, np.concatenate([intact, steps], 1))
    patches = Config.from_dict(run.manifest["model"]["config"]).patches
    kept = run["kept"][:]
    empty = (run["prediction_empty"][:][use] == label).astype(float)[:, None]
    x = 1 - np.concatenate([[0], kept, [patches]])[::-1] / patches
    return Curves(x, np.concatenate([empty, steps, intact], 1)[:, ::-1])


def removable(curve: Curves, *, resamples: int = 1000, seed: int = 0):
    """The largest share of tokens that can go while accuracy is at least the intact.

    Least important first; every smaller share that was tried must hold as well. The
    paper says 60 % for ViT-B/32 (section 7).

    Args:
        curve: in the negative order.
        resamples: bootstrap samples of images.
        seed: of them.

    Returns:
        (value, low, high): of all images, and its 95 % bootstrap interval.
    """
    rng = np.random.default_rng(seed)
    count = len(curve.correct)

    def share(mean):
        holds = np.logical_and.accumulate(mean >= mean[..., :1] - 1e-12, axis=-1)
        return curve.x[holds.sum(-1) - 1]

    weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    low, high = np.quantile(share(weights @ curve.correct), (0.025, 0.975))
    return float(share(curve.correct.mean(0))), float(low), float(high)


def published_area(curve: Curves, patches: int) -> float:
    """Area as the published code has it: sum over counts 1 to n - 1 / (largest x n).

    Counts between those that were run are interpolated.
    """
    kept = np.arange(1, patches)
    steps = np.round((1 - curve.x[::-1]) * patches)
    mean = np.interp(kept, steps, curve.correct.mean(0)[::-1])
    return float(mean.sum() / (mean.max() * patches)) if mean.max() > 0 else 0.0


def values(
    run: Results, column: str, method: str
) -> Float[np.ndarray, " image"] | None:
    """A column of the table, image by image; NaN where an image has no such value."""
    if column.startswith(("removal_", "pixels_")):
        kind, order = column.split("_")
        curve = curves(run, kind, order, method)
        return None if curve is None else curve.areas
    name = f"{column}_{method}"
    return run[name][:][usable(run)].astype(float) if name in run else None


def table(run: Results, *, name: str) -> list[dict[str, Any]]:
    """Methods by protocols, one row per cell.

    Args:
        run: its rows.
        name: of the run.

    Returns:
        Rows with `run`, `method`, `column` (key of `COLUMNS`), `value` with its 95 %
        bootstrap interval over images `low`, `high`; `p`: two-sided paired sign-flip
        test against random orders, NaN where there are none; `p_chefer`: likewise
        against Chefer's map; `published`: removal areas as the published code has
        them; `images`.
    """
    patches = Config.from_dict(run.manifest["model"]["config"]).patches
    rows = []
    for column in COLUMNS:
        for method in methods(run):
            if column == "removable":
                curve = curves(run, "removal", "negative", method)
                if curve is None or not len(curve.correct):
                    continue
                value, low, high = removable(curve)
                numbers = {"value": value, "low": low, "high": high}
                tests = {"p": np.nan, "p_chefer": np.nan, "published": np.nan}
                images = len(curve.correct)
            else:
                own = values(run, column, method)
                if own is None or not np.isfinite(own).any():
                    continue
                interval = bootstrap_mean(own[:, None])
                numbers = {
                    "value": float(interval.mean[0]),
                    "low": float(interval.low[0]),
                    "high": float(interval.high[0]),
                }
                tests = {
                    "p": paired(own, values(run, column, "random"), method, "random"),
                    "p_chefer": paired(
                        own, values(run, column, "chefer"), method, "chefer"
                    ),
                    "published": np.nan,
                }
                if column.startswith("removal_"):
                    kind, order = column.split("_")
                    curve = curves(run, kind, order, method)
                    if curve is not None:
                        tests["published"] = published_area(curve, patches)
                images = int(np.isfinite(own).sum())
            cell = {"run": name, "method": method, "column": column}
            rows.append(cell | numbers | tests | {"images": images})
    return rows


def paired(own, other, method: str, against: str) -> float:
    """p of the two-sided sign-flip test of per-image differences."""
    if other is None or method == against:
        return float("nan")
    difference = own - other
    difference = difference[np.isfinite(difference)]
    if not len(difference):
        return float("nan")
    return float(sign_flip_test(difference[:, None], alternative="two-sided")[0])


def curve_rows(run: Results, kind: str, *, name: str) -> list[dict[str, Any]]:
    """Accuracy along the way, one row per order, method and step."""
    rows = []
    for order, title in ORDERS.items():
        for style, method in enumerate(methods(run)):
            curve = curves(run, kind, order, method)
            if curve is None or not len(curve.correct):
                continue
            interval = bootstrap_mean(curve.correct)
            for place, x in enumerate(curve.x):
                rows.append(
                    {
                        "run": name,
                        "panel": title,
                        "series": method,
                        "style": style,
                        "tick": f"{x:.3f}",
                        "x": float(x),
                        "images": len(curve.correct),
                        "mean": float(interval.mean[place]),
                        "low": float(interval.low[place]),
                        "high": float(interval.high[place]),
                        "chance": float("nan"),
                    }
                )
    return rows


def panels(rows: Sequence[Mapping[str, Any]], kind: str) -> list[Panel]:
    """Both orders, of one run or of several side by side."""
    return accuracy_panels(rows, axis=AXES[kind])


FIGURES = {
    "removal": (
        "Faithfulness: image tokens removed",
        "Accuracy of the model while image tokens are taken away after position "
        "embedding, in the order of each method's map (section 7). A faithful map "
        "stays high where the least important tokens go first, and falls fast where "
        "the most important do. Line: mean over images; band: its 95 % bootstrap "
        "interval.",
    ),
    "pixels": (
        "Faithfulness: pixels blackened",
        "The same with pixels set to black in tenths of the picture, by each map "
        "enlarged bilinearly (protocol of Chefer et al. 2021).",
    ),
}


def speeds(run: Results) -> dict[str, float]:
    """Images per second of every method and of a plain forward pass."""
    measured = run.manifest.get("measured") or {}
    return dict(measured.get("images_per_second") or {})


def draw(
    folder: Any, names: Sequence[str], runs: Sequence[Results]
) -> dict[str, Any] | None:
    """Write the curves and the table of those runs that have them.

    Args:
        folder: where to; `etils.epath.Path` or alike.
        names: of the runs.
        runs: any runs.

    Returns:
        "figures", each of `writing.draw_captioned`; "columns" and "lines" of the
        table, and "csv"; None where no run has rows.
    """
    pairs = [(name, run) for name, run in zip(names, runs) if is_faithfulness(run)]
    cells = [row for name, run in pairs for row in table(run, name=name)]
    if not cells:
        return None
    present = {cell["column"] for cell in cells}
    columns = {key: title for key, title in COLUMNS.items() if key in present}
    return {
        "figures": [
            writing.draw_captioned(folder, figure) for figure in figures(pairs)
        ],
        "columns": columns,
        "lines": table_lines(pairs, cells, list(columns)),
        "csv": writing.write_csv(folder / "faithfulness.csv", cells),
    }


def figures(runs: Sequence[tuple[str, Results]]) -> list[Captioned]:
    """The curves of every protocol that some run followed.

    Args:
        runs: (name, run) of the recipe.
    """
    found = []
    for kind, (title, caption) in FIGURES.items():
        rows = [row for name, run in runs for row in curve_rows(run, kind, name=name)]
        if rows:
            drawn_only = ("style", "tick")
            plain = [{k: v for k, v in r.items() if k not in drawn_only} for r in rows]
            words = f"faithfulness_{kind}", title, caption
            found.append(Captioned(*words, panels(rows, kind), plain))
    return found


def table_lines(
    runs: Sequence[tuple[str, Results]],
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
) -> list[dict[str, Any]]:
    """The table as the page shows it: a line per run and method, a cell per column."""
    cells = {(row["run"], row["method"], row["column"]): row for row in rows}
    return [
        {
            "run": name,
            "method": method,
            "cells": [cells.get((name, method, column)) for column in columns],
            "speed": speeds(run).get(method),
        }
        for name, run in runs
        for method in methods(run)
    ]
