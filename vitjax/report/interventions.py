"""Ablation, activation patching and edits of memories: what parts do to the prediction.

An image may be evaluated for several classes whose memories are edited; its value is
the mean over them, so that images count alike. Of random memories, images meet
different draws.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
    most,
    quote,
    rows_of_all,
    sentences_of,
    with_interval,
)
from vitjax.report.per_image import BAND, Frame, Run, interval_of, mean, summarize
from vitjax.report.pictures import Maps, Preview, gallery, shown_layers

SHOWN = 12
"""Parts of each kind of ablation that the table shows; its CSV has all."""

CELLS = "A dot: its 95 % interval over images, by itself, does not hold 0."


def ablation(runs: Sequence[Run]) -> Section:
    """Effects of every part, and of the most important heads together."""
    used = [run for run in runs if ablations(run)]
    parts, sets = rows_of_all(used, part_rows), rows_of_all(used, set_rows)
    return Section(
        key="ablation",
        title="Ablation",
        sentences=sentences_of(runs, used, describe_ablation, sets),
        figures=[
            *gallery(used, image_effects, **ABLATION_GALLERY),
            *figures_of(used, ABLATION_FIGURES),
        ],
        tables=[
            make(rows)
            for make, rows in ((part_table, parts), (set_table, sets))
            if len(rows)
        ],
    )


def ablations(run: Run) -> list[str]:
    """Kinds of ablation that a run holds."""
    return [kind for kind in schema.ABLATIONS if schema.EFFECT(kind, "head") in run]


def cells(
    run: Run,
    panel: str,
    values: Float[np.ndarray, "image layer column"],
    signs: tuple[str, str],
    column: str = "head",
) -> Rows:
    """The rows of a `grid`: positive means, then negative ones."""
    places = np.indices(values.shape[1:]).reshape(2, -1)
    rows = run.line(panel, "", 0, values, axis=dict(zip(("layer", column), places)))
    sides = rows["mean"] >= 0, rows["mean"] < 0
    for style, (name, chosen) in enumerate(zip(signs, sides)):
        if chosen.any():
            yield rows[chosen].assign(series=name, style=style)


EFFECTS = ("the logit falls", "the logit rises")


def head_effects(run: Run) -> Rows:
    """Effect of every head on the true class's logit."""
    for kind in ablations(run):
        values = run.read(schema.EFFECT(kind, "head"))
        yield from cells(run, f"a head {schema.ABLATIONS[kind]}", values, EFFECTS)


def block_effects(run: Run) -> Rows:
    """Effect of every block's attention and MLP on the true class's logit."""
    for kind in ablations(run):
        for style, (system, name) in enumerate(schema.SYSTEMS.items()):
            values = run.read(schema.EFFECT(kind, system))
            panel = f"an update {schema.ABLATIONS[kind]}"
            yield run.line(panel, name, style, values)


def strongest(effects: Mapping[str, np.ndarray], unit: str) -> tuple[str, str]:
    """The largest mean of all heads and of all updates, and whose it is."""
    updates = np.stack([effects[system] for system in schema.SYSTEMS], axis=-1)
    (block, head, first), (layer, system, second) = (
        most(values, shares=False, unit=unit) for values in (effects["head"], updates)
    )
    name = list(schema.SYSTEMS.values())[system]
    update = f"{second} for {name} of block {layer}"
    return f"{first} for head {head} of block {block}", update


def describe_ablation(run: Run, sets: Frame) -> Iterator[str]:
    """The head and the update worth most, and what the most important heads decide."""
    for kind in ablations(run):
        effects = {part: run.read(schema.EFFECT(kind, part)) for part in schema.PARTS}
        head, update = strongest(effects, "")
        yield (
            f"With one part at a time {schema.ABLATIONS[kind]}, the true class's logit "
            f"falls by {head}, the most of all heads, and by {update}, the most of all "
            "updates."
        )
    if len(sets):
        row = sets.loc[sets["difference"].idxmax()].to_dict()
        yield (
            f"Without the {row['heads']} most important heads, each "
            f"{schema.ABLATIONS[row['ablation']]}, accuracy is "
            f"{quote(row, mean='top')}; without as many random ones it is "
            f"{quote(row, mean='random')}, with all of them "
            f"{quote(interval_of(run.correct))}."
        )


def part_rows(run: Run) -> Rows:
    """All parts of a run: effects on both logits and on accuracy, with intervals."""
    for kind, part in itertools.product(ablations(run), schema.PARTS):
        effect = run.read(schema.EFFECT(kind, part))
        predicted = run.read(schema.EFFECT_PREDICTED(kind, part))
        prediction = run.read(schema.PREDICTION_ABLATED(kind, part))
        accuracy = ((run.label == prediction.T) - run.correct.astype(float)).T
        layer, *head = (place.ravel() for place in np.indices(effect.shape[1:]))
        columns = {"run": run.name, "ablation": kind, "part": part, "layer": layer}
        columns |= {"head": head[0] if head else np.nan}
        measured = {"effect": effect, "effect_predicted": predicted}
        yield pd.DataFrame(columns | summarize(measured | {"accuracy": accuracy}))


def part_table(rows: Frame) -> Table:
    """The parts of the largest effect, whichever its sign."""
    largest = rows.sort_values("effect", key=abs, ascending=False, kind="stable")
    largest = largest.groupby(["run", "ablation"]).head(SHOWN)
    head = largest["head"].map("head {:.0f}".format)
    shown = largest[["run", "ablation"]].assign(
        block=largest["layer"],
        part=head.where(largest["part"] == "head", largest["part"]),
    )
    for column, heading in (
        ("effect", "true class's logit, before − after"),
        ("effect_predicted", "predicted class's"),
        ("accuracy", "accuracy, after − before"),
    ):
        shown[heading] = with_interval(largest, column)
    return Table(
        key="ablation",
        title="Parts of the largest effect",
        caption="Means over images with 95 % intervals, not corrected for "
        f"their number; the {SHOWN} largest of each kind of ablation. The CSV has all.",
        data=rows,
        shown=shown,
    )


def head_sets(run: Run) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Kind of ablation, and right or wrong without the most important heads, [image
    count], and without random ones, [image draw count].
    """
    for kind in ablations(run):
        if schema.CORRECT_TOP_HEADS(kind) in run:
            random = run.read(schema.CORRECT_RANDOM_HEADS(kind))
            yield kind, run.read(schema.CORRECT_TOP_HEADS(kind)), random


def set_curves(run: Run) -> Rows:
    """Accuracy without the most important heads, and without as many random ones."""
    for kind, top, random in head_sets(run):
        counts = np.array([0, *run.results[schema.ABLATED()].values.astype(int)])
        axis = {"heads": counts, "x": counts / (run.config.depth * run.config.heads)}
        sets = {"the most important": top, "random": random.mean(1)}
        for style, (name, values) in enumerate(sets.items()):
            whole = np.hstack([run.correct[:, None], values])
            panel = f"heads {schema.ABLATIONS[kind]}"
            yield run.line(panel, name, style, whole, axis=axis)


def set_rows(run: Run) -> Rows:
    """Accuracy without sets of heads, and the paired difference, with intervals."""
    for kind, top, random in head_sets(run):
        draws, mean = random.mean(0), random.mean(1)
        columns = {
            "run": run.name,
            "ablation": kind,
            "heads": run.results[schema.ABLATED()].values.astype(int),
            **summarize({"top": top, "random": mean}, shares=True),
            **summarize({"difference": mean - top}),
            "draws": len(draws),
            "lowest_draw": draws.min(0),
            "highest_draw": draws.max(0),
        }
        yield pd.DataFrame(columns)


def set_table(rows: Frame) -> Table:
    """Accuracy without the most important heads beside that without random ones."""
    shown = rows[["run", "ablation", "heads"]].copy()
    shown["without the most important"] = with_interval(rows, "top")
    shown["without random ones"] = with_interval(rows, "random")
    shown["difference"] = with_interval(rows, "difference")
    ends = zip(rows["lowest_draw"], rows["highest_draw"])
    shown["lowest and highest draw"] = [f"{a:.3f} to {b:.3f}" for a, b in ends]
    return Table(
        key="ablation_sets",
        title="Most important heads against random ones",
        caption="Accuracy with so many heads ablated, of random ones the mean of all "
        "draws; 95 % intervals over images, of the difference paired. "
        "Importance is the mean effect on reference images.",
        data=rows,
        shown=shown,
    )


def patching(runs: Sequence[Run]) -> Section:
    """Where clean activations restore the answer of a corrupted pass."""
    used = [run for run in runs if schema.RESTORED("head") in run]
    return Section(
        key="patching",
        title="Activation patching",
        sentences=sentences_of(runs, used, describe_patching),
        figures=[
            *gallery(used, image_restored, **PATCHING_GALLERY),
            *figures_of(used, PATCHING_FIGURES),
        ],
    )


def describe_patching(run: Run) -> Iterator[str]:
    """How far apart both passes are, and what restores most of that."""
    clean, corrupted = (
        quote(interval_of(run.read(schema.METRIC(each)), shares=False), unit="")
        for each in schema.RUNS
    )
    yield (
        "The logit of the image's class is ahead of that of its partner's class by "
        f"{clean} in the image's own pass and by {corrupted} in the partner's."
    )
    pooled = int(run.results[schema.TOKEN_GROUP()].values[0])
    if run.config.class_token and pooled >= 0:
        alone = restored(run, "residual")[..., pooled]
        half = np.flatnonzero(mean(alone) >= 0.5)
        yield (
            "Of the residual stream, [CLS] alone restores half of the difference or "
            f"more from block {half[0]} on: "
            f"{quote(interval_of(alone[:, half[0]], shares=False))}."
            if len(half)
            else "Of the residual stream, [CLS] alone restores less than half of the "
            "difference after every block."
        )
    shares = {part: restored(run, part) for part in schema.PARTS}
    head, update = strongest(shares, " %")
    yield f"A single head restores at most {head}; a single update, {update}."


def restored(run: Run, part: str) -> Float[np.ndarray, "image ..."]:
    """Shares of the mean gap between both passes: an image counts by its own gap, or
    those of hardly any would decide.
    """
    clean, corrupted = (run.read(schema.METRIC(each)) for each in schema.RUNS)
    gap = clean.astype(float) - corrupted
    gap[~np.isfinite(gap)] = 0
    scale = gap / (gap[gap != 0].mean() if gap.any() else 1)
    return (run.read(schema.RESTORED(part)).T * scale).T


RESTORED = ("toward the clean answer", "away from it")


def restored_updates(run: Run) -> Rows:
    """Attention and MLP of every block, at all tokens."""
    for style, (system, name) in enumerate(schema.SYSTEMS.items()):
        yield run.line("updates at all tokens", name, style, restored(run, system))


def image_effects(one: Preview) -> Maps:
    """What each head is worth to one image."""
    for kind in ablations(one.run):
        values = one.read(schema.EFFECT(kind, "head"))
        layer, head = np.indices(values.shape).reshape(2, -1)
        columns = {"ablation": kind, "layer": layer, "head": head}
        columns |= {"effect": values.ravel()}
        words = f"a head {schema.ABLATIONS[kind]}"
        yield one.lay_over(words, values, signed=True, opacity=None), columns


def image_restored(one: Preview) -> Maps:
    """What patching the residual stream restores in one image, group by group."""
    run, values = one.run, one.read(schema.RESTORED("residual"))
    group = run.results[schema.TOKEN_GROUP()].values.astype(int)[run.config.prefix :]
    if group.min() < 0 or not np.isfinite(values).all():  # no patches, no partner
        return
    shares, layers = values[:, group], shown_layers(run.config.depth)
    largest = float(np.abs(shares).max())
    for layer in layers:
        columns = {"layer": layer, "patch": np.arange(len(group))}
        columns |= {"restored": shares[layer]}
        yield one.lay_over(f"block {layer}", shares[layer], largest=largest), columns


ABLATION_GALLERY: dict[str, Any] = {
    "key": "ablation_images",
    "title": "Image by image",
    "see": "Where few cells are strong the prediction rests on few heads; compare "
    "images.",
    "caption": "Beside each photo the effect of each head on the logit of its true "
    "class; a row for each block, the first on top, a column for each head. Red: "
    "without the head the logit falls, blue: it rises.",
}
PATCHING_GALLERY: dict[str, Any] = {
    "key": "patching_images",
    "title": "Image by image",
    "see": "Red places bring the answer back by themselves, in early blocks those that "
    "show the class; where none is left, other tokens such as [CLS] hold the answer.",
    "caption": "What patching a group of patches of the residual stream after the "
    "block restores, as a share of the difference in this image, on one scale for all "
    "its blocks; blue: it moves away.",
}
HEADS = {"mark": "grid", "x": "head", "x_label": "head", "y_label": "block"}
ABLATION_FIGURES: FigureTable = {
    "ablation_heads": (
        head_effects,
        "What heads are worth",
        "A full cell: without that head, the logit of the true class changes most.",
        "Effect of ablating a single head: the true class's logit before minus after, "
        f"mean over images; the fuller the color, the larger. {CELLS}",
        HEADS | {"bar_label": "fall of the logit"},
    ),
    "ablation_blocks": (
        block_effects,
        "What attention and MLPs are worth",
        "High points are the blocks that the answer depends on.",
        "The same for all that a block's attention or MLP adds to the residual stream. "
        f"{BAND}",
        {"y_label": "fall of the true class's logit"},
    ),
    "ablation_sets": (
        set_curves,
        "Most important heads against random ones",
        "The faster the first line falls below the second, the fewer heads decide.",
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
RESTORES = {"bar_label": "share restored"}
PATCHING_FIGURES: FigureTable = {
    "patching_residual": (
        lambda run: cells(
            run, "residual stream", restored(run, "residual"), RESTORED, "group"
        ),
        "Where the answer is, block by block",
        "Follow the full cells down the blocks: they show which tokens hold the answer "
        "and when it moves on.",
        f"{PATCHED}. Groups of tokens: prefix tokens first, then patches from the "
        f"upper left. {CELLS}",
        HEADS | RESTORES | {"x": "group", "x_label": "group of tokens"},
    ),
    "patching_heads": (
        lambda run: cells(run, "heads", restored(run, "head"), RESTORED),
        "Which heads carry it",
        "A full cell is a head that brings the answer back by itself.",
        f"{PATCHED}. Each head at all tokens. {CELLS}",
        HEADS | RESTORES,
    ),
    "patching_blocks": (
        restored_updates,
        "Which updates carry it",
        "High points are the updates that bring the answer back by themselves.",
        f"{PATCHED}. {BAND}",
        {"y_label": "share restored"},
    ),
}


def editing(runs: Sequence[Run]) -> Section:
    """What the memories that promote a class do to its accuracy."""
    edited = [run for run in runs if schema.EDITED() in run]
    rows = rows_of_all(edited, edit_rows)
    return Section(
        key="editing",
        title="Edits of memories",
        sentences=sentences_of(runs, edited, describe_editing, rows),
        figures=figures_of(edited, EDITING_FIGURES),
        tables=[edit_table(rows)] if len(rows) else [],
    )


def edits(run: Run) -> Iterator[tuple[str, int, Float[np.ndarray, "image one"]]]:
    """What memories become, what images are to the class, and whether such images are
    right without an edit: those a run holds.
    """
    for edit, role in itertools.product(schema.MEMORY_EDITS, range(len(schema.ROLES))):
        if schema.EDITED_CORRECT("promoting", edit) in run:
            member = (run.read(schema.EDITED_ROLE()) == role).any(1)
            if member.any():
                yield edit, role, np.where(member, run.correct, np.nan)[:, None]


def of_role(
    run: Run, family: schema.Family, memories: str, edit: str, role: int
) -> Float[np.ndarray, "image count"]:
    """Means over the classes to which an image is that; NaN where it is to none."""
    values = run.read(family(memories, edit)).astype(float)
    member = run.read(schema.EDITED_ROLE()) == role
    return mean(np.where(member[..., None], values, np.nan).swapaxes(0, 1))


def edit_curves(run: Run) -> Rows:
    """Accuracy over the number of memories, those of the class and random ones."""
    counts = np.array([0, *run.results[schema.EDITED()].values.astype(int)])
    axis = {"memories": counts, "x": counts / counts[-1]}
    for edit, role, before in edits(run):
        panel = f"{schema.ROLES[role]}, {schema.MEMORY_EDITS[edit]}"
        for style, (memories, name) in enumerate(schema.MEMORY_SETS.items()):
            values = of_role(run, schema.EDITED_CORRECT, memories, edit, role)
            yield run.line(panel, name, style, np.hstack([before, values]), axis=axis)


def edit_rows(run: Run) -> Rows:
    """Accuracy and effects by number of memories, with paired differences."""
    counts = run.results[schema.EDITED()].values.astype(int)
    for edit, role, before in edits(run):
        (accuracy, random), (effect, random_effect) = (
            [of_role(run, family, own, edit, role) for own in schema.MEMORY_SETS]
            for family in (schema.EDITED_CORRECT, schema.EDITED_EFFECT)
        )
        shares = {"before": np.tile(before, len(counts)), "accuracy": accuracy}
        shares |= {"random_accuracy": random}
        others = {"accuracy_difference": accuracy - random, "effect": effect}
        others |= {"random_effect": random_effect}
        others |= {"effect_difference": effect - random_effect}
        columns = {"run": run.name, "edit": edit, "images_of": schema.ROLES[role]}
        columns |= {"memories": counts}
        columns |= summarize(shares, shares=True) | summarize(others)
        yield pd.DataFrame(columns)


def edit_table(rows: Frame) -> Table:
    """The largest number of memories; its CSV has all."""
    last = rows[rows["memories"] == rows.groupby("run")["memories"].transform("max")]
    shown = last[["run", "edit", "images_of", "images"]].copy()
    shown = shown.rename(columns={"images_of": "images of"})
    shown["edit"] = shown["edit"].map(schema.MEMORY_EDITS)
    for heading, column in {
        "accuracy": "accuracy",
        "random ones": "random_accuracy",
        "difference": "accuracy_difference",
    }.items():
        shown[heading] = with_interval(last, column)
    return Table(
        key="editing",
        title="Edited memories against random ones",
        caption="The memories that promote a class most, and as many random ones of "
        f"the same blocks, {last['memories'].max()} of either. Means over images with "
        "95 % intervals, of the difference paired. The CSV has the other numbers of "
        "memories, too, and the fall of the logit of the image's own class.",
        data=rows,
        shown=shown,
    )


def describe_editing(run: Run, rows: Frame) -> Iterator[str]:
    """Accuracy and the class's logit with the most memories edited, and random ones."""
    own = rows[rows["memories"] == rows["memories"].max()]
    for edit, words in schema.MEMORY_EDITS.items():
        parts = []
        for row in own[own["edit"] == edit].to_dict("records"):
            before = f"{100 * row['before']:.1f} % before"
            part = f"{quote(row, mean='accuracy')} on {row['images_of']}, {before}"
            if row["images_of"] == schema.ROLES[0]:
                random = quote(row, mean="random_accuracy")
                falls, others = (
                    quote(row, mean=name, unit="")
                    for name in ("effect", "random_effect")
                )
                part += (
                    f", {random} with as many random ones (its logit falls by {falls} "
                    f"and by {others})"
                )
            parts.append(part)
        if parts:
            yield (
                f"With the {own['memories'].iloc[0]} memories that promote a class "
                f"most {words}, accuracy is {'; '.join(parts)}."
            )


EDITING_FIGURES: FigureTable = {
    "editing": (
        edit_curves,
        "Memories that promote a class",
        "If these memories hold the class, the first line of its own panel leaves the "
        "second, and those of the rest stay together.",
        "Accuracy with more and more memories of the MLPs edited: those that promote "
        "a class most, or as many random ones of the same blocks; on images of the "
        f"class, of classes that it is most confused with, and others. {BAND}",
        {
            "x": "x",
            "x_label": "share of the largest number of memories",
            "y_label": "accuracy",
        },
    ),
}
