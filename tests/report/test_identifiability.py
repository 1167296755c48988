"""Runs as a report reads them, and what it says of identifiability."""

import itertools

import numpy as np
import pandas as pd
import pytest
from fake_runs import fake_run

from vitjax.report import per_image
from vitjax.report.identifiability import ANY, DIFFERENCE, RATE, TOP1
from vitjax.report.page import provenance
from vitjax.report.per_image import (
    MEASURES,
    Run,
    as_runs,
    interval_of,
    intervals,
    run_names,
)


@pytest.mark.parametrize(
    "fields", [{}, {"registers": 2}, {"class_token": False, "norm": "residual_post"}]
)
def test_curves_are_the_means_over_tokens(fields):
    ranks = fake_run(masks=True, **fields)["rank_mlp_update"].values
    ranks[np.random.default_rng(7).random(ranks.shape) < 0.2] = -1
    run = Run(fake_run(masks=True, change={"rank_mlp_update": ranks}, **fields))
    cls, token = fields.get("class_token", True), np.arange(ranks.shape[2])
    prefix = cls + fields.get("registers", 0)
    patch_label = np.full((len(ranks), 1, len(token)), -1)
    patch_label[:, 0, prefix:] = run.results["patch_label"]
    member = {
        "cls": token < cls,
        "register": (token >= cls) & (token < prefix),
        "image": token >= prefix,
        "object": patch_label == 1,
        "context": patch_label == 0,
    }
    assert list(run.tokens) == [kind for kind, own in member.items() if own.any()]
    for stream, kind in itertools.product(run.streams, run.tokens):
        ranks = run.results[f"rank_{stream}"].values
        own = np.ma.array(ranks, mask=~(member[kind] & (ranks >= 0)))
        for measure, values in (("identifiability", 1 - own / 5), ("rate", own == 0)):
            curve = run.curve(kind, measure, stream)
            means = values.mean(-1).astype(float).filled(np.nan)
            np.testing.assert_allclose(curve, means, atol=1e-6)


def test_images_that_do_not_count():
    plain = fake_run(images=11)
    done, valid, label = (plain[n].values.copy() for n in ("done", "valid", "label"))
    done[8:], valid[8:], label[5], valid[2] = False, False, -1, False
    change = {"done": done, "valid": valid, "label": label}
    run = Run(fake_run(images=11, change=change))
    assert run.image.tolist() == [0, 1, 3, 4, 6, 7]
    assert (run.total, run.done, run.skipped, run.unlabeled) == (11, 8, 1, 1)
    expected = plain["prediction"].values == plain["label"].values
    np.testing.assert_array_equal(run.correct, expected[run.image])


class Guarded:
    """An array that refuses to read pending images."""

    def __init__(self, array, done):
        self.array, self.done, self.sizes = array, done, []

    def __getitem__(self, rows):
        assert self.done[rows].all()
        self.sizes.append(len(self.done[rows]))
        return self.array[rows]


def test_windows_bound_what_is_read_and_pending_images_are_never_read(monkeypatch):
    done = ~np.isin(np.arange(23), (4, 5, 22))
    results = fake_run(images=23, masks=True, change={"done": done})
    whole, pieces = Run(results), Run(results)
    pieces.results = {
        name: Guarded(array, done) if "image" in array.dims else array
        for name, array in results.items()
    }
    row = 4 * whole.config.depth * whole.config.tokens
    monkeypatch.setattr(per_image, "WINDOW_BYTES", 8 * row)
    for key, curve in whole.curves.items():
        np.testing.assert_array_equal(pieces.curves[key], curve)
    assert pieces.results["rank_residual"].sizes == [8, 8, 4]


def test_chance_is_the_mean_of_random_ranks():
    ranks = np.random.default_rng(0).integers(0, 5, (1500, 3, 17)).astype(np.int32)
    run = Run(fake_run(images=1500, previews=0, change={"rank_residual": ranks}))
    for measure, chance in (("identifiability", 0.6), ("rate", 0.2)):
        assert run.chance(measure) == pytest.approx(chance)
        assert run.curve("cls", measure).mean() == pytest.approx(chance, abs=0.02)


def test_refuses_other_rows_and_no_run():
    with pytest.raises(ValueError, match="prediction.*identifiability"):
        Run(fake_run().drop_vars("prediction"))
    with pytest.raises(ValueError, match="one run"):
        as_runs([])
    with pytest.raises(ValueError, match="not one for each of 1"):
        as_runs([fake_run()], ["x", "y"])


def test_names_say_what_differs():
    def manifest(name="vit", spec="folder:a/photos", dtype="float32"):
        model = {"name": name, "checkpoint": "w.npz"}
        return {"model": model, "data": {"spec": spec}, "dtype": dtype}

    for other, names in (
        (manifest("other"), ["vit", "other"]),
        (manifest(spec="folder:b/other"), ["photos", "other"]),
        (manifest(dtype="bfloat16"), ["float32", "bfloat16"]),
        (manifest("b", "folder:b/other"), ["vit · photos", "b · other"]),
        (manifest(), ["vit (1)", "vit (2)"]),
    ):
        assert run_names([manifest(), other]) == names
    assert [run.name for run in as_runs([fake_run(), fake_run()], "xy")] == ["x", "y"]
    assert as_runs(fake_run())[0].name == "vit_test"


def test_provenance_leaves_out_what_the_manifest_does_not_say():
    run = Run(fake_run(manifest={"finished": None, "resumed": ["x", "y"]}))
    pairs = provenance(run)
    assert pairs["recipe"] == "identifiability" and pairs["model classes"]
    assert pairs["images"] == "9 of 9 done, 9 used"
    assert (pairs["images_per_second"], pairs["resumed"]) == ("31.5", "x, y")
    assert "jax 0.10.2" in pairs["versions"]
    assert not {"finished", "masks", "skipped", "arrays"} & set(pairs)


def test_rows_are_means_with_intervals_and_quartiles(report):
    results = fake_run(images=30)
    figures, run = report(results)[0], Run(results)
    keys = ("identifiability", "updates", "rate")
    rows = pd.concat(figures[key].data for key in keys)
    assert len(rows) == (1 + 2 + 1) * 2 * 3  # streams, kinds, blocks
    for (kind, measure, stream), own in rows.groupby(["tokens", "measure", "stream"]):
        values = run.curve(kind, measure, stream)
        np.testing.assert_allclose(own["mean"], values.mean(0), atol=1e-6)
        quartiles = np.quantile(values, [0.25, 0.75], axis=0).T
        np.testing.assert_allclose(own[["q25", "q75"]], quartiles, atol=1e-6)
        assert (own["chance"] == run.chance(measure)).all()
    assert rows["mean"].between(rows["low"], rows["high"]).all()
    assert (rows["images"] == 30).all()


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
    assert not any("object" in line for line in lines)


def test_summary(report):
    results = fake_run(images=40, masks=True)
    run, rows = Run(results), report(results)[1]["summary"].data.set_index("quantity")
    score, rate = ({k: run.curve(k, m)[:, -1] for k in run.tokens} for m in MEASURES)
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
        DIFFERENCE: score["object"] - score["context"],
    }
    assert list(rows.index) == list(expected)
    for name, values in expected.items():
        row = rows.loc[name]
        assert row["value"] == pytest.approx(np.nanmean(values), abs=1e-6)
        assert row["low"] <= row["value"] <= row["high"]
        assert row["images"] == np.isfinite(values).sum()
    assert rows["chance"][TOP1] == 0.2 and np.isnan(rows["chance"][ANY])


def test_summary_of_one_class_and_of_no_label(report):
    single = report(fake_run(classes=1, images=3))[1]["summary"].data
    assert (single["value"] == 1).all()
    unlabeled = fake_run(change={"label": np.full(9, -1, np.int32)})
    figures, tables, _ = report(unlabeled)
    assert set(figures) == {"photos", "settling"} and set(tables) == {"predictions"}


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
    assert f" {100 * right:.1f} % (95 % CI " in answers and "n = 20)" in answers
    means = 1 - ranks[..., 0].mean(0) / 5
    assert f"{means[0]:.3f} after block 0, {means[-1]:.3f} (" in cls
    assert "stays above chance from block" in cls and "image tokens" in image
    last = ranks[:, -1, 1:] == 0
    assert f" {100 * last.mean():.1f} % (" in single
    assert f" {100 * last.any(1).mean():.1f} % (" in single
    assert "object" in kinds
    several = report(results, fake_run())[2]
    assert len(several) == 9 and several[0].startswith("vit_test (1): ")


def test_words_where_nothing_and_where_everything_is_above_chance(report):
    for rank, words in ((4, "does not end above"), (0, "from block 0 on")):
        ranks = np.full((9, 3, 17), rank, np.int32)
        lines = report(fake_run(change={"rank_residual": ranks}))[2]
        assert all(words in line for line in lines[1:3])


def test_words_of_one_image(report):
    patch_label = (np.arange(16) % 2).astype(np.int8)[None]
    change = {"patch_label": patch_label}
    lines = report(fake_run(images=1, masks=True, change=change))[2]
    assert "does not end above chance" in lines[1] and "CI" not in lines[0]


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


def test_shares_of_images_that_all_agree_have_an_interval():
    ones, right = np.ones((9, 1)), np.ones((9, 1), bool)
    assert intervals(right)["low"][0] < 0.8 and intervals(ones)["low"][0] == 1
    assert interval_of(ones[:, 0])["low"] == intervals(right)["low"][0]
