"""Sections 5 and 6 of the paper: sub-layers, memories, heads, interventions.

Also the paper's numbers beside a run's, where model and data are the paper's.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from vitjax.recipes.schema import INTERVENTIONS, KINDS, SYSTEMS
from vitjax.report import style
from vitjax.report.curves import (
    BAND,
    FigureTable,
    Rows,
    figures_of,
    intervals,
    line,
    mean,
)
from vitjax.report.figure import (
    ReportOptions,
    Section,
    Table,
    number,
    with_interval,
)
from vitjax.report.identifiability import ANY, RATE, TOP1, summary_rows
from vitjax.report.marks import Frame
from vitjax.report.per_image import Run
from vitjax.statistics import sign_flip_test

DASHED = len(style.COLORS)
"""Added to a style: the same color, dashed."""


def section(runs: Sequence[Run], options: ReportOptions) -> Section | None:
    """Figures of section 6, the table of interventions, and the paper's numbers."""
    edits = {run.name: edit_rows(run) for run in runs if run.has_paper}
    edits = {name: rows for name, rows in edits.items() if len(rows)}
    sentences = [
        (f"{name}: " if len(runs) > 1 else "") + sentence
        for name, rows in edits.items()
        for sentence in describe_edits(rows)
    ]
    figures = figures_of([run for run in runs if run.has_paper], FIGURES)
    tables = [edit_table(pd.concat(edits.values()))] if edits else []
    tables += published_tables(runs, edits)
    if not figures and not tables:
        return None
    return Section(
        key="paper",
        title="What blocks write, and with which memories",
        sentences=sentences,
        figures=figures,
        tables=tables,
    )


CHANGES = {
    "residual": "block output against block input",
    "attention_update": "attention against its input",
    "mlp_update": "MLP against its input",
    "mlp_update_vilas2023": "MLP against the block's input (published)",
}


def change(run: Run) -> Rows:
    """Figure 3b and the change rate of whole blocks."""
    for compared, panel in CHANGES.items():
        for kind in run.tokens:
            values = run.metric("change", compared=compared, tokens=kind)
            yield line(run, panel, KINDS[kind], style.KINDS[kind], values, chance=0.5)


SOURCES = {
    "previous": "the block's input",
    "attention": "attention",
    "mlp": "MLP",
    "several": "more than one of them",
    "composed": "none: a new class",
}


def composition(run: Run, convention: str) -> Rows:
    """Figure 3c, with categories that exclude each other, or as it was published."""
    names, panel = SOURCES, "top class after the block"
    if convention == "vilas2023":
        names = SOURCES | {"composed": "neither input nor attention"}
        panel = "as the published code counts"
    for place, (category, name) in enumerate(names.items()):
        if (convention, category) != ("vilas2023", "several"):
            where = {"convention": convention, "category": category}
            chance = run.metric("composition_chance", **where).mean(0)
            values = run.metric("composition", **where)
            yield line(run, panel, name, place, values, chance=chance)


WEIGHTS = {
    "trained": "the weights",
    "control": "random initialization",
    "shuffled": "value vectors shuffled",
}


def class_value(run: Run) -> Rows:
    """Figure 4a, and each attention head."""
    for system, panel in SYSTEMS.items():
        for place, (weights, name) in enumerate(WEIGHTS.items()):
            values = run.metric("class_value", system=system, weights=weights)
            yield line(run, panel, name, place, values.T)
    for head, values in enumerate(run.metric("class_value_head").swapaxes(0, 1)):
        yield line(run, "attention, each head", f"head {head}", head, values.T)


def heads(run: Run) -> Rows:
    """Key-value agreement and compositionality of every attention head."""
    panels = {
        "key-value agreement, each head": ("agreement_head", "chance_head"),
        "answer of one memory, each head": ("simple_head", "chance_simple_head"),
    }
    for panel, (name, chance) in panels.items():
        for head in range(run.config.heads) if name in run.paper else ():
            level = run.metric(chance).mean((0, 2), dtype=np.float64)
            values = run.metric(name)[..., head]
            yield line(run, panel, f"head {head}", head, values, chance=level)


def agreement(run: Run) -> Rows:
    """Figure 4b in both definitions, each with its own chance level."""
    for system, panel in SYSTEMS.items():
        for place, (convention, name) in enumerate(
            {"paper": "paper", "vilas2023": "published code"}.items()
        ):
            where = {"system": system, "convention": convention}
            yield line(run, panel, name, place, run.metric("agreement", **where))
            permuted = run.metric("agreement_chance", **where)
            name = f"{name}, classes permuted"
            yield line(run, panel, name, place + DASHED, permuted)


def simple(run: Run) -> Rows:
    """Compositionality of the layers' answers."""
    for place, (system, name) in enumerate(SYSTEMS.items()):
        panel, permuted = "all tokens", f"{name}, classes permuted"
        yield line(run, panel, name, place, run.metric("simple", system=system))
        chance = run.metric("simple_chance", system=system)
        yield line(run, panel, permuted, place + DASHED, chance)


def accuracy(run: Run) -> Rows:
    """Agreement on correctly minus wrongly classified images, resampled together."""
    if 1 < run.correct.sum() < len(run.correct) - 1:
        for place, (system, name) in enumerate(SYSTEMS.items()):
            values = run.metric("agreement_pooled", system=system).astype(np.float64)
            values = contrast(values, run.correct)
            yield line(run, "pooled token", name, place, values, chance=0.0)


def contrast(
    values: Float[np.ndarray, "image layer"], group: Bool[np.ndarray, " image"]
) -> Float[np.ndarray, "image layer"]:
    """Values whose mean, and its bootstrap, is that of a difference of two means.

    Each image's deviation from the mean of its own group, weighted by the inverse of
    the group's share: the linear part of the difference.
    """
    inside, outside = values[group].mean(0), values[~group].mean(0)
    share = group.mean()
    weights = np.where(group, 1 / share, -1 / (1 - share))[:, None]
    means = np.where(group[:, None], inside, outside)
    return inside - outside + weights * (values - means)


PALE = (
    "Pale bars: by chance, the top class after the block compared with the input and "
    "updates of every other token of the same image instead of its own."
)
BARS = {
    "y_label": "share of tokens",
    "mark": "stacked",
    "chance_label": "pale: by chance",
}
FIGURES: FigureTable = {
    "change": (
        change,
        "Who writes towards the class?",
        "Share of tokens whose true class has a larger logit in what is written than "
        "in what was read (section 6.1, Figure 3b). The MLP reads the stream after "
        f"attention; the published code compares it with the block's input. {BAND}",
        {"y_label": "class similarity change rate"},
    ),
    "composition": (
        functools.partial(composition, convention="paper"),
        "Where does a block's answer come from?",
        "Share of all tokens whose top class after the block is also that of exactly "
        "one of its input and its two updates, of more than one, or of none (section "
        "6.1, Figure 3c). The categories exclude each other and add to one. Bars: mean "
        f"over images; thin lines: 95 % bootstrap interval of each part. {PALE}",
        BARS,
    ),
    "composition_published": (
        functools.partial(composition, convention="vilas2023"),
        "The same, as published",
        "The same as the published code counts it: three categories overlap, and the "
        "last one does not look at the MLP, so that bars exceed one. For comparison "
        f"with Figure 3c as printed. {PALE}",
        BARS,
    ),
    "class_value": (
        class_value,
        "Do the weights hold classes?",
        "Largest cosine between a class embedding and a value vector of the layer "
        "(section 6.2, Figure 4a), for the weights, for randomly initialized ones, and "
        "for value vectors whose components are permuted. Line: mean over classes; "
        "band: its 95 % bootstrap interval over classes.",
        {"y_label": "class-value agreement"},
    ),
    "heads": (
        heads,
        "Which heads hold and call classes?",
        "The two questions of the next figures, asked of each attention head and its "
        "own memories (section 6.2). Left: share of all tokens whose five strongest "
        "memories in the head have the true class among their five best classes. "
        "Right: share of tokens for which the top class of what attention writes, all "
        "heads together, is that of one of these five memories. Dashed: permuted "
        f"classes, mean over heads. {BAND}",
        {
            "y_label": "share of tokens",
            "chance_label": "classes permuted, mean over heads",
        },
    ),
    "agreement": (
        agreement,
        "Do tokens call memories of their class?",
        "Share of all tokens whose five strongest memories have the true class among "
        "their five best classes (paper, section 6.2, Figure 4b), or are among the "
        "five memories that promote it most (published code). Dashed: the same with "
        f"permuted classes, which is the chance level. {BAND}",
        {"y_label": "key-value agreement rate"},
    ),
    "accuracy": (
        accuracy,
        "Is agreement larger where the model is right?",
        "Key-value agreement rate at the token that the head reads ([CLS], or the mean "
        "over image tokens of a model without one) on correctly minus on wrongly "
        f"classified images (section 6.2). {BAND} p-values of permuted labels are in "
        "tests.csv.",
        {"y_label": "agreement rate, correct - wrong"},
    ),
    "simple": (
        simple,
        "Is a layer's answer one memory's?",
        "Share of tokens for which the top class of what the layer writes is that of "
        "one of their five strongest memories: where it is small, answers are composed "
        f"of several memories (section 6.2). Dashed: permuted classes. {BAND}",
        {"y_label": "share of tokens"},
    ),
}


def edit_rows(run: Run) -> Frame:
    """What every intervention does to the same tokens and to the predictions.

    Share of identifiable image tokens in the last block, among those that exist after
    the edit: before, after and change (low, high: 95 % bootstrap interval; p: two-sided
    sign-flip test); accuracy on the same images.
    """
    names = run.paper["intervention"].values.tolist()
    if not names:
        return pd.DataFrame()
    before, after = run.metric("before"), run.metric("after")
    exists = np.isfinite(after)
    correct = {
        f"accuracy_{when}": mean(
            np.where(exists, run.metric(f"correct_{when}"), np.nan)
        )
        for when in ("before", "after")
    }
    interval = intervals(after - before)
    rows = pd.DataFrame(
        {
            "run": run.name,
            "intervention": names,
            "words": [INTERVENTIONS[name] for name in names],
            "before": mean(before),
            "after": mean(after),
            "change": interval["mean"],
            "low": interval["low"],
            "high": interval["high"],
            "p": sign_flip_test(after - before, alternative="two-sided"),
            **correct,
            "images": exists.sum(0),
        }
    )
    # A control stands below what it controls.
    base = {control: name for name, (_, control) in DESCRIBED.items() if control}
    place = {name: number for number, name in enumerate(names)}
    order = [(place[base.get(name, name)], name in base) for name in names]
    return rows.iloc[sorted(range(len(names)), key=order.__getitem__)]


def edit_table(rows: Frame) -> Table:
    """Interventions as the page shows them."""
    changes = zip(rows["change"], rows["low"], rows["high"])
    shown = rows.drop(columns=["intervention", "low", "high"]).assign(
        change=[with_interval(*change) for change in changes],
        p=rows["p"].map("{:.2g}".format),
    )
    return Table(
        key="edits",
        title="What interventions do",
        caption="Identifiability rate of image tokens in the last block, before and "
        "after on the same tokens, those that exist after the edit; each image counts "
        "once, one without such tokens not at all. p: two-sided sign-flip test of the "
        "per-image changes, not corrected for the number of rows.",
        data=rows,
        shown=shown.rename(
            columns={
                "words": "intervention",
                "before": "identifiable before",
                "accuracy_before": "accuracy before",
                "accuracy_after": "accuracy after",
            }
        ),
    )


DESCRIBED = {
    "self_only": ("When image tokens see only themselves and [CLS]", None),
    "no_cls": ("When image tokens do not see [CLS]", None),
    "without_context": ("With context tokens removed", "random_as_class"),
    "without_class": ("With object tokens removed", "random_as_context"),
}
"""Interventions with a sentence: its beginning, the random control."""


def describe_edits(rows: Frame) -> Iterator[str]:
    """What interventions of one run do, removals beside their random control."""
    by_name = rows.set_index("intervention").to_dict("index")
    for name, (begin, control) in DESCRIBED.items():
        row, random = by_name.get(name), by_name.get(control)
        if row is None or np.isnan(row["change"]):
            continue
        numbers = {key: number(row[key]) for key in row if isinstance(row[key], float)}
        sentence = (
            "{}, the share of identifiable image tokens among those that stay goes "
            "from {before} to {after} (p {:.2g}), accuracy from {accuracy_before} to "
            "{accuracy_after}"
        ).format(begin, row["p"], **numbers)
        if random:
            pair = number(random["after"]), number(random["before"])
            sentence += "; with as many removed at random, to {} from {}".format(*pair)
        yield f"{sentence}."


def published_rows(
    run: Run, edits: Frame, published: dict[str, Any]
) -> Iterator[tuple[str, float, float]]:
    """(quantity, this run's number, the paper's); none for other models and data."""
    name, data = run.manifest["model"]["name"], str(run.manifest["data"]["id"])
    same = any(data.startswith(each) for each in published["data"].get(name, ()))
    if not same or run.done < run.total or run.manifest.get("limit") is not None:
        return
    trained = run.manifest["model"].get("sha256") is not None
    numbers = published["models" if trained else "random_init"].get(name, {})
    before = published["before"].get(name, {})
    values = summary_rows(run).set_index("quantity")["value"]
    for key, words in {"rate": RATE, "some": ANY, "top1": TOP1}.items():
        if key in numbers:
            yield words, values[words], numbers[key]
    for row in edits.to_dict("records") if trained else ():
        key, words = row["intervention"], row["words"]
        if key in before:
            yield f"{words}: the same tokens before", row["before"], before[key]
        if key in numbers:
            yield words, row["after"], numbers[key]


def published_tables(runs: Sequence[Run], edits: dict[str, Frame]) -> Iterator[Table]:
    """The paper's numbers beside those of whole runs on its models and data."""
    path = resources.files("vitjax.report").joinpath("published.json")
    published = json.loads(path.read_text("utf-8"))
    rows = [
        (run.name, *row)
        for run in runs
        for row in published_rows(run, edits.get(run.name, pd.DataFrame()), published)
    ]
    if rows:
        yield Table(
            key="published",
            title="Beside the published numbers",
            caption=f"{published['source']}. Their perturbed rates include [CLS] and "
            "average tokens in other ways.",
            data=pd.DataFrame(rows, columns=["run", "quantity", "here", "published"]),
        )
