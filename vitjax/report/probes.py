"""Section 8 of the paper: linear probes against projection, and what both cost."""

import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from vitjax.recipes import schema
from vitjax.report.curves import BAND, FigureTable, Rows, figures_of, line
from vitjax.report.figure import ReportOptions, Section, Table
from vitjax.report.marks import Frame
from vitjax.report.per_image import Run

READERS = {"linear probe": schema.RANK_PROBE, "class projection": schema.RANK}
"""What ranks the classes."""

PANELS = {
    "negative": "the least important tokens go first",
    "positive": "the most important tokens go first",
}
RANKERS = {"probe": "probes' ranks", "gradient": "gradients of the projection"}


def section(runs: Sequence[Run], options: ReportOptions) -> Section | None:
    """Accuracy of probes, removal in their order, and costs."""
    runs = [run for run in runs if schema.RANK_PROBE("residual") in run]
    if not runs:
        return None
    costs = pd.concat([cost_rows(run) for run in runs], ignore_index=True)
    columns = {name: costs[name].map("{:.4g}".format) for name in COSTS}
    table = Table(
        key="probe_costs",
        title="What probes and projection cost",
        caption="Seconds are those measured.",
        data=costs,
        shown=costs.assign(**columns),
    )
    return Section(
        key="probes",
        title="Linear probes",
        figures=figures_of(runs, FIGURES),
        tables=[table],
    )


def top1(run: Run, kind: str) -> Rows:
    """Top-1 accuracy of probes and of the projection, block by block."""
    for stream, panel in schema.STREAMS.items() if kind in run.tokens else ():
        if schema.RANK_PROBE(stream) in run:
            for style, (reader, family) in enumerate(READERS.items()):
                hits = hit_rate(run, family(stream), kind)
                chance = run.chance("rate")
                yield line(run, panel, reader, style, hits, chance=chance)


def hit_rate(run: Run, name: str, kind: str) -> Float[np.ndarray, "image layer"]:
    """Share of an image's tokens of a kind at which its class ranks first."""
    return np.concatenate(
        [
            (run.read(name, images)[..., run.members(kind, images)[0]] == 0).mean(-1)
            for images in run.windows()
        ]
    )


def removal(run: Run) -> Rows:
    """Accuracy while tokens go, from none removed on, in the orders of importance."""
    patches = run.config.patches
    kept = np.array([*run.results[schema.KEPT()].values.astype(int), patches])
    order = np.argsort(kept)[::-1]
    axis = {"kept": kept[order], "x": 1 - kept[order] / patches}
    for first, panel in PANELS.items():
        names = {words: schema.CORRECT(first, r) for r, words in RANKERS.items()}
        names["a random order"] = schema.CORRECT_RANDOM()
        for style, (series, name) in enumerate(names.items()):
            correct = np.hstack([run.read(name), run.correct[:, None]])
            yield line(run, panel, series, style, correct[:, order], axis=axis)


PROBED = (
    "Share of {} at which the true class ranks first: by the linear probe of that "
    "stream, block and token, and by projection onto class space, which needs no "
    "fitting (section 8). A probe finds what can be told apart there; the projection, "
    f"what the model itself would read. {BAND}"
)
FIGURES: FigureTable = {
    **{
        f"probes_{kind}": (
            functools.partial(top1, kind=kind),
            f"Linear probes against class projection: {schema.KINDS[kind]}",
            PROBED.format(schema.KINDS[kind]),
            {"y_label": "top-1 accuracy"},
        )
        for kind in ("image", "cls")
    },
    "probes_removal": (
        removal,
        "Do probes find the tokens that the model uses?",
        "Accuracy of the model while image tokens are taken away, in the order of "
        "their importance: minus the sum over blocks of the rank that probes of the "
        "residual stream give the true class, or the gradient of its projection with "
        "respect to attention weights, over all heads and blocks (sections 7 and 8). A "
        "faithful importance stays above a random order where the least important "
        "tokens go first, and falls below it where the most important do. "
        f"{BAND}",
        {
            "y_label": "accuracy of the model",
            "x": "x",
            "x_label": "share of image tokens removed",
        },
    ),
}


COSTS = ("probes", "projection")


def cost_rows(run: Run) -> Frame:
    """What probes and the projection took; seconds are NaN where a run was resumed."""
    study, images = run.manifest["study"], run.manifest["data"]["images"]
    measured, size = run.manifest.get("measured", {}), study["bytes"]
    *fits, _ = measured.get("passes", [None])
    fit, test = (
        sum(part[key] for part in fits) if fits else np.nan
        for key in ("setup", "steps")
    )
    projection = images * measured.get("projection_seconds_per_image", np.nan)
    rows = [
        ("classifiers fitted", study["probes"], 0),
        ("images to fit on", study["train"]["images"], 0),
        ("passes over them", study["groups"], 0),
        ("seconds to fit", fit, 0),
        ("images ranked", images, images),
        ("passes over them", study["groups"], 1),
        ("seconds to rank", test, projection),
        ("seconds in all", fit + test, projection),
        ("MiB of weights", size["weights"] / 2**20, size["class_embedding"] / 2**20),
    ]
    costs = pd.DataFrame(rows, columns=["quantity", *COSTS])
    costs.insert(0, "run", run.name)
    return costs.astype(dict.fromkeys(COSTS, float))
