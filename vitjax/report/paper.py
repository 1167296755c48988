"""Sections 5 and 6 of the paper: sub-layers, memories, heads, interventions.

Also the paper's numbers beside a run's, where model and data are the paper's.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from vitjax.recipes.schema import INTERVENTIONS, KINDS, SYSTEMS
from vitjax.report.figure import (
    COLORS,
    KIND_STYLES,
    FigureTable,
    Rows,
    Section,
    Table,
    figures_of,
    most,
    quote,
    sentences_of,
    with_interval,
)
from vitjax.report.identifiability import ANY, RATE, TOP1, summary_rows
from vitjax.report.per_image import (
    BAND,
    CATEGORIES,
    COMPARED,
    UPDATES,
    Frame,
    Run,
    interval_of,
    intervals,
    mean,
)
from vitjax.statistics import sign_flip_test

DASHED = len(COLORS)
"""Added to a style: the same color, dashed."""


def section(runs: Sequence[Run]) -> Section:
    """Figures of section 6, the table of interventions, and the paper's numbers."""
    with_rows = [run for run in runs if run.has_paper]
    edits = {r.name: edit_rows(r) for r in with_rows if r.paper["intervention"].size}
    figures = figures_of(with_rows, FIGURES)
    tables = [edit_table(pd.concat(edits.values()))] if edits else []
    tables += published_tables(runs, edits)
    return Section(
        key="paper",
        title="What blocks write, and with which memories",
        sentences=sentences_of(
            runs,
            lambda run: describe(run, edits.get(run.name, pd.DataFrame())),
            with_rows,
        ),
        figures=figures,
        tables=tables,
    )


def describe(run: Run, edits: Frame) -> Iterator[str]:
    """Which layers write the class, with which memories, and what interventions do."""
    names = list(SYSTEMS.values())

    def stack(metric: str, axis: str, keys: Iterable[str], **where: str) -> np.ndarray:
        values = [run.metric(metric, **{axis: key}, **where) for key in keys]
        return np.stack(values, axis=-1)

    rises = stack("change", "compared", UPDATES, tokens="image")
    block, system, share = most(rises)
    yield (
        f"The {names[system]} of block {block} raises the logit of the true class most "
        f"often, at {share} of the image tokens; by chance it would at half of them."
    )
    after = stack("composition", "category", CATEGORIES, convention="paper")[:, -1:]
    _, category, share = most(after)
    yield (
        "Of its input, attention and MLP, the top class after the last block is most "
        f"often that of {list(CATEGORIES.values())[category]}, at {share} of the "
        "tokens."
    )
    cosines = stack("class_value", "system", SYSTEMS, weights="trained")
    control = stack("class_value", "system", SYSTEMS, weights="control")
    layer, system = np.unravel_index(cosines.mean(1).argmax(), cosines.shape[::2])
    cosine = interval_of(cosines[layer, :, system], shares=False)
    yield (
        f"Value vectors of the {names[system]} of block {layer} come closest to class "
        f"embeddings: the largest cosine is {quote(cosine, unit='')} on average over "
        f"the classes, {control[layer, :, system].mean():.3f} at random initialization."
    )
    hits = stack("agreement", "system", SYSTEMS, convention="paper")
    chance = stack("agreement_chance", "system", SYSTEMS, convention="paper")
    block, system, share = most(hits)
    yield (
        f"Tokens call memories of their class most often in the {names[system]} of "
        f"block {block}: at {share} of the tokens; with permuted classes at "
        f"{100 * mean(chance)[block, system]:.1f} %."
    )
    edits = edits[edits["intervention"].isin(QUOTED_EDITS)] if len(edits) else edits
    if len(edits) and edits["change"].notna().any():
        row = edits.loc[edits["change"].abs().idxmax()].to_dict()
        yield (
            f"Of the interventions, “{row['words']}” changes the share of identifiable "
            f"image tokens most, from {100 * row['before']:.1f} % to "
            f"{100 * row['after']:.1f} %: by "
            f"{quote(row, mean='change', unit=' points')}."
        )


def change(run: Run) -> Rows:
    """Figure 3b and the change rate of whole blocks."""
    for compared, panel in COMPARED.items():
        for kind in run.tokens:
            values = run.metric("change", compared=compared, tokens=kind)
            yield run.line(panel, KINDS[kind], KIND_STYLES[kind], values, chance=0.5)


def composition(run: Run, convention: str) -> Rows:
    """Figure 3c, with categories that exclude each other, or as it was published."""
    names, panel = CATEGORIES, "top class after the block"
    if convention == "vilas2023":
        names = CATEGORIES | {"composed": "neither input nor attention"}
        panel = "as the published code counts"
    for style, (category, name) in enumerate(names.items()):
        if (convention, category) != ("vilas2023", "several"):
            where = {"convention": convention, "category": category}
            chance = run.metric("composition_chance", **where).mean(0)
            values = run.metric("composition", **where)
            yield run.line(panel, name, style, values, chance=chance)


WEIGHTS = {
    "trained": "the weights",
    "control": "random initialization",
    "shuffled": "value vectors shuffled",
}


def class_value(run: Run) -> Rows:
    """Figure 4a, and each attention head."""
    for system, panel in SYSTEMS.items():
        for style, (weights, name) in enumerate(WEIGHTS.items()):
            values = run.metric("class_value", system=system, weights=weights)
            yield run.line(panel, name, style, values.T)
    for head, values in enumerate(run.metric("class_value_head").swapaxes(0, 1)):
        yield run.line("attention, each head", f"head {head}", head, values.T)


def heads(run: Run) -> Rows:
    """Key-value agreement and compositionality of every attention head."""
    for panel, name, chance in (
        ("key-value agreement, each head", "agreement_head", "chance_head"),
        ("answer of one memory, each head", "simple_head", "chance_simple_head"),
    ):
        for head in range(run.config.heads) if name in run.paper else ():
            level = run.metric(chance).mean((0, 2), dtype=np.float64)
            values = run.metric(name)[..., head]
            yield run.line(panel, f"head {head}", head, values, chance=level)


def permuted(run: Run, panel: str, series: str, style: int, name: str, **where) -> Rows:
    """A metric, and dashed its chance level with permuted classes."""
    yield run.line(panel, series, style, run.metric(name, **where))
    chance = run.metric(f"{name}_chance", **where)
    yield run.line(panel, f"{series}, classes permuted", style + DASHED, chance)


def agreement(run: Run) -> Rows:
    """Figure 4b in both definitions."""
    for system, panel in SYSTEMS.items():
        where = {"name": "agreement", "system": system}
        yield from permuted(run, panel, "paper", 0, convention="paper", **where)
        name = "published code"
        yield from permuted(run, panel, name, 1, convention="vilas2023", **where)


def simple(run: Run) -> Rows:
    """Compositionality of the layers' answers."""
    for style, (system, name) in enumerate(SYSTEMS.items()):
        yield from permuted(run, "all tokens", name, style, "simple", system=system)


BARS = {
    "y_label": "share of tokens",
    "mark": "stacked",
    "chance_label": "pale: by chance",
}
FIGURES: FigureTable = {
    "change": (
        change,
        "Who writes towards the class?",
        "Above the dashed line a layer raises the true class more often than not.",
        "Share of tokens whose true class has a larger logit in what is written than "
        f"in what was read (section 6, Figure 3b). {BAND}",
        {"y_label": "class similarity change rate"},
    ),
    "composition": (
        functools.partial(composition, convention="paper"),
        "Where does a block's answer come from?",
        "The tallest part of a bar is where that block's top class comes from; compare "
        "it with the pale bar beside it.",
        "Share of tokens whose top class after the block is also that of one of its "
        "input and its two updates, of more than one, or of none (section 6, Figure "
        "3c). Bars: mean over images; thin lines: 95 % bootstrap intervals; pale bars: "
        "by chance, with input and updates of the other tokens of the image.",
        BARS,
    ),
    "composition_published": (
        functools.partial(composition, convention="vilas2023"),
        "The same, as published",
        "Compare these bars with the paper's, and those above with each other.",
        "As the published code counts, for comparison with Figure 3c: categories "
        "overlap and the last does not look at the MLP, so that bars exceed one.",
        BARS,
    ),
    "class_value": (
        class_value,
        "Do the weights hold classes?",
        "The trained weights above both controls: memories of classes were learned.",
        "Largest cosine between a class embedding and a value vector of the layer "
        "(section 6, Figure 4a). Line: mean over classes; band: its 95 % bootstrap "
        "interval.",
        {"y_label": "class-value agreement"},
    ),
    "heads": (
        heads,
        "Which heads hold and call classes?",
        "A head that stands out from the others and from the dashed line is one that "
        "recalls classes.",
        "The next two figures for each attention head and its own memories (section "
        f"6.2). Dashed: classes permuted, mean over heads. {BAND}",
        {
            "y_label": "share of tokens",
            "chance_label": "classes permuted, mean over heads",
        },
    ),
    "agreement": (
        agreement,
        "Do tokens call memories of their class?",
        "A line above its dashed one: tokens use memories of their own class.",
        "Share of tokens whose five strongest memories have the true class among "
        "their five best classes (paper, section 6, Figure 4b), or are among the "
        f"five memories that promote it most (published code). Dashed: chance. {BAND}",
        {"y_label": "key-value agreement rate"},
    ),
    "simple": (
        simple,
        "Is a layer's answer one memory's?",
        "A low line: what the layer writes is composed of several memories.",
        "Share of tokens for which the top class of what the layer writes is that of "
        "one of their five strongest memories; otherwise it is composed of several "
        f"(section 6). Dashed: chance. {BAND}",
        {"y_label": "share of tokens"},
    ),
}

QUOTED_EDITS = ("self_only", "no_cls", "without_context", "without_class")
"""Interventions that a sentence may name: no controls and no variants."""

CONTROLLED = {
    "random_as_class": "without_context",
    "random_as_context": "without_class",
}
"""Random removal -> the intervention that removes as many tokens."""


def edit_rows(run: Run) -> Frame:
    """What every intervention does to the same tokens and to the predictions.

    Share of identifiable image tokens in the last block, among those that stay: before,
    after and change (low, high: 95 % bootstrap interval; p: two-sided sign-flip test);
    accuracy on the same images.
    """
    names = run.paper["intervention"].values.tolist()
    before, after = run.metric("before"), run.metric("after")
    exists, interval = np.isfinite(after), intervals(after - before)
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
            "accuracy_before": mean(np.where(exists, run.correct[:, None], np.nan)),
            "accuracy_after": mean(np.where(exists, run.metric("correct"), np.nan)),
            "images": interval["images"],
        }
    )
    place = [names.index(CONTROLLED.get(name, name)) for name in names]
    return rows.iloc[np.argsort(place, kind="stable")]


def edit_table(rows: Frame) -> Table:
    """Interventions as the page shows them."""
    shown = rows.drop(columns=["intervention", "low", "high"])
    changes = with_interval(rows, "change")
    shown = shown.assign(change=changes, p=rows["p"].map("{:.2g}".format))
    headings = {"words": "intervention", "before": "identifiable before"}
    headings |= {name: name.replace("_", " ") for name in rows if "accuracy" in name}
    return Table(
        key="edits",
        title="What interventions do",
        caption="Identifiability rate in the last block of the image tokens that stay, "
        "before and after. p: two-sided sign-flip test of the changes of images, "
        "uncorrected.",
        data=rows,
        shown=shown.rename(columns=headings),
    )


def published_rows(
    run: Run, edits: Frame, published: dict[str, Any]
) -> Iterator[tuple[str, str, float, float]]:
    """(run, quantity, its number, the paper's); none for other models and data."""
    manifest = run.manifest
    name, data = manifest["model"]["name"], str(manifest["data"]["id"])
    whole = run.done == run.total and manifest.get("limit") is None
    if not whole or not data.startswith(tuple(published["data"].get(name, ()))):
        return
    trained = manifest["model"].get("sha256") is not None
    numbers = published["models" if trained else "random_init"].get(name, {})
    values = summary_rows(run).set_index("quantity")["value"]
    pairs = [(words, values[words], numbers.get(key)) for key, words in QUOTED.items()]
    for row in edits.to_dict("records") if trained else ():
        key, words = row["intervention"], row["words"]
        before = published["before"].get(name, {}).get(key)
        pairs.append((f"{words}: the same tokens before", row["before"], before))
        pairs.append((words, row["after"], numbers.get(key)))
    yield from ((run.name, *pair) for pair in pairs if pair[-1] is not None)


QUOTED = {"rate": RATE, "some": ANY, "top1": TOP1}


def published_tables(runs: Sequence[Run], edits: dict[str, Frame]) -> Iterator[Table]:
    """The paper's numbers beside those of whole runs on its models and data."""
    path = resources.files("vitjax.report").joinpath("published.json")
    published, rows = json.loads(path.read_text("utf-8")), []
    for run in runs:
        rows += published_rows(run, edits.get(run.name, pd.DataFrame()), published)
    if rows:
        yield Table(
            key="published",
            title="Beside the published numbers",
            caption=f"{published['source']}. Their perturbed rates include [CLS] and "
            "average tokens in other ways.",
            data=pd.DataFrame(rows, columns=["run", "quantity", "here", "published"]),
        )
