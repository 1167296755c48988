"""Class identifiability over the blocks, and the numbers to quote for a run."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from vitjax.recipes.schema import KINDS, RANK_REFINED, STREAMS
from vitjax.report.figure import (
    KIND_STYLES,
    Figure,
    FigureTable,
    Rows,
    Section,
    Table,
    figures_of,
    number,
    quote,
    rows_of_all,
    sentences_of,
    with_interval,
)
from vitjax.report.per_image import BAND, MEASURES, Frame, Run, interval_of, intervals


def section(runs: Sequence[Run]) -> Section:
    """Curves over the blocks, the summary, and what both say."""
    summary = rows_of_all(runs, summary_rows)
    return Section(
        key="identifiability",
        title="Class identifiability",
        sentences=sentences_of(runs, runs, describe, summary),
        figures=[*curve_figures(runs), *figures_of(runs, REFINEMENT)],
        tables=[summary_table(summary)] if len(summary) else [],
    )


FIGURES = {
    "identifiability": (
        ("residual",),
        "identifiability",
        "Identifiability over the blocks",
        "A line that rises towards 1: after more blocks, the true class can be read "
        "from tokens of that kind.",
        "Class identifiability of the block outputs, 1 - rank/C (section 5, Figure 2).",
    ),
    "updates": (
        ("attention_update", "mlp_update"),
        "identifiability",
        "What attention and MLP write",
        "Where one of the two lies higher, it is what writes the class.",
        "The same, for what each sub-layer adds to the stream, projected by itself.",
    ),
    "rate": (
        ("residual",),
        "rate",
        "Identifiability rate over the blocks",
        "The stricter measure: the true class must come first.",
        "Share of tokens of the block outputs whose first class is the true one; last "
        "block: Table 1. Vertical axes differ.",
    ),
}
"""Key: (streams, measure, title, what to look for, what is drawn)."""

MASKED = dict.fromkeys(("object", "context"), "image tokens by mask")
PANELS = {
    "identifiability": dict.fromkeys(("cls", "register", "image"), "all tokens")
    | MASKED,
    "rate": KINDS | MASKED,
}
"""Measure -> panel of each kind of tokens; rates often differ tenfold."""


def curve_figures(runs: Sequence[Run]) -> list[Figure]:
    """Identifiability and its rate: kinds of tokens side by side, or several runs."""
    used = [run for run in runs if len(run.image)]
    relative = len({run.config.depth for run in used}) > 1
    figures = {}
    for key, (streams, measure, title, see, caption) in FIGURES.items():
        caption += f" {BAND} Dashed: chance."
        caption += " Blocks are shown as fractions of the depth." * relative
        drawing = {
            "y_label": MEASURES[measure],
            "x": "fraction" if relative else "layer",
            "x_label": "fraction of depth" if relative else "block",
            "share_y": measure != "rate",
            "hidden": ("panel", "series", "style", "fraction"),
        }
        rows_of = functools.partial(curves, runs=used, streams=streams, measure=measure)
        figures[key] = rows_of, title, see, caption, drawing
    return figures_of(used, figures)


def curves(run: Run, runs: Sequence[Run], streams: Sequence[str], measure: str) -> Rows:
    """A series per stream and kind of tokens that some image has."""
    for stream, kind in itertools.product(streams, run.tokens):
        values = run.curve(kind, measure, stream)
        if kind == "cls" and measure == "rate":  # one token: right or wrong
            values = values == 1
        if not np.isfinite(values).any():
            continue
        panel, series, style = KINDS[kind], run.name, runs.index(run)
        if len(runs) == 1:
            panel = PANELS[measure][kind]
            series, style = KINDS[kind], KIND_STYLES[kind]
        if len(streams) > 1:
            panel = f"{STREAMS[stream].removesuffix(' update')}: {panel}"
        line = run.line(panel, series, style, values, chance=run.chance(measure))
        q25, q75 = np.nanquantile(values.astype(float), (0.25, 0.75), axis=0)
        names = {"stream": stream, "tokens": kind, "measure": measure}
        fraction = (line["layer"] + 1) / run.config.depth
        yield line.assign(**names, q25=q25, q75=q75, fraction=fraction)


def refined(run: Run, measure: str) -> Rows:
    """Answers of token-refinement modules, beside the projected pooled token."""
    if RANK_REFINED() in run:
        ranks, chance = run.read(RANK_REFINED()), run.chance(measure)
        values = ranks == 0 if measure == "rate" else 1 - ranks / len(run.classes)
        panel, curve = "block output", run.curve(run.pooled, measure)
        series = f"{KINDS[run.pooled]}, projected"
        yield run.line(panel, series, 0, curve, chance=chance)
        yield run.line(panel, "refinement module", 3, values, chance=chance)


REFINEMENT: FigureTable = {
    key: (
        functools.partial(refined, measure=measure),
        title,
        "Where the module lies above the projection, it has learned to read more.",
        "What each module (Naseer et al. 2022) answers, beside the state that the head "
        f"reads, projected after the same block. {BAND} Dashed: chance.",
        {"y_label": MEASURES[measure]},
    )
    for key, measure, title in (
        ("refined", "identifiability", "What the refinement modules answer"),
        ("refined_rate", "rate", "How often the refinement modules are right"),
    )
}


RATE = "image tokens that are identifiable, last block"
ANY = "images with an identifiable token, last block"
TOP1 = "top-1 accuracy"
DIFFERENCE = "identifiability of object minus context tokens, last block"


def summary_rows(run: Run) -> Rows:
    """The numbers to quote for a run, with 95 % intervals over images.

    Fractions in [0, 1]; NaN where nothing was measured or there is no such level.
    """
    rate, score = run.chance("rate"), run.chance("identifiability")
    rates, scores = (
        {kind: run.curve(kind, measure)[:, -1] for kind in run.tokens}
        for measure in ("rate", "identifiability")
    )
    columns = {TOP1: (run.correct, rate), RATE: (rates["image"], rate)}
    columns[ANY] = rates["image"] > 0, np.nan
    for kind in ("object", "context") if "object" in rates else ():
        words = f"{KINDS[kind]} that are identifiable, last block"
        columns[words] = rates[kind], rate
    for kind, values in scores.items():
        columns[f"identifiability of {KINDS[kind]}, last block"] = values, score
    if "object" in scores:
        columns[DIFFERENCE] = scores["object"] - scores["context"], 0.0
    rows = [
        {"run": run.name, "quantity": quantity, "chance": chance}
        | interval_of(values, shares=quantity != DIFFERENCE)
        for quantity, (values, chance) in columns.items()
    ]
    rows = pd.DataFrame(rows).rename(columns={"mean": "value"})
    yield rows[["run", "quantity", "value", "low", "high", "chance", "images"]]


def summary_table(data: Frame) -> Table:
    """A line per quantity, a column per run."""
    shown = data.assign(cell=with_interval(data, "value"))
    shown = shown.pivot(index="quantity", columns="run", values="cell")
    levels = data.dropna(subset="chance").groupby("quantity")["chance"].unique()
    levels = levels.map(lambda own: ", ".join(f"{level:.4g}" for level in sorted(own)))
    shown = shown[data["run"].unique()].assign(chance=levels)
    shown = shown.loc[data["quantity"].unique()].fillna("–")
    return Table(
        key="summary",
        title="In numbers",
        caption="“Last block” is the state that the model's answer is read from. "
        "Chance levels are those of single tokens; “any token of an image” has none, "
        "as the tokens of an image are not independent.",
        data=data,
        shown=shown.rename_axis("mean over images [95 % interval]").reset_index(),
    )


def describe(run: Run, summary: Frame) -> Iterator[str]:
    """What a run says of its model, in sentences."""
    rows = summary.set_index("quantity").to_dict("index")
    yield (
        f"The model is right on {quote(rows[TOP1], mean='value')} of the images, among "
        f"{len(run.classes):,} classes."
    )
    for kind in ("cls", "image") if "cls" in run.tokens else ("image",):
        curve, chance = run.curve(kind), run.chance("identifiability")
        line, last = intervals(curve), interval_of(curve[:, -1])
        start = np.flatnonzero(~(line["low"] > chance)).max(initial=-1) + 1
        stays = f"stays above chance from block {start} on"
        stays = stays if start < run.config.depth else "does not end above chance"
        yield (
            f"Mean identifiability at {KINDS[kind]}: {number(line['mean'][0])} after "
            f"block 0, {quote(last, unit='')} after the last, block "
            f"{run.config.depth - 1}; chance is {number(chance)}, and the interval "
            f"{stays}."
        )
    rate, some = (quote(rows[name], mean="value") for name in (RATE, ANY))
    yield (
        f"After the last block the true class comes first at {rate} of the image "
        f"tokens of an image, by chance at {100 * rows[RATE]['chance']:.3g} %, and at "
        f"one token or more in {some} of the images."
    )
    if "object" in run.tokens and not np.isnan(rows[DIFFERENCE]["value"]):
        difference = quote(rows[DIFFERENCE], mean="value", unit="")
        yield (
            "Identifiability of tokens on the object minus that of those around it: "
            f"{difference} after the last block."
        )
