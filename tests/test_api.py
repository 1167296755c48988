"""The public API: annotated, documented, at home in jit and vmap."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import vitjax
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


def test_all_is_what_there_is():
    shown = {
        name
        for name, thing in vars(vitjax).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    }
    assert shown == set(vitjax.__all__) - {"__version__"}
    assert len(vitjax.__all__) == len(set(vitjax.__all__))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_annotated_and_documented(name):
    function = FUNCTIONS[name]
    signature, doc = inspect.signature(function), inspect.getdoc(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        if parameter.default is not inspect.Parameter.empty:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter
    assert doc.splitlines()[0].endswith(".")
    assert "Returns:" in doc or signature.return_annotation is None
    if signature.parameters:
        assert "Args:" in doc
        for parameter in signature.parameters:
            assert f"{parameter}:" in doc or f"{parameter}," in doc, parameter


@pytest.mark.parametrize("name", STRUCTS)
def test_classes_are_documented(name):
    doc = inspect.getdoc(STRUCTS[name])
    assert doc
    assert "Args:" in doc


MODEL = tiny.make(tiny.CONFIGS["plain"])
REFINED = tiny.make(tiny.CONFIGS["refinement"])
IMAGES = tiny.images(MODEL.config)
LABEL = np.array([1, 2, 3], np.int32)
STATES = np.random.default_rng(0).normal(size=(3, 17, 16)).astype(np.float32)
LOGITS = np.random.default_rng(0).normal(size=(3, 17, 7)).astype(np.float32)
MEMORIES = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)


def read(params, stream_in, trace):
    return trace.residual.mean()


def total(logits):
    return logits.sum()


CALLS = {
    "forward": lambda x: vitjax.forward(MODEL, x, capture=("residual",))[0],
    "scan_blocks": lambda x: vitjax.scan_blocks(MODEL, x, read),
    "relevancy": lambda x: vitjax.relevancy(MODEL, x, LABEL),
    "helpful_minus_attended": lambda x: vitjax.helpful_minus_attended(MODEL, x, LABEL),
    "explain": lambda x: vitjax.explain(MODEL, x, LABEL, method="legrad"),
    "removal_curve": lambda x: vitjax.removal_curve(
        MODEL, IMAGES, LABEL, x, keep_counts=(3, 5)
    ),
    "area_under_curve": lambda x: vitjax.area_under_curve(
        x, tuple(range(17)), tokens=16
    ),
    "localisation": lambda x: vitjax.localisation(x, x > 0),
    "refinement_logits": lambda x: vitjax.refinement_logits(REFINED, x),
    "attention_gradients": lambda x: vitjax.attention_gradients(MODEL, x, total),
    "project": lambda x: vitjax.project(MODEL.class_space, x),
    "rank": lambda x: vitjax.rank(x, LABEL[:, None]),
    "identifiability": lambda x: vitjax.identifiability(x, LABEL[:, None]),
    "top_k": lambda x: vitjax.top_k(x, k=2),
    "similarity_change": lambda x: vitjax.similarity_change(x, x[::-1], LABEL[:, None]),
    "residual_composition": lambda x: vitjax.residual_composition(
        x, before=x[::-1], attention=x, mlp=x[::-1]
    ),
    "memory_coefficients": lambda x: vitjax.memory_coefficients(
        Trace(mixed_values=x.reshape(3, 17, 2, 8), mlp_hidden=x)
    ),
    "memory_classes": lambda x: vitjax.memory_classes(MODEL.class_space, x),
    "class_value_agreement": lambda x: vitjax.class_value_agreement(
        MODEL.class_space, x
    ),
    "key_value_agreement": lambda x: vitjax.key_value_agreement(
        MODEL.class_space, x, MEMORIES, LABEL[:, None]
    ),
    "compositionality": lambda x: vitjax.compositionality(
        MODEL.class_space, x, MEMORIES, LABEL[:, None]
    ),
    "keep_tokens": lambda x: vitjax.forward(MODEL, IMAGES, edits=vitjax.keep_tokens(x))[
        0
    ],
    "select_tokens": lambda x: vitjax.forward(
        MODEL, IMAGES, edits=vitjax.select_tokens(x)
    )[0],
}
INPUTS = {
    **dict.fromkeys(("forward", "scan_blocks", "attention_gradients"), IMAGES),
    **dict.fromkeys(("refinement_logits", "relevancy"), IMAGES),
    **dict.fromkeys(("helpful_minus_attended", "explain"), IMAGES),
    **dict.fromkeys(("removal_curve", "localisation"), LOGITS[:, :16, 0]),
    "area_under_curve": LOGITS[:, :, 0],
    "project": STATES,
    **dict.fromkeys(("rank", "identifiability", "top_k"), LOGITS),
    "similarity_change": LOGITS,
    "residual_composition": np.arange(51, dtype=np.int32).reshape(3, 17) % 7,
    **dict.fromkeys(("memory_coefficients", "memory_classes"), STATES),
    **dict.fromkeys(("class_value_agreement",), STATES),
    **dict.fromkeys(("key_value_agreement", "compositionality"), STATES),
    "keep_tokens": np.arange(48).reshape(3, 16) % 5 < 3,
    "select_tokens": np.arange(24, dtype=np.int32).reshape(3, 8) % 16,
}
HOST = {
    *("memory_values", "self_only", "no_cls", "load", "init", "save", "list_models"),
    *("run", "open_results", "fit_ridge_probe", "fit_softmax_probe"),
}
"""Functions of no array, those that read or write files, and those that solve or train
on the host."""


COSTLY = ("attention_gradients", "removal_curve", "helpful_minus_attended", "explain")
VMAPPED = [
    pytest.param(name, marks=pytest.mark.slow) if name in COSTLY else name
    for name in CALLS
]


def test_every_function_is_called_here():
    assert set(CALLS) | HOST == set(FUNCTIONS)


@pytest.mark.parametrize("name", CALLS)
def test_under_an_outer_jit_without_retracing(name):
    traces, call = [], CALLS[name]

    def counted(x):
        traces.append(x.shape)
        return call(x)

    run = jax.jit(counted)
    plain = call(INPUTS[name])
    for _ in range(2):
        jitted = run(INPUTS[name])
    assert len(traces) == 1
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)  # noqa: E731
    jax.tree.map(close, plain, jitted)


@pytest.mark.parametrize("name", VMAPPED)
def test_vmap_equals_a_loop(name):
    x = INPUTS[name]
    stacked = np.stack([x, np.roll(x, 1, axis=0)])
    mapped = jax.jit(jax.vmap(CALLS[name]))(stacked)
    loop = jax.tree.map(lambda *xs: jnp.stack(xs), *map(CALLS[name], stacked))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)  # noqa: E731
    jax.tree.map(close, mapped, loop)


def test_models_of_one_architecture_share_a_program():
    from vitjax.models.model import Provenance

    run = jax.jit(lambda model, x: vitjax.forward(model, x)[0])
    for seed in range(2):
        other = tiny.make(tiny.CONFIGS["plain"], seed=seed)
        run(other.replace(provenance=Provenance(name=str(seed))), IMAGES)
    assert run._cache_size() == 1


def test_memory_values_are_the_output_kernels():
    values = vitjax.memory_values(MODEL)
    block = MODEL.block_params
    out = block["MultiHeadDotProductAttention_0"]["out"]["kernel"]
    np.testing.assert_array_equal(values["attention"][1, 8 + 3], out[1, 1, 3])
    np.testing.assert_array_equal(
        values["mlp"], block["MlpBlock_0"]["Dense_1"]["kernel"]
    )
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


def test_configs_are_hashable_and_equal_by_value():
    shape = dict(image_size=32, patch_size=8, dim=16, depth=2, heads=2, mlp_dim=24)
    assert len({Config(**shape), Config(**shape), Config(**shape, gelu="tanh")}) == 2
