"""Distributions over images and over classes, and tests of significance.

As everywhere, images are the units: tokens are averaged within their image first, where
the published figures pool the tokens of all images. Tests are corrected over the blocks
of each quantity.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from vitjax.recipes import schema
from vitjax.recipes.schema import CONTROLS, KINDS, SYSTEMS
from vitjax.report.figure import (
    BOX_COLUMNS,
    KIND_STYLES,
    FigureTable,
    Rows,
    Section,
    Table,
    figures_of,
)
from vitjax.report.per_image import COMPARED, CONVENTIONS, UPDATES, Frame, Run, mean
from vitjax.statistics import (
    Alternative,
    benjamini_hochberg,
    holm,
    label_permutation_test,
    sign_flip_test,
    vilas2023_accuracy_test,
    vilas2023_permutation_test,
    wilcoxon_test,
    within_image_test,
)

BINS = 50
"""At most, of a histogram."""


def distributions(runs: Sequence[Run]) -> Section:
    """Every distribution that the runs have rows for, in the published order."""
    title = "Distributions over images and classes"
    return Section(key="appendix", title=title, figures=figures_of(runs, FIGURES))


def kind_boxes(run: Run, kinds: Sequence[str], alternative: Alternative) -> Rows:
    """Boxes of kinds of tokens; the first of two that exist is tested."""
    kinds = [kind for kind in kinds if kind in run.tokens]
    values = [run.curve(kind).astype(np.float64) for kind in kinds]
    p: list[Any] = [np.nan] * len(kinds)
    if len(kinds) == 2:
        p[0] = holm(sign_flip_test(values[0] - values[1], alternative=alternative))
    chance = run.chance("identifiability")
    for kind, value, p_holm in zip(kinds, values, p):
        series = KINDS[kind], KIND_STYLES[kind]
        rows = run.line("block output", *series, value, chance=chance)
        yield box_rows(rows, value, p_holm)


def class_value_boxes(run: Run) -> Rows:
    """The published `match_score`: class-value agreement over classes."""
    for system, panel in SYSTEMS.items() if run.has_paper else ():
        values = run.metric("class_value", system=system, weights="trained").T
        control = run.metric("class_value", system=system, weights="control").T
        rows = run.line(panel, "the weights", 0, values, chance=control.mean(0))
        yield box_rows(rows, values, holm(wilcoxon_test(values, control)))


def box_rows(rows: Frame, values: np.ndarray, p_holm: Any) -> Frame:
    """Rows with boxes of their values, [unit, layer], and with p-values."""
    from matplotlib.cbook import boxplot_stats

    columns = [column[np.isfinite(column)] for column in values.T.astype(np.float64)]
    boxes: Frame = pd.DataFrame([boxplot_stats(column)[0] for column in columns])
    boxes = boxes[list(BOX_COLUMNS)].rename(columns=BOX_COLUMNS)
    place = rows.columns.get_loc("mean")
    parts = rows.iloc[:, :place], boxes, rows.iloc[:, place:]
    return pd.concat(parts, axis=1).assign(p_holm=p_holm)


def agreement_classes(run: Run) -> Rows:
    """The published `key_val_agr`: a dot per class."""
    if not run.has_paper:
        return
    labels, images = np.unique(run.label, return_counts=True)
    names, depth = [run.classes[label] for label in labels], run.config.depth
    for system, panel in SYSTEMS.items():
        columns = {
            "run": run.name,
            "panel": panel,
            "class": np.repeat(names, depth),
            "layer": np.tile(np.arange(depth), len(labels)),
            "images": np.repeat(images, depth),
        }
        for column, name in (("mean", "agreement"), ("chance", "agreement_chance")):
            values = run.metric(name, system=system, convention="paper")
            by_class = [
                values[run.label == label].mean(0, dtype=np.float64) for label in labels
            ]
            columns[column] = np.ravel(by_class)
        yield pd.DataFrame(
            columns | {"series": "each class, and their mean", "style": 0}
        )


def identifiable_tokens(run: Run) -> Rows:
    """How many image tokens of an image are identifiable after the last block."""
    total = run.config.patches
    share = run.curve("image", "rate")[:, -1].astype(np.float64)
    identifiable = np.rint(share * total).astype(int)
    width = -(-(total + 1) // BINS)
    start = np.arange(0, total + 1, width)
    end = np.minimum(start + width - 1, total)
    tick = [f"{a}–{b}" if a < b else str(a) for a, b in zip(start, end)]
    axis = {"from": start, "to": end, "tick": tick}
    inside = identifiable[:, None] // width == start // width
    style = KIND_STYLES["image"]
    rows = run.line("last block", "images", style, inside, axis=axis)
    chance = total * run.chance("rate")
    number = {"mean_number": identifiable.mean(), "chance_number": chance}
    yield rows.assign(images=inside.sum(0), **number, chance=chance)


BOX = "Box: quartiles and median; whiskers: values within 1.5 lengths of the box."
STAR = "test, 0.05 after Holm's correction over blocks"

FIGURES: FigureTable = {
    "identifiability_boxes": (
        functools.partial(kind_boxes, kinds=("cls", "image"), alternative="two-sided"),
        "How identifiability is spread over images",
        "A tall box: images differ much in how early their class can be read.",
        f"Class identifiability of the block outputs over images. {BOX} Star: [CLS] "
        f"and image tokens differ (two-sided sign-flip {STAR}). Dashed: chance.",
        {"mark": "boxes", "y_label": "class identifiability"},
    ),
    "context_boxes": (
        functools.partial(kind_boxes, kinds=("context", "object"), alternative="less"),
        "Object tokens beside context tokens",
        "Where the two boxes part, tokens on the object know more of the class.",
        f"Class identifiability of the block outputs over images (Figure 3a). {BOX} "
        "Star: object tokens are more identifiable (one-sided sign-flip "
        f"{STAR}). Dashed: chance.",
        {"mark": "boxes", "y_label": "class identifiability"},
    ),
    "class_value_boxes": (
        class_value_boxes,
        "How class-value agreement is spread over classes",
        "Boxes above the dashed line: value vectors point to classes by training.",
        "Largest cosine between a class embedding and a value vector of the layer, "
        f"over classes (section 6). {BOX} Star: larger than with random "
        f"initialization (one-sided Wilcoxon {STAR}), whose mean is dashed.",
        {
            "mark": "boxes",
            "y_label": "class-value agreement",
            "chance_label": "random initialization, mean",
        },
    ),
    "agreement_classes": (
        agreement_classes,
        "Key-value agreement, class by class",
        "Dots far from the diamond are classes with memories of their own.",
        "Key-value agreement rate (section 6). Dot: images of a class; diamonds: "
        "mean over classes. Dashed: chance.",
        {
            "mark": "dots",
            "y_label": "key-value agreement rate",
            "chance_label": "classes permuted, mean",
            "hidden": ("series", "style"),
        },
    ),
    "identifiable_tokens": (
        identifiable_tokens,
        "How many tokens of an image are identifiable",
        "A bar far to the right: images most of whose tokens name the class.",
        "Image tokens of an image that have the true class first after the last block. "
        "Bars: share of images; thin lines: its 95 % interval; dark line: "
        "mean number; dashed: mean number by chance.",
        {
            "mark": "histogram",
            "y_label": "share of images",
            "x": "from",
            "x_label": "identifiable image tokens",
            "hidden": ("style", "chance"),
        },
    ),
}


WORDS = {
    **schema.STREAMS,
    "cls": schema.KINDS["cls"],
    "mlp": schema.SYSTEMS["mlp"],
    "vilas2023": "published code",
}
"""Keys in the names of tested quantities, as people read them."""


def tests(runs: Sequence[Run], units: str, subset: int) -> Section:
    """Every p-value as CSV, and in words where a quantity is larger than chance."""
    units = "vilas2023" if units == "published" else units
    rows = []
    for run in runs:
        rows += object_tests(run)
        rows += paper_tests(run) if run.has_paper else []
        if units != "images":
            rows += token_tests(run, units=units, subset=subset)
        if units == "vilas2023" and run.has_paper:
            rows += accuracy_tests(run)
    rows += control_tests(runs)
    if not rows:
        return Section(key="tests", title="Tests")
    data: Frame = pd.concat(rows, ignore_index=True)
    blocks = data["layer"].astype(str).where(data["p_holm"] <= 0.05)
    words = blocks.groupby([data["run"], data["quantity"]], sort=False).agg(
        lambda own: ", ".join(own.dropna()) or "none"
    )
    table = Table(
        key="tests",
        title="Larger than chance",
        caption="Every p-value. One-sided; sign flips of per-image differences, "
        "permuted labels, (b + 1) / (m + 1), or Wilcoxon over classes where it is "
        "said; at 0.05 after Holm's correction over the blocks of each row.",
        data=data,
        shown=words.rename("in blocks")
        .reset_index()
        .replace({"quantity": {rf"\b{k}\b": v for k, v in WORDS.items()}}, regex=True),
    )
    return Section(key="tests", title="Tests", tables=[table])


Layers = Float[np.ndarray, " layer"]
Differences = Float[np.ndarray, "image layer"]


def tested(run: Run, quantity: str, difference: Layers, p: Layers) -> Frame:
    """The tests of one quantity, with corrected p-values."""
    rows = pd.DataFrame({"layer": np.arange(len(p)), "difference": difference, "p": p})
    rows.insert(0, "run", run.name)
    rows.insert(1, "quantity", quantity)
    return rows.assign(p_holm=holm(p), p_bh=benjamini_hochberg(p))


def sign_flips(
    run: Run, quantity: str, values: Differences, resamples: int = 9999
) -> Frame:
    """Per-image differences whose mean is 0 by chance."""
    values = values.astype(np.float64)
    p = sign_flip_test(values, resamples=resamples)
    return tested(run, quantity, mean(values), p)


def object_tests(run: Run) -> Rows:
    """Object against context tokens of the same image, in every stream."""
    if "object" in run.tokens and len(run.image):
        for stream in run.streams:
            inside = run.curve("object", stream=stream)
            name = f"identifiability of object minus context tokens, {stream}"
            yield sign_flips(run, name, inside - run.curve("context", stream=stream))


def above_chance(run: Run) -> Iterator[tuple[str, Differences]]:
    """Quantities of section 6, and their values minus chance."""
    for compared, kind in itertools.product(COMPARED, ("cls", "image")):
        if kind in run.tokens:
            rate = run.metric("change", compared=compared, tokens=kind)
            name = f"change rate of {compared}, {kind} tokens, above 0.5"
            yield name, rate - 0.5
    for update in UPDATES if "object" in run.tokens else ():
        inside = run.metric("gain", update=update, tokens="object")
        outside = run.metric("gain", update=update, tokens="context")
        yield f"logit change by {update}, object minus context", inside - outside
    for convention, system in itertools.product(CONVENTIONS, SYSTEMS):
        where = {"convention": convention, "system": system}
        chance = run.metric("agreement_chance", **where)
        name = f"{system} agreement ({convention}) above permuted classes"
        yield name, run.metric("agreement", **where) - chance


def paper_tests(run: Run) -> Rows:
    """Tests of what only the recipe `paper` has."""
    for name, values in above_chance(run):
        yield sign_flips(run, name, values, resamples=1999)
    for system, control in itertools.product(SYSTEMS, CONTROLS):
        values = run.metric("class_value", system=system, weights="trained")
        other = run.metric("class_value", system=system, weights=control)
        name = f"{system} class-value agreement above {control}"
        p, difference = wilcoxon_test(values.T, other.T), (values - other).mean(-1)
        yield tested(run, f"{name} (Wilcoxon over classes)", difference, p)
    for system in SYSTEMS if 0 < run.correct.sum() < len(run.correct) else ():
        values = run.metric("agreement_pooled", system=system).astype(np.float64)
        name = f"{system} agreement at the pooled token, right minus wrong images"
        p = label_permutation_test(values, run.correct, resamples=999)
        yield tested(run, name, right_minus_wrong(run, values), p)


def right_minus_wrong(run: Run, values: Differences) -> Layers:
    """Mean over correctly minus mean over wrongly classified images."""
    return values[run.correct].mean(0) - values[~run.correct].mean(0)


def token_tests(run: Run, *, units: str, subset: int) -> Rows:
    """Object against context tokens by tests that take tokens for exchangeable.

    "within_images" permutes tokens within each of the first `subset` images;
    "vilas2023" shuffles those of all together, 300 times, as the published code.
    """
    if "object" not in run.tokens or not len(run.image):
        return
    images = run.image[:subset]
    patch_label = run.read(schema.PATCH_LABEL(), images)
    member, counted = patch_label == 1, patch_label >= 0
    for stream in run.streams:
        ranks = run.read(schema.RANK(stream), images)[..., run.config.prefix :]
        difference, p = np.full((2, run.config.depth), np.nan)
        for layer in range(run.config.depth):
            values = 1 - ranks[:, layer] / len(run.classes)
            inside, outside = values[member], values[counted & ~member]
            if len(inside) and len(outside):
                difference[layer] = inside.mean() - outside.mean()
            if units == "vilas2023":
                p[layer] = vilas2023_permutation_test(inside, outside)
            else:
                p[layer], _ = within_image_test(values, member, counted=counted)
        name = f"identifiability of object minus context tokens, {stream} "
        name += f"({units.replace('_', ' ')}, {len(images)} images)"
        yield tested(run, name, difference, p)


def accuracy_tests(run: Run) -> Rows:
    """Right against wrong images as the published code tests them.

    Key-value agreement in the code's definition at token 0, which without a [CLS] token
    is the first patch.
    """
    token = "[CLS]" if run.config.class_token else "the first token"
    for system in SYSTEMS if 0 < run.correct.sum() < len(run.correct) else ():
        hits = run.read(schema.AGREEMENT_VILAS2023(system))[..., 0].astype(np.float64)
        p = vilas2023_accuracy_test(hits, run.correct)
        name = f"{system} agreement (vilas2023) at {token}, right minus wrong images"
        yield tested(run, name, right_minus_wrong(run, hits), p)


def control_tests(runs: Sequence[Run]) -> Rows:
    """Trained models against randomly initialized ones on the same images.

    For every pair of runs of one architecture and one data set.
    """
    for run, control in itertools.product(runs, runs):
        models = run.manifest["model"], control.manifest["model"]
        random = [model.get("sha256") is None for model in models]
        same_data = run.manifest["data"]["id"] == control.manifest["data"]["id"]
        if random != [False, True] or not same_data or run.config != control.config:
            continue
        _, left, right = np.intersect1d(run.image, control.image, return_indices=True)
        kinds = [kind for kind in run.tokens if kind in control.tokens]
        for kind in kinds if len(left) else ():
            values = run.curve(kind)[left].astype(np.float64)
            name = f"identifiability of {kind} tokens above the random control"
            yield sign_flips(run, name, values - control.curve(kind)[right])
