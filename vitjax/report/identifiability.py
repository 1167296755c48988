"""Class identifiability over the blocks, and the numbers to quote for a run."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vitjax.recipes.schema import KINDS, RANK_REFINED, STREAMS
from vitjax.report import style
from vitjax.report.curves import BAND, FigureTable, figures_of, intervals, line
from vitjax.report.figure import (
    Figure,
    ReportOptions,
    Section,
    Table,
    number,
    with_interval,
)
from vitjax.report.per_image import MEASURES, Run
from vitjax.runner.results import Results

Y_LABELS = {
    "identifiability": "class identifiability",
    "rate": "identifiability rate",
}
PER_IMAGE = ("run", "stream", "measure", "tokens")


def section(runs: Sequence[Run], options: ReportOptions) -> Section | None:
    """Curves over the blocks, the summary, and what both say."""
    if not any(len(run.image) for run in runs):
        return None
    used = [run for run in runs if len(run.image)]
    curves = pd.concat([curve_rows(run) for run in used], ignore_index=True)
    summaries = {run.name: summary_rows(run) for run in runs}
    sentences = []
    for run in runs:
        if len(run.image):
            rows = curves[curves["run"] == run.name]
            who = f"{run.name}: " if len(runs) > 1 else ""
            lines = describe(run, rows, summaries[run.name])
            sentences += [who + line for line in lines]
    return Section(
        key="identifiability",
        title="Class identifiability",
        sentences=sentences,
        figures=[*curve_figures(curves), *figures_of(runs, REFINEMENT)],
        tables=[summary_table(runs, summaries)],
    )


def curve_rows(run: Run) -> pd.DataFrame:
    """The numbers of every curve of a run: stream, measure, kind of tokens, block."""
    values = run.curves.values
    axes = [run.streams, MEASURES, run.tokens, range(run.config.depth)]
    names = ["stream", "measure", "tokens", "layer"]
    rows = pd.MultiIndex.from_product(axes, names=names).to_frame(index=False)
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


def curve_figures(curves: pd.DataFrame) -> Iterator[Figure]:
    """Identifiability and its rate: kinds of tokens side by side, or runs.

    Args:
        curves: `curve_rows` of one or more runs.
    """
    runs = list(curves["run"].unique())
    depths = curves.groupby("run")["layer"].max() + 1
    relative = depths.nunique() > 1
    curves = curves.assign(depth=(curves["layer"] + 1) / curves["run"].map(depths))
    measured = curves.groupby(list(PER_IMAGE))["images"].transform("max") > 0
    for key, (streams, measure, title, caption) in FIGURES.items():
        shown = curves["stream"].isin(streams) & (curves["measure"] == measure)
        rows = curves[shown & measured]
        if rows.empty:
            continue
        alone = len(runs) == 1
        panels = panel_titles(rows, [] if not alone else GROUPS[measure])
        quartiles = alone and measure != "rate"
        limits = None
        if measure == "identifiability":
            lowest = int(10 * rows[["low", "mean"]].min().min()) / 10
            limits = (0.0 if alone else lowest, 1.03)
        yield Figure(
            key=key,
            title=title,
            caption=f"{caption} {QUARTILES if quartiles else BAND} Dashed: chance."
            + " Blocks are shown as fractions of the depth." * relative,
            data=rows.assign(
                panel=panels,
                series=rows["tokens"].map(KINDS) if alone else rows["run"],
                style=rows["tokens"].map(style.KINDS)
                if alone
                else rows["run"].map(runs.index),
            ),
            y_label=Y_LABELS[measure],
            x="depth" if relative else "layer",
            x_label="fraction of depth" if relative else "block",
            facets=("panel",),
            limits=limits,
            share_y=measure != "rate",
            # A rate of one token per image is 0 or 1: quartiles say nothing.
            quartiles=quartiles,
            hidden=("panel", "series", "style", "depth"),
        )


GROUPS = {
    "identifiability": [("cls", "register", "image"), ("object", "context")],
    # [CLS] and image tokens often differ tenfold.
    "rate": [("object", "context")],
}
"""Measure -> kinds of tokens that share axes."""


def panel_titles(rows: pd.DataFrame, groups: Sequence[Sequence[str]]) -> pd.Series:
    """Stream, where there are several, and kinds of tokens of each row's panel."""
    present = list(rows["tokens"].unique())
    titles = {kind: KINDS[kind] for kind in present}
    for group in groups:
        kinds = [kind for kind in present if kind in group]
        words = ", ".join(KINDS[kind] for kind in kinds)
        titles |= dict.fromkeys(kinds, words.replace("object tokens,", "object,"))
    words = rows["tokens"].map(titles)
    if rows["stream"].nunique() == 1:
        return words
    streams = rows["stream"].map(lambda name: STREAMS[name].removesuffix(" update"))
    return streams + ": " + words


def refined(run: Run, measure: str) -> Iterator[pd.DataFrame]:
    """Answers of token-refinement modules, beside the projected pooled token."""
    if RANK_REFINED() not in run or run.config.depth == 1:
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


def summary(results: Results) -> pd.DataFrame:
    """The numbers to quote for a run, with 95 % bootstrap intervals over images.

    Args:
        results: rows of a recipe with ranks, such as `identifiability`.

    Returns:
        Columns quantity, value, low, high, chance and images; fractions in [0, 1], NaN
        where nothing was measured or there is no such level.
    """
    return summary_rows(Run(results)).drop(columns="run")


def summary_rows(run: Run) -> pd.DataFrame:
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


def summary_table(runs: Sequence[Run], summaries: dict[str, pd.DataFrame]) -> Table:
    """A line per quantity, a column per run."""
    data = pd.concat(summaries.values())
    quantities = list(data["quantity"].unique())
    shown = {"mean over images [95 % interval]": [*quantities, "images", "classes, C"]}
    for run in runs:
        rows = summaries[run.name].set_index("quantity")[["value", "low", "high"]]
        cells = {name: with_interval(*cell) for name, *cell in rows.itertuples()}
        shown["this run" if len(runs) == 1 else run.name] = [
            *(cells.get(quantity, "–") for quantity in quantities),
            f"{len(run.image)} of {run.total}",
            str(len(run.classes)),
        ]
    levels = data.dropna(subset="chance").groupby("quantity")["chance"].unique()
    shown["chance"] = [
        *(
            ", ".join(f"{level:.4g}" for level in sorted(levels.get(quantity, [])))
            or "–"
            for quantity in quantities
        ),
        "",
        "",
    ]
    return Table(
        key="summary",
        title="In numbers",
        caption="“Last block” is the state that the model's answer is read from. Chance "
        "levels are those of single tokens; for “any token of an image” there is none "
        "without assuming that tokens are independent, which they are not.",
        data=data,
        shown=pd.DataFrame(shown),
    )


def describe(run: Run, curves: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """What the numbers of a run say, in sentences.

    Args:
        run: which used at least one image.
        curves: its `curve_rows`.
        summary: its `summary_rows`.
    """
    rows = summary.set_index("quantity").to_dict("index")
    top1, rate, some = rows[TOP1], rows[RATE], rows[ANY]
    return [
        f"{run.manifest['model']['name']} answers {share(top1)} of "
        f"{top1['images']:,} images right, among {len(run.classes):,} classes.",
        *(describe_rise(curves, k) for k in ("cls", "image") if k in run.tokens),
        f"In the last block {share(rate)} of the image tokens put it first (chance "
        f"{rate['chance']:.4g}); {share(some)} of the images have such a token.",
        *describe_difference(rows.get(DIFFERENCE)),
    ]


def share(row: dict[str, Any]) -> str:
    """A mean with its interval."""
    return with_interval(row["value"], row["low"], row["high"])


def describe_rise(curves: pd.DataFrame, kind: str) -> str:
    """How identifiability of the block outputs rises at one kind of tokens."""
    rows = curves[(curves["stream"] == "residual") & (curves["tokens"] == kind)]
    rows = rows[rows["measure"] == "identifiability"]
    start = first_block_above_chance(rows)
    first, last = rows.iloc[0], rows.iloc[-1]
    if np.isnan(first["low"]):
        beyond = "one image has no interval"
    elif start is None:
        beyond = "in the last block its interval still holds chance or lies below it"
    elif start == 0:
        beyond = "its interval lies above chance from the first block on"
    else:
        beyond = f"its interval stays above chance from block {start} on"
    end = f"(chance {number(last['chance'])}); {beyond}."
    begin = f"Mean identifiability of the class at {KINDS[kind]}"
    if len(rows) == 1:
        return f"{begin} is {number(last['mean'])} after the only block {end}"
    return (
        f"{begin} goes from {number(first['mean'])} after block 0 to "
        f"{number(last['mean'])} after block {last['layer']} {end}"
    )


def first_block_above_chance(rows: pd.DataFrame) -> int | None:
    """The block from which on the interval stays above chance; None: not at the end."""
    below = rows["layer"][~(rows["low"] > rows["chance"])]
    start = int(below.max()) + 1 if len(below) else 0
    return start if start < len(rows) else None


def describe_difference(row: dict[str, Any] | None) -> Iterator[str]:
    """Object against context tokens, where there are masks."""
    if row is None or np.isnan(row["value"]):
        return
    if np.isnan(row["low"]):
        words = "of one image have no interval:"
    elif row["low"] <= 0 <= row["high"]:
        words = "do not differ beyond their interval:"
    else:
        direction = "higher" if row["value"] > 0 else "lower"
        words = f"differ: on the object it is {direction},"
    yield (
        f"Object and context tokens {words} object minus context, within images, is "
        f"{share(row)} in the last block."
    )
