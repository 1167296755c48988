"""A run of probes: against scikit-learn, in groups, stopped and resumed."""

import shutil

import numpy as np
import pytest
import tiny as miniatures
from PIL import Image
from sklearn.linear_model import Ridge
from vitjax.runner.probes import run_probes
from vitjax.runner.storage import DamageError

import vitjax
from vitjax.data.datasets import open_source
from vitjax.data.images import Preprocess
from vitjax.data.loader import batches
from vitjax.runner import probes
from vitjax.runner.results import open_results

STREAMS = ("residual", "attention_update", "mlp_update")
OPTIONS = dict(shots=3, batch_size=8, steps=1, show_progress=False)


@pytest.fixture(scope="module")
def model():
    """Random, and not so near zero as an initial one: classes differ in score."""
    classes = ("ant", "bee", "cat", "dog", "elk", "fox")
    return miniatures.make(miniatures.CONFIGS["registers"], classes=classes)


@pytest.fixture(scope="module")
def study(model, photos, tmp_path_factory):
    """A run that fits all probes at once, on some of those that it measures."""
    out = tmp_path_factory.mktemp("probes") / "run"
    return run_probes(model, f"folder:{photos}", f"folder:{photos}", out, **OPTIONS)


@pytest.fixture(scope="module")
def states(model, photos):
    """States [image stream layer token dim], pixels and labels of all photos."""
    source = open_source(f"folder:{photos}", classes=model.classes)
    preprocess = Preprocess(*model.config.shape)
    ((batch, _, _),) = batches(source, preprocess=preprocess, local_batch_size=29)
    _, trace = vitjax.forward(model, batch.images, capture=STREAMS)
    found = np.stack([np.asarray(getattr(trace, name)) for name in STREAMS])
    return found.transpose(2, 0, 1, 3, 4), batch.images, np.asarray(batch.label)


def test_ranks_are_those_of_scikit_learns_probes(study, states):
    found, _, labels = states
    fitted = [i for i, c in enumerate(labels) if (labels[:i] == c).sum() < 3]
    targets = np.where(labels[fitted, None] == np.arange(6), 1.0, -1.0)
    for place, name in enumerate(STREAMS):
        ranks = study[f"rank_probe_{name}"][:]
        for layer, token in ((0, 7), (1, 0), (1, 19)):
            one = found[:, place, layer, token].astype(np.float64)
            scores = Ridge(alpha=1.0).fit(one[fitted], targets).predict(one)
            true = np.take_along_axis(scores, labels[:, None], 1)
            gap = np.abs(np.where(scores == true, np.inf, scores - true)).min(1)
            sure = gap > 1e-4
            assert sure.mean() > 0.9
            expected = (scores > true).sum(1)
            np.testing.assert_array_equal(ranks[sure, layer, token], expected[sure])


def test_the_projection_is_there_to_compare(study, states, model):
    found, _, labels = states
    logits = vitjax.project(model.class_space, found)
    expected = vitjax.rank(logits, labels[:, None, None, None])
    for place, name in enumerate(STREAMS):
        ranks = study[f"rank_{name}"][:]
        assert (ranks == expected[:, place]).mean() > 0.999
    assert {"prediction", "top_classes", "picture"} < set(study.names)


def test_rows_keep_the_tokens_that_probes_and_gradients_point_at(study, states, model):
    _, images, labels = states
    ranks = study["rank_probe_residual"][:][:, :, model.config.prefix :].sum(1)
    relevancy = vitjax.relevancy(model, images, labels).sum((0, 2))
    relevancy = np.asarray(relevancy)[:, model.config.prefix :]
    orders = {
        "negative_probe": np.argsort(ranks, kind="stable"),
        "positive_probe": np.argsort(-ranks, kind="stable"),
        "negative_gradient": np.argsort(-relevancy),
        "positive_gradient": np.argsort(relevancy),
    }
    for name, order in orders.items():
        for step, count in enumerate(study.manifest["recipe_options"]["keep_counts"]):
            kept = vitjax.select_tokens(order[:, :count])
            logits, _ = vitjax.forward(model, images, edits=kept)
            right = np.asarray(logits.argmax(-1)) == labels
            agree = study[f"correct_{name}"][:][:, step] == right
            assert agree.mean() > 0.95, name  # near ties of logits or relevancies


def test_what_the_manifest_says(study):
    told = study.manifest["probes"]
    assert (told["probes"], told["groups"]) == (3 * 2 * 20, 1)
    assert told["train"]["images"] == 18
    assert told["shared_images"] == 18
    assert told["bytes"]["states"] == 4 * 16 * 120 * 18
    assert all(value > 0 for value in told["seconds"].values())
    assert study.manifest["recipe"] == "probes"
    assert study.manifest["finished"]
    assert study["fitted"][:].all()
    steps = study.to_xarray().coords["step"].to_numpy()
    assert steps.tolist() == study.manifest["recipe_options"]["keep_counts"]


def test_groups_change_nothing(study, model, photos, tmp_path):
    data, streams = f"folder:{photos}", ("residual",)
    found = run_probes(
        model, data, data, tmp_path, memory="110kB", streams=streams, **OPTIONS
    )
    assert found.manifest["probes"]["groups"] == 2
    assert "rank_probe_mlp_update" not in found
    ranks, expected = found["rank_probe_residual"][:], study["rank_probe_residual"][:]
    assert (ranks == expected).mean() > 0.995  # the sums' last bits may differ
    assert np.abs(ranks - expected).max() <= 1


def test_stopped_and_resumed_is_uninterrupted(
    study, model, photos, tmp_path, same_rows, monkeypatch
):
    data, fit = f"folder:{photos}", probes.fit_group

    def run():
        return run_probes(model, data, data, tmp_path, memory="330kB", **OPTIONS)

    def stopped(prober, group, *rest):
        if group.tokens.start > 0:
            raise KeyboardInterrupt
        fit(prober, group, *rest)

    monkeypatch.setattr(probes, "fit_group", stopped)
    with pytest.raises(KeyboardInterrupt) as stop:
        run()
    assert "the same command goes on" in stop.value.__notes__[0]
    assert not vitjax.open_results(tmp_path)["done"][:].any()
    calls = []
    monkeypatch.setattr(
        probes, "fit_group", lambda *a: (calls.append(a[1].tokens.start), fit(*a))
    )
    found = run()
    assert calls == [10]
    for name in study.names:
        if not name.startswith("rank_probe"):
            assert found[name][:].tobytes() == study[name][:].tobytes(), name
    again = run()
    assert calls == [10]
    same_rows(again, found)


@pytest.mark.parametrize(
    "name", ["rank_probe_residual", "rank_residual", "correct_negative_probe"]
)
def test_a_file_that_is_gone_is_computed_again(
    study, model, photos, tmp_path, same_rows, name
):
    shutil.copytree(study.path, tmp_path / "run")
    files = (tmp_path / f"run/rows.zarr/{name}/c").rglob("*")
    next(path for path in files if path.is_file()).unlink()
    with pytest.raises(DamageError, match=f"Files of {name} in .* are gone"):
        open_results(tmp_path / "run")[name][:]
    data = f"folder:{photos}"
    found = run_probes(model, data, data, tmp_path / "run", **OPTIONS)
    assert found.manifest["finished"]
    same_rows(found, study)


def test_images_that_cannot_be_read_are_left_out(model, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(256, size=(32, 32, 3)).astype(np.uint8)
        place = tmp_path / "photos" / model.classes[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    (place / "1.png").write_bytes(b"no picture")
    data, options = f"folder:{tmp_path / 'photos'}", {**OPTIONS, "on_error": "skip"}
    found = run_probes(model, data, data, tmp_path / "run", **options)
    (skipped,) = found.manifest["probes"]["train"]["skipped"]
    assert skipped["name"] == "bee/1.png"
    assert [one["index"] for one in found.manifest["skipped"]] == [4]
    ranks = found["rank_probe_residual"][:]
    assert (ranks[4] == -1).all()
    assert (np.delete(ranks, 4, 0) >= 0).all()


def test_another_alpha_is_another_run(study, model, photos):
    data = f"folder:{photos}"
    with pytest.raises(ValueError, match="alpha is 1.0 there and 2.0 here"):
        run_probes(model, data, data, study.path, alpha=2.0, **OPTIONS)


def test_arguments_out_of_range(model, photos, tmp_path):
    data = f"folder:{photos}"
    for wrong, message in (
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"streams": ("mlp_update",)}, 'must hold "residual"'),
        ({"streams": ("residual", "values")}, "Unknown streams"),
        ({"memory": "1kB"}, "One probe takes 0.0 MiB"),
        ({"steps": 0}, "steps is 0"),
        ({"shots": 0}, "shots is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            run_probes(model, data, data, tmp_path / "no", **{**OPTIONS, **wrong})
    assert not (tmp_path / "no").exists()
