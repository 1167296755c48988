import numpy as np
import pytest

from vitjax import results
from vitjax.report import reduction


def by_hand(run, stream, kind, measure):
    """[image, layer] of one quantity, with loops."""
    ranks, label = run[f"rank_{stream}"][:], run["label"][:]
    use = np.flatnonzero(run["done"][:] & run["valid"][:] & (label >= 0))
    settings = run.manifest["model"]["config"]
    cls, count = int(settings["class_token"]), len(run.manifest["model"]["classes"])
    prefix = cls + settings["registers"]
    expected = np.full((len(use), ranks.shape[1]), np.nan)
    for row, image in enumerate(use):
        for layer in range(ranks.shape[1]):
            tokens = {
                "cls": range(cls),
                "register": range(cls, prefix),
                "image": range(prefix, ranks.shape[2]),
            }.get(kind)
            if tokens is None:
                wanted = 1 if kind == "class" else 0
                mask = run["token_class"][image]
                tokens = [prefix + p for p in range(len(mask)) if mask[p] == wanted]
            found = [
                ranks[image, layer, t] for t in tokens if ranks[image, layer, t] >= 0
            ]
            if found and measure == "rate":
                expected[row, layer] = sum(r == 0 for r in found) / len(found)
            elif found:
                expected[row, layer] = sum(1 - r / count for r in found) / len(found)
    return expected


def holes(run_rows):
    """Some tokens are absent, as interventions leave them."""
    draw = np.random.default_rng(7)
    return np.where(draw.random(run_rows.shape) < 0.2, -1, run_rows).astype(np.int32)


@pytest.mark.parametrize(
    "fields", [{}, {"registers": 2}, {"class_token": False, "norm": "residual_post"}]
)
def test_curves_are_the_means_over_tokens(make_run, fields):
    plain = make_run(fields=fields, masks=True)
    change = {"rank_mlp_update": holes(plain["rank_mlp_update"][:])}
    run = make_run(fields=fields, masks=True, change=change)
    digest = reduction.digest(run)
    assert ("cls" in digest.tokens) == fields.get("class_token", True)
    assert ("register" in digest.tokens) == bool(fields.get("registers"))
    for stream in reduction.STREAMS:
        for kind in digest.tokens:
            for measure in reduction.MEASURES:
                np.testing.assert_allclose(
                    digest.of(stream, measure, kind),
                    by_hand(run, stream, kind, measure),
                    atol=1e-6,
                )


def test_images_that_do_not_count(make_run):
    plain = make_run(images=11)
    done, valid, label = (plain[name][:] for name in ("done", "valid", "label"))
    done[8:], valid[8:], label[5], valid[2] = False, False, -1, False
    change = {"done": done, "valid": valid, "label": label}
    digest = reduction.digest(make_run(images=11, change=change))
    assert digest.image.tolist() == [0, 1, 3, 4, 6, 7]
    assert (digest.total, digest.done) == (11, 8)
    assert (digest.skipped, digest.unlabelled) == (1, 1)
    expected = plain["prediction"][:] == plain["label"][:]
    np.testing.assert_array_equal(digest.correct, expected[digest.image])


def test_windows_bound_what_is_read_and_change_nothing(make_run, monkeypatch):
    run = make_run(images=23, masks=True)
    whole = reduction.digest(run)
    sizes, read = [], results.Rows.__getitem__

    def counted(rows, key):
        block = read(rows, key)
        if block.ndim == 3:
            sizes.append(len(block))
        return block

    monkeypatch.setattr(results.Rows, "__getitem__", counted)
    row = 4 * whole.config.depth * whole.config.tokens
    monkeypatch.setattr(reduction, "WINDOW_BYTES", 11 * row)  # 11 hold 2 batches of 4
    pieces = reduction.digest(run)
    assert set(sizes) == {8, 7} and sum(sizes) == 3 * 23
    for stream in reduction.STREAMS:
        np.testing.assert_array_equal(pieces.curves[stream], whole.curves[stream])


def test_curve_table(make_run):
    run = make_run(images=30)
    digest = reduction.digest(run, streams=("residual",))
    rows = reduction.curve_table(digest, run="mine")
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
    for row in reduction.curve_table(reduction.digest(run), run=""):
        assert abs(row["mean"] - row["chance"]) < 0.05


def test_summary(make_run):
    run = make_run(images=40, masks=True)
    rows = {row["quantity"]: row for row in reduction.summary(run)}
    last = {
        kind: [by_hand(run, "residual", kind, m)[:, -1] for m in reduction.MEASURES]
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


def test_refuses_other_rows(make_run):
    run = make_run()
    del run.manifest["arrays"]["rank_residual"]
    with pytest.raises(ValueError, match="`identifiability` recipe"):
        reduction.digest(run)


def test_published_numbers(real_run, shared):
    """Set A of the published code on the real ViT-Ti/16."""
    published = np.load(shared / "oracle/setA/aggregates.npz")
    rows = reduction.curve_table(reduction.digest(real_run), run="")
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
