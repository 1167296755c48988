"""Curves over the blocks, the summary, and sentences about both."""

import numpy as np
import pytest
from fake_runs import fake_run

import vitjax
from vitjax.report.identifiability import ANY, RATE, TOP1
from vitjax.report.per_image import MEASURES


def test_rows_are_means_with_intervals_and_quartiles(report, make_run, by_hand):
    figures, _, _ = report(fake_run(images=30))
    run = make_run(images=30)
    assert list(figures)[:3] == ["identifiability", "updates", "rate"]
    rows = [
        row for key in list(figures)[:3] for row in figures[key].data.to_dict("records")
    ]
    assert len(rows) == (1 + 2 + 1) * 2 * 3  # streams, kinds, blocks
    for row in rows:
        values = by_hand(run, row["stream"], row["tokens"], row["measure"])
        values = values[:, row["layer"]]
        assert row["mean"] == pytest.approx(values.mean(), abs=1e-6)
        quartiles = np.quantile(values, [0.25, 0.75])
        assert [row["q25"], row["q75"]] == pytest.approx(quartiles, abs=1e-6)
        assert row["low"] <= row["mean"] <= row["high"] and row["images"] == 30
        assert row["chance"] == (0.2 if row["measure"] == "rate" else 0.6)


def test_kinds_of_tokens_share_axes_in_one_run_and_runs_in_several(report):
    one, _, _ = report(fake_run(masks=True, registers=1))
    panels = ["all tokens", "image tokens by mask"]
    assert list(one["identifiability"].panels()) == panels
    assert "MLP: image tokens by mask" in one["updates"].panels()
    kinds = ["[CLS]", "registers", "image tokens", "image tokens by mask"]
    assert list(one["rate"].panels()) == kinds
    two, tables, _ = report(fake_run(masks=True), fake_run(depth=2, class_token=False))
    figure = two["identifiability"]
    kinds = ["[CLS]", "image tokens", "object tokens", "context tokens"]
    assert list(figure.panels()) == kinds
    names = list(figure.series(figure.panels()["image tokens"]))
    assert len(names) == 2 and figure.data["run"].unique().tolist() == names
    # Models of different depth meet at the end.
    assert figure.x == "fraction" and "fraction" in figure.caption
    assert figure.data.groupby("run")["fraction"].max().tolist() == [1, 1]
    shown = tables["summary"].shown
    assert shown.columns[1:3].tolist() == names and (shown == "–").any(axis=None)


def test_kinds_that_no_image_has_are_left_out(report):
    nothing = np.full((9, 16), -1, np.int8)
    figures, _, lines = report(fake_run(masks=True, change={"patch_label": nothing}))
    assert list(figures["rate"].panels()) == ["[CLS]", "image tokens"]
    assert not any("Object" in line for line in lines)


def summary(results):
    return vitjax.tables(results)["summary"]


def test_summary(make_run, by_hand):
    run = make_run(images=40, masks=True)
    rows = summary(run.results).set_index("quantity")
    score, rate = (
        {k: by_hand(run, "residual", k, m)[:, -1] for k in run.tokens} for m in MEASURES
    )
    difference = score["object"] - score["context"]
    expected = {
        TOP1: run.correct.astype(float),
        RATE: rate["image"],
        ANY: rate["image"] > 0,
        "object tokens that are identifiable, last block": rate["object"],
        "context tokens that are identifiable, last block": rate["context"],
        "identifiability of [CLS], last block": score["cls"],
        "identifiability of image tokens, last block": score["image"],
        "identifiability of object tokens, last block": score["object"],
        "identifiability of context tokens, last block": score["context"],
        "identifiability of object minus context tokens, last block": difference,
    }
    assert list(rows.index) == list(expected)
    for name, values in expected.items():
        row = rows.loc[name]
        assert row["value"] == pytest.approx(np.nanmean(values), abs=1e-6)
        assert row["low"] <= row["value"] <= row["high"]
        assert row["images"] == np.isfinite(values).sum()
    assert rows["chance"][TOP1] == 0.2 and np.isnan(rows["chance"][ANY])


def test_summary_of_one_class_and_of_no_label(report):
    assert (summary(fake_run(classes=1, images=3))["value"] == 1).all()
    unlabeled = fake_run(change={"label": np.full(9, -1, np.int32)})
    assert report(unlabeled) == ({}, {}, [])


def test_refinement_modules_stand_beside_the_projection(report):
    valid = np.arange(9) != 4
    results = fake_run(refinement=True, change={"valid": valid})
    ranks = results["rank_refined"].values[valid]
    figures, _, _ = report(results)
    for key, expected, chance in (
        ("refined", 1 - ranks / 5, 0.6),
        ("refined_rate", ranks == 0, 0.2),
    ):
        lines = figures[key].series(figures[key].data)
        modules, projected = lines["refinement module"], lines["[CLS], projected"]
        np.testing.assert_allclose(modules["mean"], expected.mean(0), atol=1e-6)
        assert (modules["chance"] == chance).all() and len(projected) == 3
    assert "refined" not in report(fake_run())[0]


def test_a_run_in_words(report):
    results = fake_run(images=20, masks=True)
    ranks = results["rank_residual"].values
    right = (results["prediction"].values == results["label"].values).mean()
    answers, cls, image, single, kinds = report(results)[2]
    assert answers.startswith(f"vit_test answers {right:.3f} [")
    assert answers.endswith("of 20 images right, among 5 classes.")
    means = 1 - ranks[..., 0].mean(0) / 5
    assert f"from {means[0]:.3f} after block 0 to {means[-1]:.3f} after block 2" in cls
    assert "stays above chance from block" in cls and "image tokens" in image
    last = ranks[:, -1, 1:] == 0
    assert f"{last.mean():.3f} [" in single and f"{last.any(1).mean():.3f}" in single
    assert kinds.startswith("Object tokens minus context tokens")
    several = report(results, fake_run())[2]
    assert len(several) == 9 and several[0].startswith("vit_test (1): vit_test answers")


def test_words_where_nothing_and_where_everything_is_above_chance(report):
    for rank, words in ((4, "does not end above"), (0, "from block 0 on")):
        ranks = np.full((9, 3, 17), rank, np.int32)
        lines = report(fake_run(change={"rank_residual": ranks}))[2]
        assert all(words in line for line in lines[1:3])


def test_words_of_one_image(report):
    patch_label = (np.arange(16) % 2).astype(np.int8)[None]
    change = {"patch_label": patch_label}
    lines = report(fake_run(images=1, masks=True, change=change))[2]
    assert "does not end above chance" in lines[1] and "[" not in lines[0]


def test_published_numbers(shared, report):
    """Set A of the published code: 24 photos and the real ViT-Ti/16."""
    folder = shared / "oracle/setA"
    base, stored = np.load(folder / "base.npz"), np.load(folder / "projections.npz")
    published = np.load(folder / "aggregates.npz")
    change = {
        f"rank_{stream}": stored[f"rank_{key}"].astype(np.int32)
        for stream, key in zip(("residual", "attention_update"), ("hs", "attn"))
    }
    change["label"] = base["index"].astype(np.int32)
    change["prediction"] = base["logits"].argmax(1).astype(np.int32)
    fields = {"image_size": 224, "patch_size": 16, "depth": 12, "previews": 0}
    images = len(base["index"])
    results = fake_run(images=images, classes=1000, change=change, **fields)
    figures, tables, _ = report(results)
    curves = figures["identifiability"].data.set_index("tokens")["mean"]
    for kind in ("cls", "image"):
        expected = published[f"ident_mean_{kind}"]
        np.testing.assert_allclose(curves[kind], expected, atol=1e-6)
    values = tables["summary"].data.set_index("quantity")["value"]
    for name, key in (
        (TOP1, "top1"),
        (RATE, "A2_ident_rate_last_block"),
        (ANY, "A3_images_with_identifiable_token"),
    ):
        assert values[name] == pytest.approx(published[key] / 100, abs=1e-6)
