"""Sections 5 and 6 of the paper: sub-layers, memories, heads, interventions.

Also the paper's numbers beside a run's, where model and data are the paper's.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources

import numpy as np
import pandas as pd

from vitjax.recipes import schema
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
    rows_of_all,
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
    used = [run for run in runs if run.has_paper]
    edits = rows_of_all(used, edit_rows)
    tables = [edit_table(edits)] if len(edits) else []
    return Section(
        key="paper",
        title="What blocks write, and with which memories",
        sentences=sentences_of(runs, used, describe, edits),
        figures=figures_of(used, FIGURES),
        tables=[*tables, *published_tables(runs, edits)],
    )


def describe(run: Run, edits: Frame) -> Iterator[str]:
    """Which layers write the class, with which memories, and what interventions do."""
    names = list(SYSTEMS.values())

    def stack(metric: str, of: str, keys: Iterable[str]) -> np.ndarray:
        return np.stack([run.paper[metric, of, key] for key in keys], axis=-1)

    block, system, share = most(stack("change", "image", UPDATES))
    yield (
        f"The {names[system]} of block {block} raises the logit of the true class most "
        f"often, at {share} of the image tokens; by chance it would at half of them."
    )
    _, category, share = most(stack("composition", "paper", CATEGORIES)[:, -1:])
    yield (
        "Of its input, attention and MLP, the top class after the last block is most "
        f"often that of {list(CATEGORIES.values())[category]}, at {share} of the "
        "tokens."
    )
    cosines = np.stack([run.class_value(system) for system in SYSTEMS])
    system, layer = np.unravel_index(cosines.mean(-1).argmax(), cosines.shape[:2])
    cosine = interval_of(cosines[system, layer], shares=False)
    control = run.class_value(list(SYSTEMS)[system], "control")[layer].mean()
    yield (
        f"Value vectors of the {names[system]} of block {layer} come closest to class "
        f"embeddings: the largest cosine is {quote(cosine, unit='')} on average over "
        f"the classes, {control:.3f} at random initialization."
    )
    block, system, share = most(stack("agreement", "paper", SYSTEMS))
    chance = mean(stack("agreement_chance", "paper", SYSTEMS))[block, system]
    yield (
        f"Tokens call memories of their class most often in the {names[system]} of "
        f"block {block}: at {share} of the tokens; with permuted classes at "
        f"{100 * chance:.1f} %."
    )
    rows = [
        row
        for row in edits.to_dict("records")
        if row["intervention"] in QUOTED_EDITS and np.isfinite(row["change"])
    ]
    if rows:
        row = max(rows, key=lambda row: abs(row["change"]))
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
            values = run.paper["change", kind, compared]
            yield run.line(panel, KINDS[kind], KIND_STYLES[kind], values, chance=0.5)


def composition(run: Run, convention: str) -> Rows:
    """Figure 3c, with categories that exclude each other, or as it was published."""
    names, panel = CATEGORIES, "top class after the block"
    if convention == "vilas2023":
        names = CATEGORIES | {"composed": "neither input nor attention"}
        panel = "as the published code counts"
    for style, (category, name) in enumerate(names.items()):
        if (convention, category) != ("vilas2023", "several"):
            chance = run.paper["composition_chance", convention, category].mean(0)
            values = run.paper["composition", convention, category]
            yield run.line(panel, name, style, values, chance=chance)


WEIGHTS = {
    "trained": "the weights",
    "control": "random initialization",
    "shuffled": "value vectors shuffled",
}
HEADS = {
    "key-value agreement, each head": (schema.AGREEMENT_HEAD, schema.CHANCE_HEAD),
    "answer of one memory, each head": (schema.SIMPLE_HEAD, schema.CHANCE_SIMPLE_HEAD),
}
DEFINITIONS = {"paper": "paper", "vilas2023": "published code"}


def class_value(run: Run) -> Rows:
    """Figure 4a, and each attention head."""
    for system, panel in SYSTEMS.items():
        for style, (weights, name) in enumerate(WEIGHTS.items()):
            yield run.line(panel, name, style, run.class_value(system, weights).T)
    values = run.results[schema.CLASS_VALUE_HEAD()].values
    for head in range(run.config.heads):
        yield run.line("attention, each head", f"head {head}", head, values[:, head].T)


def heads(run: Run) -> Rows:
    """Key-value agreement and compositionality of every attention head."""
    for panel, (hits, chance) in HEADS.items():
        for head in range(run.config.heads) if hits() in run else ():
            level = run.read(chance()).mean((0, 2), dtype=np.float64)
            values = run.read(hits())[..., head]
            yield run.line(panel, f"head {head}", head, values, chance=level)


def permuted(run: Run, panel: str, series: str, style: int, name: str, *of) -> Rows:
    """A metric, and dashed its chance level with permuted classes."""
    yield run.line(panel, series, style, run.paper[name, *of])
    chance = run.paper[f"{name}_chance", *of]
    yield run.line(panel, f"{series}, classes permuted", style + DASHED, chance)


def agreement(run: Run) -> Rows:
    """Figure 4b in both definitions."""
    for system, panel in SYSTEMS.items():
        for style, (key, name) in enumerate(DEFINITIONS.items()):
            yield from permuted(run, panel, name, style, "agreement", key, system)


def simple(run: Run) -> Rows:
    """Compositionality of the layers' answers."""
    for style, (system, name) in enumerate(SYSTEMS.items()):
        yield from permuted(run, "all tokens", name, style, "simple", system)


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


def edit_rows(run: Run) -> Rows:
    """What every intervention does to the same tokens and to the predictions.

    Share of identifiable image tokens in the last block, among those that stay: before,
    after and change (low, high: 95 % bootstrap interval; p: two-sided sign-flip test);
    accuracy on the same images.
    """
    names = run.interventions
    if not names:
        return
    before, after, correct = (
        np.stack([run.paper[metric, name] for name in names], axis=-1)
        for metric in ("before", "after", "correct")
    )
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
            "accuracy_after": mean(np.where(exists, correct, np.nan)),
            "images": interval["images"],
        }
    )
    place = [names.index(CONTROLLED.get(name, name)) for name in names]
    yield rows.iloc[np.argsort(place, kind="stable")]


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


QUOTED = {"rate": RATE, "some": ANY, "top1": TOP1}


def published_tables(runs: Sequence[Run], edits: Frame) -> Iterator[Table]:
    """The paper's numbers beside those of whole runs on its models and data."""
    path = resources.files("vitjax.report").joinpath("published.json")
    published, rows = json.loads(path.read_text("utf-8")), []
    for run in runs:
        manifest, images = run.manifest, str(run.manifest["data"]["id"])
        model = published["models"].get(manifest["model"]["name"])
        whole = run.done == run.total and manifest.get("limit") is None
        if model is None or not whole:
            continue
        if not images.startswith(tuple(published["data"][model["data"]])):
            continue
        trained = manifest["model"].get("sha256") is not None
        numbers = model.get("trained" if trained else "random_init", {})
        before = model.get("before", {})
        values = pd.concat(summary_rows(run)).set_index("quantity")["value"]
        for key, words in QUOTED.items():
            rows.append((run.name, words, values[words], numbers.get(key)))
        for row in edits[edits["run"] == run.name].to_dict("records") * trained:
            key, words = row["intervention"], row["words"]
            same = f"{words}: the same tokens before"
            rows.append((run.name, same, row["before"], before.get(key)))
            rows.append((run.name, words, row["after"], numbers.get(key)))
    columns = ["run", "quantity", "here", "published"]
    data = pd.DataFrame(rows, columns=columns).dropna(subset="published")
    if len(data):
        yield Table(
            key="published",
            title="Beside the published numbers",
            caption=f"{published['source']}. Their perturbed rates include [CLS] and "
            "average tokens in other ways.",
            data=data,
        )
