"""Tests of significance, block by block, corrected over the blocks of each quantity."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from vitjax.recipes import schema
from vitjax.recipes.schema import CONTROLS, SYSTEMS
from vitjax.report.curves import Rows, mean
from vitjax.report.figure import ReportOptions, Section, Table
from vitjax.report.marks import Frame
from vitjax.report.paper_metrics import COMPARED, CONVENTIONS, UPDATES
from vitjax.report.per_image import Run
from vitjax.statistics import (
    benjamini_hochberg,
    holm,
    label_permutation_test,
    sign_flip_test,
    vilas2023_accuracy_test,
    vilas2023_permutation_test,
    wilcoxon_test,
    within_image_test,
)

Differences = Float[np.ndarray, "image layer"]


def section(runs: Sequence[Run], options: ReportOptions) -> Section | None:
    """Every p-value as CSV, and in words where a quantity is larger than chance."""
    kind = "vilas2023" if options.tests == "published" else options.tests
    rows = []
    for run in runs:
        rows += object_tests(run)
        rows += paper_tests(run) if run.has_paper else []
        if kind != "images":
            rows += token_tests(run, kind=kind, subset=options.subset)
        if kind == "vilas2023" and run.has_paper:
            rows += accuracy_tests(run)
    rows += control_tests(runs)
    if not rows:
        return None
    data = pd.concat(rows, ignore_index=True)
    table = Table(
        key="tests",
        title="Larger than chance",
        caption="Every p-value. One-sided; sign flips of per-image differences, "
        "permuted labels, (b + 1) / (m + 1), or Wilcoxon over classes where it is "
        "said; at 0.05 after Holm's correction over the blocks of each row.",
        data=data,
        shown=significant(data),
    )
    return Section(key="tests", title="Tests", tables=[table])


def tested(
    run: Run,
    quantity: str,
    difference: Float[np.ndarray, " layer"],
    p: Float[np.ndarray, " layer"],
) -> Frame:
    """The tests of one quantity, with corrected p-values."""
    return pd.DataFrame(
        {
            "run": run.name,
            "quantity": quantity,
            "layer": np.arange(len(p)),
            "difference": difference,
            "p": p,
            "p_holm": holm(p),
            "p_bh": benjamini_hochberg(p),
        }
    )


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
    """What only the recipe `paper` has: quantity, its values minus chance."""
    for compared in COMPARED:
        for kind in ("cls", "image"):
            if kind in run.tokens:
                rate = run.metric("change", compared=compared, tokens=kind)
                name = f"change rate of {compared}, {kind} tokens, above 0.5"
                yield name, rate - 0.5
    for update in UPDATES if "object" in run.tokens else ():
        inside = run.metric("gain", update=update, tokens="object")
        outside = run.metric("gain", update=update, tokens="context")
        yield f"logit change by {update}, object minus context", inside - outside
    for convention in CONVENTIONS:
        for system in SYSTEMS:
            where = {"convention": convention, "system": system}
            chance = run.metric("agreement_chance", **where)
            name = f"{system} agreement ({convention}) above permuted classes"
            yield name, run.metric("agreement", **where) - chance


def paper_tests(run: Run) -> Rows:
    """Tests of what only the recipe `paper` has."""
    for name, values in above_chance(run):
        yield sign_flips(run, name, values, resamples=1999)
    for system in SYSTEMS:
        values = run.metric("class_value", system=system, weights="trained")
        for control in CONTROLS:
            other = run.metric("class_value", system=system, weights=control)
            name = f"{system} class-value agreement above {control}"
            p = wilcoxon_test(values.T, other.T)
            difference = (values - other).mean(-1)
            yield tested(run, f"{name} (Wilcoxon over classes)", difference, p)
    for system in SYSTEMS if 0 < run.correct.sum() < len(run.correct) else ():
        values = run.metric("agreement_pooled", system=system).astype(np.float64)
        name = f"{system} agreement at the pooled token, right minus wrong images"
        p = label_permutation_test(values, run.correct, resamples=999)
        yield tested(run, name, right_minus_wrong(run, values), p)


def right_minus_wrong(run: Run, values: Differences) -> Float[np.ndarray, " layer"]:
    """Mean over correctly minus mean over wrongly classified images."""
    return values[run.correct].mean(0) - values[~run.correct].mean(0)


def token_tests(run: Run, *, kind: str, subset: int) -> Rows:
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
            if kind == "vilas2023":
                p[layer] = vilas2023_permutation_test(inside, outside)
            else:
                p[layer], _ = within_image_test(values, member, counted=counted)
        name = f"identifiability of object minus context tokens, {stream} "
        name += f"({kind.replace('_', ' ')}, {len(images)} images)"
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

    For every pair of runs of one architecture and one data set of which one has random
    weights.
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


def significant(rows: Frame) -> Frame:
    """In which blocks each quantity is larger than chance, after Holm's correction."""
    blocks = rows["layer"].astype(str).where(rows["p_holm"] <= 0.05)
    words = blocks.groupby([rows["run"], rows["quantity"]], sort=False).agg(
        lambda own: ", ".join(own.dropna()) or "none"
    )
    return words.rename("in blocks").reset_index()
