import numpy as np

from vitjax.report import reduction
from vitjax.report.per_image import MEASURES, digest


def test_curve_table(make_run, by_hand):
    run = make_run(images=30)
    rows = reduction.curve_table(digest(run, streams=("residual",)), run="mine")
    assert len(rows) == 2 * 2 * 3  # measures, kinds, blocks
    assert {row["run"] for row in rows} == {"mine"}
    for row in rows:
        values = by_hand(run, "residual", row["tokens"], row["measure"])[
            :, row["layer"]
        ]
        quartiles = np.quantile(values, [0.25, 0.75])
        np.testing.assert_allclose(row["mean"], values.mean(), atol=1e-6)
        np.testing.assert_allclose([row["q25"], row["q75"]], quartiles, atol=1e-6)
        assert row["low"] <= row["mean"] <= row["high"] and row["images"] == 30
        assert row["block"] == row["layer"] + 1
        assert row["chance"] == (0.2 if row["measure"] == "rate" else 0.6)


def test_chance_is_the_mean_of_random_ranks(make_run):
    ranks = np.random.default_rng(0).integers(0, 5, size=(1500, 3, 17)).astype(np.int32)
    names = ("rank_residual", "rank_attention_update", "rank_mlp_update")
    run = make_run(images=1500, pictures=0, change=dict.fromkeys(names, ranks))
    for row in reduction.curve_table(digest(run), run=""):
        assert abs(row["mean"] - row["chance"]) < 0.05


def test_summary(make_run, by_hand):
    run = make_run(images=40, masks=True)
    rows = {row["quantity"]: row for row in reduction.summary(run)}
    last = {
        kind: [by_hand(run, "residual", kind, m)[:, -1] for m in MEASURES]
        for kind in ("cls", "image", "class", "context")
    }
    expected = {
        "top-1 accuracy": (run["prediction"][:] == run["label"][:]).astype(float),
        "image tokens that are identifiable, last block": last["image"][1],
        "images with an identifiable token, last block": last["image"][1] > 0,
        "class tokens that are identifiable, last block": last["class"][1],
        "context tokens that are identifiable, last block": last["context"][1],
        "identifiability of [CLS], last block": last["cls"][0],
        "identifiability of image tokens, last block": last["image"][0],
        "identifiability of class tokens, last block": last["class"][0],
        "identifiability of context tokens, last block": last["context"][0],
        "identifiability of class minus context tokens, last block": (
            last["class"][0] - last["context"][0]
        ),
    }
    assert list(rows) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name]["value"], np.nanmean(values), atol=1e-6)
        assert rows[name]["low"] <= rows[name]["value"] <= rows[name]["high"]
        assert rows[name]["images"] == np.isfinite(values).sum()
    assert rows["top-1 accuracy"]["chance"] == 0.2
    assert rows["images with an identifiable token, last block"]["chance"] is None


def test_one_class_is_always_identifiable(make_run):
    for row in reduction.summary(make_run(classes=1, images=3)):
        assert row["value"] == 1.0 and row["chance"] in (1.0, None)


def test_nothing_to_summarise(make_run):
    label = np.full(9, -1, np.int32)
    rows = reduction.summary(make_run(change={"label": label}))
    assert all(np.isnan(row["value"]) and row["images"] == 0 for row in rows)


def test_published_numbers(real_run, shared):
    """Set A of the published code on the real ViT-Ti/16."""
    published = np.load(shared / "oracle/setA/aggregates.npz")
    rows = reduction.curve_table(digest(real_run), run="")
    for kind in ("cls", "image"):
        key = {"stream": "residual", "measure": "identifiability", "tokens": kind}
        means = [r["mean"] for r in rows if key.items() <= r.items()]
        np.testing.assert_allclose(means, published[f"ident_mean_{kind}"], atol=1e-6)
    summary = {row["quantity"]: row["value"] for row in reduction.summary(real_run)}
    for name, key in (
        ("top-1 accuracy", "top1"),
        ("image tokens that are identifiable, last block", "A2_ident_rate_last_block"),
        (
            "images with an identifiable token, last block",
            "A3_images_with_identifiable_token",
        ),
    ):
        np.testing.assert_allclose(summary[name], published[key] / 100, atol=1e-6)
