"""Sentences quote the tables' numbers and say what their intervals say."""

import numpy as np
import pytest

from vitjax.report import reduction, wording
from vitjax.report.mechanism import mechanism
from vitjax.report.per_image import digest
from vitjax.report.tables import intervention_table


def said(run, edits=()):
    data = digest(run)
    curves = reduction.curve_table(data, run="a")
    return wording.sentences(data, curves, reduction.summary_table(data), edits)


@pytest.mark.parametrize(
    "value, expected",
    [
        (0.5, "0.500"),
        (0.0, "0.000"),
        (1.0, "1.000"),
        (0.001, "0.0010"),
        (0.9996, "0.9996"),
        (-0.25, "−0.250"),
        (float("nan"), "–"),
        (None, "–"),
    ],
)
def test_number(value, expected):
    assert wording.number(value) == expected


def test_a_run_in_words(masked_run):
    ranks, right = masked_run["rank_residual"][:], 0
    right = (masked_run["prediction"][:] == masked_run["label"][:]).mean()
    answers, cls, image, single, kinds = said(masked_run)
    assert answers.startswith(f"vit_test answers {right:.3f} [")
    assert answers.endswith("of 20 images right, among 5 classes.")
    means = 1 - ranks[..., 0].mean(0) / 5
    assert f"from {means[0]:.3f} after block 1 to {means[-1]:.3f} after block 3" in cls
    assert "stays above chance from block" in cls and "[CLS]" in cls
    assert "image tokens" in image
    last = ranks[:, -1, 1:] == 0
    assert f"{last.mean():.3f} [" in single
    assert f"{last.any(1).mean():.3f}" in single
    assert kinds.startswith("Class and context tokens ")


def test_where_nothing_is_found(make_run):
    ranks = np.full((9, 3, 17), 4, np.int32)
    lines = said(make_run(change={"rank_residual": ranks}))
    assert all("holds chance or lies below it" in line for line in lines[1:3])
    ranks[:] = 0
    lines = said(make_run(change={"rank_residual": ranks}))
    assert all("from the first block on" in line for line in lines[1:3])


def test_class_and_context_tokens_by_hand(make_run):
    kinds = np.tile(np.arange(16) % 2, (9, 1)).astype(np.int8)
    ranks = np.zeros((9, 3, 17), np.int32)
    for on, off, words in ((0, 2, "it is higher, class minus context"),
                           (2, 0, "is −0.400 [−0.400, −0.400] in the last"),
                           (1, 1, "do not differ beyond their interval")):  # fmt: skip
        ranks[..., 1:] = np.where(kinds == 1, on, off)[:, None]
        change = {"rank_residual": ranks, "patch_label": kinds}
        assert words in said(make_run(masks=True, change=change))[-1]


def test_one_image_and_none(make_run):
    lines = said(make_run(images=1))
    assert "one image has no interval" in lines[1] and "[" not in lines[0]
    kinds = (np.arange(16) % 2).astype(np.int8)[None]
    lines = said(make_run(images=1, masks=True, change={"patch_label": kinds}))
    assert "have no interval: class minus context" in lines[-1]
    lines = said(make_run(fields={"depth": 1}))
    assert "after the only block (chance" in lines[1] and "goes from" not in lines[1]
    assert said(make_run(change={"label": np.full(9, -1, np.int32)})) == []


def test_interventions(paper_run):
    data = digest(paper_run)
    edits = intervention_table(mechanism(paper_run, data))
    lines = said(paper_run, edits)
    begins = [begin for begin, _ in wording.EDITED.values()]
    for begin, line in zip(begins, lines[-4:], strict=True):
        assert line.startswith(begin)
    by_name = {row["intervention"]: row for row in edits}
    row, random = by_name["without_context"], by_name["random_as_class"]
    assert f"to {wording.number(row['after'])} (p" in lines[-2]
    assert f"at random, to {wording.number(random['after'])} from" in lines[-2]
    assert "at random" not in lines[-4]
