"""Interventions, tests and published numbers, as rows of tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from vitjax.report.mechanism import SYSTEMS, Mechanism
from vitjax.report.per_image import Digest
from vitjax.runner.results import Results
from vitjax.statistics import (
    benjamini_hochberg,
    bootstrap_mean,
    holm,
    label_permutation_test,
    sign_flip_test,
    vilas2023_accuracy_test,
    vilas2023_permutation_test,
    wilcoxon_test,
    within_image_test,
)

EDIT_NAMES = {
    "self_only": "image tokens see only themselves and [CLS]",
    "self_only_renormalized": "the same, the rest of each row summing to one",
    "self_only_code": "image tokens see only themselves (published code)",
    "no_cls": "image tokens do not see [CLS]",
    "no_cls_renormalized": "the same, the rest of each row summing to one",
    "without_context": "only class tokens (context removed)",
    "random_as_class": "control: as many tokens at random",
    "without_class": "only context tokens (class removed)",
    "random_as_context": "control: as many tokens at random",
}


def intervention_table(found: Mechanism) -> list[dict[str, Any]]:
    """What every intervention does to the same tokens and to the answers.

    Args:
        found: of a run.

    Returns:
        Rows with the intervention; `before`, `after` and `change` (with `low`, `high`:
        95 % bootstrap interval; `p`: two-sided sign-flip test) of the share of
        identifiable image tokens in the last block, among those that exist after the
        edit; `accuracy_before`, `accuracy_after`; on how many images.
    """
    rows = []
    for name, one in found.interventions.items():
        there = np.isfinite(one.after)
        change = (one.after - one.before)[:, None]
        interval = bootstrap_mean(change)
        # Accuracy on the same images: those that have such tokens.
        rows.append(
            {
                "intervention": name,
                "words": EDIT_NAMES[name],
                "before": mean(one.before),
                "after": mean(one.after),
                "change": float(interval.mean[0]),
                "low": float(interval.low[0]),
                "high": float(interval.high[0]),
                "p": float(sign_flip_test(change, alternative="two-sided")[0]),
                "accuracy_before": mean(np.where(there, one.correct_before, np.nan)),
                "accuracy_after": mean(np.where(there, one.correct_after, np.nan)),
                "images": int(there.sum()),
            }
        )
    return rows


def mean(values: Float[np.ndarray, " image"]) -> float:
    """Mean over the images that have a value; NaN where none has."""
    there = np.isfinite(values)
    return float(values[there].mean()) if there.any() else float("nan")


Tests = Literal["images", "within_images", "published"]
"""What is independent: images; tokens of an image; or tokens of all images."""


def token_tests(
    run: Results, digest: Digest, *, kind: Tests, subset: int
) -> list[dict[str, Any]]:
    """Class against context tokens by tests that take tokens for exchangeable.

    Args:
        run: rows of a run with masks.
        digest: of the same run.
        kind: "within_images" permutes tokens within each image; "published" shuffles
            those of all images together, 300 times, as the published code.
        subset: the first so many images; the quantity's name says how many.

    Returns:
        Rows as those of `test_table`.
    """
    if "class" not in digest.tokens:
        return []
    images = digest.image[:subset]
    kinds, prefix = run["patch_label"][images], digest.config.prefix
    member, counted = kinds == 1, kinds >= 0
    rows, words = [], f"({kind.replace('_', ' ')}, {len(images)} images)"
    for stream in digest.curves:
        means, p = [], []
        for layer in range(digest.config.depth):
            ranks = run[f"rank_{stream}"][images, layer][:, prefix:]
            values = 1 - ranks / len(digest.classes)
            inside, outside = values[member], values[counted & ~member]
            there = len(inside) and len(outside)
            means.append(float(inside.mean() - outside.mean()) if there else np.nan)
            if kind == "published":
                p.append(vilas2023_permutation_test(inside, outside))
            else:
                p.append(within_image_test(values, member, counted=counted)[0])
        name = f"identifiability of class minus context tokens, {stream} {words}"
        rows += tested(name, means, np.array(p))
    return rows


def accuracy_tests(run: Results, digest: Digest) -> list[dict[str, Any]]:
    """Right against wrong images as the published code tests them.

    Key-value agreement in the code's definition at token 0, which without a [CLS] token
    is the first patch.

    Args:
        run: rows of the recipe `paper`.
        digest: of the same run.

    Returns:
        Rows as those of `test_table`, without any where all images are right or wrong.
    """
    rows, right = [], digest.correct
    token = "[CLS]" if digest.config.class_token else "the first token"
    for s in SYSTEMS if 0 < right.sum() < len(right) else ():
        hits = run[f"agreement_code_{s}"][digest.image][..., 0].astype(np.float64)
        means = hits[right].mean(0) - hits[~right].mean(0)
        name = f"{s} agreement (code) at {token}, right minus wrong images (published)"
        rows += tested(name, means.tolist(), vilas2023_accuracy_test(hits, right))
    return rows


def test_table(digest: Digest, found: Mechanism | None) -> list[dict[str, Any]]:
    """Tests block by block, corrected over the blocks of each quantity.

    Args:
        digest: of a run.
        found: of the same run, where it is of the recipe `paper`.

    Returns:
        Rows with the quantity, `layer`, `block`, its mean `difference`, `p`, `p_holm`
        and `p_bh`, one-sided: class minus context tokens by sign flips of per-image
        differences; of the recipe `paper` also change rates against 0.5, agreement
        against permuted classes, class-value agreement against its controls (Wilcoxon
        over classes, as published), and right minus wrong images by permuted labels.
    """
    rows = []
    if "class" in digest.tokens:
        for stream in digest.curves:
            both = [
                digest.of(stream, "identifiability", k) for k in ("class", "context")
            ]
            difference = (both[0] - both[1]).astype(np.float64)
            p = sign_flip_test(difference)
            means = [mean(column) for column in difference.T]
            name = f"identifiability of class minus context tokens, {stream}"
            rows += tested(name, means, p)
    return rows + (mechanism_tests(digest, found) if found is not None else [])


def mechanism_tests(digest: Digest, found: Mechanism) -> list[dict[str, Any]]:
    """Tests of what only the recipe `paper` has, as rows of `test_table`."""
    rows, right = [], digest.correct
    for name, difference in above_chance(found):
        difference = np.asarray(difference, np.float64)
        p = sign_flip_test(difference, resamples=1999)
        rows += tested(name, [mean(column) for column in difference.T], p)
    for s in SYSTEMS:
        for control in ("control", "shuffled"):
            pair = found.class_value[s], found.class_value[f"{s}_{control}"]
            p = wilcoxon_test(pair[0].T, pair[1].T)
            name = f"{s} class-value agreement above {control} (Wilcoxon over classes)"
            rows += tested(name, (pair[0] - pair[1]).mean(-1).tolist(), p)
    for s in SYSTEMS if 0 < right.sum() < len(right) else ():
        values = found.at_readout[s].astype(np.float64)
        p = label_permutation_test(values, right, resamples=999)
        means = values[right].mean(0) - values[~right].mean(0)
        name = f"{s} agreement at the readout, right minus wrong images"
        rows += tested(name, means.tolist(), p)
    return rows


def above_chance(found: Mechanism) -> Iterator[tuple[str, Any]]:
    """Per-image differences whose mean is 0 by chance, by what they say."""
    for name, kinds in found.change.items():
        for kind in ("cls", "image"):
            if kind in kinds:
                words = f"change rate of {name}, {kind} tokens, above 0.5"
                yield words, kinds[kind] - 0.5
    for name, kinds in found.gain.items():
        if "class" in kinds:
            words = f"logit change by {name}, class minus context"
            yield words, kinds["class"] - kinds["context"]
    for kind in ("paper", "code"):
        for s in SYSTEMS:
            above = found.agreement[kind][s] - found.chance[kind][s]
            yield f"{s} agreement ({kind}) above permuted classes", above


def control_tests(
    digests: Sequence[Digest],
) -> list[tuple[int, list[dict[str, Any]]]]:
    """Trained models against randomly initialised ones on the same images.

    Args:
        digests: of all runs of a report.

    Returns:
        (number of the trained run, rows as of `test_table`) for every pair of runs of
        one architecture and one data set of which one has random weights.
    """
    found = []
    for place, trained in enumerate(digests):
        for control in digests:
            pair = trained, control
            same = all(
                one.manifest["data"]["id"] == trained.manifest["data"]["id"]
                and one.config == trained.config
                for one in pair
            )
            random = [one.manifest["model"].get("sha256") is None for one in pair]
            if not same or random != [False, True]:
                continue
            _, here, there = np.intersect1d(
                trained.image, control.image, return_indices=True
            )
            rows = []
            for kind in trained.tokens:
                if kind not in control.tokens or not len(here):
                    continue
                values = [
                    one.of("residual", "identifiability", kind)[at].astype(np.float64)
                    for one, at in zip(pair, (here, there))
                ]
                difference = values[0] - values[1]
                means = [mean(column) for column in difference.T]
                name = f"identifiability of {kind} tokens above the random control"
                rows += tested(name, means, sign_flip_test(difference))
            found.append((place, rows))
    return found


def tested(name: str, means: Sequence[float], p) -> list[dict[str, Any]]:
    """One quantity's tests as rows."""
    by_holm, by_bh = holm(p), benjamini_hochberg(p)
    return [
        {
            "quantity": name,
            "layer": layer,
            "block": layer + 1,
            "difference": float(means[layer]),
            "p": float(p[layer]),
            "p_holm": float(by_holm[layer]),
            "p_bh": float(by_bh[layer]),
        }
        for layer in range(len(p))
    ]


def significant(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """In words: in which blocks each quantity is larger than chance, after Holm."""
    found: dict[str, list[int]] = {}
    for row in rows:
        blocks = found.setdefault(row["quantity"], [])
        if row["p_holm"] <= 0.05:  # NaN is not
            blocks.append(row["block"])
    return [
        {"quantity": name, "blocks": ", ".join(map(str, blocks)) or "none"}
        for name, blocks in found.items()
    ]


PUBLISHED_WORDS = {
    "rate": "image tokens that are identifiable, last block",
    "some": "images with an identifiable token, last block",
    "top1": "top-1 accuracy",
}


def published(
    manifest: Mapping[str, Any],
    digest: Digest,
    summary: Sequence[Mapping[str, Any]],
    edits: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:
    """The paper's numbers beside ours, where the model and the data are the paper's.

    Args:
        manifest: of a run.
        digest: of the same run; only a whole run compares.
        summary: of the same run.
        edits: its `intervention_table`.

    Returns:
        `source` and `rows` of quantity, `ours` and `theirs`; None for other runs.
    """
    path = resources.files("vitjax.report").joinpath("published.json")
    known = json.loads(path.read_text("utf-8"))
    name, data = manifest["model"]["name"], str(manifest["data"]["id"])
    same = any(data.startswith(each) for each in known["data"].get(name, ()))
    whole = digest.done == digest.total and manifest.get("limit") is None
    if not (same and whole):
        return None
    ours = {row["quantity"]: row["value"] for row in summary}
    rows = []
    trained = manifest["model"].get("sha256") is not None
    table = known["models" if trained else "random_init"].get(name, {})
    for key, words in PUBLISHED_WORDS.items():
        if key in table:
            rows.append((words, ours[words], table[key]))
    for row in edits if trained else ():
        key, words = row["intervention"], row["words"]
        if key in known["before"].get(name, {}):
            theirs = known["before"][name][key]
            rows.append((f"{words}: the same tokens before", row["before"], theirs))
        if key in table:
            rows.append((words, row["after"], table[key]))
    keys = ("quantity", "ours", "theirs")
    found = [dict(zip(keys, row)) for row in rows]
    return {"source": known["source"], "rows": found} if found else None
