"""Edits of taps: against an independent network, and by what they must not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from numpy_vit import reference

import vitjax
from vitjax.types import FIELD_AXES, TRACE_FIELDS, Edits, TapEdit

FORWARD = jax.jit(lambda m, x, e: vitjax.forward(m, x, edits=e)[0])
TOL = dict(atol=1e-4, rtol=1e-4)


@functools.cache
def setting(name="plain"):
    model, *others = tiny.traced(name)
    images = tiny.images(model.config, seed=1)
    return model, *others, vitjax.forward(model, images, capture=TRACE_FIELDS)


def drawn(field, trace, rng):
    """An edit of every kind at once, of several broadcast shapes."""
    shape = list(getattr(trace, field).shape)
    draw = lambda *axes: rng.normal(  # noqa: E731
        size=[n if i in axes else 1 for i, n in enumerate(shape)]
    ).astype(np.float32)
    last = len(shape) - 1
    return TapEdit(
        scale=draw(0), add=draw(last), where=draw(1, 2) > 0.3, value=draw(0, last)
    )


# One tap at a time would compile twelve programs: halves of them suffice.
HALVES = TRACE_FIELDS[::2], TRACE_FIELDS[1::2]


@pytest.mark.parametrize(
    ("name", "fields"),
    (
        ("plain", HALVES[0]),
        ("plain", HALVES[1]),
        pytest.param("post_cls", HALVES[0], marks=pytest.mark.slow),
        ("pooled", HALVES[1]),
    ),
)
def test_an_edit_equals_the_same_edit_of_an_independent_network(name, fields):
    model, images, _, trace, _ = setting(name)
    rng = np.random.default_rng(0)
    taps = {field: drawn(field, trace, rng) for field in TRACE_FIELDS}

    def edit(field, layer, image, x):
        def at(values):
            index = (layer, image) if FIELD_AXES[field][0] == "layer" else (image,)
            for axis, number in enumerate(index):
                values = np.take(values, min(number, values.shape[axis] - 1), axis)[
                    (slice(None),) * axis + (None,)
                ]
            return values.reshape(values.shape[len(index) :])

        tap = taps[field]
        edited = at(tap.scale) * x + at(tap.add)
        return np.where(at(tap.where), at(tap.value), edited)

    edits = Edits(taps={field: taps[field] for field in fields})
    expected, _ = reference(
        model, images, lambda f, *a: edit(f, *a) if f in fields else a[-1]
    )
    logits, edited = vitjax.forward(model, images, capture=fields, edits=edits)
    np.testing.assert_allclose(logits, expected, **TOL)
    for field in fields:  # what is captured is edited
        tap = taps[field]
        kept, shown = np.broadcast_arrays(tap.where, getattr(edited, field))
        value = np.broadcast_to(tap.value, shown.shape)
        np.testing.assert_allclose(shown[kept], value[kept], atol=1e-6)


def test_patching_a_whole_residual_gives_the_other_run():
    model, images, logits, _, (other_logits, other) = setting("pooled")
    for layer in (0, -1):
        edits = vitjax.patch(model, other, "residual", layers=[layer])
        np.testing.assert_allclose(FORWARD(model, images, edits), other_logits, **TOL)
    none = np.zeros(model.config.tokens, bool)
    nothing = vitjax.patch(model, other, "residual", tokens=none)
    np.testing.assert_allclose(FORWARD(model, images, nothing), logits, atol=2e-6)
    zero = vitjax.steer(model, np.zeros(16, np.float32), layers=[1])
    np.testing.assert_allclose(FORWARD(model, images, zero), logits, atol=2e-6)


@pytest.mark.parametrize("name", ("post_cls", "pooled"))
def test_ablating_all_heads_removes_the_update_up_to_the_bias(name):
    """Replaced by what the projection's bias alone would write, it is the same."""
    model, images, *_ = setting(name)
    heads = vitjax.ablate(model, "mixed_values", layers=[1])
    ablated, trace = vitjax.forward(
        model, images, capture=("attention_update",), edits=heads
    )
    update = np.asarray(trace.attention_update)
    np.testing.assert_allclose(
        update[1], np.broadcast_to(update[1, :1, :1], update[1].shape), atol=1e-5
    )
    whole = vitjax.ablate(
        model, "attention_update", layers=[1], value=update[:, :1, :1]
    )
    np.testing.assert_allclose(FORWARD(model, images, whole), ablated, **TOL)


def test_sweeps_compile_one_program():
    model, images, *_ = setting()
    traces = []

    @jax.jit
    def sweep(heads, value):
        traces.append(heads.shape)

        def one(heads):
            edits = vitjax.ablate(model, "mixed_values", heads=heads, value=value)
            return vitjax.forward(model, images, edits=edits)[0]

        return jax.vmap(one)(heads)

    masks = np.eye(4, dtype=bool).reshape(4, 2, 2)
    swept = [sweep(masks, jnp.float32(value)) for value in (0, 1)]
    assert len(traces) == 1
    for (layer, head), logits in zip(np.ndindex(2, 2), swept[0]):
        edits = vitjax.ablate(model, "mixed_values", layers=[layer], heads=[head])
        np.testing.assert_allclose(FORWARD(model, images, edits), logits, atol=1e-5)
    assert np.abs(swept[1] - swept[0]).max() > 1e-3


def test_gradients_are_slopes():
    model, images, _, trace, _ = setting("post_cls")
    rng = np.random.default_rng(1)
    tap = drawn("mlp_update", trace, rng)

    @jax.jit
    def score(parts):
        edit = TapEdit(where=tap.where, **parts)
        edits = Edits(taps={"mlp_update": edit})
        return vitjax.forward(model, images, edits=edits)[0][:, 2].sum()

    parts = {"scale": tap.scale, "add": tap.add, "value": tap.value}
    gradients = jax.jit(jax.grad(score))(parts)
    for part, values in parts.items():
        step = 1e-2 * rng.normal(size=values.shape).astype(np.float32)
        up, down = (score({**parts, part: values + s * step}) for s in (1, -1))
        slope = float((gradients[part] * step).sum())
        assert abs((up - down) / 2 - slope) < 0.02 * abs(slope) + 2e-4, part


def test_taps_follow_a_selection_and_obey_keep():
    model, images, _, trace, _ = setting("registers")
    rng = np.random.default_rng(0)
    taps = {f: drawn(f, trace, rng) for f in ("embedding", "residual", "queries")}
    keep = np.stack([rng.permutation(16) < 9 for _ in range(3)])
    select = np.stack([np.flatnonzero(row) for row in keep]).astype(np.int32)
    masked = FORWARD(model, images, Edits(taps=taps, keep=keep))
    short = FORWARD(model, images, Edits(taps=taps, select=select))
    np.testing.assert_allclose(masked, short, **TOL)


def test_edits_of_one_field_compose_from_left_to_right():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    draw = lambda: rng.normal(size=(1, 3, 4)).astype(np.float32)  # noqa: E731
    kinds = [
        lambda: {"scale": draw()},
        lambda: {"add": draw()},
        lambda: {"value": draw()},
        lambda: {"value": 0.5, "where": draw() > 0},
        lambda: {"scale": 2.0, "add": draw(), "where": draw() > 0, "value": draw()},
    ]
    pairs = [(TapEdit(**one()), TapEdit(**two())) for one in kinds for two in kinds]

    @jax.jit
    def run(x):
        edits = [[Edits(taps={"embedding": tap}) for tap in pair] for pair in pairs]
        both = [(first & second).taps["embedding"](x) for first, second in edits]
        return both, [second(first(x)) for first, second in pairs]

    for actual, expected in zip(*run(x)):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_without_edits_the_program_is_the_plain_one():
    model, images, *_ = setting()
    plain, empty = (
        str(
            jax.make_jaxpr(lambda m, x, e=e: vitjax.forward(m, x, edits=e))(
                model, images
            )
        )
        for e in (None, Edits(taps={}))
    )
    assert plain == empty


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        (lambda m: vitjax.ablate(m, "mlp_hiden"), "mlp_hidden"),
        (lambda m: vitjax.ablate(m, "residual", heads=[0]), "mixed_values"),
        (lambda m: vitjax.ablate(m, "embedding", layers=[0]), "embedding"),
        (lambda m: vitjax.ablate(m, "values", heads=[2]), r"\[-2, 1\]"),
        (lambda m: vitjax.ablate(m, "values", layers=[2]), r"\[-2, 1\]"),
        (lambda m: vitjax.ablate(m, "values", heads=np.ones(3, bool)), r"\(2,\)"),
        (lambda m: vitjax.ablate(m, "values", tokens=np.ones(5, bool)), r"\(17,\)"),
        (lambda m: vitjax.patch(m, vitjax.Trace(), "values"), "capture"),
        (lambda m: vitjax.steer(m, np.ones((2, 16)), layers=[0]), r"\[dim\]"),
        (lambda m: vitjax.steer(m, np.ones(5, np.float32), layers=[0]), r"17, 16"),
        (lambda m: Edits(taps={"hidden": TapEdit(scale=2.0)}), "mlp_hidden"),
        (lambda m: Edits(taps={"values": TapEdit(value=np.ones((3, 1)))}), "2, 3, 17"),
        (lambda m: Edits(taps={"values": TapEdit(where=True)}), "value"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_the_right_one(edits, words):
    model, images, *_ = setting()
    with pytest.raises(ValueError, match=words):
        vitjax.forward(model, images, edits=edits(model))
