"""Figures of section 8 of the paper: probes against projection, and what both cost."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vitjax.report import per_image as digests
from vitjax.report import sections, writing
from vitjax.report.panels import Panel, accuracy_panels
from vitjax.report.per_image import STREAMS, TOKENS
from vitjax.report.sections import Curve, Figure
from vitjax.report.writing import Captioned
from vitjax.runner.results import Results
from vitjax.statistics import bootstrap_mean
from vitjax.types import Config

READERS = {"rank_probe_": "linear probe", "rank_": "class projection"}
"""What ranked the classes, by the beginning of its array's name."""

ORDERS = {
    "negative": "the least important tokens go first",
    "positive": "the most important tokens go first",
}
IMPORTANCES = {"probe": "probes' ranks", "gradient": "gradients of the projection"}
RANDOM = "a random order"
AXIS = "share of image tokens removed"


def is_probes(run: Results) -> bool:
    """Whether a run holds the rows that this file reads."""
    return "rank_probe_residual" in run


def draw(folder: Any, names: Sequence[str], runs: Sequence[Results]) -> dict | None:
    """Write the figures and tables of those runs that have probes.

    Args:
        folder: where to; `etils.epath.Path` or alike.
        names: of the runs.
        runs: any runs.

    Returns:
        "figures", each of `writing.draw_captioned`, and "costs" with "rows" and "csv";
        None where no run has probes.
    """
    pairs = [(name, run) for name, run in zip(names, runs) if is_probes(run)]
    if not pairs:
        return None
    shown = [writing.draw_captioned(folder, figure) for figure in figures(pairs)]
    costs = [row for name, run in pairs for row in cost_table(run, name=name)]
    csv = writing.write_csv(folder / "probe_costs.csv", costs)
    return {"figures": shown, "costs": {"rows": costs, "csv": csv}}


def figures(runs: Sequence[tuple[str, Results]]) -> list[Captioned]:
    """All figures of runs with probes, without those that would be empty.

    Args:
        runs: (name, run).
    """
    used = [(name, run, usable(run)) for name, run in runs]
    used = [(name, run, use) for name, run, use in used if use.any()]
    kinds = [
        kind for kind in ("image", "cls") if any(has(run, kind) for _, run in runs)
    ]
    found = [top1(used, kind) for kind in kinds] + [removal(used)]
    return [figure for figure in found if figure.rows]


def usable(run: Results) -> Bool[np.ndarray, " image"]:
    """Images that are done, valid and labelled."""
    return run["done"][:] & run["valid"][:] & (run["label"][:] >= 0)


def has(run: Results, kind: str) -> bool:
    """Whether a run's model has tokens of a kind."""
    return kind != "cls" or config_of(run).class_token


def config_of(run: Results) -> Config:
    """Architecture of a run's model."""
    return Config.from_dict(run.manifest["model"]["config"])


def top1(
    runs: Sequence[tuple[str, Results, Bool[np.ndarray, " image"]]], kind: str
) -> Captioned:
    """Top-1 accuracy of probes and of the projection, block by block.

    Args:
        runs: (name, run, which of its images count).
        kind: of tokens, key of `TOKENS`.
    """
    caption = (
        f"Share of {TOKENS[kind]} at which the true class ranks first: by the linear "
        "probe of that stream, block and token, and by projection onto class space, "
        "which needs no fitting (section 8). A probe finds what can be told apart "
        "there; the projection, what the model itself would read. Line: mean over "
        "images; band: its 95 % bootstrap interval."
    )
    title = f"Linear probes against class projection: {TOKENS[kind]}"
    rows, panels = [], []
    for name, run, use in runs:
        if has(run, kind):
            key = f"probes_{kind}"
            curves = list(top1_curves(run, use, kind))
            figure = Figure(key, title, caption, "top1", curves)
            rows += sections.curve_rows(figure, run=name)
            panels = sections.panels(figure, rows)
    plain = [{k: v for k, v in row.items() if k != "style"} for row in rows]
    return Captioned(f"probes_{kind}", title, caption, panels, plain)


def top1_curves(run: Results, use: Bool[np.ndarray, " image"], kind: str):
    """A curve for each stream and reader."""
    chance = 1 / len(run.manifest["model"]["classes"])
    for stream, title in STREAMS.items():
        if f"rank_probe_{stream}" not in run:
            continue
        for style, (start, reader) in enumerate(READERS.items()):
            hits = hit_rate(run, f"{start}{stream}", use, kind)
            yield Curve(title, reader, style, hits, chance)


def hit_rate(
    run: Results, name: str, use: Bool[np.ndarray, " image"], kind: str
) -> Float[np.ndarray, "used layer"]:
    """Share of an image's tokens of a kind at which its class ranks first."""
    config = config_of(run)
    there = digests.members(config, kind, None)[0]
    pieces = [
        (run[name][window][chosen][:, :, there] == 0).mean(-1)
        for window, chosen in digests.windows(run, config, use)
    ]
    return np.concatenate(pieces)


def removal(
    runs: Sequence[tuple[str, Results, Bool[np.ndarray, " image"]]],
) -> Captioned:
    """Accuracy of the model while tokens go, in the orders of both importances.

    Args:
        runs: (name, run, which of its images count).
    """
    caption = (
        "Accuracy of the model while image tokens are taken away, in the order of "
        "their importance: minus the sum over blocks of the rank that probes of the "
        "residual stream give the true class, or the gradient of its projection with "
        "respect to attention weights, over all heads and blocks (sections 7 and 8). A "
        "faithful importance stays above a random order where the least important "
        "tokens go first, and falls below it where the most important do. Line: mean "
        "over images; band: its 95 % bootstrap interval."
    )
    title = "Do probes find the tokens that the model uses?"
    rows = [row for name, run, use in runs for row in removal_rows(run, use, name=name)]
    drawn_only = ("style", "tick")
    plain = [{k: v for k, v in row.items() if k not in drawn_only} for row in rows]
    return Captioned("probes_removal", title, caption, removal_panels(rows), plain)


def removal_rows(
    run: Results, use: Bool[np.ndarray, " image"], *, name: str
) -> Iterator[dict[str, Any]]:
    """The numbers of all removal curves, one row per step; nothing removed is one."""
    patches = config_of(run).patches
    counts = [*run.manifest["recipe_options"]["keep_counts"], patches]
    whole = (run["prediction"][:] == run["label"][:])[use]
    orders = {order: list(removal_curves(order)) for order in ORDERS}
    for order, curves in orders.items():
        for style, (series, array) in enumerate(curves):
            correct = np.concatenate([run[array][:][use], whole[:, None]], axis=1)
            interval = bootstrap_mean(correct.astype(np.float64))
            for place in np.argsort(counts)[::-1].tolist():
                yield {
                    "run": name,
                    "panel": ORDERS[order],
                    "series": series,
                    "style": style,
                    "tick": f"{counts[place]} kept",
                    "kept": counts[place],
                    "x": 1 - counts[place] / patches,
                    "images": len(correct),
                    "mean": float(interval.mean[place]),
                    "low": float(interval.low[place]),
                    "high": float(interval.high[place]),
                    "chance": float("nan"),
                }


def removal_curves(order: str) -> Iterator[tuple[str, str]]:
    """(name of the line, its array) of one order of removal."""
    for importance, series in IMPORTANCES.items():
        yield series, f"correct_{order}_{importance}"
    yield RANDOM, "correct_random"


def removal_panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Both orders of removal, of one run or of several side by side."""
    return accuracy_panels(rows, axis=AXIS)


def cost_table(run: Results, *, name: str) -> list[dict[str, Any]]:
    """What probes and the projection took, side by side.

    Args:
        run: with probes.
        name: of the run.

    Returns:
        Rows with `run`, `quantity`, `probes`, `projection`; seconds are those measured,
        NaN for parts that have not run yet.
    """
    told, images = run.manifest["probes"], run.manifest["data"]["images"]
    seconds, size = dict(told["seconds"]), told["bytes"]
    if not told["projected"]:
        seconds["projection"] = float("nan")
    rows = [
        ("classifiers fitted", told["probes"], 0),
        ("images to fit on", told["train"]["images"], 0),
        ("passes over them", told["groups"], 0),
        ("seconds for these passes", seconds["fit"], 0),
        ("seconds to solve", seconds["solve"], 0),
        ("images ranked", images, images),
        ("passes over them", told["groups"], 1),
        ("seconds for these passes", seconds["test"], seconds["projection"]),
        (
            "seconds in all",
            seconds["fit"] + seconds["solve"] + seconds["test"],
            seconds["projection"],
        ),
        ("MiB of weights", size["weights"] / 2**20, size["class_embedding"] / 2**20),
    ]
    return [
        {"run": name, "quantity": quantity, "probes": float(a), "projection": float(b)}
        for quantity, a, b in rows
    ]
