"""The recipe `precision`: rows against passes in either precision, and in the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitjax
from vitjax.checkpoints.loading import init
from vitjax.data.records import Record
from vitjax.recipes import paper, precision
from vitjax.recipes.recipe import Recipe
from vitjax.recipes.registry import find_recipe
from vitjax.runner.stream import run
from vitjax.saliency.methods import METHODS
from vitjax.saliency.removal import removal_curve

CLASSES = tuple(f"kind {number}" for number in range(30))
TINY = vitjax.Config(16, 4, dim=12, depth=2, heads=2, mlp_dim=12)
UNLABELLED = 5
LABELLED = np.arange(8) != UNLABELLED
OPTIONS = {"methods": ("raw_attention",), "steps": 3}


class Noise:
    """Eight pictures, one without a label."""

    id = "noise/1"

    def __len__(self):
        return 8

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(256, size=(16, 16, 3))
        label = None if index == UNLABELLED else index
        return Record(
            image=pixels.astype(np.uint8), label=label, name=str(index), mask=None
        )


def go(model, out, **options):
    asked = OPTIONS | options.pop("options", {})
    plain = {"batch_size": 8, "show_progress": False}
    return run("precision", model, Noise(), out, options=asked, **plain, **options)


@pytest.fixture(scope="module")
def model():
    made = init(TINY, classes=CLASSES, seed=1)
    # Larger weights, for answers that differ between images.
    return made.replace(params=jax.tree.map(lambda leaf: 5 * leaf, made.params))


@pytest.fixture(scope="module")
def found(model, tmp_path_factory):
    return go(model, tmp_path_factory.mktemp("precision"))


@pytest.fixture(scope="module")
def passes(model):
    """(class logits, states of the last stream) in float32 and in bfloat16."""
    images = np.stack([model.preprocess(Noise()[i].image) for i in range(8)])
    made = []
    for one, name in ((model, "highest"), (model.astype(jnp.bfloat16), "default")):
        with jax.default_matmul_precision(name):
            logits, trace = vitjax.forward(one, images, capture=("mlp_update",))
            updates = vitjax.project(one.class_space, trace.mlp_update)
        made.append((np.asarray(logits), np.asarray(updates)))
    return images, made


@pytest.mark.slow
def test_ranks_are_those_of_both_passes(found, passes):
    """The MLP's update, which the recipe projects in another way than `project`."""
    label = np.arange(8)
    _, made = passes
    ranks = []
    for _, logits in made:  # [layer image token class]
        true = np.take_along_axis(logits, label[None, :, None, None], -1)
        ranks.append((logits > true).sum(-1).transpose(1, 0, 2))
    fine = found["rank_mlp_update"][:]
    assert (fine[LABELLED] == ranks[0][LABELLED]).mean() > 0.97
    moved = (ranks[0] - ranks[1])[..., 1:] / len(CLASSES)
    rows = found["shift_mlp_update"][:][..., 1]
    np.testing.assert_allclose(rows[LABELLED], moved.mean(-1)[LABELLED], atol=0.02)
    same = (ranks[0] == ranks[1])[..., 1:].mean(-1)
    rows = found["same_rank_mlp_update"][:][..., 1]
    np.testing.assert_allclose(rows[LABELLED], same[LABELLED], atol=0.2)
    assert rows[LABELLED].mean() == pytest.approx(same[LABELLED].mean(), abs=0.04)
    assert 0.3 < rows[LABELLED].mean() < 1  # half precision does move ranks
    assert np.isnan(rows[UNLABELLED]).all()


@pytest.mark.slow
def test_logits_are_those_of_both_passes(found, passes):
    _, made = passes
    fine, coarse = (logits for logits, _ in made)
    expected = abs(fine - coarse).max(-1) / fine.std(-1)
    rows = found["distance_logits"][:]
    np.testing.assert_allclose(rows, expected, rtol=0.3)
    assert (rows > 0).all()
    same = fine.argmax(-1) == coarse.argmax(-1)
    np.testing.assert_array_equal(found["same_prediction"][:], same)


@pytest.mark.slow
def test_what_the_weights_say(found, model):
    values = vitjax.memory_values(model)["mlp"]
    fine = vitjax.class_value_agreement(model.class_space, values)
    low = model.astype(jnp.bfloat16)
    values = vitjax.memory_values(low)["mlp"]
    coarse = vitjax.class_value_agreement(low.class_space, values)
    np.testing.assert_allclose(found["class_value_mlp"][:], fine, atol=1e-5)
    moved = found["shift_class_value_mlp"][:]
    np.testing.assert_allclose(moved, np.asarray(coarse) - np.asarray(fine), atol=1e-5)
    assert np.abs(moved).max() > 1e-4


@pytest.mark.slow
def test_float32_against_itself_changes_nothing(model, tmp_path):
    """On a CPU, where float32 products have one precision."""
    same = go(model, tmp_path, options={"against": "float32"})
    for name in same.names:
        if name.startswith(("same_", "near_", "pearson_", "spearman_", "overlap_")):
            labelled = name in find_recipe("precision").labelled
            rows = same[name][:][LABELLED if labelled else slice(None)]
            np.testing.assert_allclose(rows, 1, atol=1e-5, err_msg=name)
        elif name.startswith(("shift_", "distance_")):
            rows = np.nan_to_num(same[name][:])
            np.testing.assert_allclose(rows, 0, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_few_patches_are_those_of_removal_curve(found, model, passes):
    """Whose answers it compares: areas come from the same right and wrong answers."""
    images, _ = passes
    label = np.arange(8)
    assert found["kept"][:].tolist() == [5, 11]
    importance = vitjax.explain(model, images, label, method="raw_attention")
    for order in precision.ORDERS:
        correct = []
        for one in (model, model.astype(jnp.bfloat16)):
            kept = (0, 5, 11, 16)
            correct.append(
                np.asarray(
                    removal_curve(
                        one, images, label, importance, keep_counts=kept, order=order
                    )
                )
            )
        width = np.diff(kept) / 16
        areas = [((c[:, 1:] + c[:, :-1]) / 2 * width).sum(-1) for c in correct]
        rows = found[f"shift_removal_{order}"][:]
        expected = (areas[1] - areas[0])[LABELLED]
        np.testing.assert_allclose(rows[LABELLED], expected, atol=1e-6)
        equal = found[f"same_removal_{order}"][:]
        assert equal.shape == (8, 2)
        # Equal answers are right or wrong together.
        apart = (correct[0] != correct[1])[:, 1:-1]
        assert not (apart & equal)[LABELLED].any()


@pytest.mark.slow
def test_both_passes_are_measured(found):
    speeds = found.manifest["measured"]["images_per_second"]
    assert set(speeds) == {"forward", "identifiability"}
    assert all(pair["fine"] > 0 and pair["coarse"] > 0 for pair in speeds.values())


def test_rows_of_every_method_and_intervention_have_axes():
    recipe = find_recipe("precision")
    for method in METHODS:
        assert recipe.dims[f"spearman_{method}"] == ()
    assert set(recipe.options["methods"]) == set(METHODS) - {
        *("random", "occlusion", "integrated_gradients", "integrated_presence"),
        "consensus",
    }
    assert set(precision.EDITS) <= set(paper.INTERVENTIONS)
    assert "shift_residual" in recipe.labelled
    assert "spearman_chefer" not in recipe.labelled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "bfloat16"}, "leave dtype at float32 instead of bfloat16"),
        ({"options": {"against": "float16"}}, "against='float16' is one of"),
        ({"options": {"methods": ()}}, "at least one method"),
        ({"options": {"methods": ("rolout",)}}, "Did you mean 'rollout'"),
        ({"options": {"steps": 1}}, "at least 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(model, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        go(model, tmp_path, **change)


@pytest.mark.slow
@pytest.mark.parametrize("name", ("gap", "registers", "one_block"))
def test_models_of_other_kinds(name):
    import tiny

    config = tiny.CONFIGS[name]
    recipe: Recipe = find_recipe("precision").asked(OPTIONS)
    other = tiny.make(config)
    batch = vitjax.types.Batch(
        images=tiny.images(config, count=1),
        label=np.array([1], np.int32),
        valid=np.ones(1, bool),
        index=np.zeros(1, np.int32),
    )
    aux = jax.eval_shape(lambda m: recipe.make(m, 0), other).aux
    rows = jax.eval_shape(recipe.rows, other, batch, aux)
    kinds = {"gap": 1, "registers": 3, "one_block": 2}[name]
    assert rows["same_rank_residual"].shape == (1, config.depth, kinds)
    assert ("same_rank_no_cls" in rows) == (name != "gap")


@pytest.mark.slow
def test_the_reference_is_the_published_code(oracle, published_model):
    """Ranks in float32 are the oracle's, and bfloat16 is compared with those."""
    data, model = oracle("plain"), published_model("plain")
    label = np.asarray(data["base"]["index"])
    recipe = find_recipe("precision").asked(OPTIONS)
    batch = vitjax.types.Batch(
        images=data.images,
        label=label.astype(np.int32),
        valid=np.ones(len(label), bool),
        index=np.arange(len(label), dtype=np.int32),
    )
    rows = jax.jit(recipe.rows)(model, batch, recipe.make(model, 0).aux)
    published = data["projections"]
    np.testing.assert_array_equal(rows["rank_residual"], published["rank_hs"])
    low = vitjax.recipes.identifiability.identifiability(
        model.astype(jnp.bfloat16), batch
    )
    same = np.asarray(low["rank_residual"]) == published["rank_hs"]
    np.testing.assert_allclose(
        np.asarray(rows["same_rank_residual"])[..., 1], same[..., 1:].mean(-1), atol=0.2
    )
