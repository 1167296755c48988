"""Runs as a report reads them."""

import numpy as np
import pytest
from fake_runs import fake_run

from vitjax.report import per_image
from vitjax.report.page import provenance
from vitjax.report.per_image import MEASURES, Run, as_runs, run_names


@pytest.mark.parametrize(
    "fields", [{}, {"registers": 2}, {"class_token": False, "norm": "residual_post"}]
)
def test_curves_are_the_means_over_tokens(make_run, by_hand, fields):
    plain = fake_run(masks=True, **fields)["rank_mlp_update"].values
    absent = np.random.default_rng(7).random(plain.shape) < 0.2
    change = {"rank_mlp_update": np.where(absent, -1, plain).astype(np.int32)}
    run = make_run(masks=True, change=change, **fields)
    assert ("cls" in run.tokens) == fields.get("class_token", True)
    assert ("register" in run.tokens) == bool(fields.get("registers"))
    for stream in run.streams:
        for kind in run.tokens:
            for measure in MEASURES:
                curve = run.curve(kind, measure, stream)
                expected = by_hand(run, stream, kind, measure)
                np.testing.assert_allclose(curve, expected, atol=1e-6)


def test_images_that_do_not_count(make_run):
    plain = fake_run(images=11)
    done, valid, label = (plain[n].values.copy() for n in ("done", "valid", "label"))
    done[8:], valid[8:], label[5], valid[2] = False, False, -1, False
    run = make_run(images=11, change={"done": done, "valid": valid, "label": label})
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


def test_windows_bound_what_is_read_and_pending_images_are_never_read(
    make_run, monkeypatch
):
    done = ~np.isin(np.arange(23), (4, 5, 22))
    whole = make_run(images=23, masks=True, change={"done": done})
    pieces = make_run(images=23, masks=True, change={"done": done})
    pieces.results = {
        name: Guarded(pieces.results[name], done) if "image" in array.dims else array
        for name, array in pieces.results.items()
    }
    row = 4 * whole.config.depth * whole.config.tokens
    monkeypatch.setattr(per_image, "WINDOW_BYTES", 8 * row)
    np.testing.assert_array_equal(pieces.curves, whole.curves)
    assert pieces.results["rank_residual"].sizes == [8, 8, 4]


def test_chance_is_the_mean_of_random_ranks(make_run):
    ranks = np.random.default_rng(0).integers(0, 5, (1500, 3, 17)).astype(np.int32)
    run = make_run(images=1500, previews=0, change={"rank_residual": ranks})
    for measure, chance in (("identifiability", 0.6), ("rate", 0.2)):
        assert run.chance(measure) == pytest.approx(chance)
        assert run.curve("cls", measure).mean() == pytest.approx(chance, abs=0.02)


def test_refuses_other_rows_and_no_run():
    with pytest.raises(ValueError, match="prediction.*identifiability"):
        Run(fake_run().drop_vars("prediction"))
    with pytest.raises(ValueError, match="one run"):
        as_runs([])


def test_names_say_what_differs():
    def manifest(name="vit", spec="folder:a/photos", **other):
        model = {"name": name, "checkpoint": other.pop("checkpoint", "w.npz")}
        return {"model": model, "data": {"spec": spec}, "dtype": "float32", **other}

    assert run_names([manifest()]) == ["vit"]
    assert run_names([manifest(), manifest("other")]) == ["vit", "other"]
    other_data = [manifest(), manifest(spec="folder:b/other")]
    assert run_names(other_data) == ["vit · photos", "vit · other"]
    other_type = [manifest(), manifest(dtype="bfloat16")]
    assert run_names(other_type) == ["vit · float32", "vit · bfloat16"]
    assert run_names([manifest(), manifest()]) == ["vit (1)", "vit (2)"]
    assert [run.name for run in as_runs([fake_run(), fake_run()], "xy")] == ["x", "y"]
    assert as_runs(fake_run())[0].name == "vit_test"


def test_provenance_leaves_out_what_the_manifest_does_not_say(make_run):
    pairs = provenance(make_run(manifest={"finished": None, "resumed": ["x", "y"]}))
    assert pairs["recipe"] == "identifiability" and pairs["model classes"]
    assert pairs["images"] == "9 of 9 done, 9 used"
    assert (pairs["images_per_second"], pairs["resumed"]) == ("31.5", "x, y")
    assert "jax 0.10.2" in pairs["versions"]
    assert not {"finished", "masks", "skipped", "arrays"} & set(pairs)
