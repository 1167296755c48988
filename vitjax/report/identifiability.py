"""Class identifiability over the blocks, and the numbers to quote for a run."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from vitjax.recipes.schema import KINDS, RANK_REFINED, STREAMS
from vitjax.report.figure import (
    Figure,
    FigureTable,
    ReportOptions,
    Rows,
    Section,
    Table,
    figures_of,
    number,
    with_interval,
)
from vitjax.report.marks import KIND_STYLES, Frame
from vitjax.report.per_image import BAND, MEASURES, Run, intervals
from vitjax.runner.results import Results


def section(runs: Sequence[Run], options: ReportOptions) -> Section | None:
    """Curves over the blocks, the summary, and what both say."""
    used = [run for run in runs if len(run.image)]
    if not used:
        return None
    curves = {run.name: curve_rows(run) for run in used}
    summaries = {run.name: summary_rows(run) for run in runs}
    return Section(
        key="identifiability",
        title="Class identifiability",
        sentences=[
            (f"{run.name}: " if len(runs) > 1 else "") + sentence
            for run in used
            for sentence in describe(run, curves[run.name], summaries[run.name])
        ],
        figures=[
            *curve_figures(pd.concat(curves.values(), ignore_index=True)),
            *figures_of(runs, REFINEMENT),
        ],
        tables=[summary_table(runs, pd.concat(summaries.values()))],
    )


def curve_rows(run: Run) -> Frame:
    """The numbers of every curve of a run: stream, measure, kind of tokens, block."""
    values = run.curves.values
    axes = [run.streams, MEASURES, run.tokens, range(run.config.depth)]
    names = ["stream", "measure", "tokens", "layer"]
    rows: Frame = pd.MultiIndex.from_product(axes, names=names).to_frame(index=False)
    rows = rows[["stream", "tokens", "measure", "layer"]]
    rows.insert(0, "run", run.name)
    quartiles = np.full((2, *values.shape[1:]), np.nan)
    measured = np.isfinite(values).any(0)
    quartiles[:, measured] = np.nanquantile(values[:, measured], (0.25, 0.75), axis=0)
    return rows.assign(
        **intervals(values),
        q25=quartiles[0].ravel(),
        q75=quartiles[1].ravel(),
        chance=rows["measure"].map(run.chance),
    )


QUARTILES = (
    "Line: mean over images; dark band: its 95 % bootstrap interval; light band: the "
    "middle half of the images."
)
FIGURES = {
    "identifiability": (
        ("residual",),
        "identifiability",
        "Identifiability over the blocks",
        "Class identifiability of the block outputs, 1 - rank/C (section 5, Figure 2).",
    ),
    "updates": (
        ("attention_update", "mlp_update"),
        "identifiability",
        "What attention and MLP write",
        "The same, for what each sub-layer adds to the stream, projected by itself.",
    ),
    "rate": (
        ("residual",),
        "rate",
        "Identifiability rate over the blocks",
        "Share of tokens of the block outputs whose first class is the true one; last "
        "block: Table 1. Vertical axes differ.",
    ),
}
"""Key: (streams, measure, title, what is drawn)."""

SHARED_AXES = {
    "identifiability": [("cls", "register", "image"), ("object", "context")],
    "rate": [("object", "context")],
}
"""Measure -> kinds of tokens in one panel; rates often differ tenfold."""


def curve_figures(curves: Frame) -> Iterator[Figure]:
    """Identifiability and its rate: kinds of tokens side by side, or several runs."""
    runs = list(curves["run"].unique())
    single = len(runs) == 1
    depth = curves["run"].map(curves.groupby("run")["layer"].max() + 1)
    relative = depth.nunique() > 1
    curves = curves.assign(fraction=(curves["layer"] + 1) / depth)
    measured = curves.groupby([*curves.columns[:4]])["images"].transform("max") > 0
    for key, (streams, measure, title, caption) in FIGURES.items():
        shown = curves["stream"].isin(streams) & (curves["measure"] == measure)
        rows = curves[shown & measured]
        if rows.empty:
            continue
        if single:
            series, style = rows["tokens"].map(KINDS), rows["tokens"].map(KIND_STYLES)
        else:
            series, style = rows["run"], rows["run"].map(runs.index)
        panel = panel_titles(rows, SHARED_AXES[measure] if single else [])
        rate = measure == "rate"  # of one token it is 0 or 1: quartiles say nothing
        lowest = 0.0 if single else np.floor(10 * rows["low"].min()) / 10
        yield Figure(
            key=key,
            title=title,
            caption=f"{caption} {QUARTILES if single and not rate else BAND} Dashed: "
            "chance." + " Blocks are shown as fractions of the depth." * relative,
            data=rows.assign(panel=panel, series=series, style=style),
            y_label=MEASURES[measure],
            x="fraction" if relative else "layer",
            x_label="fraction of depth" if relative else "block",
            facets=("panel",),
            limits=None if rate else (np.nan_to_num(lowest), 1.03),
            share_y=not rate,
            quartiles=single and not rate,
            hidden=("panel", "series", "style", "fraction"),
        )


def panel_titles(rows: Frame, groups: Sequence[Sequence[str]]) -> pd.Series:
    """Stream, where there are several, and kinds of tokens of each row's panel."""
    titles = dict(KINDS)
    for group in groups:
        kinds = [KINDS[k] for k in rows["tokens"].unique() if k in group]
        words = ", ".join(kinds).replace("object tokens,", "object,")
        titles |= dict.fromkeys(group, words)
    words = rows["tokens"].map(titles)
    if rows["stream"].nunique() > 1:
        words = rows["stream"].map(STREAMS).str.removesuffix(" update") + ": " + words
    return words


def refined(run: Run, measure: str) -> Rows:
    """Answers of token-refinement modules, beside the projected pooled token."""
    if RANK_REFINED() in run:
        ranks, chance = run.read(RANK_REFINED()), run.chance(measure)
        rate = (ranks == 0).astype(float)
        values = rate if measure == "rate" else 1 - ranks / len(run.classes)
        panel, curve = "block output", run.curve(run.pooled, measure)
        series = f"{KINDS[run.pooled]}, projected"
        yield run.line(panel, series, 0, curve, chance=chance)
        yield run.line(panel, "refinement module", 3, values, chance=chance)


REFINEMENT: FigureTable = {
    key: (
        functools.partial(refined, measure=measure),
        title,
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


def summary(results: Results) -> Frame:
    """The numbers to quote for a run, with 95 % bootstrap intervals over images.

    Fractions in [0, 1], NaN where nothing was measured or there is no such level, in
    columns quantity, value, low, high, chance and images.
    """
    return summary_rows(Run(results)).drop(columns="run")


def summary_rows(run: Run) -> Frame:
    """`summary`, with a column of the run's name before the others."""
    rate, score = run.chance("rate"), run.chance("identifiability")
    rates, scores = (
        {kind: run.curve(kind, measure)[:, -1] for kind in run.tokens}
        for measure in ("rate", "identifiability")
    )
    image = rates["image"]
    columns = [
        (TOP1, run.correct.astype(float), rate),
        (RATE, image, rate),
        (ANY, np.where(np.isfinite(image), image > 0, np.nan), np.nan),
    ]
    for kind in ("object", "context") if "object" in rates else ():
        words = f"{KINDS[kind]} that are identifiable, last block"
        columns.append((words, rates[kind], rate))
    for kind, values in scores.items():
        words = f"identifiability of {KINDS[kind]}, last block"
        columns.append((words, values, score))
    if "object" in scores:
        columns.append((DIFFERENCE, scores["object"] - scores["context"], 0.0))
    quantities, values, chance = zip(*columns)
    rows = pd.DataFrame(intervals(np.stack(values, axis=1)))
    rows = rows.rename(columns={"mean": "value"})
    rows = rows.assign(run=run.name, quantity=quantities, chance=chance)
    return rows[["run", "quantity", "value", "low", "high", "chance", "images"]]


def summary_table(runs: Sequence[Run], data: Frame) -> Table:
    """A line per quantity, a column per run."""
    cells = map(with_interval, data["value"], data["low"], data["high"])
    shown = data.assign(cell=list(cells)).pivot(
        index="quantity", columns="run", values="cell"
    )
    levels = data.dropna(subset="chance").groupby("quantity")["chance"].unique()
    levels = levels.map(lambda own: ", ".join(f"{level:.4g}" for level in sorted(own)))
    shown = shown[[run.name for run in runs]].assign(chance=levels)
    shown = shown.loc[data["quantity"].unique()].fillna("–")
    shown.loc["images"] = [*(f"{len(r.image)} of {r.total}" for r in runs), ""]
    shown.loc["classes, C"] = [*(str(len(run.classes)) for run in runs), ""]
    return Table(
        key="summary",
        title="In numbers",
        caption="“Last block” is the state that the model's answer is read from. "
        "Chance levels are those of single tokens; “any token of an image” has none, "
        "as the tokens of an image are not independent.",
        data=data,
        shown=shown.rename_axis("mean over images [95 % interval]").reset_index(),
    )


def describe(run: Run, curves: Frame, summary: Frame) -> Iterator[str]:
    """What `curve_rows` and `summary_rows` of a run say, in sentences."""
    rows = summary.set_index("quantity")
    bounds = rows[["value", "low", "high"]]
    share = {name: with_interval(*row) for name, *row in bounds.itertuples()}
    yield (
        f"{run.manifest['model']['name']} answers {share[TOP1]} of "
        f"{rows['images'][TOP1]:,} images right, among {len(run.classes):,} classes."
    )
    where = "stream == 'residual' and measure == 'identifiability' and tokens == @kind"
    for kind in ("cls", "image") if "cls" in run.tokens else ("image",):
        line = curves.query(where)
        first, last = line.iloc[0], line.iloc[-1]
        below = np.flatnonzero(~(line["low"] > line["chance"]))
        start = below.max(initial=-1) + 1
        stays = f"stays above chance from block {start} on"
        yield (
            f"Mean identifiability of the class at {KINDS[kind]} goes from "
            f"{number(first['mean'])} after block 0 to {number(last['mean'])} after "
            f"block {last['layer']} (chance {number(last['chance'])}); its interval "
            f"{stays if start < len(line) else 'does not end above chance'}."
        )
    yield (
        f"In the last block {share[RATE]} of the image tokens put it first (chance "
        f"{rows['chance'][RATE]:.4g}); {share[ANY]} of the images have such a token."
    )
    if "object" in run.tokens and not np.isnan(rows["value"][DIFFERENCE]):
        low, high = rows.loc[DIFFERENCE, ["low", "high"]]
        order = "more" if low > 0 else "less" if high < 0 else "not clearly more"
        yield (
            f"Object tokens are {order} identifiable than context tokens: their "
            f"difference within images is {share[DIFFERENCE]} in the last block."
        )
