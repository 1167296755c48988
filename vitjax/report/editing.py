"""Edits of memories: accuracy on a class, its confusions and others, by their number.

An image may be evaluated for several classes; its value is the mean over them, so that
images count alike. Of random memories, images meet different draws.
"""

import itertools
from collections.abc import Iterator, Sequence

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
    quote,
    rows_of_all,
    sentences_of,
    with_interval,
)
from vitjax.report.interventions import summarize
from vitjax.report.per_image import BAND, Frame, Run, mean


def section(runs: Sequence[Run]) -> Section:
    """What the memories that promote a class do to its accuracy."""
    edited = [run for run in runs if schema.EDITED() in run]
    rows = rows_of_all(edited, edit_rows)
    return Section(
        key="editing",
        title="Edits of memories",
        sentences=sentences_of(runs, lambda run: describe(run, rows), edited),
        figures=figures_of(edited, FIGURES),
        tables=[edit_table(rows)] if len(rows) else [],
    )


def edits(run: Run) -> Iterator[tuple[str, int]]:
    """What memories become, and what images are to the class: those a run holds."""
    for edit, role in itertools.product(schema.MEMORY_EDITS, range(len(schema.ROLES))):
        name = schema.EDITED_CORRECT("promoting", edit)
        if name in run and (run.read(schema.EDITED_ROLE()) == role).any():
            yield edit, role


def of_role(
    run: Run, family: schema.Family, memories: str, edit: str, role: int
) -> Float[np.ndarray, "image count"]:
    """Means over the classes to which an image is that; NaN where it is to none."""
    values = run.read(family(memories, edit)).astype(float)
    member = run.read(schema.EDITED_ROLE()) == role
    return mean(np.where(member[..., None], values, np.nan).swapaxes(0, 1))


def before(run: Run, role: int) -> Float[np.ndarray, "image one"]:
    """Whether images that are that to a class are right without an edit."""
    member = (run.read(schema.EDITED_ROLE()) == role).any(1)
    return np.where(member, run.correct, np.nan)[:, None]


def curves(run: Run) -> Rows:
    """Accuracy over the number of memories, those of the class and random ones."""
    counts = np.array([0, *run.results[schema.EDITED()].values.astype(int)])
    axis = {"memories": counts, "x": counts / counts[-1]}
    for edit, role in edits(run):
        panel = f"{schema.ROLES[role]}, {schema.MEMORY_EDITS[edit]}"
        for style, (memories, name) in enumerate(schema.MEMORY_SETS.items()):
            values = of_role(run, schema.EDITED_CORRECT, memories, edit, role)
            whole = np.hstack([before(run, role), values])
            yield run.line(panel, name, style, whole, axis=axis)


def edit_rows(run: Run) -> Rows:
    """Accuracy and effects by number of memories, with paired differences."""
    counts = run.results[schema.EDITED()].values.astype(int)
    for edit, role in edits(run):
        shares, others = {"before": np.tile(before(run, role), len(counts))}, {}
        for name, family in (
            ("accuracy", schema.EDITED_CORRECT),
            ("effect", schema.EDITED_EFFECT),
        ):
            own, random = (
                of_role(run, family, each, edit, role) for each in schema.MEMORY_SETS
            )
            measured = shares if name == "accuracy" else others
            measured |= {name: own, f"random_{name}": random}
            others[f"{name}_difference"] = own - random
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
        shown[heading] = with_interval(last, column, f"{column}_")
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


def describe(run: Run, rows: Frame) -> Iterator[str]:
    """Accuracy and the class's logit with the most memories edited, and random ones."""

    def mean_of(row, name, unit=" %"):
        return quote(row, unit=unit, mean=name, prefix=f"{name}_")

    own = rows[(rows["run"] == run.name) & (rows["memories"] == rows["memories"].max())]
    for edit, words in schema.MEMORY_EDITS.items():
        parts = []
        for row in own[own["edit"] == edit].to_dict("records"):
            before = f"{100 * row['before']:.1f} % before"
            part = f"{mean_of(row, 'accuracy')} on {row['images_of']}, {before}"
            if row["images_of"] == schema.ROLES[0]:
                part += (
                    f", {mean_of(row, 'random_accuracy')} with as many random ones "
                    f"(its logit falls by {mean_of(row, 'effect', '')} and by "
                    f"{mean_of(row, 'random_effect', '')})"
                )
            parts.append(part)
        if parts:
            yield (
                f"With the {own['memories'].iloc[0]} memories that promote a class "
                f"most {words}, accuracy is {'; '.join(parts)}."
            )


FIGURES: FigureTable = {
    "editing": (
        curves,
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
