"""What stands at every public function: arrays, images, class numbers, edits."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_api
import test_composability
import tiny

import vitjax
from vitjax.saliency.methods import METHODS

MODEL = tiny.make(tiny.CONFIGS["plain"])
REFINED = tiny.make(tiny.CONFIGS["refinement"])
IMAGES = tiny.images(MODEL.config)
LABEL = np.array([1, 4, 2], np.int32)
LOGITS = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
MAPS = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
STATES = np.random.default_rng(2).normal(size=(3, 16)).astype(np.float32)
SPACE = MODEL.class_space
VALUES = vitjax.memory_values(MODEL)["mlp"][0]
CALLS = np.random.default_rng(3).normal(size=(3, 24)).astype(np.float32)


def read(params, stream_in, trace):
    return trace.residual[:, 0]


def first(logits):
    return logits[:, 0].sum()


OF_IMAGES = {
    "forward": lambda x: vitjax.forward(MODEL, x)[0],
    "scan_blocks": lambda x: jax.jit(lambda: vitjax.scan_blocks(MODEL, x, read)[1])(),
    "attention_gradients": lambda x: jax.jit(
        lambda: vitjax.attention_gradients(MODEL, x, first)
    )(),
    "encode_image": lambda x: vitjax.encode_image(MODEL, x),
    "refinement_logits": lambda x: vitjax.refinement_logits(REFINED, x),
    "relevancy": lambda x: vitjax.relevancy(MODEL, x, 1),
    "helpful_minus_attended": lambda x: vitjax.helpful_minus_attended(MODEL, x, 1),
    "explain": lambda x: vitjax.explain(MODEL, x, 1),
    "logit_attribution": lambda x: vitjax.logit_attribution(MODEL, x, 1)["mlp"],
    "removal_curve": lambda x: vitjax.removal_curve(MODEL, x, 1, MAPS, keep_counts=[2]),
}
OF_LABELS = {
    **{
        f"explain {method}": lambda c, m=method: vitjax.explain(
            MODEL, IMAGES, c, method=m
        )
        for method in METHODS
    },
    "relevancy": lambda c: vitjax.relevancy(MODEL, IMAGES, c),
    "helpful_minus_attended": lambda c: vitjax.helpful_minus_attended(MODEL, IMAGES, c),
    "logit_attribution": lambda c: vitjax.logit_attribution(MODEL, IMAGES, c)[
        "attention"
    ],
    "removal_curve": lambda c: vitjax.removal_curve(
        MODEL, IMAGES, c, MAPS, keep_counts=(2,)
    ),
    "rank": lambda c: vitjax.rank(LOGITS, c),
    "identifiability": lambda c: vitjax.identifiability(LOGITS, c),
    "similarity_change": lambda c: vitjax.similarity_change(LOGITS, -LOGITS, c),
    "key_value_agreement": lambda c: vitjax.key_value_agreement(
        SPACE, CALLS, VALUES, c, convention="vilas2023_code"
    ),
    "compositionality": lambda c: vitjax.compositionality(SPACE, CALLS, VALUES, c),
}
OF_CLASSES = {  # class numbers that no other argument counts, or -1 allowed
    "residual_composition": lambda c: vitjax.residual_composition(
        c, before=LABEL, attention=LABEL, mlp=LABEL
    ),
    "fit_ridge_probe": lambda c: vitjax.fit_ridge_probe(STATES, c, classes=7),
    "fit_softmax_probe": lambda c: vitjax.fit_softmax_probe(
        STATES, c, classes=7, epochs=1
    ),
}
EXPLAINED = ("explain relevancy", "explain random", "explain rollout")
"""Methods that are run: `explain` reads a target before any of them, and all refuse."""


def calls(table, *, run=True):
    """One of a table's functions."""
    names = [n for n in table if not (run and n.startswith("explain "))]
    names += [n for n in EXPLAINED if run and n in table]
    return pytest.mark.parametrize("call", [table[n] for n in names], ids=names)


def test_every_public_function_of_images_and_classes_is_in_a_table():
    def named(*parameters):
        return {
            name
            for name, function in test_api.FUNCTIONS.items()
            if {*parameters} & {*inspect.signature(function).parameters}
        }

    assert named("images") == set(OF_IMAGES)
    classes = {name.partition(" ")[0] for name in (*OF_LABELS, *OF_CLASSES)}
    assert named("label", "target", "predicted", "labels") <= classes


@calls(OF_IMAGES)
def test_images_that_are_no_normalized_pixels_are_refused(call):
    for dtype in (np.uint8, np.int64, bool):
        with pytest.raises(ValueError, match=r"model\.preprocess"):
            call((50 * IMAGES).astype(dtype))
        with pytest.raises(ValueError, match=r"model\.preprocess"):
            jax.eval_shape(call, jax.ShapeDtypeStruct(IMAGES.shape, jnp.uint8))
    for wrong in (IMAGES[0], IMAGES[:, :16], IMAGES[..., :1], IMAGES.swapaxes(1, 3)):
        with pytest.raises(ValueError, match="32 32 3"):
            call(wrong)
        with pytest.raises(ValueError, match="32 32 3"):
            jax.eval_shape(call, jax.ShapeDtypeStruct(wrong.shape, jnp.float32))


@calls(OF_IMAGES)
def test_images_may_be_a_list(call):
    actual = call([list(image) for image in IMAGES])
    np.testing.assert_array_equal(actual, call(IMAGES))


def test_pixels_that_look_unnormalized_are_told():
    with pytest.warns(UserWarning, match=r"255.*model\.preprocess"):
        vitjax.forward(MODEL, np.full(IMAGES.shape, 255.0, np.float32))
    with pytest.raises(ValueError, match="one shape"):
        vitjax.forward(MODEL, [IMAGES[0], IMAGES[1, :16]])


@calls(OF_LABELS, run=False)
def test_numbers_that_are_no_class_are_refused(call):
    for wrong in (-1, 7, np.array([0, 7, 1]), jnp.array([2, -1, 1]), [0, 1, 300]):
        value = int(np.ravel(wrong)[np.argmax(np.abs(np.ravel(wrong) - 3))])
        with pytest.raises(ValueError, match=f"={value} is out of range"):
            call(wrong)
    with pytest.raises(ValueError, match="broadcast|more axes"):
        call([0, 1])


@calls(OF_LABELS | OF_CLASSES)
def test_class_numbers_are_integers_of_any_size(call):
    for wrong in (LABEL.astype(np.float32), LABEL > 1, [0.5, 1.0, 2.0]):
        with pytest.raises(ValueError, match="integers"):
            call(wrong)
    expected = jax.tree.leaves(call(LABEL))
    for same in (LABEL.tolist(), LABEL.astype(np.uint8), LABEL.astype(np.int8)):
        for actual, right in zip(jax.tree.leaves(call(same)), expected):
            np.testing.assert_array_equal(actual, right)


@calls(OF_LABELS)
def test_under_jit_no_class_is_nan_false_or_last(call):
    """One rule where values are not known; images of a class are as ever."""
    wrong = np.array([-1, 4, 7], np.int32)
    actual, right = jax.jit(call)(wrong), jax.jit(call)(LABEL)
    axis = 1 if actual.ndim > 2 else 0  # a leading layer axis
    actual, right = (np.moveaxis(np.asarray(x), axis, 0) for x in (actual, right))
    np.testing.assert_allclose(actual[1], right[1], rtol=1e-4, atol=1e-5)
    for unknown in (actual[0], actual[2]):
        if unknown.dtype == bool:
            assert not unknown.any()
        elif unknown.dtype == np.int32:
            assert unknown == 6
        elif unknown.ndim:
            assert np.isnan(unknown).all()
        else:  # identifiability
            assert unknown == pytest.approx(1 / 7)


def test_probes_leave_out_examples_of_class_minus_one_and_refuse_the_rest():
    for name in ("fit_ridge_probe", "fit_softmax_probe"):
        OF_CLASSES[name]([0, -1, 6])
        for wrong in ([0, -2, 6], [0, 1, 7]):
            with pytest.raises(ValueError, match="out of range"):
                OF_CLASSES[name](wrong)


def test_small_integers_count_more_classes_than_they_hold():
    logits = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    label = np.array([255, 0, 128])
    for dtype in (np.uint8, np.uint16, np.uint64):
        actual = vitjax.rank(logits, label.astype(dtype))
        np.testing.assert_array_equal(actual, vitjax.rank(logits, label))
    actual = vitjax.rank(logits, np.array([127, 0, 5], np.int8))
    np.testing.assert_array_equal(actual, vitjax.rank(logits, [127, 0, 5]))


ON_ARRAYS = (
    "apply_lens",
    "memory_coefficients",
    "similarity_change",
    "residual_composition",
    "Probe.scores",
)
ROWS = {
    name: row
    for name, row in test_composability.ROWS.items()
    if name.partition(":")[0] not in (*OF_IMAGES, *ON_ARRAYS)
    and row.inputs(test_composability.MODELS[row.models[0]])
    and "edited" not in row.call.__qualname__
}
"""Rows that hand their arrays on as they are."""


@pytest.mark.parametrize("name", ROWS)
def test_lists_are_accepted_where_arrays_are(name):
    row = ROWS[name]
    model = test_composability.MODELS[row.models[0]]
    arrays = row.inputs(model)
    # Inside the program, whose second compilation is read from the cache.
    expected, actual = (
        jax.jit(lambda model, each=each: row.call(model, *each))(model)
        for each in (arrays, [*map(np.ndarray.tolist, arrays)])
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5), actual, expected)


def edits_of(**fields):
    return vitjax.forward(MODEL, IMAGES, edits=vitjax.Edits(**fields))[0]


def test_edits_may_be_lists_and_name_patches_that_exist():
    kept = [True] * 5 + [False] * 11
    masked = edits_of(keep=[kept])
    np.testing.assert_allclose(edits_of(select=[[0, 1, 2, 3, 4]]), masked, atol=1e-5)
    for wrong in ([[-1]], [[16]], np.array([[3, -2]]), jnp.array([[-1]])):
        with pytest.raises(ValueError, match="select"):
            edits_of(select=wrong)
        with pytest.raises(ValueError, match="select"):
            edits = vitjax.select_tokens(wrong)
            vitjax.explain(MODEL, IMAGES, 1, edits=edits)
    logits = jax.jit(lambda which: edits_of(select=which))(np.array([[0, -1]]))
    assert np.isnan(logits).all()
    for name, wrong in (("keep", np.ones((1, 16))), ("select", np.ones((1, 3)))):
        with pytest.raises((ValueError, TypeError), match=f"{name}|float64"):
            edits_of(**{name: wrong})


def test_programs_are_shared_by_lists_and_arrays():
    vitjax.explain(MODEL, IMAGES, LABEL)
    programs = vitjax.explain._cache_size()
    for label in (LABEL.tolist(), LABEL.astype(np.int8), LABEL.astype(np.int64)):
        vitjax.explain(MODEL, IMAGES.tolist(), label)
    assert vitjax.explain._cache_size() == programs


def test_a_wrong_keyword_names_the_function():
    with pytest.raises(TypeError, match="rank: .*label"):
        vitjax.rank(LOGITS, labels=LABEL)
