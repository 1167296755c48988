"""Distributions over images and over classes: box plots, dots, a histogram.

As everywhere, images are the units: tokens are averaged within their image first, where
the published figures pool the tokens of all images.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from vitjax.recipes.schema import KINDS, SYSTEMS
from vitjax.report import style
from vitjax.report.curves import FigureTable, figures_of, intervals
from vitjax.report.figure import ReportOptions, Section
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


def identifiability_boxes(run: Run) -> Iterator[pd.DataFrame]:
    """[CLS] beside image tokens."""
    return kind_boxes(run, ("cls", "image"), "two-sided")


def context_boxes(run: Run) -> Iterator[pd.DataFrame]:
    """Figure 3a: object beside context tokens."""
    return kind_boxes(run, ("context", "object"), "less")


def kind_boxes(
    run: Run, kinds: Sequence[str], alternative: Alternative
) -> Iterator[pd.DataFrame]:
    """Boxes of the kinds of tokens that exist; the first is tested against the second.

    Args:
        run: which used at least one image.
        kinds: two keys of `schema.KINDS`.
        alternative: of the test.
    """
    kinds = [kind for kind in kinds if kind in run.tokens]
    values = [run.curve(kind) for kind in kinds]
    p = np.full((2, run.config.depth), np.nan)
    if len(kinds) == 2:
        difference = (values[0] - values[1]).astype(np.float64)
        p[0] = holm(sign_flip_test(difference, alternative=alternative))
    for kind, each, tests in zip(kinds, values, p):
        yield box_rows(
            each,
            run=run.name,
            panel="block output",
            series=KINDS[kind],
            style=style.KINDS[kind],
            chance=run.chance("identifiability"),
            p_holm=tests,
        )


def class_value_boxes(run: Run) -> Iterator[pd.DataFrame]:
    """The published `match_score`: class-value agreement over classes."""
    for system, panel in SYSTEMS.items() if run.has_paper else ():
        values = run.metric("class_value", system=system, weights="trained").T
        control = run.metric("class_value", system=system, weights="control").T
        yield box_rows(
            values,
            run=run.name,
            panel=panel,
            series="the weights",
            style=0,
            chance=control.mean(0),
            p_holm=holm(wilcoxon_test(values, control)),
        )


def box_rows(
    values: Float[np.ndarray, "unit layer"],
    *,
    run: str,
    panel: str,
    series: str,
    style: int,
    chance: float | Float[np.ndarray, " layer"],
    p_holm: Float[np.ndarray, " layer"],
) -> pd.DataFrame:
    """One box per block: median, quartiles, whiskers, mean and its interval.

    Whiskers are the most extreme values within 1.5 interquartile ranges of the box.
    """
    numbers = intervals(values)
    boxes = np.full((5, values.shape[1]), np.nan)
    for layer, column in enumerate(values.astype(np.float64).T):
        column = column[np.isfinite(column)]
        if len(column):
            q25, median, q75 = np.quantile(column, (0.25, 0.5, 0.75))
            reach = 1.5 * (q75 - q25)
            # A quartile between two values may have none of them beyond it.
            low = min(column[column >= q25 - reach].min(), q25)
            high = max(column[column <= q75 + reach].max(), q75)
            boxes[:, layer] = median, q25, q75, low, high
    names = ("median", "q25", "q75", "whisker_low", "whisker_high")
    return pd.DataFrame(
        {
            "run": run,
            "panel": panel,
            "series": series,
            "style": style,
            "layer": np.arange(values.shape[1]),
            "images": numbers.pop("images"),
            **dict(zip(names, boxes)),
            **numbers,
            "chance": chance,
            "p_holm": p_holm,
        }
    )


def agreement_classes(run: Run) -> Iterator[pd.DataFrame]:
    """The published `key_val_agr`: a dot per class."""
    classes, place, count = np.unique(
        run.label, return_inverse=True, return_counts=True
    )

    def of_classes(name: str, system: str) -> np.ndarray:
        values = run.metric(name, system=system, convention="paper")
        total = np.zeros((len(classes), values.shape[1]))
        np.add.at(total, place, values.astype(np.float64))
        return total / count[:, None]

    for system, panel in SYSTEMS.items() if run.has_paper else ():
        rates = of_classes("agreement", system)
        chance = of_classes("agreement_chance", system)
        numbers = intervals(rates)
        depth = rates.shape[1]
        yield pd.DataFrame(
            {
                "run": run.name,
                "panel": panel,
                "series": "each class, and their mean",
                "style": 0,
                "class": np.repeat([run.classes[c] for c in classes], depth),
                "layer": np.tile(np.arange(depth), len(classes)),
                "images": np.repeat(count, depth),
                "mean": rates.ravel(),
                "chance": chance.ravel(),
                "average": np.tile(numbers["mean"], len(classes)),
                "low": np.tile(numbers["low"], len(classes)),
                "high": np.tile(numbers["high"], len(classes)),
                "average_chance": np.tile(chance.mean(0), len(classes)),
            }
        )


def identifiable_tokens(run: Run) -> Iterator[pd.DataFrame]:
    """How many image tokens of an image are identifiable after the last block."""
    total = run.config.patches
    share = run.curve("image", "rate")[:, -1].astype(np.float64)
    identifiable = np.rint(share * total).astype(int)
    width = -(-(total + 1) // BINS)
    start = np.arange(0, total + 1, width)
    end = np.minimum(start + width - 1, total)
    inside = (identifiable[:, None] // width == start // width).astype(np.float64)
    yield pd.DataFrame(
        {
            "run": run.name,
            "panel": "last block",
            "series": "images",
            "style": style.KINDS["image"],
            "from": start,
            "to": end,
            "tick": [f"{a}–{b}" if a < b else str(a) for a, b in zip(start, end)],
            **intervals(inside),
            "mean_number": identifiable.mean(),
            "chance_number": total * run.chance("rate"),
        }
    ).assign(images=inside.sum(0).astype(int))


BOX = (
    "Box: middle half; line in it: median; whiskers: as far as values lie within 1.5 "
    "lengths of the box."
)

FIGURES: FigureTable = {
    "identifiability_boxes": (
        identifiability_boxes,
        "How identifiability is spread over images",
        "Class identifiability of the block outputs over images; image tokens are "
        f"averaged within their image first. {BOX} Star: [CLS] and image tokens of the "
        "same image differ (two-sided sign-flip test over images, 0.05 after Holm's "
        "correction over blocks). Dashed: chance.",
        {"mark": "boxes", "y_label": "class identifiability"},
    ),
    "context_boxes": (
        context_boxes,
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
