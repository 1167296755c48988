"""Ablation and activation patching: what parts of the model do to the prediction."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from vitjax.recipes import schema
from vitjax.report.figure import (
    FigureTable,
    Rows,
    Section,
    Table,
    figures_of,
    with_interval,
)
from vitjax.report.marks import Frame
from vitjax.report.per_image import BAND, Run, intervals

SHOWN = 12
"""Parts of each kind of ablation that the table shows; its CSV has all."""

CELLS = "A dot: its 95 % bootstrap interval over images, by itself, does not hold 0."


def ablation(runs: Sequence[Run]) -> Section:
    """Effects of every part, and of the most important heads together."""
    runs = [run for run in runs if ablations(run) and len(run.image)]
    parts = [rows for run in runs for rows in part_rows(run)]
    sets = [rows for run in runs for rows in set_rows(run)]
    tables = [part_table(pd.concat(parts))] if parts else []
    tables += [set_table(pd.concat(sets))] if sets else []
    return Section(
        key="ablation",
        title="Ablation",
        figures=list(figures_of(runs, ABLATION_FIGURES)),
        tables=tables,
    )


def ablations(run: Run) -> list[str]:
    """Kinds of ablation that a run holds."""
    return [kind for kind in schema.ABLATIONS if schema.EFFECT_HEAD(kind) in run]


def cells(
    run: Run,
    panel: str,
    values: Float[np.ndarray, "image layer column"],
    signs: tuple[str, str],
    column: str = "head",
) -> Rows:
    """The rows of a `grid`: positive means, then negative ones."""
    layer, place = np.indices(values.shape[1:])
    columns = {"layer": layer.ravel(), column: place.ravel(), **intervals(values)}
    rows: Frame = pd.DataFrame(
        {"run": run.name, "panel": panel, **columns, "chance": np.nan}
    )
    sides = rows["mean"] >= 0, rows["mean"] < 0
    for style, (name, chosen) in enumerate(zip(signs, sides)):
        if chosen.any():
            yield rows[chosen].assign(series=name, style=style)


EFFECTS = ("the logit falls", "the logit rises")


def head_effects(run: Run) -> Rows:
    """Effect of every head on the true class's logit."""
    for kind in ablations(run):
        values = run.read(schema.EFFECT_HEAD(kind))
        yield from cells(run, f"a head {schema.ABLATIONS[kind]}", values, EFFECTS)


def block_effects(run: Run) -> Rows:
    """Effect of every block's attention and MLP on the true class's logit."""
    for kind in ablations(run):
        for style, (system, name) in enumerate(schema.SYSTEMS.items()):
            values = run.read(schema.EFFECT(kind, system))
            panel = f"an update {schema.ABLATIONS[kind]}"
            yield run.line(panel, name, style, values)


def part_rows(run: Run) -> Rows:
    """All parts of a run: effects on both logits and on accuracy, with intervals."""
    for kind in ablations(run):
        for part in ("head", *schema.SYSTEMS):
            keys = (kind,) if part == "head" else (kind, part)
            effect, predicted, prediction = (
                run.read(family(*keys)) for family in PARTS[part == "head"]
            )
            one = (slice(None), *[None] * (effect.ndim - 1))
            accuracy = (prediction == run.label[one]) - run.correct[one].astype(float)
            layer, *head = (place.ravel() for place in np.indices(effect.shape[1:]))
            columns = {"run": run.name, "ablation": kind, "part": part, "layer": layer}
            columns |= {"head": head[0] if head else np.nan}
            measured = {"effect": effect, "effect_predicted": predicted}
            columns |= summarize(**measured, accuracy=accuracy)
            yield pd.DataFrame(columns)


PARTS = {
    True: (schema.EFFECT_HEAD, schema.EFFECT_PREDICTED_HEAD, schema.PREDICTION_HEAD),
    False: (schema.EFFECT, schema.EFFECT_PREDICTED, schema.PREDICTION_ABLATED),
}
"""Rows of a head, or of an update."""


def summarize(**measured: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a table: images, and each mean with the ends of its interval."""
    columns = {}
    for name, values in measured.items():
        mean = intervals(values)
        columns |= {"images": mean["images"], name: mean["mean"]}
        columns |= {f"{name}_{end}": mean[end] for end in ("low", "high")}
    return columns


def cells_of(rows: Frame, headings: Mapping[str, str]) -> dict[str, list[str]]:
    """What people read of columns of `summarize`: heading -> means with intervals."""
    return {
        heading: list(
            map(with_interval, rows[name], rows[f"{name}_low"], rows[f"{name}_high"])
        )
        for name, heading in headings.items()
    }


def part_table(rows: Frame) -> Table:
    """The parts of the largest effect, whichever its sign."""
    largest = rows.sort_values("effect", key=abs, ascending=False, kind="stable")
    largest = largest.groupby(["run", "ablation"]).head(SHOWN)
    head = largest["head"].map("head {:.0f}".format)
    shown = largest[["run", "ablation"]].assign(
        block=largest["layer"],
        part=head.where(largest["part"] == "head", largest["part"]),
        **cells_of(largest, PART_HEADINGS),
    )
    return Table(
        key="ablation",
        title="Parts of the largest effect",
        caption="Means over images with 95 % bootstrap intervals, not corrected for "
        f"their number; the {SHOWN} largest of each kind of ablation. The CSV has all.",
        data=rows,
        shown=shown,
    )


PART_HEADINGS = {
    "effect": "true class's logit, before − after",
    "effect_predicted": "predicted class's",
    "accuracy": "accuracy, after − before",
}
SET_HEADINGS = {
    "top": "without the most important",
    "random": "without random ones",
    "difference": "difference",
}


def head_sets(run: Run) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Kind of ablation, and right or wrong without the most important heads, [image
    count], and without random ones, [image draw count].
    """
    for kind in ablations(run):
        if schema.CORRECT_TOP_HEADS(kind) in run:
            top = run.read(schema.CORRECT_TOP_HEADS(kind)).astype(float)
            yield kind, top, run.read(schema.CORRECT_RANDOM_HEADS(kind)).astype(float)


def set_curves(run: Run) -> Rows:
    """Accuracy without the most important heads, and without as many random ones."""
    for kind, top, random in head_sets(run):
        counts = np.array([0, *run.results[schema.ABLATED()].values.astype(int)])
        axis = {"heads": counts, "x": counts / (run.config.depth * run.config.heads)}
        panel, sets = f"heads {schema.ABLATIONS[kind]}", (top, random.mean(1))
        for style, (name, values) in enumerate(
            zip(("the most important", "random"), sets)
        ):
            whole = np.hstack([run.correct[:, None], values])
            yield run.line(panel, name, style, whole, axis=axis)


def set_rows(run: Run) -> Rows:
    """Accuracy without sets of heads, and the paired difference, with intervals."""
    for kind, top, random in head_sets(run):
        draws, mean = random.mean(0), random.mean(1)
        columns = {
            "run": run.name,
            "ablation": kind,
            "heads": run.results[schema.ABLATED()].values.astype(int),
            **summarize(top=top, random=mean, difference=mean - top),
            "draws": len(draws),
            "lowest_draw": draws.min(0),
            "highest_draw": draws.max(0),
        }
        yield pd.DataFrame(columns)


def set_table(rows: Frame) -> Table:
    """Accuracy without the most important heads beside that without random ones."""
    ends = zip(rows["lowest_draw"], rows["highest_draw"])
    shown = rows[["run", "ablation", "heads"]].assign(
        **cells_of(rows, SET_HEADINGS),
        **{"lowest and highest draw": [f"{a:.3f} to {b:.3f}" for a, b in ends]},
    )
    return Table(
        key="ablation_sets",
        title="Most important heads against random ones",
        caption="Accuracy with so many heads ablated, of random ones the mean of all "
        "draws; 95 % bootstrap intervals over images, of the difference paired. "
        "Importance is the mean effect on reference images.",
        data=rows,
        shown=shown,
    )


def patching(runs: Sequence[Run]) -> Section:
    """Where clean activations restore the answer of a corrupted pass."""
    runs = [run for run in runs if schema.RESTORED_HEAD() in run]
    figures = list(figures_of(runs, PATCHING_FIGURES))
    return Section(key="patching", title="Activation patching", figures=figures)


def restored(run: Run, name: str) -> Float[np.ndarray, "image ..."]:
    """Shares of the mean gap between both passes: an image counts by its own gap, or
    those of hardly any would decide.
    """
    clean, corrupted = (run.read(schema.METRIC(each)) for each in schema.RUNS)
    gap = clean.astype(float) - corrupted
    gap[~np.isfinite(gap)] = 0
    scale = gap / (gap[gap != 0].mean() if gap.any() else 1)
    values = run.read(name)
    return values * scale.reshape(-1, *[1] * (values.ndim - 1))


RESTORED = ("toward the clean answer", "away from it")


def residual_cells(run: Run) -> Rows:
    """The residual stream, by block and group of tokens."""
    values = restored(run, schema.RESTORED_RESIDUAL())
    yield from cells(run, "residual stream", values, RESTORED, "group")


def restoring_heads(run: Run) -> Rows:
    """Heads, at all tokens."""
    yield from cells(run, "heads", restored(run, schema.RESTORED_HEAD()), RESTORED)


def restoring_blocks(run: Run) -> Rows:
    """Attention and MLP of every block, at all tokens."""
    for style, (system, name) in enumerate(schema.SYSTEMS.items()):
        values = restored(run, schema.RESTORED(system))
        yield run.line("updates at all tokens", name, style, values)


HEADS = {"mark": "grid", "x": "head", "x_label": "head", "y_label": "block"}
ABLATION_FIGURES: FigureTable = {
    "ablation_heads": (
        head_effects,
        "What heads are worth",
        "Effect of ablating a single head: the true class's logit before minus after, "
        f"mean over images; the fuller the color, the larger. {CELLS}",
        HEADS,
    ),
    "ablation_blocks": (
        block_effects,
        "What attention and MLPs are worth",
        "The same for all that a block's attention or MLP adds to the residual stream. "
        f"{BAND}",
        {"y_label": "true class's logit, before − after"},
    ),
    "ablation_sets": (
        set_curves,
        "Most important heads against random ones",
        "Accuracy with more and more heads ablated, by their mean effect on reference "
        f"images or, as the control, at random (mean over draws). {BAND}",
        {"x": "x", "x_label": "share of heads ablated", "y_label": "accuracy"},
    ),
}
PATCHED = (
    "Activations of an image are put into the pass of one of another class; how much "
    "of the difference of the two classes' logits returns, 0 none, 1 all, as a share "
    "of the mean difference"
)
PATCHING_FIGURES: FigureTable = {
    "patching_residual": (
        residual_cells,
        "Where the answer is, block by block",
        f"{PATCHED}. Groups of tokens: prefix tokens first, then patches from the "
        f"upper left. {CELLS}",
        HEADS | {"x": "group", "x_label": "group of tokens"},
    ),
    "patching_heads": (
        restoring_heads,
        "Which heads carry it",
        f"{PATCHED}. Each head at all tokens. {CELLS}",
        HEADS,
    ),
    "patching_blocks": (
        restoring_blocks,
        "Which updates carry it",
        f"{PATCHED}. {BAND}",
        {"y_label": "restored"},
    ),
}
