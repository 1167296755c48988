"""Distributions over images and over classes: box plots, dots, a histogram.

As everywhere, images are the units: tokens are averaged within their image first, where
the published figures pool the tokens of all images.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from vitjax.recipes.schema import KINDS, SYSTEMS
from vitjax.report import style
from vitjax.report.curves import FigureTable, Rows, figures_of, line
from vitjax.report.figure import ReportOptions, Section
from vitjax.report.marks import Frame
from vitjax.report.per_image import Run
from vitjax.statistics import Alternative, holm, sign_flip_test, wilcoxon_test

BINS = 50
"""At most, of a histogram."""


def section(runs: Sequence[Run], options: ReportOptions) -> Section | None:
    """Every distribution that the runs have rows for, in the published order."""
    figures = figures_of(runs, FIGURES)
    if not figures:
        return None
    title = "Distributions over images and classes"
    return Section(key="appendix", title=title, figures=figures)


def kind_boxes(run: Run, kinds: Sequence[str], alternative: Alternative) -> Rows:
    """Boxes of kinds of tokens; the first of two that exist is tested."""
    kinds = [kind for kind in kinds if kind in run.tokens]
    values = [run.curve(kind).astype(np.float64) for kind in kinds]
    p: list[Any] = [np.nan] * len(kinds)
    if len(kinds) == 2:
        p[0] = holm(sign_flip_test(values[0] - values[1], alternative=alternative))
    for place, kind in enumerate(kinds):
        yield box_rows(
            line(
                run,
                "block output",
                KINDS[kind],
                style.KINDS[kind],
                values[place],
                chance=run.chance("identifiability"),
            ),
            values[place],
            p[place],
        )


def class_value_boxes(run: Run) -> Rows:
    """The published `match_score`: class-value agreement over classes."""
    for system, panel in SYSTEMS.items() if run.has_paper else ():
        values = run.metric("class_value", system=system, weights="trained").T
        control = run.metric("class_value", system=system, weights="control").T
        rows = line(run, panel, "the weights", 0, values, chance=control.mean(0))
        yield box_rows(rows, values, holm(wilcoxon_test(values, control)))


def box_rows(rows: Frame, values: np.ndarray, p_holm: Any) -> Frame:
    """Rows with the boxes of their values, [unit, layer], and with p-values.

    Whiskers are the most extreme values within 1.5 interquartile ranges of the box.
    """
    boxes = np.full((values.shape[1], 5), np.nan)
    for layer, column in enumerate(values.astype(np.float64).T):
        column = column[np.isfinite(column)]
        if len(column):
            q25, median, q75 = np.quantile(column, (0.25, 0.5, 0.75))
            reach = 1.5 * (q75 - q25)
            # A quartile between two values may have none of them beyond it.
            low = min(column[column >= q25 - reach].min(), q25)
            high = max(column[column <= q75 + reach].max(), q75)
            boxes[layer] = median, q25, q75, low, high
    names = ["median", "q25", "q75", "whisker_low", "whisker_high"]
    place = rows.columns.get_loc("mean")
    columns = [*rows.columns[:place], *names, *rows.columns[place:]]
    rows = rows.assign(**dict(zip(names, boxes.T)))
    return rows[columns].assign(p_holm=p_holm)


def agreement_classes(run: Run) -> Rows:
    """The published `key_val_agr`: a dot per class."""

    def by_class(name: str, system: str) -> Frame:
        values = run.metric(name, system=system, convention="paper")
        return pd.DataFrame(values.astype(np.float64)).groupby(run.label).mean()

    classes, images = np.unique(run.label, return_counts=True)
    for system, panel in SYSTEMS.items() if run.has_paper else ():
        rates = by_class("agreement", system)
        chance = by_class("agreement_chance", system)
        series = "each class, and their mean"
        average = line(
            run, panel, series, 0, rates.values, chance=chance.values.mean(0)
        )
        repeated = pd.concat([average] * len(classes), ignore_index=True)
        depth = len(average)
        yield repeated.assign(
            images=np.repeat(images, depth),
            mean=rates.values.ravel(),
            chance=chance.values.ravel(),
            average=repeated["mean"],
            average_chance=repeated["chance"],
            **{"class": np.repeat([run.classes[c] for c in classes], depth)},
        )[[*DOTS, "series", "style", "average", "low", "high", "average_chance"]]


DOTS = ("run", "panel", "class", "layer", "images", "mean", "chance")


def identifiable_tokens(run: Run) -> Rows:
    """How many image tokens of an image are identifiable after the last block."""
    total = run.config.patches
    share = run.curve("image", "rate")[:, -1].astype(np.float64)
    identifiable = np.rint(share * total).astype(int)
    width = -(-(total + 1) // BINS)
    start = np.arange(0, total + 1, width)
    end = np.minimum(start + width - 1, total)
    axis = {
        "from": start,
        "to": end,
        "tick": [f"{a}–{b}" if a < b else str(a) for a, b in zip(start, end)],
    }
    inside = identifiable[:, None] // width == start // width
    rows = line(run, "last block", "images", style.KINDS["image"], inside, axis=axis)
    yield rows.drop(columns="chance").assign(
        images=inside.sum(0),
        mean_number=identifiable.mean(),
        chance_number=total * run.chance("rate"),
    )


BOX = (
    "Box: middle half; line in it: median; whiskers: as far as values lie within 1.5 "
    "lengths of the box."
)

FIGURES: FigureTable = {
    "identifiability_boxes": (
        functools.partial(kind_boxes, kinds=("cls", "image"), alternative="two-sided"),
        "How identifiability is spread over images",
        "Class identifiability of the block outputs over images; image tokens are "
        f"averaged within their image first. {BOX} Star: [CLS] and image tokens of the "
        "same image differ (two-sided sign-flip test over images, 0.05 after Holm's "
        "correction over blocks). Dashed: chance.",
        {"mark": "boxes", "y_label": "class identifiability"},
    ),
    "context_boxes": (  # Figure 3a
        functools.partial(kind_boxes, kinds=("context", "object"), alternative="less"),
        "Object tokens beside context tokens",
        "Class identifiability of the block outputs over images, tokens of either kind "
        f"averaged within their image first (Figure 3a). {BOX} Star: object tokens are "
        "more identifiable than context tokens of the same image (one-sided sign-flip "
        "test over images, 0.05 after Holm's correction over blocks). Dashed: chance.",
        {"mark": "boxes", "y_label": "class identifiability"},
    ),
    "class_value_boxes": (
        class_value_boxes,
        "How class-value agreement is spread over classes",
        "Largest cosine between a class embedding and a value vector of the layer, "
        f"over classes (section 6.2). {BOX} Star: larger than with random "
        "initialization (one-sided Wilcoxon test over classes, 0.05 after Holm's "
        "correction over blocks), whose mean is dashed.",
        {
            "mark": "boxes",
            "y_label": "class-value agreement",
            "chance_label": "random initialization, mean",
        },
    ),
    "agreement_classes": (
        agreement_classes,
        "Key-value agreement, class by class",
        "Key-value agreement rate as the paper defines it (section 6.2): share of all "
        "tokens of a class's images whose five strongest memories have the class among "
        "their five best. A dot per class; diamonds: mean over classes; bars: its 95 % "
        "bootstrap interval over classes. Dashed: permuted classes, which is the "
        "chance level.",
        {
            "mark": "dots",
            "y_label": "key-value agreement rate",
            "y": "average",
            "chance": "average_chance",
            "chance_label": "classes permuted, mean",
            "hidden": (
                "series",
                "style",
                "average",
                "low",
                "high",
                "average_chance",
            ),
        },
    ),
    "identifiable_tokens": (
        identifiable_tokens,
        "How many tokens of an image are identifiable",
        "How many of an image's image tokens have the true class first after the last "
        "block. Bars: share of images; thin lines: its 95 % bootstrap interval; dark "
        "line: mean number; dashed: mean number by chance.",
        {
            "mark": "histogram",
            "y_label": "share of images",
            "x": "from",
            "x_label": "identifiable image tokens",
            "chance": "chance_number",
        },
    ),
}
