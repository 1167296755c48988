"""The scripts of checkpoints/: packing and training; that all start."""

import runpy

import jax
import numpy as np
import pytest
import scripts

from vitjax.checkpoints.loading import load
from vitjax.data import textured_digits
from vitjax.types import Config


@pytest.fixture(scope="module")
def packing():
    return scripts.load_script("pack_textured_digits")


def test_two_pixels_to_a_byte(packing):
    digits = np.zeros((2, 8, 8))
    digits[0, 0, :4] = (3, 16, 15, 1)
    packed = packing.pack_digits(digits)
    assert packed.shape == (2, 32) and packed.dtype == np.uint8
    assert packed[0, :2].tolist() == [3 + 15 * 16, 15 + 1 * 16]
    assert not packed[0, 2:].any() and not packed[1].any()


def test_the_packed_material_is_what_its_sources_carry(packing, tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    pytest.importorskip("skimage.data")
    packing.main(out=tmp_path / "again.npz")
    with (
        np.load(textured_digits.MATERIAL) as shipped,
        np.load(tmp_path / "again.npz") as again,
    ):
        assert set(shipped) == set(again)
        for name in ("digits", "labels"):
            np.testing.assert_array_equal(shipped[name], again[name])
        # Pillow releases may round a resampled pixel differently.
        difference = shipped["textures"].astype(int) - again["textures"]
        assert np.abs(difference).max() <= 1
        low, high = shipped["digits"] & 15, shipped["digits"] >> 4
    digits = datasets.load_digits()
    unpacked = np.stack([low, high], axis=-1).reshape(-1, 8, 8)
    np.testing.assert_array_equal(unpacked, np.minimum(digits.images, 15))
    assert textured_digits.MATERIAL.stat().st_size < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(scripts.FOLDER.glob("*.py")), ids=str)
def test_every_script_has_help(path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(path), "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_path(str(path), run_name="__main__")
    assert "usage:" in capsys.readouterr().out


training = scripts.load_script("train_textured_digits")
Recipe = training.Recipe
TINY = Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=32)
RECIPE = Recipe(config=TINY, steps=8, batch_size=8, warmup=2)


def run(folder, recipe=RECIPE, save_every=2):
    return training.train(recipe=recipe, out=folder, save_every=save_every, pictures=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return run(folder), folder


@pytest.mark.slow
class TestTraining:
    def test_killed_and_started_again_it_ends_with_the_same_weights(
        self, trained, tmp_path, monkeypatch
    ):
        batch, seen = Recipe.batch, []

        def interrupted(self, step):
            seen.append(step)
            if seen == [0, 1, 2, 3, 4, 5]:
                raise KeyboardInterrupt
            return batch(self, step)

        monkeypatch.setattr(Recipe, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
        again = run(tmp_path)
        jax.tree.map(np.testing.assert_array_equal, again.params, trained[0].params)
        assert seen[6:] == [4, 5, 6, 7]

    def test_the_folder_holds_checkpoint_curve_and_recipe(self, trained):
        model, folder = trained
        read = load(str(folder))
        assert read.config == TINY and read.classes == model.classes
        assert read.preprocess == model.preprocess
        halves = [model.astype("float16").params, read.astype("float16").params]
        jax.tree.map(np.testing.assert_array_equal, *halves)
        rows = np.loadtxt(folder / "log.csv", delimiter=",", skiprows=1)
        assert rows[:, 0].tolist() == [2, 4, 6, 8]
        assert ((rows[:, 2] >= 0) & (rows[:, 2] <= 1)).all()
        with pytest.raises(ValueError, match="recipe.json"):
            run(folder, Recipe(config=TINY, steps=9, batch_size=8, warmup=2))


@pytest.mark.slow
def test_the_loss_falls():
    """On one batch seen again and again, far below that of guessing, log 10."""
    recipe = Recipe(config=TINY, steps=60, batch_size=16, warmup=5, adam_rate=1e-2)
    images, label = recipe.batch(0)
    (_, params, optimizer), step = training.start(recipe), training.make_step(recipe)
    losses = []
    for _ in range(recipe.steps):
        params, optimizer, loss = step(params, optimizer, images, label)
        losses.append(float(loss))
    assert losses[0] > 2 and losses[-1] < 1


def test_steps_see_fresh_images():
    recipe = Recipe()
    (one, _), (two, _), (again, _) = map(recipe.batch, (0, 1, 0))
    np.testing.assert_array_equal(one, again)
    assert (one != two).any() and len(one) == recipe.batch_size


@pytest.mark.slow
def test_the_embedded_model_knows_unseen_digits_on_unseen_textures():
    """`checkpoints/README.md` has the figures of 5,000 images."""
    model = load("textured_digits")
    assert model.config == Recipe().config
    assert training.accuracy(model, correlation=0.0, pictures=500) > 0.9
    images, _ = Recipe(batch_size=4).batch(0)
    expected = np.stack([model.preprocess(image) for image in images])
    normalized = np.asarray(training.normalize(images))
    np.testing.assert_allclose(normalized, expected, atol=1e-6)
