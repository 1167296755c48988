"""The appendix's distributions: over images, over classes, of single images.

As everywhere, images are the units: tokens are averaged within their image first, where
the published figures pool the tokens of all images.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vitjax.report.mechanism import SYSTEMS, Mechanism
from vitjax.report.panels import KIND_STYLE, Drawn, Panel, Series
from vitjax.report.per_image import TOKENS, Digest
from vitjax.statistics import bootstrap_mean, holm, sign_flip_test, wilcoxon_test

BINS = 50
"""At most, of a histogram."""


class Spread(NamedTuple):
    """A figure of distributions, of one run.

    Args:
        key: name of its files.
        title: above it.
        caption: what is drawn and how to read it.
        panels: its axes.
        table: every number in it, for its CSV.
    """

    key: str
    title: str
    caption: str
    panels: Sequence[Panel]
    table: Sequence[Mapping[str, Any]]


BOX = (
    "Box: middle half; line in it: median; whiskers: as far as values lie within 1.5 "
    "lengths of the box."
)
SYSTEM_NAMES = {"attention": "attention", "mlp": "MLP"}


def spreads(
    digest: Digest, found: Mechanism | None, *, run: str, several: bool = False
) -> list[Spread]:
    """Every distribution that a run has the rows for.

    Args:
        digest: of the run.
        found: of the same run, where it is of the recipe `paper`.
        run: its name.
        several: whether other runs stand beside it, so that titles name it.

    Returns:
        Figures in the order of the published appendix.
    """
    if not len(digest.image):
        return []
    name = f" ({run})" if several else ""
    figures = [pairs(digest, name), context_pairs(digest, name)]
    if found is not None:
        figures += [class_values(found, name), by_class(found, name)]
    figures.append(counts(digest, name))
    shown = [figure for figure in figures if figure is not None]
    return [
        figure._replace(table=[{"run": run, **row} for row in figure.table])
        for figure in shown
    ]


def pairs(digest: Digest, name: str) -> Spread:
    """[CLS] beside image tokens."""
    kinds = [kind for kind in ("cls", "image") if kind in digest.tokens]
    caption = (
        "Class identifiability of the block outputs over images; image tokens are "
        f"averaged within their image first. {BOX} Star: [CLS] and image tokens of the "
        "same image differ (two-sided sign-flip test over images, 0.05 after Holm's "
        "correction over blocks). Dashed: chance."
    )
    return of_kinds(
        *(digest, kinds, name),
        key="identifiability_boxes",
        title="How identifiability is spread over images",
        caption=caption,
        alternative="two-sided",
    )


def context_pairs(digest: Digest, name: str) -> Spread | None:
    """Figure 3a: class beside context tokens."""
    kinds = [kind for kind in ("context", "class") if kind in digest.tokens]
    if not kinds:
        return None
    caption = (
        "Class identifiability of the block outputs over images, tokens of either kind "
        f"averaged within their image first (Figure 3a). {BOX} Star: class tokens are "
        "more identifiable than context tokens of the same image (one-sided sign-flip "
        "test over images, 0.05 after Holm's correction over blocks). Dashed: chance."
    )
    return of_kinds(
        *(digest, kinds, name),
        key="context_boxes",
        title="Class tokens beside context tokens",
        caption=caption,
        alternative="less",
    )


def of_kinds(
    digest: Digest, kinds: Sequence[str], name: str, *, alternative, **figure: Any
) -> Spread:
    """Boxes of kinds of tokens, of which the first two are compared."""
    values = [digest.of("residual", "identifiability", kind) for kind in kinds]
    chance = np.full(digest.config.depth, digest.chance("identifiability"))
    p = [np.full(digest.config.depth, np.nan)] * len(kinds)
    if len(kinds) == 2:
        difference = (values[0] - values[1]).astype(np.float64)
        p[0] = holm(sign_flip_test(difference, alternative=alternative))
    title = "block output"
    series = [
        (TOKENS[kind], KIND_STYLE[kind], box_rows(each, chance=chance, p=tests))
        for kind, each, tests in zip(kinds, values, p)
    ]
    panel = panel_of(figure["key"], title + name, "identifiability", "boxes", series)
    return Spread(panels=[panel], table=table_of([panel], [title]), **figure)


def class_values(found: Mechanism, name: str) -> Spread:
    """The published `match_score`: class-value agreement over classes."""
    panels = []
    for system in SYSTEMS:
        values = found.class_value[system].T
        control = found.class_value[f"{system}_control"].T
        rows = box_rows(
            values, chance=control.mean(0), p=holm(wilcoxon_test(values, control))
        )
        title = f"{SYSTEM_NAMES[system]}{name}"
        series = [("the weights", 0, rows)]
        panels.append(
            panel_of(
                *("class_value_boxes", title, "class_value", "boxes", series),
                chance_name="random initialisation, mean",
            )
        )
    caption = (
        "Largest cosine between a class embedding and a value vector of the layer, "
        f"over classes (section 6.2). {BOX} Star: larger than with random "
        "initialisation (one-sided Wilcoxon test over classes, 0.05 after Holm's "
        "correction over blocks), whose mean is dashed."
    )
    title = "How class-value agreement is spread over classes"
    names = [SYSTEM_NAMES[system] for system in SYSTEMS]
    table = table_of(panels, names)
    return Spread("class_value_boxes", title, caption, panels, table)


def by_class(found: Mechanism, name: str) -> Spread:
    """The published `key_val_agr`: a dot per class."""
    data, panels, table = found.digest, [], []
    classes = np.unique(data.label)
    for system in SYSTEMS:
        rates = class_means(found.agreement["paper"][system], data.label)
        chance = class_means(found.chance["paper"][system], data.label)
        title = SYSTEM_NAMES[system]
        series = [("each class, and their mean", 0, dot_rows(rates, chance))]
        panels.append(
            panel_of(
                *("agreement_classes", title + name, "agreement", "dots", series),
                chance_name="classes permuted, mean",
            )
        )
        table += [
            {
                "panel": title,
                "class": data.classes[number],
                "layer": layer,
                "block": layer + 1,
                "images": int((data.label == number).sum()),
                "mean": float(rates[row, layer]),
                "chance": float(chance[row, layer]),
            }
            for row, number in enumerate(classes)
            for layer in range(rates.shape[1])
        ]
    caption = (
        "Key-value agreement rate as the paper defines it (section 6.2): share of all "
        "tokens of a class's images whose five strongest memories have the class among "
        "their five best. A dot per class; diamonds: mean over classes; bars: its 95 % "
        "bootstrap interval over classes. Dashed: permuted classes, which is the "
        "chance level."
    )
    title = "Key-value agreement, class by class"
    return Spread("agreement_classes", title, caption, panels, table)


def counts(digest: Digest, name: str) -> Spread:
    """How many image tokens of an image are identifiable after the last block."""
    total = digest.config.patches
    share = digest.of("residual", "rate", "image")[:, -1].astype(np.float64)
    found = np.rint(share * total).astype(int)
    rows = bin_rows(found, total=total, chance=total * digest.chance("rate"))
    title = "last block"
    panel = panel_of(
        *("identifiable_tokens", title + name, "images", "histogram"),
        [("images", KIND_STYLE["image"], rows)],
        axis="identifiable image tokens",
    )
    caption = (
        "How many of an image's image tokens have the true class first after the last "
        f"block, of {total}. Bars: share of images; thin lines: its 95 % bootstrap "
        "interval; dark line: mean number; dashed: mean number by chance."
    )
    key = "identifiable_tokens"
    heading = "How many tokens of an image are identifiable"
    # Fractions are called mean and chance in every CSV; these are numbers of tokens.
    renamed = {"centre": "mean_number", "chance": "chance_number"}
    table = [
        {renamed.get(name, name): value for name, value in row.items()}
        for row in table_of([panel], [title])
    ]
    return Spread(key, heading, caption, [panel], table)


def box_rows(
    values: Float[np.ndarray, "unit layer"],
    *,
    chance: Float[np.ndarray, " layer"],
    p: Float[np.ndarray, " layer"],
) -> list[dict[str, Any]]:
    """One box per block.

    Args:
        values: of images or classes; NaN where one has none.
        chance: level of each block.
        p: of each block's test, corrected; NaN for none.

    Returns:
        Rows with `median`, quartiles, whiskers (the most extreme values within 1.5
        interquartile ranges of the box), the mean and its bootstrap interval.
    """
    values = values.astype(np.float64)
    interval, rows = bootstrap_mean(values), []
    for layer, column in enumerate(values.T):
        column = column[np.isfinite(column)]
        numbers = (*(float("nan"),) * 5,)
        if len(column):
            q25, median, q75 = np.quantile(column, (0.25, 0.5, 0.75))
            reach = 1.5 * (q75 - q25)
            # A quartile between two values may have none of them beyond it.
            low = min(column[column >= q25 - reach].min(), q25)
            high = max(column[column <= q75 + reach].max(), q75)
            numbers = (median, q25, q75, low, high)
        keys = ("median", "q25", "q75", "whisker_low", "whisker_high")
        rows.append(
            {
                "layer": layer,
                "block": layer + 1,
                "images": len(column),
                **dict(zip(keys, map(float, numbers))),
                "mean": float(interval.mean[layer]),
                "low": float(interval.low[layer]),
                "high": float(interval.high[layer]),
                "chance": float(chance[layer]),
                "p_holm": float(p[layer]),
            }
        )
    return rows


def class_means(
    values: Float[np.ndarray, "image layer"], label: Int[np.ndarray, " image"]
) -> Float[np.ndarray, "class layer"]:
    """Mean over the images of each class that has any, in the order of the classes."""
    _, place, count = np.unique(label, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), values.shape[1]))
    np.add.at(total, place, values.astype(np.float64))
    return total / count[:, None]


def dot_rows(
    rates: Float[np.ndarray, "class layer"], chance: Float[np.ndarray, "class layer"]
) -> list[dict[str, Any]]:
    """The values of every block, their mean over classes and its interval."""
    interval = bootstrap_mean(rates)
    return [
        {
            "layer": layer,
            "block": layer + 1,
            "values": rates[:, layer].tolist(),
            "least": float(rates[:, layer].min()),
            "most": float(rates[:, layer].max()),
            "mean": float(interval.mean[layer]),
            "low": float(interval.low[layer]),
            "high": float(interval.high[layer]),
            "chance": float(chance[:, layer].mean()),
        }
        for layer in range(rates.shape[1])
    ]


def bin_rows(
    numbers: Int[np.ndarray, " image"], *, total: int, chance: float
) -> list[dict[str, Any]]:
    """Shares of images by ranges of a whole number from 0 to `total`."""
    width = -(-(total + 1) // BINS)
    starts = np.arange(0, total + 1, width)
    inside = numbers[:, None] // width == starts // width
    interval, rows = bootstrap_mean(inside.astype(np.float64)), []
    for place, start in enumerate(starts.tolist()):
        end = min(start + width - 1, total)
        rows.append(
            {
                "from": start,
                "to": end,
                "tick": str(start) if start == end else f"{start}–{end}",
                "images": int(inside[:, place].sum()),
                "mean": float(interval.mean[place]),
                "low": float(interval.low[place]),
                "high": float(interval.high[place]),
                "centre": float(numbers.mean()),
                "chance": chance,
            }
        )
    return rows


def panel_of(
    key: str,
    title: str,
    measure: str,
    drawn: Drawn,
    series: Sequence[tuple[str, int, list[dict[str, Any]]]],
    **more: Any,
) -> Panel:
    """Axes of (name, style, rows)."""
    lines = tuple(
        Series(name=name, style=style, rows=tuple(rows)) for name, style, rows in series
    )
    return Panel(
        title=title,
        stream=key,
        series=lines,
        measure=measure,
        drawn=drawn,
        quartiles=False,
        **more,
    )


def table_of(panels: Sequence[Panel], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of panels, with their names."""
    return [
        {"panel": name, "series": series.name, **row}
        for panel, name in zip(panels, names)
        for series in panel.series
        for row in series.rows
    ]
