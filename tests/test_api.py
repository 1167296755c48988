"""The public API: annotated, documented, and structs that JAX maps over."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from numpy_vit import layer_norm

import vitjax
from vitjax import messages
from vitjax.models.model import Provenance
from vitjax.types import Config, Edits, Trace, pytree, static

PUBLIC = {name: getattr(vitjax, name) for name in vitjax.__all__}
FUNCTIONS = {
    name: thing
    for name, thing in PUBLIC.items()
    if callable(thing) and not inspect.isclass(thing)
}
STRUCTS = {
    name: thing
    for name, thing in PUBLIC.items()
    if inspect.isclass(thing) and not issubclass(thing, Exception)
}
MODEL = tiny.make(tiny.CONFIGS["plain"])
IMAGES = tiny.images(MODEL.config)


def test_all_is_what_there_is():
    shown = {
        name
        for name, thing in vars(vitjax).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    }
    shown |= set(vitjax.LAZY)
    helpers = {"Any", "LAZY", "TYPE_CHECKING"}
    assert shown - helpers == set(vitjax.__all__) - {"__version__"}
    assert len(vitjax.__all__) == len(set(vitjax.__all__))
    by_topic = re.findall(r"`(\w+)`", vitjax.__doc__)
    assert ["__version__", *by_topic] == vitjax.__all__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_annotated_and_documented(name):
    signature, doc = inspect.signature(PUBLIC[name]), inspect.getdoc(PUBLIC[name])
    assert signature.return_annotation is not inspect.Signature.empty
    assert doc.splitlines()[0].endswith(".")
    assert "Returns:" in doc or signature.return_annotation is None
    assert "Example:" in doc
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        optional = parameter.default is not inspect.Parameter.empty
        if optional and (name, parameter.name) != ("open_data", "model"):
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter
        documented = doc.partition("Args:")[2]
        assert any(f"{parameter.name}{c}" in documented for c in ":,"), parameter


@pytest.mark.parametrize("name", STRUCTS)
def test_classes_are_documented(name):
    assert "Args:" in inspect.getdoc(STRUCTS[name])


def test_models_of_one_architecture_share_a_program():
    run = jax.jit(lambda model, x: vitjax.forward(model, x)[0])
    for seed in range(3):
        other = tiny.make(tiny.CONFIGS["plain"], seed=seed)
        run(other.replace(provenance=Provenance(name=str(seed))), IMAGES)
    assert run._cache_size() == 1


@pytest.mark.parametrize("name", ("plain", "layer_scale", "gap", "post_cls"))
def test_memories_times_coefficients_are_the_update(name):
    """With the bias, LayerScale in it; before the norm of a post-norm block."""
    model, _, _, trace = tiny.traced(name)
    values, block, coefficients = jax.device_get(
        (
            vitjax.memory_values(model),
            model.block_params,
            vitjax.memory_coefficients(trace),
        )
    )
    block = jax.tree.map(lambda x: x[:, None, None], block)
    out = block["MultiHeadDotProductAttention_0"]["out"]
    layers = {"attention": out, "mlp": block["MlpBlock_0"]["Dense_1"]}
    for index, (system, layer) in enumerate(layers.items()):
        actual = coefficients[system] @ values[system][:, None]
        gamma = 1.0
        if model.config.layer_scale:
            gamma = block[f"LayerScale_{index}"]["gamma"]
        if model.config.norm == "residual_post":
            norm, epsilon = block[f"LayerNorm_{index}"], model.config.epsilon
            actual = layer_norm(actual + layer["bias"], norm, epsilon) * gamma
        else:
            actual = actual + layer["bias"] * gamma
        np.testing.assert_allclose(
            actual, getattr(trace, f"{system}_update"), atol=1e-4
        )
    np.testing.assert_array_equal(
        vitjax.memory_values(MODEL)["attention"][1, 8 + 3],
        MODEL.block_params["MultiHeadDotProductAttention_0"]["out"]["kernel"][1, 1, 3],
    )


def test_structs_are_pytrees_with_named_leaves():
    edits = Edits(keep=np.ones((1, 2), bool))
    ((path, _),) = jax.tree_util.tree_leaves_with_path(edits)
    assert jax.tree_util.keystr(path) == ".keep"
    assert jax.tree.structure(Trace()) == jax.tree.structure(Trace())


def test_reprs_are_short_and_show_shapes():
    *_, trace = tiny.traced("plain")
    trace = Trace(residual=jnp.asarray(trace.residual), keys=jnp.asarray(trace.keys))
    edits = vitjax.ablate(MODEL, "mlp_hidden", layers=[0]) & vitjax.no_cls(MODEL)
    for thing, *words in (
        (MODEL, "parameters", "patches", "heads", MODEL.classes[0]),
        (trace, "residual=float32[layer", "keys=float32[layer"),
        (edits, "taps", "scale="),
        (MODEL.class_space, "embedding=", "epsilon"),
        (tiny.batch_of(IMAGES, [1, 2, 3]), "images=float32[3, "),
    ):
        shown = repr(thing)
        assert len(shown) < 900 and len(shown.splitlines()) < 12
        assert all(word in shown for word in words), shown
    assert "None" not in repr(trace)
    # Also of tracers.
    assert jax.eval_shape(lambda *x: len(repr(x)) > 1 and x, MODEL, trace) is not None


def test_pytree_keeps_static_fields_out_of_the_leaves():
    @pytree
    class Pair:
        value: jax.Array
        name: str = static(default="a")

    pair = Pair(value=jnp.ones(2), name="b")
    assert len(jax.tree.leaves(pair)) == 1
    doubled = jax.tree.map(lambda x: 2 * x, pair)
    assert (doubled.name, float(doubled.value[0])) == ("b", 2.0)
    with pytest.raises(AttributeError):
        pair.name = "c"  # pyright: ignore


def test_the_former_name_of_patch_labels_reads_them():
    batch = tiny.batch_of(IMAGES, [1, 2, 3])
    assert batch.token_class is None
    marked = dataclasses.replace(batch, patch_label=np.ones((3, 16), np.int8))
    assert marked.token_class is marked.patch_label


def test_configs_are_hashable_and_equal_by_value():
    shape = tiny.SHAPE
    assert len({Config(**shape), Config(**shape), Config(**shape, gelu="tanh")}) == 2


@pytest.mark.parametrize(
    ("change", "value"),
    (
        ({"image_size": 33}, "33"),
        ({"heads": 3}, "heads 3"),
        ({"norm": "post"}, "post"),
        ({"depth": 0}, "depth=0"),
        ({"refinement": True, "depth": 1}, "depth=1"),
        ({"pool": "cls", "class_token": False}, "'cls'"),
        ({"head_blocks": 2}, "head_blocks=2"),
        ({"pool": "cls_mean", "head_blocks": 3}, "head_blocks=3"),
        ({"pool": "cls_mean", "projection": 4}, "cls_mean"),
        ({"pool": "max"}, "max"),
    ),
)
def test_configs_that_do_not_fit_are_refused(change, value):
    with pytest.raises((ValueError, TypeError), match=value):
        Config(**tiny.SHAPE | change)


def test_configs_count_their_tokens():
    config = tiny.CONFIGS["registers"]
    counts = config.prefix, config.grid, config.patches, config.tokens
    assert counts == (4, (4, 4), 16, 20)
    assert tiny.CONFIGS["wide"].grid == (2, 5)
    assert Config.from_dict(vars(config)) == config


def test_messages_name_the_value_and_what_is_known():
    message = messages.unknown("method", "chefr", ("chefer", "lrp"))
    assert message == (
        "method='chefr' is not one of chefer, lrp. Did you mean 'chefer'?"
    )
    assert "mean" not in messages.unknown("method", "x", ("chefer",))
    assert messages.out_of_range("steps", 0, 1) == "steps=0 is out of range [1, inf)."
    with pytest.raises(ValueError, match=r"layers=\(0, 12\) is out of range \[-12, 11"):
        messages.check_range("layers", (0, 12), -12, 11)
    with pytest.raises(ValueError, match="gamma=nan"):
        messages.check_range("gamma", float("nan"), 0)
