"""The embedded data set, and the scripts that pack it and train on it."""

import runpy

import jax
import numpy as np
import pytest
import scripts
from sklearn.datasets import load_digits

from vitjax.checkpoints.loading import load
from vitjax.data import textured_digits
from vitjax.data.textured_digits import CLASSES, CONTEXTS, TexturedDigits, open_split
from vitjax.types import Config


@pytest.fixture
def source():
    return TexturedDigits(part="test", correlation=0.5)


def test_an_image_depends_on_its_index_alone(source):
    batch = source.compose(np.array([41, 7, 4999]))
    for row, index in enumerate([41, 7, 4999]):
        record = source[index]
        np.testing.assert_array_equal(record.image, batch.images[row])
        np.testing.assert_array_equal(record.mask, batch.mask[row])
        assert record.label == CLASSES[batch.label[row]]
        assert record.context == batch.context[row]
        assert record.name == source.names[index]


def test_the_first_images_are_the_same_everywhere(source):
    # Indices come from raw generator bits, so no numpy release may change them.
    first = source.compose(np.arange(12))
    other = TexturedDigits(seed=1).compose(np.arange(12))
    assert (first.label != other.label).any()
    assert first.label.tolist() == [1, 7, 8, 1, 7, 4, 3, 6, 0, 1, 3, 2]
    assert first.context.tolist() == [7, 7, 1, 1, 7, 4, 3, 1, 0, 8, 6, 0]


@pytest.mark.parametrize(
    ("correlation", "low", "high"), [(0, 0, 0), (1, 1, 1), (0.5, 0.45, 0.55)]
)
def test_the_context_is_the_classes_own_with_the_given_probability(
    correlation, low, high
):
    batch = TexturedDigits(correlation=correlation).compose(np.arange(500))
    assert low <= (batch.context == batch.label).mean() <= high
    assert set(batch.context) == set(range(len(CONTEXTS)))


def test_correlation_changes_nothing_but_the_context():
    same, other = (TexturedDigits(correlation=c).compose(np.arange(64)) for c in (1, 0))
    np.testing.assert_array_equal(same.label, other.label)
    np.testing.assert_array_equal(same.mask, other.mask)
    half = TexturedDigits(correlation=0.5).compose(np.arange(64))
    own = half.context == half.label
    np.testing.assert_array_equal(half.images[own], same.images[own])
    np.testing.assert_array_equal(half.images[~own], other.images[~own])


def test_the_mask_covers_what_the_digit_changes(source):
    indices = np.arange(50)
    draws = textured_digits.uniform((0, 1), indices)
    batch = source.compose(indices)
    sheets = textured_digits.load_material("test").sheets
    ground = textured_digits.paint_context(sheets, batch.context, draws[:, 3:9])
    change = np.abs(batch.images / 255 - ground).max(axis=-1)
    assert change[batch.mask].mean() > 0.25
    glyphs, labels, _ = textured_digits.load_material("test")
    number = textured_digits.pick(draws[:, 0], len(labels))
    ink = textured_digits.place_digits(glyphs, number, draws[:, 9:16], 0.0)
    np.testing.assert_array_equal(batch.mask, ink > 0.5)
    assert change[ink == 0].max() < 0.51 / 255


def test_every_digit_is_visible_and_inside(source):
    mask = source.compose(np.arange(300)).mask
    rows, columns = mask.any(axis=2), mask.any(axis=1)
    assert (mask.mean(axis=(1, 2)) > 0.04).all()
    for side in (rows, columns):
        extent = side.sum(axis=1)
        assert 15 <= np.median(extent) <= 45


def test_parts_share_no_digit():
    train, test = map(textured_digits.load_material, ("train", "test"))
    assert (len(train.labels), len(test.labels)) == (1348, 449)
    with np.load(textured_digits.MATERIAL) as file:
        total = np.bincount(file["labels"])
    counts = np.bincount(train.labels) + np.bincount(test.labels)
    np.testing.assert_array_equal(counts, total)


def test_parts_share_no_texture(tmp_path, monkeypatch):
    with np.load(textured_digits.MATERIAL) as file:
        content = dict(file)
    stripes = np.tile(np.arange(384, dtype=np.uint8) % 7 * 30, (384, 1))
    textures = np.concatenate([stripes.T[:, :192], stripes[:, :192]], axis=1)
    content["textures"] = np.stack([textures] * 3)
    np.savez(tmp_path / "textured_digits.npz", **content)
    monkeypatch.setattr(textured_digits, "MATERIAL", tmp_path / "textured_digits.npz")
    textured_digits.load_material.cache_clear()
    train, test = (
        textured_digits.load_material(part).sheets[0] for part in ("train", "test")
    )
    textured_digits.load_material.cache_clear()
    np.testing.assert_allclose(train.std(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(test.std(axis=0), 0, atol=1e-5)
    assert train.std() > 0.1 and test.std() > 0.1


def test_deformation_changes_digits_but_not_their_ground():
    plain, deformed = (
        TexturedDigits(deform=d).compose(np.arange(30)) for d in (0.0, 1.0)
    )
    assert (plain.mask != deformed.mask).any(axis=(1, 2)).all()
    both = ~(plain.mask | deformed.mask)
    same = (plain.images == deformed.images).all(axis=-1)
    assert same[both].mean() > 0.85


@pytest.mark.parametrize("turn", [0, 90, 45])
def test_rotation_moves_a_stripe(turn):
    region = np.zeros((64, 128), np.float32)
    region[30:34] = 1
    sheet = textured_digits.rotate(region, turn, side=40)
    along = {0: sheet[20], 90: sheet[:, 20], 45: np.diag(sheet)}[turn]
    across = {0: sheet[:, 5], 90: sheet[5], 45: np.diag(sheet, 12)}[turn]
    assert along.min() > 0.9 and across.min() < 0.1


def test_splits():
    assert open_split("train").part == "train"
    correlations = [open_split(s).correlation for s in ("test", "test_0", "test_1")]
    assert correlations == [0.5, 0, 1]
    ids = {open_split(s).id for s in ("train", "test_0", "test_0.5", "test_1")}
    assert len(ids) == 4
    with pytest.raises(ValueError, match="'validation'.*train, test"):
        open_split("validation")
    with pytest.raises(ValueError, match="'valid'"):
        TexturedDigits(part="valid")
    with pytest.raises(ValueError, match="1.5"):
        TexturedDigits(correlation=1.5)
    with pytest.raises(IndexError, match="3"):
        TexturedDigits(length=3)[3]


def test_the_packed_material_is_what_its_sources_carry(tmp_path):
    packing = scripts.load_script("pack_textured_digits")
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
    digits = load_digits()
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
