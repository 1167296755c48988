"""What stands at every public function: arrays, images, class numbers, edits."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_api
import test_composability
import tiny
from test_composability import BATCH, MODELS

import vitjax

MODEL = tiny.make(tiny.CONFIGS["plain"])
IMAGES = tiny.images(MODEL.config)
LABEL = np.array([1, 4, 2], np.int32)
LOGITS = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
STATES = np.random.default_rng(2).normal(size=(3, 16)).astype(np.float32)


def agreement(model, calls, label):
    space, values = model.class_space, test_composability.mlp_values(model)
    code = {"k": 2, "convention": "vilas2023_code"}
    return vitjax.key_value_agreement(space, calls, values, label, **code)


AGREEMENT = test_composability.Row(agreement, "states token_labels")
ROWS = test_composability.ROWS | {"key_value_agreement: code": AGREEMENT}
OF_CLASSES = {  # class numbers that no other argument counts, or -1 allowed
    "residual_composition": lambda c: vitjax.residual_composition(
        c, before=LABEL, attention=LABEL, mlp=LABEL
    ),
    "fit_ridge_probe": lambda c: vitjax.fit_ridge_probe(STATES, c, classes=7),
    "fit_softmax_probe": lambda c: vitjax.fit_softmax_probe(
        STATES, c, classes=7, epochs=1
    ),
}
EXPLAINED = ("explain: relevancy", "explain: random", "explain: rollout")
"""Methods that are run: `explain` reads a target before any of them, and all refuse."""


def rows_with(*parameters):
    """The rows of functions that have one of these parameters."""
    of = {n: inspect.signature(f).parameters for n, f in test_api.FUNCTIONS.items()}
    names = {name for name in of if {*parameters} & {*of[name]}}
    rows = [name for name in ROWS if name.partition(":")[0] in names]
    assert {name.partition(":")[0] for name in rows} == names - {*OF_CLASSES}
    return rows


def is_run(name):
    return not name.startswith("explain:") or name in EXPLAINED


OF_IMAGES = [*filter(is_run, rows_with("images", "clean"))]
OF_LABELS = rows_with("label", "target", "predicted", "labels")


def as_function(name, index):
    """A row as a function of one of its arrays, and that array."""
    row = ROWS[name]
    model = MODELS[row.models[0]]
    arrays = row.inputs(model)

    def call(array):
        return row.call(model, *arrays[:index], array, *arrays[index + 1 :])

    return call, arrays[index]


def program(call, array):
    """What is compiled of a call, and its constants."""
    traced = jax.make_jaxpr(lambda: call(array))()
    return re.sub("0x[0-9a-f]+", "", str(traced.jaxpr)), traced.consts


def assert_same_program(call, arrays, expected):
    text, constants = program(call, expected)
    assert constants
    for array in arrays:
        actual, others = program(call, array)
        assert actual == text
        for left, right in zip(others, constants, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_images_that_are_no_normalized_pixels_are_refused(name):
    call, images = as_function(name, 0)
    shape = " ".join(map(str, images.shape[1:]))
    for dtype in (np.uint8, np.int64, bool):
        with pytest.raises(ValueError, match=r"model\.preprocess"):
            call((50 * images).astype(dtype))
        with pytest.raises(ValueError, match=r"model\.preprocess"):
            jax.eval_shape(call, jax.ShapeDtypeStruct(images.shape, jnp.uint8))
    for wrong in (images[0], images[:, :2], images[..., :1], images.swapaxes(1, 3)):
        with pytest.raises(ValueError, match=shape):
            call(wrong)
        with pytest.raises(ValueError, match=shape):
            jax.eval_shape(call, jax.ShapeDtypeStruct(wrong.shape, jnp.float32))


def test_pixels_that_look_unnormalized_are_told():
    with pytest.warns(UserWarning, match=r"255.*model\.preprocess"):
        vitjax.forward(MODEL, np.full(IMAGES.shape, 255.0, np.float32))
    with pytest.raises(ValueError, match="one shape"):
        vitjax.forward(MODEL, [IMAGES[0], IMAGES[1, :16]])


@pytest.mark.parametrize("name", OF_LABELS)
def test_numbers_that_are_no_class_are_refused(name):
    call, label = as_function(name, 1)
    for value in (-1, 7, 300):
        wrong = label.copy()
        wrong[3] = value
        for each in (value, wrong, jnp.asarray(wrong), wrong.tolist()):
            with pytest.raises(ValueError, match=f"={value} is out of range"):
                call(each)
    with pytest.raises(ValueError, match="broadcast|more axes"):
        call([0, 1])


@pytest.mark.parametrize("name", [*filter(is_run, OF_LABELS), *OF_CLASSES])
def test_class_numbers_are_integers_of_any_size(name):
    on_host = name in OF_CLASSES
    call, label = (OF_CLASSES[name], LABEL) if on_host else as_function(name, 1)
    for wrong in (label.astype(np.float32), label > 1, [0.5, 1.0, 2.0]):
        with pytest.raises(ValueError, match="integers"):
            call(wrong)
    wide, narrow = label.astype(np.int64), [label.astype(t) for t in ("uint8", "int8")]
    if not on_host:
        assert_same_program(call, narrow, label)
        assert_same_program(call, [label.tolist()], wide)
        return
    for each in (label.tolist(), wide, *narrow):
        jax.tree.map(np.testing.assert_array_equal, call(each), call(label))


@pytest.mark.parametrize("name", [*filter(is_run, OF_LABELS)])
def test_under_jit_no_class_is_nan_false_or_last(name):
    """One rule where values are not known; images of a class are as ever."""
    call, label = as_function(name, 1)
    wrong = label.copy()
    wrong[0], wrong[2] = -1, 7
    run = jax.jit(call)

    def check(actual, right):
        axis = actual.shape.index(BATCH)
        actual, right = (np.moveaxis(np.asarray(x), axis, 0) for x in (actual, right))
        for image in range(BATCH):
            if image not in (0, 2):
                np.testing.assert_allclose(actual[image], right[image], 1e-4, 1e-5)
                continue
            unknown = actual[image]
            if unknown.dtype == bool:
                assert not unknown.any()
            elif unknown.dtype == np.int32:
                assert (unknown == 6).all()
            elif name == "identifiability":
                np.testing.assert_allclose(unknown, 1 / 7, rtol=1e-6)
            else:
                assert np.isnan(unknown).all()

    jax.tree.map(check, run(wrong), run(label))


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
"""Rows that do not hand their arrays on as they are."""
LISTED = [
    name
    for name, row in ROWS.items()
    if is_run(name)
    and name not in ON_ARRAYS
    and row.inputs(MODELS[row.models[0]])
    and "edited" not in row.call.__qualname__
]


@pytest.mark.parametrize("name", LISTED)
def test_lists_are_accepted_where_arrays_are(name):
    row = ROWS[name]
    model = MODELS[row.models[0]]
    lists = [array.tolist() for array in row.inputs(model)]

    def call(arrays):
        if name != "scan_blocks":  # its labels are data of `read`
            return row.call(model, *arrays)
        return vitjax.scan_blocks(model, arrays[0], lambda *block: block[-1].residual)

    assert_same_program(call, [lists], [*map(np.asarray, lists)])


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


def test_a_wrong_keyword_names_the_function():
    with pytest.raises(TypeError, match="rank: .*label"):
        vitjax.rank(LOGITS, labels=LABEL)
