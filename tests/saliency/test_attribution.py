"""Attribution to parts of the model: sums, formulas by hand, slopes, and edits."""

import dataclasses
import functools
import operator

import jax
import numpy as np
import pytest
import tiny

import vitjax
from vitjax.types import Edits, TapEdit

TARGET = np.array([1, 5, 2], np.int32)
ROWS = np.arange(3), TARGET
FIELDS = "attention_weights", "values", "mixed_values", "mlp_hidden", "residual"


def edits_of(kinds, model):
    rng, tokens = np.random.default_rng(0), model.config.tokens
    add = rng.normal(size=(2, 1, tokens, 1, 1)).astype(np.float32)
    taps = {
        "mixed_values": TapEdit(add=add),
        "residual": TapEdit(scale=0.9),
        "attention_update": TapEdit(where=add[..., 0] > 0, value=0.5),
        "mlp_preactivation": TapEdit(scale=0.5, add=add[..., 0]),
        "embedding": TapEdit(scale=1.1),
    }
    every = {
        "keep": Edits(keep=rng.random((3, model.config.patches)) < 0.6),
        "select": Edits(select=np.array([[3, 1, 8]])),
        "taps": Edits(taps=taps),
    }
    return functools.reduce(operator.and_, map(every.get, kinds))


@pytest.mark.parametrize(
    ("name", "kinds"), (("plain", ("select", "taps")), ("pooled", ("keep", "taps")))
)
def test_contributions_under_edits_add_up_to_the_logit(name, kinds):
    model, images, *_ = tiny.traced(name)
    edits = edits_of(kinds, model)
    parts = vitjax.logit_attribution(model, images, TARGET, edits=edits)
    logits = np.asarray(vitjax.forward(model, images, edits=edits)[0])
    atol = 1e-4 * np.abs(logits).max()
    np.testing.assert_allclose(tiny.total(parts), logits[ROWS], atol=atol)


@pytest.mark.parametrize("name", ("plain", "post_cls"))
def test_a_part_contributes_what_it_writes(name):
    """By hand: one source token of a head, and one neuron, through all that follows."""
    model, images, logits, trace = tiny.traced(name)
    parts = vitjax.logit_attribution(model, images, TARGET, neurons=True)
    wholes = {key: x for key, x in parts.items() if key != "neurons"}
    atol = 1e-4 * np.abs(logits).max()
    np.testing.assert_allclose(tiny.total(wholes), logits[ROWS], atol=atol)
    block = jax.tree.map(lambda leaf: np.asarray(leaf[1], float), model.block_params)
    out = block["MultiHeadDotProductAttention_0"]["out"]
    dense, config = block["MlpBlock_0"]["Dense_1"], model.config
    weights, values, mixed, hidden, residual = (
        np.asarray(getattr(trace, field)[1], float) for field in FIELDS
    )
    from_token = weights[:, 1, 0, 7, None] * values[:, 7, 1] @ out["kernel"][1]
    of_neuron = hidden[:, 0, 5, None] * dense["kernel"][5]
    wholes = (
        np.einsum("bhk,hkd->bd", mixed[:, 0], out["kernel"]) + out["bias"],
        hidden[:, 0] @ dense["kernel"] + dense["bias"],
    )
    space, rows = model.class_space, np.asarray(model.class_space.embedding)[TARGET]
    sigma = np.sqrt(residual[:, 0].var(-1) + config.epsilon)
    actual = parts["attention"][1, :, 1, 7], parts["neurons"][1, :, 5]
    for index, u in enumerate((from_token, of_neuron)):
        if config.norm == "residual_post":
            u = (u - u.mean(-1, keepdims=True)) * block[f"LayerNorm_{index}"]["scale"]
            u /= np.sqrt(wholes[index].var(-1, keepdims=True) + config.epsilon)
        if config.layer_scale:
            u = u * block[f"LayerScale_{index}"]["gamma"]
        centered = (u - u.mean(-1, keepdims=True)) * np.asarray(space.norm_scale)
        expected = (rows * centered).sum(-1) / sigma
        np.testing.assert_allclose(actual[index], expected, atol=1e-5)


def test_attribution_patching_is_the_slope_of_patching():
    model, images, _, clean = tiny.traced("pooled")
    rng = np.random.default_rng(0)
    noise = 1e-2 * rng.normal(size=images.shape).astype(np.float32)
    fields = ("embedding", "residual", "mixed_values", "attention_scores", "mlp_hidden")
    metric = lambda logits: logits[:, 1] - logits[:, 4]  # noqa: E731
    attribute = jax.jit(
        functools.partial(vitjax.attribution_patching, metric=metric, fields=fields)
    )
    effects = attribute(model, images, images + noise)
    choices = {
        "embedding": {"tokens": [3]},
        "residual": {"layers": [0], "tokens": [2]},
        "mixed_values": {"layers": [1], "heads": [1]},
        "attention_scores": {"layers": [0], "heads": [0]},
        "mlp_hidden": {"layers": [0], "neurons": [5]},
    }
    select = {
        "embedding": np.s_[:, 3],
        "residual": np.s_[0, :, 2],
        "mixed_values": np.s_[1, :, :, 1],
        "attention_scores": np.s_[0, :, 0],
        "mlp_hidden": np.s_[0, :, :, 5],
    }
    patches = {f: vitjax.patch(model, clean, f, **choices[f]).taps[f] for f in choices}

    @jax.jit
    @jax.vmap
    def patched(chosen):  # one field at a time, or none
        taps = {
            f: dataclasses.replace(tap, where=tap.where & chosen[i])
            for i, (f, tap) in enumerate(patches.items())
        }
        edits = Edits(taps=taps)
        return metric(vitjax.forward(model, images + noise, edits=edits)[0])

    *after, before = patched(np.eye(6, 5, dtype=bool))
    for field, score in zip(choices, after):
        effect = np.asarray(effects[field][select[field]]).reshape(3, -1).sum(1)
        np.testing.assert_allclose(effect, score - before, rtol=0.1, atol=3e-5)
    assert effects["mixed_values"].shape == (2, 3, model.config.tokens, 2)
    with pytest.raises(ValueError, match="residual"):
        vitjax.attribution_patching(model, images, images, metric, fields=("resid",))


@pytest.mark.parametrize(
    ("name", "of"),
    (
        pytest.param("plain", "attention_update", marks=pytest.mark.slow),
        ("pooled", "residual"),
    ),
)
def test_relevancy_obeys_edits_of_taps(name, of):
    """The gradient of an edited block's own loss, by zeros added to its weights."""
    model, images, *_ = tiny.traced(name)
    edits = edits_of(("taps",), model)
    relevancy = vitjax.relevancy(
        model, images, TARGET, of=of, loss="negative_logit", edits=edits
    )
    config, last = model.config, model.config.depth - 1

    @jax.jit
    @jax.grad
    def slope(add):
        more = Edits(taps={"attention_weights": TapEdit(add=add)})
        _, trace = vitjax.forward(model, images, capture=(of,), edits=edits & more)
        state = getattr(trace, of)[last]
        prefix = config.prefix
        pooled = state[:, 0] if config.class_token else state[:, prefix:].mean(1)
        return model.class_space.logits(pooled)[np.arange(3), TARGET].sum()

    shape = (2, 3, 2, config.tokens, config.tokens)
    gradient = np.asarray(slope(np.zeros(shape, np.float32)))[last].sum(2)
    np.testing.assert_allclose(relevancy[last], gradient, atol=1e-4)
