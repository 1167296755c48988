import jax
import numpy as np
import pytest
import scripts

from vitjax.checkpoints.loading import load
from vitjax.types import Config

training = scripts.load_script("train_textured_digits")
Recipe = training.Recipe
TINY = Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=32)
RECIPE = Recipe(config=TINY, steps=8, batch_size=8, warmup=2)


def run(folder, recipe=RECIPE):
    return training.train(recipe=recipe, out=folder, save_every=2, pictures=16)


def assert_equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return run(folder), folder


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(trained, tmp_path):
    again = training.train(out=tmp_path, recipe=RECIPE, save_every=4, pictures=16)
    assert_equal(again, trained[0])


def test_killed_and_started_again_it_ends_with_the_same_weights(
    trained, tmp_path, monkeypatch
):
    batch = Recipe.batch

    def fail(self, step):
        if step == 5:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(Recipe, "batch", fail)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    seen = []
    monkeypatch.setattr(
        Recipe, "batch", lambda self, step: seen.append(step) or batch(self, step)
    )
    assert_equal(run(tmp_path), trained[0])
    assert seen == [4, 5, 6, 7]


def test_the_checkpoint_is_the_model_in_float16(trained):
    model, folder = trained
    read = load(str(folder))
    assert read.config == TINY and read.classes == model.classes
    assert read.preprocess == model.preprocess
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_array_equal(
            np.asarray(ours).astype(np.float16), np.asarray(theirs).astype(np.float16)
        ),
        model.params,
        read.params,
    )


def test_a_folder_of_another_recipe_is_refused(trained):
    with pytest.raises(ValueError, match="recipe.json"):
        run(trained[1], Recipe(config=TINY, steps=9, batch_size=8, warmup=2))


def test_the_curve_is_written(trained):
    rows = np.loadtxt(trained[1] / "log.csv", delimiter=",", skiprows=1)
    assert rows[:, 0].tolist() == [2, 4, 6, 8]
    assert ((rows[:, 2] >= 0) & (rows[:, 2] <= 1)).all()


def test_the_loss_falls():
    """On one batch seen again and again, far below that of guessing, log 10."""
    recipe = Recipe(config=TINY, steps=60, batch_size=16, warmup=5, adam_rate=1e-2)
    images, label = recipe.batch(0)
    state, step = training.start(recipe), training.make_step(recipe)
    params, optimizer = state.params, state.optimizer
    losses = []
    for _ in range(recipe.steps):
        params, optimizer, loss = step(params, optimizer, images, label)
        losses.append(float(loss))
    assert losses[0] > 2 and losses[-1] < 1


def test_steps_see_fresh_images():
    recipe = Recipe()
    (one, _), (two, _), (again, _) = map(recipe.batch, (0, 1, 0))
    np.testing.assert_array_equal(one, again)
    assert (one != two).any()
    assert len(one) == recipe.batch_size


def test_position_embeddings_start_distinct():
    sines = np.asarray(training.sines(Recipe().config))[0]
    norms = np.linalg.norm(sines, axis=1)
    np.testing.assert_allclose(norms, norms[0], rtol=1e-5)
    cosine = sines @ sines.T / norms[0] ** 2
    assert np.sort(cosine, axis=1)[:, -2].max() < 0.999


def test_images_are_normalized_as_the_checkpoint_says():
    images, _ = Recipe(batch_size=4).batch(0)
    ours = np.asarray(training.normalize(images))
    theirs = np.stack([load("textured_digits").preprocess(image) for image in images])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_embedded_model_knows_unseen_digits_on_unseen_textures():
    """`checkpoints/README.md` has the figures of 5,000 pictures."""
    model = load("textured_digits")
    assert model.config == Recipe().config
    assert training.accuracy(model, correlation=0.0, pictures=500) > 0.9
