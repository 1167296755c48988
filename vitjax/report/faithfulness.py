"""Sections 7 and 8 of the paper: faithfulness of explanation methods; linear probes.

Areas and measures are taken image by image, so that their means have bootstrap
intervals over images and differences between methods are paired.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from vitjax.analysis.faithfulness import area_under_curve
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
from vitjax.report.per_image import BAND, Frame, Run, interval_of, over_tokens
from vitjax.report.pictures import Maps, Preview, gallery
from vitjax.saliency.methods import SIGNED_METHODS
from vitjax.statistics import sign_flip_test

COLUMNS = {
    "removal_negative": "removal, negative ↑",
    "removal_positive": "removal, positive ↓",
    "removable": "removable at no loss ↑",
    "probability_negative": "insertion ↑",
    "probability_positive": "deletion ↓",
    "saco": "SaCo ↑",
    "pixels_negative": "pixels, negative ↑",
    "pixels_positive": "pixels, positive ↓",
    "pixel_accuracy": "pixel accuracy ↑",
    "mean_iou": "mean IoU ↑",
    "average_precision": "AP ↑",
}
"""Columns of the table; the arrow says where better is."""

CURVES = {
    "removal": schema.REMOVAL,
    "probability": schema.PROBABILITY,
    "pixels": schema.PIXELS,
}

ORDERS = {
    "negative": "the least important {} go first",
    "positive": "the most important {} go first",
}
LEVELS = 10
"""Pixels are blackened in so many parts; the last one is not run."""


class Curve(NamedTuple):
    """Right or wrong image by image while something is removed, `kept` decreasing."""

    kept: Int[np.ndarray, " step"]
    correct: Shaped[np.ndarray, "image step"]

    @property
    def removed(self) -> Float[np.ndarray, " step"]:
        """The share that is gone at each step, increasing from 0."""
        return 1 - self.kept / self.kept[0]

    def areas(self) -> Float[np.ndarray, " image"]:
        """Area under each image's own curve, over the range it covers; in [0, 1]."""
        span = int(self.kept[0] - self.kept[-1])
        areas = area_under_curve(self.correct, self.kept, tokens=int(self.kept[0]))
        areas = np.asarray(areas, np.float64)
        if not np.isin(self.correct, (0, 1)).all():
            return areas
        # Multiples of half a token: as float32, equal sums of them would differ.
        return np.rint(areas * 2 * span) / (2 * span)

    def vilas2023_area(self) -> float:
        """The published code's area; counts between those run are interpolated."""
        kept, tokens = np.arange(1, self.kept[0]), int(self.kept[0])
        mean = np.interp(kept, self.kept[::-1], self.correct.mean(0)[::-1])
        convention = "vilas2023_code"
        return float(area_under_curve(mean, kept, tokens=tokens, convention=convention))

    def removable(self) -> tuple[float, float, float]:
        """The largest share that can go while accuracy is at least the intact.

        Least important first; every smaller share that was tried must hold as well.
        The paper says 60 % for ViT-B/32 (section 7). With its 95 % bootstrap interval.
        """

        def share(mean):
            holds = np.logical_and.accumulate(mean >= mean[..., :1] - 1e-12, axis=-1)
            return self.removed[holds.sum(-1) - 1]

        count, draw = len(self.correct), np.random.default_rng(0)
        weights = draw.multinomial(count, np.full(count, 1 / count), size=1000) / count
        low, high = np.quantile(share(weights @ self.correct), (0.025, 0.975))
        return float(share(self.correct.mean(0))), float(low), float(high)


GALLERY, MAPS = 8, 40
"""Images in the gallery, and maps, at most."""


def maps(runs: Sequence[Run]) -> Section:
    """Curves and the table of methods, of the runs of the recipe `faithfulness`."""
    used = [run for run in runs if run.manifest.get("recipe") == "faithfulness"]
    rows = rows_of_all(used, method_rows)
    most = max((len(methods(run)) for run in used), default=1)
    pictures = gallery(
        used,
        method_maps,
        limit=min(GALLERY, max(2, MAPS // max(1, most))),
        key="gallery",
        title="The maps that are compared",
        see="Maps of a faithful method are strong where the image shows the class.",
        caption="Red: evidence for the class, blue: against it; of methods without "
        "a sign, the brighter the more important. Each map has a scale of its own, "
        "whose ends stand below it.",
    )
    return Section(
        key="faithfulness",
        title="Faithfulness of explanation methods",
        sentences=sentences_of(runs, used, describe, rows),
        figures=[*pictures, *figures_of(used, MAP_FIGURES)],
        tables=[method_table(used, rows)] if len(rows) else [],
    )


BEST = {
    "removal_negative": (
        1,
        "Accuracy stays highest as tokens go, the least important first, by {}: {} on "
        "average along the curve{}.",
    ),
    "removal_positive": (
        -1,
        "Accuracy falls fastest as tokens go, the most important first, by {}: {} on "
        "average along the curve{}.",
    ),
    "average_precision": (1, "The object is found best by {}: average precision {}."),
}
"""Column -> (sign of the best, sentence of its method, value and the random level)."""


def describe(run: Run, rows: Frame) -> Iterator[str]:
    """The most faithful method by each order of removal, and by segmentation."""
    random = rows[rows["method"] == "random"].set_index("column")["value"]
    named = rows[rows["method"] != "random"]
    for column, (sign, sentence) in BEST.items():
        own = named[named["column"] == column]
        if len(own):
            best = own.loc[(sign * own["value"]).idxmax()].to_dict()
            level = ""
            if column in random:
                level = f"; in random order it is {100 * random[column]:.1f} %"
            method = schema.METHODS[best["method"]]
            yield sentence.format(method, quote(best, mean="value"), level)


def method_maps(one: Preview) -> Maps:
    """The map of each method laid over an image."""
    for method in methods(one.run):
        values = one.read(schema.MAP(method))
        columns = {"method": method, "patch": np.arange(len(values)), "value": values}
        words, signed = schema.METHODS[method], method in SIGNED_METHODS
        yield one.lay_over(words, values, signed=signed), columns


def methods(run: Run) -> list[str]:
    """Methods with maps in a run, in the order in which they were requested."""
    names = map(str, run.manifest["recipe_options"]["methods"])
    return [name for name in names if schema.MAP(name) in run]


def read_curve(run: Run, column: str, method: str) -> Curve | None:
    """One method's curve, both ends included where they are known."""
    if column == "removable":
        column = "removal_negative"
    kind, _, order = column.partition("_")
    family = CURVES.get(kind)
    if family is None or family(order, method) not in run:
        return None
    steps, intact = run.read(family(order, method)), run.correct[:, None]
    if family is schema.PIXELS:
        return Curve(LEVELS - np.arange(LEVELS), np.hstack([intact, steps]))
    empty = (run.read(schema.PREDICTION_EMPTY()) == run.label)[:, None]
    if family is schema.PROBABILITY:
        ends = (run.read(schema.PROBABILITY_ENDS(end)) for end in schema.ENDS)
        intact, empty = (end[:, None] for end in ends)
    correct = np.hstack([empty, steps, intact])
    return Curve(np.array([*kept_patches(run), 0]), correct[:, ::-1])


def kept_patches(run: Run) -> Int[np.ndarray, " step"]:
    """How many patches stay at each step, from all of them on."""
    kept = run.results[schema.KEPT()].values.astype(int)
    return np.array([*kept, run.config.patches])[::-1]


def method_rows(run: Run) -> Rows:
    """Methods by protocols, one row per cell.

    `p`: two-sided paired sign-flip test against random orders, `p_chefer` against
    Chefer's map; `published`: removal areas as the published code has them.
    """
    rows = []
    for column in COLUMNS:
        curves, values = {}, {}
        for method in methods(run):
            if curve := read_curve(run, column, method):
                curves[method], values[method] = curve, curve.areas()
            elif (name := f"{column}_{method}") in run:
                values[method] = run.read(name).astype(float)
        for method, own in values.items():
            if not np.isfinite(own).any():
                continue
            row = {"run": run.name, "method": method, "column": column}
            row |= interval_of(own)
            if column == "removable":
                row |= zip(("mean", "low", "high"), curves[method].removable())
            for name, other in (("p", "random"), ("p_chefer", "chefer")):
                row[name] = np.nan
                if other in values and other != method and column != "removable":
                    difference = (own - values[other])[:, None]
                    (row[name],) = sign_flip_test(difference, alternative="two-sided")
            removal = column in ("removal_negative", "removal_positive")
            row["published"] = curves[method].vilas2023_area() if removal else np.nan
            rows.append(row)
    if rows:
        yield pd.DataFrame(rows).rename(columns={"mean": "value"})


def curve_rows(run: Run, kind: str) -> Rows:
    """Accuracy along the curves of every method, in both orders."""
    for order, panel in ORDERS.items():
        for style, method in enumerate(methods(run)):
            if curve := read_curve(run, f"{kind}_{order}", method):
                panel, axis = panel.format("patches"), {"x": curve.removed}
                yield run.line(panel, method, style, curve.correct, axis=axis)


def method_table(runs: Sequence[Run], rows: Frame) -> Table:
    """A line per run and method, a column per protocol; *: differs from Chefer's."""
    shown = rows.assign(
        cell=with_interval(rows, "value"), column=rows["column"].map(COLUMNS)
    )
    shown["cell"] += np.where(rows["p_chefer"] < 0.05, "*", "")
    shown = shown.pivot(index=["run", "method"], columns="column", values="cell")
    shown = shown[[column for column in COLUMNS.values() if column in shown]]
    order = [(run.name, name) for run in runs for name in methods(run)]
    shown = shown.reindex(order).fillna("–")
    costs = {run.name: run.manifest.get("measured", {}).get("passes") for run in runs}
    if all(costs.values()):
        passes = (costs[run][method] for run, method in order)
        shown["passes"] = [f"{cost:.1f}" for cost in passes]
    return Table(
        key="faithfulness",
        title="How faithful each method is",
        caption="Arrows say where better is; means over images with 95 % "
        "intervals. Removal and pixels: area under accuracy against the share taken "
        "away; insertion and deletion: the same of the class's probability, in the "
        "order of negative and of positive removal; removable: the largest share of "
        "tokens that can go, least important first, while accuracy is at least that "
        "of the whole image; SaCo: whether more salient tenths of the patches matter "
        "more, in [-1, 1]; passes: what a map costs, in forward passes; the rest: "
        "segmentation by patches. *: differs from Chefer's gradient × attention at "
        "0.05, paired two-sided sign-flip test, uncorrected. The CSV also has p-values "
        "against random orders, and removal areas as in the published code.",
        data=rows,
        shown=shown.reset_index(),
    )


READERS = {"linear probe": schema.RANK_PROBE, "class projection": schema.RANK}
"""What ranks the classes."""

RANKERS = {"probe": "probes' ranks", "gradient": "gradients of the projection"}
COSTS = ("probes", "projection")


def probes(runs: Sequence[Run]) -> Section:
    """Accuracy of probes, removal in their order, and costs."""
    used = [run for run in runs if schema.RANK_PROBE("residual") in run]
    at_image = rows_of_all(used, functools.partial(top1, kind="image"))
    return Section(
        key="probes",
        title="Linear probes",
        sentences=sentences_of(runs, used, describe_probes, at_image),
        figures=figures_of(used, PROBE_FIGURES),
        tables=[cost_table(used)] if used else [],
    )


def describe_probes(run: Run, rows: Frame) -> Iterator[str]:
    """Probes beside the projection at image tokens of the last block."""
    rows = rows[rows["panel"] == schema.STREAMS["residual"]]
    last = rows[rows["layer"] == run.config.depth - 1].set_index("series")
    probe, projection = (quote(last.loc[name].to_dict()) for name in READERS)
    yield (
        f"After the last block linear probes have the true class first at {probe} of "
        f"the image tokens, and the class projection at {projection}."
    )


def top1(run: Run, kind: str) -> Rows:
    """Share of tokens whose class ranks first, by probes and by the projection."""
    if kind not in run.tokens:
        return
    member = run.members(kind, run.image)[:, None]
    names = {
        (panel, reader): family(stream)
        for stream, panel in schema.STREAMS.items()
        for reader, family in READERS.items()
        if schema.RANK_PROBE(stream) in run
    }
    shares = run.by_window(
        lambda images: {
            key: over_tokens(run.read(name, images) == 0, member)
            for key, name in names.items()
        }
    )
    for (panel, reader), values in shares.items():
        style = list(READERS).index(reader)
        yield run.line(panel, reader, style, values, chance=run.chance("rate"))


def removal(run: Run) -> Rows:
    """Accuracy while tokens go, from none removed on, in the orders of importance."""
    kept = kept_patches(run)
    axis = {"kept": kept, "x": 1 - kept / kept[0]}
    for order, panel in ORDERS.items():
        names = {words: schema.CORRECT(order, r) for r, words in RANKERS.items()}
        names["a random order"] = schema.CORRECT_RANDOM()
        for style, (series, name) in enumerate(names.items()):
            correct = np.hstack([run.read(name), run.correct[:, None]])[:, ::-1]
            yield run.line(panel.format("tokens"), series, style, correct, axis=axis)


def cost_table(runs: Sequence[Run]) -> Table:
    """What probes and the projection took; seconds are NaN where a run was resumed."""
    rows = []
    for run in runs:
        study, images = run.manifest["study"], run.manifest["data"]["images"]
        measured, size = run.manifest.get("measured", {}), study["bytes"]
        *fits, _ = measured.get("passes", [{"setup": np.nan, "steps": np.nan}] * 2)
        fit, test = (sum(part[key] for part in fits) for key in ("setup", "steps"))
        projection = images * measured.get("projection_seconds_per_image", np.nan)
        weights, classes = (size[key] / 2**20 for key in ("weights", "class_embedding"))
        rows += [
            (run.name, "classifiers fitted", study["probes"], 0),
            (run.name, "images to fit on", study["train"]["images"], 0),
            (run.name, "passes over them", study["groups"], 0),
            (run.name, "seconds to fit", fit, 0),
            (run.name, "images ranked", images, images),
            (run.name, "passes over them", study["groups"], 1),
            (run.name, "seconds to rank", test, projection),
            (run.name, "seconds in all", fit + test, projection),
            (run.name, "MiB of weights", weights, classes),
        ]
    costs = pd.DataFrame(rows, columns=["run", "quantity", *COSTS])
    costs = costs.astype(dict.fromkeys(COSTS, float))
    shown = costs.assign(**{name: costs[name].map("{:.4g}".format) for name in COSTS})
    return Table(
        key="probe_costs",
        title="What probes and projection cost",
        caption="Seconds are those measured.",
        data=costs,
        shown=shown,
    )


REMOVED = {
    "y_label": "accuracy of the model",
    "x": "x",
    "x_label": "share of image tokens removed",
}
SEE = (
    "A faithful order stays high where the least important go first, and falls fast "
    "where the most important do."
)
MAP_FIGURES: FigureTable = {
    "faithfulness_removal": (
        functools.partial(curve_rows, kind="removal"),
        "Faithfulness: image tokens removed",
        SEE,
        "Accuracy of the model while image tokens are taken away after position "
        f"embedding, in the order of each method's map (section 7). {BAND}",
        REMOVED,
    ),
    "faithfulness_pixels": (
        functools.partial(curve_rows, kind="pixels"),
        "Faithfulness: pixels blackened",
        SEE,
        "The same with pixels set to black in tenths of the image, by each map "
        f"enlarged bilinearly (protocol of Chefer et al. 2021). {BAND}",
        REMOVED | {"x_label": "share of pixels black"},
    ),
}
PROBE_FIGURES: FigureTable = {
    **{
        f"probes_{kind}": (
            functools.partial(top1, kind=kind),
            f"Linear probes against class projection: {schema.KINDS[kind]}",
            "The gap between the lines is what is there and the model does not read.",
            f"Share of {schema.KINDS[kind]} at which the true class ranks first, by "
            "the linear probe of that stream, block and token, and by projection onto "
            "class space (section 8). Probes find what can be told apart, the "
            f"projection what the model itself would read. {BAND}",
            {"y_label": "top-1 accuracy"},
        )
        for kind in ("image", "cls")
    },
    "probes_removal": (
        removal,
        "Do probes find the tokens that the model uses?",
        SEE,
        "Accuracy of the model while image tokens are taken away in the order of minus "
        "the rank that probes of the residual stream give the true class, summed over "
        "blocks, or of the gradient of its projection with respect to attention "
        f"weights, over all heads and blocks (sections 7 and 8). {BAND}",
        REMOVED,
    ),
}
