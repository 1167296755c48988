"""Predictions of images without a label: what needs no true class."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from vitjax.recipes import schema
from vitjax.report.figure import Figure, Section, Table, with_name
from vitjax.report.marks import Frame
from vitjax.report.per_image import BAND, Run
from vitjax.report.token_maps import (
    PictureFigure,
    image_names,
    previews,
    short_name,
    shown_layers,
)

SHOWN = 50
"""Images that the table shows; its CSV has all."""

PICTURES = 8


def section(runs: Sequence[Run]) -> Section:
    """Predictions, and from which block on they stand, of runs with such images."""
    runs = [run for run in runs if run.unlabeled]
    tables = [prediction_table(pd.concat(map(prediction_rows, runs)))] if runs else []
    return Section(
        key="predictions",
        title="Predictions",
        sentences=[
            sentence for run in runs for sentence in with_name(run, runs, describe(run))
        ],
        figures=[*pictures(runs), *settling(runs)],
        tables=tables,
    )


def settled(run: Run) -> np.ndarray:
    """Whether the class of the last block is first after each block, [image layer]."""
    tops = run.read(schema.TOP_CLASSES(), run.valid)[..., 0]
    return tops == tops[:, -1:]


def describe(run: Run) -> Iterator[str]:
    """How many classes were predicted, and from which block on."""
    prediction = run.read(schema.PREDICTION(), run.valid)
    yield (
        f"The model predicts {len(np.unique(prediction)):,} of its "
        f"{len(run.classes):,} classes for {len(prediction):,} images, "
        f"{len(run.image) or 'none'} of them with a label."
    )
    if schema.TOP_CLASSES() in run:
        stands = np.logical_and.accumulate(settled(run)[:, ::-1], axis=1).sum(1)
        yield (
            "In half of the images the answer stands from block "
            f"{run.config.depth - int(np.median(stands))} on; the last is block "
            f"{run.config.depth - 1}."
        )


def settling(runs: Sequence[Run]) -> Iterator[Figure]:
    """Share of images whose final class is first already."""
    rows = [
        run.line("all images", run.name, style, settled(run).astype(float))
        for style, run in enumerate(runs)
        if schema.TOP_CLASSES() in run
    ]
    if rows:
        yield Figure(
            key="settling",
            title="When the prediction is settled",
            see="A late rise: the answer is decided in the last blocks.",
            caption="Share of images whose predicted class is first already after the "
            f"block, at the token that the prediction is read from. {BAND}",
            data=pd.concat(rows, ignore_index=True),
            y_label="share of images",
        )


def prediction_rows(run: Run) -> Frame:
    """A row per image that was read: what is predicted, and the runner-up."""
    names = image_names(run.results.path)
    prediction = run.read(schema.PREDICTION(), run.valid)
    columns = {
        "run": run.name,
        "image": run.valid,
        "name": [names.get(int(index), "") for index in run.valid],
        "prediction": [run.classes[number] for number in prediction],
    }
    if schema.TOP_LOGITS() in run and len(run.classes) > 1:
        tops = run.read(schema.TOP_CLASSES(), run.valid)[:, -1]
        logits = run.read(schema.TOP_LOGITS(), run.valid)[:, -1, :2]
        columns |= {"second": [run.classes[number] for number in tops[:, 1]]}
        columns |= {"margin": logits.astype(float) @ [1, -1]}
    return pd.DataFrame(columns)


def prediction_table(rows: Frame) -> Table:
    """The first images; CSV: all."""
    shown = rows.head(SHOWN).rename(columns={"margin": "ahead by (logit)"})
    if not rows["name"].any():
        shown = shown.drop(columns="name")
    return Table(
        key="predictions",
        title="Predictions",
        caption=f"The first {SHOWN} images at most; the CSV has all. Second: the class "
        "with the next largest logit, and by how much the prediction is ahead of it.",
        data=rows,
        shown=shown,
    )


def pictures(runs: Sequence[Run]) -> list[PictureFigure]:
    """Unlabeled photos that runs kept; where a run holds it, attention block by block.

    Attention is that of the pooled token, or of all tokens where there is no [CLS].
    """
    from vitjax.report.overlays import Panel, lay_over, scale_of, to_grid, to_photo

    shown = [one for run in runs for one in previews(run, limit=PICTURES)]
    shown = [one for one in shown if one.label < 0]
    rows, photos, data = [], [], []
    for one in shown:
        run, photo = one.run, to_photo(one.pixels)
        columns = {"run": run.name, "image": one.index, "name": one.name}
        columns |= {"prediction": one.class_name(one.prediction)}
        if schema.ATTENDED() not in run:
            photos.append(Panel(photo, one.words))
            data.append(pd.DataFrame(columns, index=[0]))
            continue
        row = [Panel(photo, one.words)]
        tops = one.read(schema.TOP_CLASSES())[:, 0]
        for layer in shown_layers(run.config.depth):
            values = one.read(schema.ATTENDED())[layer].mean(0)
            grid = to_grid(values, run.config.grid)
            scale = scale_of(grid, signed=False, percentile=98, opacity=0.75)
            words = f"block {layer}\n{short_name(run.classes[tops[layer]])}"
            row.append(Panel(lay_over(photo, grid, scale), words, scale))
            patch = {"layer": layer, "patch": np.arange(len(values))}
            data.append(pd.DataFrame(columns | patch | {"attention": values}))
        rows.append(row)
    if not shown:
        return []
    attention = " Colors: attention weights of the token that the prediction is read "
    attention += (
        "from, mean over heads; below the block, the class that is first there."
    )
    return [
        PictureFigure(
            key="photos",
            title="Photos and predictions",
            see="Where the model looks, block by block, and what it would answer there."
            if rows
            else "What the model saw, and what it answers.",
            caption="Photos as the model saw them." + attention * bool(rows),
            data=pd.concat(data),
            rows=[*rows, *([photos] if photos else [])],
        )
    ]
