"""Faithfulness of explanation methods: removal curves and a table of protocols.

Areas and measures are taken image by image, so that their means have bootstrap
intervals over images and differences between methods are paired.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from vitjax.analysis.faithfulness import area_under_curve
from vitjax.recipes import schema
from vitjax.report.curves import BAND, FigureTable, Rows, figures_of, line
from vitjax.report.figure import ReportOptions, Section, Table, with_interval
from vitjax.report.marks import Frame
from vitjax.report.per_image import Run
from vitjax.statistics import bootstrap_mean, sign_flip_test

PANELS = {
    "negative": "the least important patches go first",
    "positive": "the most important patches go first",
}
CURVES = {
    "removal_negative": (schema.REMOVAL, "negative"),
    "removal_positive": (schema.REMOVAL, "positive"),
    "pixels_negative": (schema.PIXELS, "negative"),
    "pixels_positive": (schema.PIXELS, "positive"),
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
"""Pixels are blackened in so many parts; the last one is not run."""


class Curve(NamedTuple):
    """Right or wrong image by image while something is removed, `kept` decreasing."""

    kept: Int[np.ndarray, " step"]
    correct: Float[np.ndarray, "image step"]

    @property
    def removed(self) -> Float[np.ndarray, " step"]:
        """The share that is gone at each step, increasing from 0."""
        return 1 - self.kept / self.kept[0]

    def areas(self) -> Float[np.ndarray, " image"]:
        """Area under each image's own curve, over the range it covers; in [0, 1]."""
        tokens = int(self.kept[0] - self.kept[-1])
        areas = area_under_curve(self.correct, self.kept, tokens=tokens)
        # Multiples of half a token: as float32, equal sums of them would differ.
        return np.rint(np.asarray(areas, np.float64) * 2 * tokens) / (2 * tokens)

    def vilas2023_area(self) -> float:
        """The published code's area; counts between those run are interpolated."""
        kept, tokens = np.arange(1, self.kept[0]), int(self.kept[0])
        mean = np.interp(kept, self.kept[::-1], self.correct.mean(0)[::-1])
        convention = "vilas2023_code"
        return float(area_under_curve(mean, kept, tokens=tokens, convention=convention))

    def removable(self) -> tuple[float, float, float]:
        """The largest share that can go while accuracy is at least the intact.

        Least important first; every smaller share that was tried must hold as well.
        The paper says 60 % for ViT-B/32 (section 7). With its 95 % bootstrap interval.
        """

        def share(mean):
            holds = np.logical_and.accumulate(mean >= mean[..., :1] - 1e-12, axis=-1)
            return self.removed[holds.sum(-1) - 1]

        count, draw = len(self.correct), np.random.default_rng(0)
        weights = draw.multinomial(count, np.full(count, 1 / count), size=1000) / count
        low, high = np.quantile(share(weights @ self.correct), (0.025, 0.975))
        return float(share(self.correct.mean(0))), float(low), float(high)


def section(runs: Sequence[Run], options: ReportOptions) -> Section | None:
    """Curves and the table of methods, of the runs of the recipe."""
    runs = [run for run in runs if run.manifest.get("recipe") == "faithfulness"]
    rows = [row for run in runs if len(run.image) for row in method_rows(run)]
    if not rows:
        return None
    return Section(
        key="faithfulness",
        title="Faithfulness of explanation methods",
        figures=figures_of(runs, FIGURES),
        tables=[method_table(runs, pd.DataFrame(rows))],
    )


def methods(run: Run) -> list[str]:
    """Methods of a run, in the order in which they were requested."""
    return list(map(str, run.manifest["recipe_options"]["methods"]))


def read_curve(run: Run, column: str, method: str) -> Curve | None:
    """One method's curve, key of `CURVES`, both ends included where they are known."""
    family, order = CURVES[column]
    if family(order, method) not in run:
        return None
    steps = run.read(family(order, method)).astype(float)
    intact = run.correct.astype(float)[:, None]
    if family is schema.PIXELS:
        return Curve(LEVELS - np.arange(LEVELS), np.hstack([intact, steps]))
    empty = run.read(schema.PREDICTION_EMPTY()) == run.label
    kept = run.results[schema.KEPT()].values.astype(int)
    kept = np.array([0, *kept, run.config.patches])
    correct = np.hstack([empty.astype(float)[:, None], steps, intact])
    return Curve(kept[::-1], correct[:, ::-1])


def method_rows(run: Run) -> Iterator[dict[str, object]]:
    """Methods by protocols, one row per cell.

    `p`: two-sided paired sign-flip test against random orders, `p_chefer` against
    Chefer's map; `published`: removal areas as the published code has them.
    """
    for column in COLUMNS:
        curves, values = {}, {}
        for method in methods(run):
            if column in CURVES or column == "removable":
                kind = "removal_negative" if column == "removable" else column
                if curve := read_curve(run, kind, method):
                    curves[method], values[method] = curve, curve.areas()
            elif (name := schema.SEGMENTATION(column, method)) in run:
                values[method] = run.read(name).astype(float)
        for method, own in values.items():
            if not np.isfinite(own).any():
                continue
            p = {"p": "random", "p_chefer": "chefer"}
            if column == "removable":
                value, low, high = curves[method].removable()
                p = dict.fromkeys(p, np.nan)
            else:
                value, low, high = (bound[0] for bound in bootstrap_mean(own[:, None]))
                p = {key: paired(values, method, other) for key, other in p.items()}
            removal = column in ("removal_negative", "removal_positive")
            yield {
                "run": run.name,
                "method": method,
                "column": column,
                "value": value,
                "low": low,
                "high": high,
                **p,
                "published": curves[method].vilas2023_area() if removal else np.nan,
                "images": int(np.isfinite(own).sum()),
            }


def paired(values: dict[str, np.ndarray], method: str, other: str) -> float:
    """p of the two-sided sign-flip test of per-image differences; NaN without."""
    if other not in values or method == other:
        return np.nan
    difference = values[method] - values[other]
    return float(sign_flip_test(difference[:, None], alternative="two-sided")[0])


def curve_rows(run: Run, kind: str) -> Rows:
    """Accuracy along the curves of every method, in both orders."""
    for order, panel in PANELS.items():
        for style, method in enumerate(methods(run)):
            if curve := read_curve(run, f"{kind}_{order}", method):
                axis = {"x": curve.removed}
                yield line(run, panel, method, style, curve.correct, axis=axis)


FIGURES: FigureTable = {
    "faithfulness_removal": (
        functools.partial(curve_rows, kind="removal"),
        "Faithfulness: image tokens removed",
        "Accuracy of the model while image tokens are taken away after position "
        "embedding, in the order of each method's map (section 7). A faithful map "
        "stays high where the least important tokens go first, and falls fast where "
        f"the most important do. {BAND}",
        {
            "y_label": "accuracy of the model",
            "x": "x",
            "x_label": "share of image tokens removed",
        },
    ),
    "faithfulness_pixels": (
        functools.partial(curve_rows, kind="pixels"),
        "Faithfulness: pixels blackened",
        "The same with pixels set to black in tenths of the image, by each map "
        "enlarged bilinearly (protocol of Chefer et al. 2021).",
        {
            "y_label": "accuracy of the model",
            "x": "x",
            "x_label": "share of pixels black",
        },
    ),
}


def method_table(runs: Sequence[Run], rows: Frame) -> Table:
    """A line per run and method, a column per protocol; *: differs from Chefer's."""
    cells = [
        with_interval(row["value"], row["low"], row["high"])
        + "*" * bool(row["p_chefer"] < 0.05)
        for row in rows.to_dict("records")
    ]
    shown = rows.assign(cell=cells, column=rows["column"].map(COLUMNS))
    shown = shown.pivot(index=["run", "method"], columns="column", values="cell")
    shown = shown.loc[:, [c for c in COLUMNS.values() if c in shown]].fillna("–")
    speeds = {}
    for run in runs:
        measured = (run.manifest.get("measured") or {}).get("images_per_second", {})
        for name in methods(run):
            speeds[run.name, name] = (
                f"{measured[name]:.3g}" if name in measured else "–"
            )
    shown = shown.reindex(list(speeds), fill_value="–")
    return Table(
        key="faithfulness",
        title="How faithful each method is",
        caption="The CSV also has p-values against random orders and the removal areas "
        "as the published code has them. Arrows say where better is. Areas are those "
        "of trapezoids under accuracy against the share taken away, image by image, "
        "means with 95 % bootstrap intervals over images; removable: the largest share "
        "of tokens that can go, least important first, while accuracy is at least that "
        "of the whole image. Segmentation at the resolution of patches, mean over "
        "images. *: differs from Chefer's gradient × attention at 0.05, paired "
        "two-sided sign-flip test, uncorrected.",
        data=rows,
        shown=shown.assign(**{"images/s": speeds.values()}).reset_index(),
    )
