"""Class identifiability over the blocks, and the numbers to quote for a run."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from vitjax.recipes.schema import KINDS, RANK_REFINED, STREAMS
from vitjax.report import style
from vitjax.report.curves import BAND, FigureTable, Rows, figures_of, intervals, line
from vitjax.report.figure import (
    Figure,
    ReportOptions,
    Section,
    Table,
    number,
    with_interval,
)
from vitjax.report.marks import Frame
from vitjax.report.per_image import MEASURES, Run
from vitjax.runner.results import Results

Y_LABELS = {
    "identifiability": "class identifiability",
    "rate": "identifiability rate",
}


def section(runs: Sequence[Run], options: ReportOptions) -> Section | None:
    """Curves over the blocks, the summary, and what both say."""
    used = [run for run in runs if len(run.image)]
    if not used:
        return None
    curves = pd.concat([curve_rows(run) for run in used], ignore_index=True)
    summaries = {run.name: summary_rows(run) for run in runs}
    return Section(
        key="identifiability",
        title="Class identifiability",
        sentences=[
            (f"{run.name}: " if len(runs) > 1 else "") + sentence
            for run in used
            for sentence in describe(
                run, curves[curves["run"] == run.name], summaries[run.name]
            )
        ],
        figures=[*curve_figures(curves), *figures_of(runs, REFINEMENT)],
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


FIGURES = {
    "identifiability": (
        ("residual",),
        "identifiability",
        "Identifiability over the blocks",
        "Class identifiability of the block outputs, 1 - rank/C (section 4, Figure 2).",
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
        "Share of tokens of the block outputs whose first class is the true one; in "
        "the last block the paper's Table 1, and at [CLS] the top-1 accuracy. Vertical "
        "axes differ.",
    ),
}
"""Key: (streams, measure, title, what is drawn)."""

QUARTILES = (
    "Line: mean over images; dark band: its 95 % bootstrap interval; light band: the "
    "middle half of the images (where few images are far off, the mean may leave it)."
)
GROUPS = {
    "identifiability": [("cls", "register", "image"), ("object", "context")],
    "rate": [("object", "context")],
}
"""Measure -> kinds of tokens that share axes: rates often differ tenfold."""


def curve_figures(curves: Frame) -> Iterator[Figure]:
    """Identifiability and its rate: kinds of tokens side by side, or several runs."""
    runs = list(curves["run"].unique())
    depth = curves["run"].map(curves.groupby("run")["layer"].max() + 1)
    relative = depth.nunique() > 1
    curves = curves.assign(fraction=(curves["layer"] + 1) / depth)
    measured = curves.groupby([*curves.columns[:4]])["images"].transform("max") > 0
    for key, (streams, measure, title, caption) in FIGURES.items():
        shown = curves["stream"].isin(streams) & (curves["measure"] == measure)
        rows = curves[shown & measured]
        if rows.empty:
            continue
        words = panel_titles(rows, GROUPS[measure] if len(runs) == 1 else [])
        if len(runs) > 1:
            series, kinds = rows["run"], rows["run"].map(runs.index)
        else:
            series, kinds = rows["tokens"].map(KINDS), rows["tokens"].map(style.KINDS)
        # A rate of one token per image is 0 or 1: quartiles say nothing.
        quartiles = len(runs) == 1 and measure != "rate"
        lowest = 0.0 if len(runs) == 1 else np.floor(10 * rows["low"].min()) / 10
        yield Figure(
            key=key,
            title=title,
            caption=f"{caption} {QUARTILES if quartiles else BAND} Dashed: chance."
            + " Blocks are shown as fractions of the depth." * relative,
            data=rows.assign(panel=words, series=series, style=kinds),
            y_label=Y_LABELS[measure],
            x="fraction" if relative else "layer",
            x_label="fraction of depth" if relative else "block",
            facets=("panel",),
            limits=None if measure == "rate" else (np.nan_to_num(lowest), 1.03),
            share_y=measure != "rate",
            quartiles=quartiles,
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
    if rows["stream"].nunique() == 1:
        return words
    streams = {name: words.removesuffix(" update") for name, words in STREAMS.items()}
    return rows["stream"].map(streams) + ": " + words


def refined(run: Run, measure: str) -> Rows:
    """Answers of token-refinement modules, beside the projected pooled token."""
    if RANK_REFINED() not in run:
        return
    ranks = run.read(RANK_REFINED())
    answers = {
        "identifiability": 1 - ranks / len(run.classes),
        "rate": (ranks == 0).astype(np.float64),
    }
    lines = {
        f"{KINDS[run.pooled]}, projected": (0, run.curve(run.pooled, measure)),
        "refinement module": (3, answers[measure]),
    }
    for series, (kind, values) in lines.items():
        chance = run.chance(measure)
        yield line(run, "block output", series, kind, values, chance=chance)


MODULES = (
    "The module of a block reads its [CLS] and all of its image tokens (Naseer et al. "
    "2022); there is none after the last block. Beside it, the state that the head "
    f"reads, projected after the same block. {BAND} Dashed: chance."
)
REFINEMENT: FigureTable = {
    "refined": (
        functools.partial(refined, measure="identifiability"),
        "What the refinement modules answer",
        MODULES,
        {"y_label": Y_LABELS["identifiability"]},
    ),
    "refined_rate": (
        functools.partial(refined, measure="rate"),
        "How often the refinement modules are right",
        MODULES,
        {"y_label": Y_LABELS["rate"]},
    ),
}


RATE = "image tokens that are identifiable, last block"
ANY = "images with an identifiable token, last block"
TOP1 = "top-1 accuracy"
DIFFERENCE = "identifiability of object minus context tokens, last block"


def summary(results: Results) -> Frame:
    """The numbers to quote for a run, with 95 % bootstrap intervals over images.

    Args:
        results: rows of a recipe with ranks, such as `identifiability`.

    Returns:
        Columns quantity, value, low, high, chance and images; fractions in [0, 1], NaN
        where nothing was measured or there is no such level.
    """
    return summary_rows(Run(results)).drop(columns="run")


def summary_rows(run: Run) -> Frame:
    """`summary`, with a column of the run's name before the others."""

    def last(kind: str, measure: str = "identifiability") -> np.ndarray:
        return run.curve(kind, measure)[:, -1]

    rate, score = run.chance("rate"), run.chance("identifiability")
    image = last("image", "rate")
    columns = [
        (TOP1, run.correct.astype(float), rate),
        (RATE, image, rate),
        (ANY, np.where(np.isfinite(image), image > 0, np.nan), np.nan),
    ]
    for kind in ("object", "context"):
        if kind in run.tokens:
            words = f"{KINDS[kind]} that are identifiable, last block"
            columns.append((words, last(kind, "rate"), rate))
    for kind in run.tokens:
        words = f"identifiability of {KINDS[kind]}, last block"
        columns.append((words, last(kind), score))
    if "object" in run.tokens:
        columns.append((DIFFERENCE, last("object") - last("context"), 0.0))
    quantities, values, chance = zip(*columns)
    numbers = intervals(np.stack(values, axis=1))
    return pd.DataFrame(
        {
            "run": run.name,
            "quantity": quantities,
            "value": numbers["mean"],
            "low": numbers["low"],
            "high": numbers["high"],
            "chance": chance,
            "images": numbers["images"],
        }
    )


def summary_table(runs: Sequence[Run], data: Frame) -> Table:
    """A line per quantity, a column per run."""
    cells = [
        with_interval(*cell) for cell in zip(data["value"], data["low"], data["high"])
    ]
    shown = data.assign(cell=cells).pivot(
        index="quantity", columns="run", values="cell"
    )
    levels = data.dropna(subset="chance").groupby("quantity")["chance"].unique()
    levels = levels.map(lambda own: ", ".join(f"{level:.4g}" for level in sorted(own)))
    shown = shown[[run.name for run in runs]].assign(chance=levels)
    shown = shown.loc[data["quantity"].unique()].fillna("–")
    shown.loc["images"] = [*(f"{len(r.image)} of {r.total}" for r in runs), ""]
    shown.loc["classes, C"] = [*(str(len(run.classes)) for run in runs), ""]
    shown = shown.rename_axis("mean over images [95 % interval]").reset_index()
    return Table(
        key="summary",
        title="In numbers",
        caption="“Last block” is the state that the model's answer is read from. "
        "Chance levels are those of single tokens; for “any token of an image” there "
        "is none without assuming that tokens are independent, which they are not.",
        data=data,
        shown=shown,
    )


def describe(run: Run, curves: Frame, summary: Frame) -> list[str]:
    """What `curve_rows` and `summary_rows` of a run say, in sentences."""
    rows = summary.set_index("quantity").to_dict("index")
    share = {
        name: with_interval(row["value"], row["low"], row["high"])
        for name, row in rows.items()
    }
    sentences = [
        f"{run.manifest['model']['name']} answers {share[TOP1]} of "
        f"{rows[TOP1]['images']:,} images right, among {len(run.classes):,} classes.",
        *(describe_rise(curves, k) for k in ("cls", "image") if k in run.tokens),
        f"In the last block {share[RATE]} of the image tokens put it first (chance "
        f"{rows[RATE]['chance']:.4g}); {share[ANY]} of the images have such a token.",
    ]
    row = rows.get(DIFFERENCE)
    if row is None or np.isnan(row["value"]):
        return sentences
    if np.isnan(row["low"]):
        words = "of one image have no interval:"
    elif row["low"] <= 0 <= row["high"]:
        words = "do not differ beyond their interval:"
    else:
        direction = "higher" if row["value"] > 0 else "lower"
        words = f"differ: on the object it is {direction},"
    return [
        *sentences,
        f"Object and context tokens {words} object minus context, within images, is "
        f"{share[DIFFERENCE]} in the last block.",
    ]


def describe_rise(curves: Frame, kind: str) -> str:
    """How identifiability of the block outputs rises at one kind of tokens."""
    where = "stream == 'residual' and measure == 'identifiability' and tokens == @kind"
    rows = curves.query(where)
    first, last = rows.iloc[0], rows.iloc[-1]
    above = rows["low"] > rows["chance"]
    start = int((~above).to_numpy().nonzero()[0].max(initial=-1)) + 1
    if np.isnan(first["low"]):
        beyond = "one image has no interval"
    elif start == len(rows):
        beyond = "in the last block its interval still holds chance or lies below it"
    elif start == 0:
        beyond = "its interval lies above chance from the first block on"
    else:
        beyond = f"its interval stays above chance from block {start} on"
    begin = f"Mean identifiability of the class at {KINDS[kind]}"
    end = f"(chance {number(last['chance'])}); {beyond}."
    if len(rows) == 1:
        return f"{begin} is {number(last['mean'])} after the only block {end}"
    return (
        f"{begin} goes from {number(first['mean'])} after block 0 to "
        f"{number(last['mean'])} after block {last['layer']} {end}"
    )
