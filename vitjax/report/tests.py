"""Tests of significance, block by block, corrected over the blocks of each quantity."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from vitjax.recipes.schema import (
    AGREEMENT_VILAS2023,
    CONTROLS,
    PATCH_LABEL,
    RANK,
    SYSTEMS,
)
from vitjax.report.figure import ReportOptions, Section, Table
from vitjax.report.paper import mean
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


def section(runs: Sequence[Run], options: ReportOptions) -> Section | None:
    """Every p-value as CSV, and in words where a quantity is larger than chance."""
    kind = "vilas2023" if options.tests == "published" else options.tests
    rows = []
    for run in runs:
        rows += object_tests(run)
        rows += paper_tests(run)
        if kind != "images":
            rows += token_tests(run, kind=kind, subset=options.subset)
        if kind == "vilas2023":
            rows += accuracy_tests(run)
    rows += control_tests(runs)
    if not rows:
        return None
    data = pd.concat(rows, ignore_index=True)
    table = Table(
        key="tests",
        title="Tests",
        caption="Every p-value. One-sided; sign flips of per-image differences, "
        "permuted labels, (b + 1) / (m + 1), or Wilcoxon over classes where it is "
        "said; at 0.05 after Holm's correction over the blocks of each row.",
        data=data,
        shown=significant(data, several=len(runs) > 1),
    )
    return Section(key="tests", title="Tests", tables=[table])


def quantity_rows(
    run: Run,
    quantity: str,
    differences: Float[np.ndarray, " layer"],
    p: Float[np.ndarray, " layer"],
) -> pd.DataFrame:
    """The tests of one quantity, with corrected p-values."""
    return pd.DataFrame(
        {
            "run": run.name,
            "quantity": quantity,
            "layer": np.arange(len(p)),
            "difference": differences,
            "p": p,
            "p_holm": holm(p),
            "p_bh": benjamini_hochberg(p),
        }
    )


def image_test(
    run: Run,
    quantity: str,
    differences: Float[np.ndarray, "image layer"],
    resamples: int = 9999,
) -> pd.DataFrame:
    """Sign flips of per-image differences whose mean is 0 by chance."""
    differences = differences.astype(np.float64)
    p = sign_flip_test(differences, resamples=resamples)
    means = np.array([mean(column) for column in differences.T])
    return quantity_rows(run, quantity, means, p)


def object_tests(run: Run) -> Iterator[pd.DataFrame]:
    """Object against context tokens of the same image, in every stream."""
    if "object" in run.tokens and len(run.image):
        for stream in run.streams:
            inside, outside = (
                run.curve(kind, stream=stream) for kind in ("object", "context")
            )
            name = f"identifiability of object minus context tokens, {stream}"
            yield image_test(run, name, inside - outside)


def paper_tests(run: Run) -> Iterator[pd.DataFrame]:
    """Change rates, logits, agreement and class values against their chance."""
    if not run.has_paper:
        return
    correct = run.correct
    for compared in COMPARED:
        for kind in ("cls", "image"):
            if kind in run.tokens:
                rate = run.metric("change", compared=compared, tokens=kind)
                name = f"change rate of {compared}, {kind} tokens, above 0.5"
                yield image_test(run, name, rate - 0.5, 1999)
    for update in UPDATES if "object" in run.tokens else ():
        difference = run.metric("gain", update=update, tokens="object")
        difference = difference - run.metric("gain", update=update, tokens="context")
        name = f"logit change by {update}, object minus context"
        yield image_test(run, name, difference, 1999)
    for convention in CONVENTIONS:
        for system in SYSTEMS:
            where = {"convention": convention, "system": system}
            above = run.metric("agreement", **where)
            above = above - run.metric("agreement_chance", **where)
            name = f"{system} agreement ({convention}) above permuted classes"
            yield image_test(run, name, above, 1999)
    for system in SYSTEMS:
        for control in CONTROLS:
            trained, other = (
                run.metric("class_value", system=system, weights=weights)
                for weights in ("trained", control)
            )
            name = (
                f"{system} class-value agreement above {control} "
                "(Wilcoxon over classes)"
            )
            differences = (trained - other).mean(-1)
            p = wilcoxon_test(trained.T, other.T)
            yield quantity_rows(run, name, differences, p)
    for system in SYSTEMS if 0 < correct.sum() < len(correct) else ():
        values = run.metric("agreement_pooled", system=system)
        values = values.astype(np.float64)
        p = label_permutation_test(values, correct, resamples=999)
        name = f"{system} agreement at the pooled token, right minus wrong images"
        yield quantity_rows(run, name, right_minus_wrong(values, correct), p)


def right_minus_wrong(values, correct) -> Float[np.ndarray, " layer"]:
    """Mean over correctly minus mean over wrongly classified images."""
    return values[correct].mean(0) - values[~correct].mean(0)


def token_tests(run: Run, *, kind: str, subset: int) -> Iterator[pd.DataFrame]:
    """Object against context tokens by tests that take tokens for exchangeable.

    Args:
        run: tested where it has masks.
        kind: "within_images" permutes tokens within each image; "vilas2023" shuffles
            those of all images together, 300 times, as the published code.
        subset: the first so many images; the quantity's name says how many.
    """
    if "object" not in run.tokens or not len(run.image):
        return
    images, prefix = run.image[:subset], run.config.prefix
    patch_label = run.read(PATCH_LABEL(), images)
    member, counted = patch_label == 1, patch_label >= 0
    for stream in run.streams:
        ranks = run.read(RANK(stream), images)[..., prefix:]
        differences, p = [], []
        for layer in range(run.config.depth):
            values = 1 - ranks[:, layer] / len(run.classes)
            inside, outside = values[member], values[counted & ~member]
            exist = len(inside) and len(outside)
            differences.append(inside.mean() - outside.mean() if exist else np.nan)
            if kind == "vilas2023":
                p.append(vilas2023_permutation_test(inside, outside))
            else:
                p.append(within_image_test(values, member, counted=counted)[0])
        name = (
            f"identifiability of object minus context tokens, {stream} "
            f"({kind.replace('_', ' ')}, {len(images)} images)"
        )
        yield quantity_rows(run, name, np.array(differences), np.array(p))


def accuracy_tests(run: Run) -> Iterator[pd.DataFrame]:
    """Right against wrong images as the published code tests them.

    Key-value agreement in the code's definition at token 0, which without a [CLS] token
    is the first patch.
    """
    correct = run.correct
    if not run.has_paper or not 0 < correct.sum() < len(correct):
        return
    token = "[CLS]" if run.config.class_token else "the first token"
    for system in SYSTEMS:
        hits = run.read(AGREEMENT_VILAS2023(system))[..., 0].astype(np.float64)
        p = vilas2023_accuracy_test(hits, correct)
        name = f"{system} agreement (vilas2023) at {token}, right minus wrong images"
        yield quantity_rows(run, name, right_minus_wrong(hits, correct), p)


def control_tests(runs: Sequence[Run]) -> Iterator[pd.DataFrame]:
    """Trained models against randomly initialized ones on the same images.

    For every pair of runs of one architecture and one data set of which one has random
    weights.
    """
    for trained in runs:
        for control in runs:
            random = [
                run.manifest["model"].get("sha256") is None
                for run in (trained, control)
            ]
            ids = {run.manifest["data"]["id"] for run in (trained, control)}
            if random != [False, True] or len(ids) > 1:
                continue
            _, left, right = np.intersect1d(
                trained.image, control.image, return_indices=True
            )
            if trained.config != control.config or not len(left):
                continue
            for kind in trained.tokens:
                if kind in control.tokens:
                    difference = trained.curve(kind)[left].astype(np.float64)
                    difference -= control.curve(kind)[right]
                    name = f"identifiability of {kind} tokens above the random control"
                    yield image_test(trained, name, difference)


def significant(rows: pd.DataFrame, *, several: bool) -> pd.DataFrame:
    """In which blocks each quantity is larger than chance, after Holm's correction."""
    columns = ["run", "quantity"] if several else ["quantity"]
    words = [
        (*keys, ", ".join(map(str, own["layer"][own["p_holm"] <= 0.05])) or "none")
        for keys, own in rows.groupby(columns, sort=False)
    ]
    headings = {"quantity": "larger than chance"}
    names = [*(headings.get(column, column) for column in columns), "in blocks"]
    return pd.DataFrame(words, columns=names)
