"""The public API: annotated, documented, and structs that JAX maps over."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

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


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_annotated_and_documented(name):
    signature, doc = inspect.signature(PUBLIC[name]), inspect.getdoc(PUBLIC[name])
    assert signature.return_annotation is not inspect.Signature.empty
    assert doc.splitlines()[0].endswith(".")
    assert "Returns:" in doc or signature.return_annotation is None
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        optional = parameter.default is not inspect.Parameter.empty
        if optional and parameter.name != "model":  # open_data(spec, model)
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


def test_memory_values_are_the_output_kernels():
    values, block = vitjax.memory_values(MODEL), MODEL.block_params
    out = block["MultiHeadDotProductAttention_0"]["out"]["kernel"]
    np.testing.assert_array_equal(values["attention"][1, 8 + 3], out[1, 1, 3])
    # Values times coefficients, plus the bias, are the update.
    _, trace = vitjax.forward(MODEL, IMAGES, capture=("mlp_hidden", "mlp_update"))
    update = trace.mlp_hidden @ values["mlp"][:, None]
    bias = block["MlpBlock_0"]["Dense_1"]["bias"][:, None, None]
    np.testing.assert_allclose(update + bias, trace.mlp_update, atol=1e-4)


def test_structs_are_pytrees_with_named_leaves():
    edits = Edits(keep=np.ones((1, 2), bool))
    ((path, _),) = jax.tree_util.tree_leaves_with_path(edits)
    assert jax.tree_util.keystr(path) == ".keep"
    assert jax.tree.structure(Trace()) == jax.tree.structure(Trace())


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
