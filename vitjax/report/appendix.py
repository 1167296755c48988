"""Distributions over images and over classes, and tests of significance.

As everywhere, images are the units: tokens are averaged within their image first, where
the published figures pool the tokens of all images. Tests are corrected over the blocks
of each quantity.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    values = {
        kind: run.curve(kind).astype(float) for kind in kinds if kind in run.tokens
    }
    p_holm, chance = np.nan, run.chance("identifiability")
    if len(values) == 2:
        first, second = values.values()
        p_holm = holm(sign_flip_test(first - second, alternative=alternative))
    for kind, own in values.items():
        series = KINDS[kind], KIND_STYLES[kind]
        rows = run.line("block output", *series, own, chance=chance)
        yield box_rows(rows, own, p_holm)
        p_holm = np.nan


def class_value_boxes(run: Run) -> Rows:
    """The published `match_score`: class-value agreement over classes."""
    for system, panel in SYSTEMS.items() if run.has_paper else ():
        values = run.class_value(system).T
        control = run.class_value(system, "control").T
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
            values = run.paper[name, "paper", system]
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
    tested = [(run, each) for run in runs for each in tests_of(run, units, subset)]
    tested += [(run, each) for run in runs for each in control_tests(run, runs)]
    if not tested:
        return Section(key="tests", title="Tests")
    rows = []
    for run, (quantity, difference, p) in tested:
        columns = {"run": run.name, "quantity": quantity, "layer": np.arange(len(p))}
        columns |= {"difference": difference, "p": p}
        columns |= {"p_holm": holm(p), "p_bh": benjamini_hochberg(p)}
        rows.append(pd.DataFrame(columns))
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
Tests = Iterator[tuple[str, Layers, Layers]]
"""Quantities, their mean differences to chance, and p-values."""


def sign_flips(values: Differences, resamples: int = 9999) -> tuple[Layers, Layers]:
    """The mean of per-image differences, and p that it is larger than 0."""
    values = values.astype(np.float64)
    return mean(values), sign_flip_test(values, resamples=resamples)


def tests_of(run: Run, units: str, subset: int) -> Tests:
    """All tests that need a single run."""
    masked = "object" in run.tokens and len(run.image) > 0
    for stream in run.streams if masked else ():
        inside, outside = (run.curve(k, stream=stream) for k in ("object", "context"))
        name = f"identifiability of object minus context tokens, {stream}"
        yield name, *sign_flips(inside - outside)
    if run.has_paper:
        yield from paper_tests(run)
    if masked and units != "images":
        yield from token_tests(run, units, subset)
    if run.has_paper and units == "vilas2023":
        # Token 0 as in the published code; without a [CLS] token, the first patch.
        where = "[CLS]" if run.config.class_token else "the first token"
        hits = {s: run.read(schema.AGREEMENT_VILAS2023(s))[..., 0] for s in SYSTEMS}
        where = f"(vilas2023) at {where}"
        yield from right_minus_wrong(run, hits, where, vilas2023_accuracy_test)


def right_minus_wrong(
    run: Run, hits: Mapping[str, np.ndarray], where: str, test: Callable[..., Layers]
) -> Tests:
    """Agreement of correctly against that of wrongly classified images."""
    right = run.correct
    for system, values in hits.items() if 0 < right.sum() < len(right) else ():
        values = values.astype(np.float64)
        name = f"{system} agreement {where}, right minus wrong images"
        difference = values[right].mean(0) - values[~right].mean(0)
        yield name, difference, test(values, right)


def paper_tests(run: Run) -> Tests:
    """Tests of what only the recipe `paper` has."""
    differences = {
        f"change rate of {compared}, {kind} tokens, above 0.5": (
            run.paper["change", kind, compared] - 0.5
        )
        for compared, kind in itertools.product(COMPARED, ("cls", "image"))
        if kind in run.tokens
    }
    for update in UPDATES if "object" in run.tokens else ():
        inside, outside = (run.paper["gain", k, update] for k in ("object", "context"))
        name = f"logit change by {update}, object minus context"
        differences[name] = inside - outside
    for key in itertools.product(CONVENTIONS, SYSTEMS):
        name = f"{key[1]} agreement ({key[0]}) above permuted classes"
        chance = run.paper["agreement_chance", *key]
        differences[name] = run.paper["agreement", *key] - chance
    for name, values in differences.items():
        yield name, *sign_flips(values, resamples=1999)
    for system, control in itertools.product(SYSTEMS, CONTROLS):
        values, other = run.class_value(system), run.class_value(system, control)
        name = f"{system} class-value agreement above {control} (Wilcoxon over classes)"
        yield name, (values - other).mean(-1), wilcoxon_test(values.T, other.T)
    pooled = {system: run.paper["agreement_pooled", system] for system in SYSTEMS}
    test = functools.partial(label_permutation_test, resamples=999)
    yield from right_minus_wrong(run, pooled, "at the pooled token", test)


def token_tests(run: Run, units: str, subset: int) -> Tests:
    """Object against context tokens by tests that take tokens for exchangeable.

    "within_images" permutes tokens within each of the first `subset` images;
    "vilas2023" shuffles those of all together, 300 times, as the published code.
    """
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
        yield name, difference, p


def control_tests(run: Run, runs: Sequence[Run]) -> Tests:
    """A trained model against randomly initialized ones of its architecture on the same
    images.
    """
    for control in runs:
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
            yield name, *sign_flips(values - control.curve(kind)[right])
