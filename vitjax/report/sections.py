"""Figures of sections 5 and 6 of the paper, from per-image values."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from vitjax.report.composition import COMPOSITION
from vitjax.report.mechanism import CHANGES, SYSTEMS, Mechanism
from vitjax.report.panels import KIND_STYLE, Panel, Series
from vitjax.report.per_image import TOKENS
from vitjax.statistics import bootstrap_mean


class Curve(NamedTuple):
    """One line of a figure before it is averaged.

    Args:
        panel: title of the axes that it belongs to.
        series: its name.
        style: colour and marker.
        values: one per image (or class) and block.
        chance: level, or one per block; NaN for none.
    """

    panel: str
    series: str
    style: int
    values: Float[np.ndarray, "unit layer"]
    chance: float | Float[np.ndarray, " layer"] = float("nan")


class Figure(NamedTuple):
    """A figure of the page.

    Args:
        key: name of its files.
        title: above it.
        caption: what is drawn and how to read it.
        measure: key of `panels.MEASURE_LABELS`.
        curves: of one run.
        stacked: bars instead of lines.
        chance_name: in the legend, of chance that differs from block to block.
    """

    key: str
    title: str
    caption: str
    measure: str
    curves: Sequence[Curve]
    stacked: bool = False
    chance_name: str = ""


SYSTEM_NAMES = {"attention": "attention", "mlp": "MLP"}
BAND = "Line: mean over images; band: its 95 % bootstrap interval."
PALE = (
    "Pale bars: by chance, the top class after the block compared with the input and "
    "updates of every other token of the same image instead of its own."
)
CATEGORY_NAMES = {
    "previous": "the block's input",
    "attention": "attention",
    "mlp": "MLP",
    "several": "more than one of them",
    "composed": "none: a new class",
}


def figures(found: Mechanism) -> list[Figure]:
    """Every figure of one run, in the order of the paper."""
    return [
        change(found),
        composition(found),
        published_composition(found),
        class_value(found),
        heads(found),
        agreement(found),
        accuracy(found),
        simple(found),
    ]


def change(found: Mechanism) -> Figure:
    """Figure 3b and the change rate of whole blocks."""
    curves = [
        Curve(title, TOKENS[kind], KIND_STYLE[kind], values, 0.5)
        for name, title in CHANGES.items()
        for kind, values in found.change[name].items()
    ]
    caption = (
        "Share of tokens whose true class has a larger logit in what is written than "
        "in what was read (section 6.1, Figure 3b). The MLP reads the stream after "
        f"attention; the published code compares it with the block's input. {BAND}"
    )
    title = "Who writes towards the class?"
    return Figure("change", title, caption, "change", curves)


def composition(found: Mechanism) -> Figure:
    """Figure 3c, with categories that exclude each other."""
    curves = [
        Curve("top class after the block", CATEGORY_NAMES[name], place, values)
        for place, (name, values) in enumerate(found.composition.items())
    ]
    curves = with_chance(curves, found.composition_chance)
    caption = (
        "Share of all tokens whose top class after the block is also that of exactly "
        "one of its input and its two updates, of more than one, or of none (section "
        "6.1, Figure 3c). The categories exclude each other and add to one. Bars: mean "
        f"over images; thin lines: 95 % bootstrap interval of each part. {PALE}"
    )
    title = "Where does a block's answer come from?"
    return Figure("composition", title, caption, "composition", curves, stacked=True)


def with_chance(
    curves: Sequence[Curve], chance: Mapping[str, Float[np.ndarray, "image layer"]]
) -> list[Curve]:
    """Curves with the mean over images of their chance levels, in the same order."""
    levels = [values.mean(0) for values in chance.values()]
    return [curve._replace(chance=level) for curve, level in zip(curves, levels)]


def published_composition(found: Mechanism) -> Figure:
    """Figure 3c as it was published."""
    names = {**CATEGORY_NAMES, "composed": "neither input nor attention"}
    curves = [
        Curve("as the published code counts", names[name], COMPOSITION.index(name), v)
        for name, v in found.published_composition.items()
    ]
    curves = with_chance(curves, found.published_composition_chance)
    caption = (
        "The same as the published code counts it: three categories overlap, and the "
        "last one does not look at the MLP, so that bars exceed one. For comparison "
        f"with Figure 3c as printed. {PALE}"
    )
    title, key = "The same, as published", "composition_published"
    return Figure(key, title, caption, "composition", curves, stacked=True)


def class_value(found: Mechanism) -> Figure:
    """Figure 4a."""
    controls = {
        "": "the weights",
        "_control": "random initialisation",
        "_shuffled": "value vectors shuffled",
    }
    curves = [
        Curve(SYSTEM_NAMES[s], name, style, found.class_value[f"{s}{control}"].T)
        for s in SYSTEMS
        for style, (control, name) in enumerate(controls.items())
        if f"{s}{control}" in found.class_value
    ]
    for head in range(found.class_value["head"].shape[1]):
        per_head = found.class_value["head"][:, head].T
        curves.append(Curve("attention, each head", f"head {head}", head, per_head))
    caption = (
        "Largest cosine between a class embedding and a value vector of the layer "
        "(section 6.2, Figure 4a), for the weights, for randomly initialised ones, and "
        "for value vectors whose components are permuted. Line: mean over classes; "
        "band: its 95 % bootstrap interval over classes."
    )
    title = "Do the weights hold classes?"
    return Figure("class_value", title, caption, "class_value", curves)


def heads(found: Mechanism) -> Figure:
    """Key-value agreement and compositionality of every attention head."""
    shown = {
        "key-value agreement, each head": ("agreement_head", "chance_head"),
        "answer of one memory, each head": ("simple_head", "chance_simple_head"),
    }
    curves = []
    for panel, (name, chance) in shown.items() if found.heads else ():
        level = found.heads[chance].mean((0, 2), dtype=np.float64)
        for head in range(found.heads[name].shape[-1]):
            values = found.heads[name][..., head]
            curves.append(Curve(panel, f"head {head}", head, values, level))
    caption = (
        "The two questions of the next figures, asked of each attention head and its "
        "own memories (section 6.2). Left: share of all tokens whose five strongest "
        "memories in the head have the true class among their five best classes. "
        "Right: share of tokens for which the top class of what attention writes, all "
        "heads together, is that of one of these five memories. Dashed: permuted "
        f"classes, mean over heads. {BAND}"
    )
    title, key = "Which heads hold and call classes?", "heads"
    dashed = "classes permuted, mean over heads"
    return Figure(key, title, caption, "simple", curves, chance_name=dashed)


def agreement(found: Mechanism) -> Figure:
    """Figure 4b in both definitions, each with its own chance level."""
    curves = []
    for s in SYSTEMS:
        panel = SYSTEM_NAMES[s]
        for style, (kind, name) in enumerate(
            (("paper", "paper"), ("code", "published code"))
        ):
            curves.append(Curve(panel, name, style, found.agreement[kind][s]))
            chance = f"{name}, classes permuted"
            curves.append(Curve(panel, chance, style + 8, found.chance[kind][s]))
    caption = (
        "Share of all tokens whose five strongest memories have the true class among "
        "their five best classes (paper, section 6.2, Figure 4b), or are among the "
        "five memories that promote it most (published code). Dashed: the same with "
        f"permuted classes, which is the chance level. {BAND}"
    )
    title = "Do tokens call memories of their class?"
    return Figure("agreement", title, caption, "agreement", curves)


def accuracy(found: Mechanism) -> Figure:
    """Agreement on rightly minus wrongly classified images, resampled together."""
    right = found.digest.correct
    curves = []
    if 1 < right.sum() < len(right) - 1:
        for style, s in enumerate(SYSTEMS):
            values = found.at_readout[s].astype(np.float64)
            curves.append(
                Curve("readout", SYSTEM_NAMES[s], style, contrast(values, right), 0.0)
            )
    where = "[CLS]" if found.digest.config.class_token else "image tokens"
    caption = (
        f"Key-value agreement rate at {where} on rightly minus on wrongly classified "
        f"images (section 6.2). {BAND} p-values of permuted labels are in tests.csv."
    )
    title = "Is agreement larger where the model is right?"
    return Figure("accuracy", title, caption, "difference", curves)


def contrast(
    values: Float[np.ndarray, "image layer"], group: Bool[np.ndarray, " image"]
) -> Float[np.ndarray, "image layer"]:
    """Values whose mean, and its bootstrap, is that of a difference of two means.

    Each image's deviation from the mean of its own group, weighted by the inverse of
    the group's share: the linear part of the difference.
    """
    means = np.where(group[:, None], values[group].mean(0), values[~group].mean(0))
    share = group.mean()
    weights = np.where(group, 1 / share, -1 / (1 - share))[:, None]
    difference = values[group].mean(0) - values[~group].mean(0)
    return difference + weights * (values - means)


def simple(found: Mechanism) -> Figure:
    """Compositionality of the layers' answers."""
    curves = []
    for style, s in enumerate(SYSTEMS):
        name = SYSTEM_NAMES[s]
        curves.append(Curve("all tokens", name, style, found.simple[s]))
        if s in found.simple_chance:
            permuted, chance = f"{name}, classes permuted", found.simple_chance[s]
            curves.append(Curve("all tokens", permuted, style + 8, chance))
    caption = (
        "Share of tokens for which the top class of what the layer writes is that of "
        "one of their five strongest memories: where it is small, answers are composed "
        f"of several memories (section 6.2). Dashed: permuted classes. {BAND}"
    )
    title = "Is a layer's answer one memory's?"
    return Figure("simple", title, caption, "simple", curves)


def curve_rows(figure: Figure, *, run: str) -> list[dict[str, Any]]:
    """The numbers of a figure's lines, one row per block.

    Args:
        figure: of one run.
        run: its name.

    Returns:
        Rows with `panel`, `series`, `layer` from 0, `block` from 1, `mean`, `low` and
        `high` (95 % bootstrap interval), `chance` and `images` (or classes).
    """
    rows = []
    for curve in figure.curves:
        interval = bootstrap_mean(curve.values.astype(np.float64))
        images = np.isfinite(curve.values).sum(0)
        chance = np.broadcast_to(curve.chance, interval.mean.shape)
        for layer in range(curve.values.shape[1]):
            rows.append(
                {
                    "run": run,
                    "panel": curve.panel,
                    "series": curve.series,
                    "style": curve.style,
                    "layer": layer,
                    "block": layer + 1,
                    "images": int(images[layer]),
                    "mean": float(interval.mean[layer]),
                    "low": float(interval.low[layer]),
                    "high": float(interval.high[layer]),
                    "chance": float(chance[layer]),
                }
            )
    return rows


def panels(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """A figure's axes, of one run or of several side by side."""
    grouped: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        lines = grouped.setdefault((row["panel"], row["run"]), {})
        lines.setdefault(row["series"], []).append(row)
    several = len({run for _, run in grouped}) > 1
    return [
        Panel(
            title=f"{title} ({run})" if several else title,
            stream=figure.key,
            series=tuple(
                Series(name=name, style=line[0]["style"], rows=tuple(line))
                for name, line in lines.items()
            ),
            measure=figure.measure,
            quartiles=False,
            drawn="bars" if figure.stacked else "lines",
            fitted=True,
            chance_name="pale: by chance" if figure.stacked else figure.chance_name,
        )
        for (title, run), lines in grouped.items()
    ]
