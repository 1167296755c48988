"""Every public function inside jit, vmap and grad, and over several devices.

One table: a row for each function and each explanation method, a column for each way
to compose it. The columns are the tests; all but a few rows are slow.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_api
import text_towers
import tiny
from jax.sharding import NamedSharding, PartitionSpec

import vitjax
from vitjax.runner.mesh import make_mesh
from vitjax.saliency.methods import METHODS
from vitjax.types import BLOCK_FIELDS, Config, Trace

BATCH = 12
"""On four devices three each; no other axis of these models is as long."""

NAMES = tuple("abcdefghijkl")
SHAPE = dict(image_size=4, patch_size=2, dim=8, depth=2, heads=2, mlp_dim=8)
MODELS = {
    "cls": tiny.make(Config(**SHAPE)),
    "mean": tiny.make(Config(**SHAPE, class_token=False, registers=1)),
    "text": text_towers.make(text_towers.CONFIGS["clip"]),
    "refined": tiny.make(Config(**SHAPE | {"image_size": 8}, refinement=True)),
    "map": tiny.make(Config(**SHAPE, class_token=False, pool="map", head="cosine")),
    "two": tiny.make(Config(**SHAPE, registers=1, pool="cls_mean", head_blocks=2)),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One function as a function of a model and arrays."""

    call: Callable[..., Any]  # (model, *arrays) -> pytree
    names: str  # of INPUTS
    steps: str = ""  # why it is flat, or gives truths or numbers of classes
    models: tuple[str, ...] = ("cls", "mean")
    batched: bool = True  # False where the arrays are weights, and not of images
    tolerance: float = 1e-4  # of the largest entry

    def inputs(self, model):
        return tuple(INPUTS[name](model.config) for name in self.names.split())


def draw(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def numbers(size, *shape):
    return np.random.default_rng(7).integers(size, size=shape).astype(np.int32)


INPUTS = {
    "images": lambda c: tiny.images(c, BATCH),
    "others": lambda c: tiny.images(c, BATCH, seed=1),
    "ids": lambda c: text_towers.draw_ids(c, BATCH),
    "label": lambda c: numbers(7, BATCH),
    "labels": lambda c: numbers(7, BATCH, 1),
    "token_labels": lambda c: numbers(7, BATCH, c.tokens),
    "layer_classes": lambda c: numbers(7, BATCH, 5),
    "which": lambda c: numbers(4, BATCH, 3),
    "states": lambda c: draw(BATCH, c.tokens, 8),
    "logits": lambda c: draw(BATCH, c.tokens, 7),
    "curve": lambda c: draw(BATCH, 5),
    "map": lambda c: draw(BATCH, c.patches),
    "mask": lambda c: numbers(2, BATCH, c.patches) > 0,
    "rows": lambda c: draw(BATCH, 8),
    "probes": lambda c: draw(7, 8)[None].repeat(BATCH, 0),
    "values": lambda c: draw(c.depth, c.mlp_dim, 8),
    "factors": lambda c: draw(c.depth, c.mlp_dim),
    "lens": lambda c: draw(c.depth, 8, 8),
    "key": lambda c: draw(c.mlp_dim),
    "value": lambda c: draw(8),
    "unused": lambda c: draw(1),
}
"""Name -> its array for a model's config; batch first, except for weights."""


def read(params, stream_in, trace, label):
    return trace.residual.mean(-1) * label[:, None], trace.attention_weights


def mlp_values(model):
    return vitjax.memory_values(model)["mlp"][0]


def explained(method):
    call = lambda m, x, target: vitjax.explain(m, x, target, method=method)  # noqa: E731
    known = dict.fromkeys(("consensus", "quick_consensus"), "means of ranks")
    known |= {"random": "drawn from the image's bits"}
    # Chefer's LRP divides by sums that nearly cancel.
    tolerance = 5e-4 if method == "lrp" else 1e-4
    # Those do not see how the model pools, or only through members of this table.
    models = ("cls",) if method in known else ("cls", "mean")
    steps = known.get(method, "")
    return Row(call, "images label", steps, models, tolerance=tolerance)


def edited(make, inputs="images", **options):
    """Logits under the edits that a builder makes of the model and arrays."""

    def call(model, images, *arrays):
        return vitjax.forward(model, images, edits=make(model, *arrays))[0]

    return Row(call, inputs, **options)


ROWS = {
    "forward": Row(
        lambda m, x: vitjax.forward(m, x, capture=("embedding", *BLOCK_FIELDS)),
        "images",
    ),
    "scan_blocks": Row(
        lambda m, x, t: vitjax.scan_blocks(m, x, read, args=t.astype(x.dtype)),
        "images label",
    ),
    "relevancy": Row(
        lambda m, x, t: vitjax.relevancy(m, x, t, query="all", of="attention_update"),
        "images label",
    ),
    "encode_image": Row(vitjax.encode_image, "images", models=("map", "two")),
    "helpful_minus_attended": Row(vitjax.helpful_minus_attended, "images label"),
    "removal_curve": Row(
        lambda m, x, t, i: vitjax.removal_curve(m, x, t, i, keep_counts=(1, 3)),
        "images label map",
        "right or wrong",
    ),
    "attention_gradients": Row(
        lambda m, x: vitjax.attention_gradients(m, x, lambda z: (z**2).sum()), "images"
    ),
    "logit_attribution": Row(
        vitjax.logit_attribution, "images label", models=("cls", "mean", "map", "two")
    ),
    "attribution_patching": Row(
        lambda m, x, y: vitjax.attribution_patching(m, x, y, lambda z: (z**2).sum(-1)),
        "images others",
    ),
    "ablate": edited(
        lambda m, v: vitjax.ablate(m, "mlp_update", tokens=[2], value=v[None]),
        "images states",
    ),
    "patch": edited(
        lambda m, v: vitjax.patch(m, Trace(residual=v[None]), "residual", layers=[0]),
        "images states",
    ),
    "steer": edited(
        lambda m, v: vitjax.steer(m, v[None, :, 1:2], layers=[-1]), "images states"
    ),
    "encode_text": Row(vitjax.encode_text, "ids", models=("text",)),
    "refinement_logits": Row(vitjax.refinement_logits, "images", models=("refined",)),
    "self_only": edited(lambda m: vitjax.self_only(m, layers=(1,), renormalize=True)),
    "no_cls": edited(lambda m: vitjax.no_cls(m, heads=(0,)), models=("cls",)),
    "keep_tokens": edited(lambda m, keep: vitjax.keep_tokens(keep), "images mask"),
    "select_tokens": edited(
        lambda m, which: vitjax.select_tokens(which), "images which"
    ),
    "memory_values": Row(vitjax.memory_values, "", batched=False),
    "memory_classes": Row(
        lambda m, v: vitjax.memory_classes(m.class_space, v),
        "states",
        "numbers of classes and memories",
        batched=False,
    ),
    "class_value_agreement": Row(
        lambda m, v: vitjax.class_value_agreement(m.class_space, v),
        "states",
        batched=False,
    ),
    "memory_coefficients": Row(
        lambda m, x: vitjax.memory_coefficients(
            Trace(mixed_values=x.reshape(*x.shape[:-1], 2, 4), mlp_hidden=x)
        ),
        "states",
    ),
    "key_value_agreement": Row(
        lambda m, x, label: vitjax.key_value_agreement(
            m.class_space, x, mlp_values(m), label, k=2
        ),
        "states token_labels",
        "true or false",
    ),
    "compositionality": Row(
        lambda m, x, top: vitjax.compositionality(
            m.class_space, x, mlp_values(m), top, k=2
        ),
        "states token_labels",
        "true or false",
    ),
    "project": Row(lambda m, x: vitjax.project(m.class_space, x), "states"),
    "project_tokens": Row(vitjax.project_tokens, "states", models=("map", "two")),
    "zero_shot": Row(
        lambda m, x: vitjax.zero_shot(m, x, classes=NAMES).class_space.embedding,
        "rows",
        models=("map",),
        batched=False,
    ),
    "with_memory_values": Row(
        lambda m, v: vitjax.memory_values(vitjax.with_memory_values(m, {"mlp": v})),
        "values",
        batched=False,
    ),
    "scale_memories": Row(
        lambda m, f: vitjax.scale_memories(m, "mlp", f).params, "factors", batched=False
    ),
    "remove_class": Row(
        lambda m, _: vitjax.remove_class(m, 2).params, "unused", batched=False
    ),
    "rank_one_edit": Row(
        lambda m, k, v: vitjax.rank_one_edit(m, layer=0, key=k, value=v).params,
        "key value",
        batched=False,
    ),
    "apply_lens": Row(
        lambda m, x, w: vitjax.apply_lens(
            vitjax.TunedLens(weights=w, bias=w[..., 0]), jnp.stack([x] * len(w))
        ),
        "states lens",
        batched=False,
    ),
    "rank": Row(lambda m, z, c: vitjax.rank(z, c), "logits labels", "counts classes"),
    "identifiability": Row(
        lambda m, z, label: vitjax.identifiability(z, label),
        "logits labels",
        "counts classes",
    ),
    "top_k": Row(lambda m, z: vitjax.top_k(z, k=3), "logits"),
    "similarity_change": Row(
        lambda m, z, label: vitjax.similarity_change(z, -z, label),
        "logits labels",
        "true or false",
    ),
    "residual_composition": Row(
        lambda m, top: vitjax.residual_composition(
            top, before=(top + 1) % 3, attention=top % 2, mlp=top % 3
        ),
        "layer_classes",
        "true or false",
    ),
    "area_under_curve": Row(
        lambda m, x: vitjax.area_under_curve(x, (0, 1, 2, 3, 4), tokens=4), "curve"
    ),
    "localisation": Row(
        lambda m, x, mask: vitjax.localisation(x, mask), "map mask", "counts patches"
    ),
    "Probe.scores": Row(
        lambda m, x, w: vitjax.Probe(
            weights=w[0], bias=w[0, :, 0], centre=w[0, 0]
        ).scores(x),
        "rows probes",
    ),
    **{f"explain: {method}": explained(method) for method in METHODS},
}

HOST = {
    **dict.fromkeys(
        ("load", "load_text", "save", "open_data", "open_results"), "files"
    ),
    **dict.fromkeys(("init", "list_models"), "takes no array"),
    "with_head": "float64 on the host",
    "fit_tuned_lens": "a loop over a data set, which jits its own step",
    "show": "a figure",
    "class_embeddings": "takes texts",
    "run": "a loop over a data set, which jits its own step",
    **dict.fromkeys(("figures", "tables", "explorer", "write_report"), "rows on disk"),
    **dict.fromkeys(("fit_ridge_probe", "fit_softmax_probe"), "float64 on the host"),
}
"""Functions that nothing can be composed with, and why."""

CHEAP = (
    "forward",
    "explain: relevancy",
    "project",
    "rank",
    "memory_coefficients",
    "key_value_agreement",
    "similarity_change",
    "residual_composition",
    "area_under_curve",
    "localisation",
    "Probe.scores",
)


def cells(shift=0):
    """Every row with one of its models in turn, with another by another shift."""
    parameters = []
    for number, (name, row) in enumerate(ROWS.items()):
        cheap = name in CHEAP
        kind = row.models[0 if cheap else (number + shift) % len(row.models)]
        marks = () if cheap else pytest.mark.slow
        parameters.append(pytest.param(name, kind, id=f"{name}-{kind}", marks=marks))
    return parameters


def test_nothing_public_is_missing_from_the_table():
    named = {name.partition(":")[0].partition(".")[0] for name in ROWS}
    assert (named - {"Probe"}) | set(HOST) == set(test_api.FUNCTIONS)
    assert {f"explain: {name}" for name in METHODS} < set(ROWS)


def assert_close(actual, expected, row):
    def close(left, right):
        right = np.asarray(right)
        top = np.abs(right).max() if right.dtype.kind == "f" else 0
        np.testing.assert_allclose(left, right, rtol=0, atol=row.tolerance * top)

    jax.tree.map(close, actual, expected)


@pytest.mark.parametrize(("name", "kind"), cells())
def test_vmap_in_the_users_jit_over_devices_is_a_loop(name, kind):
    """Two sets of arrays side by side, of each a part on every device: the numbers are
    those of plain calls, each device keeps its part, and nothing is retraced.
    """
    row, model = ROWS[name], MODELS[kind]
    arrays, traces = row.inputs(model), []

    def counted(*arguments):
        traces.append(name)
        return row.call(*arguments)

    mesh = make_mesh()
    everywhere = NamedSharding(mesh, PartitionSpec())
    along = NamedSharding(mesh, PartitionSpec(None, "batch"))
    sets = [(model, *arrays), (model, *(np.roll(x, 1, axis=0) for x in arrays))]
    axes = (None, *(0 for _ in arrays))
    if not arrays:  # a function of the weights alone: over models
        sets[1], axes = (tiny.make(model.config, seed=1),), (0,)
    both = [
        jax.tree.map(lambda *x: np.stack(x), *pair) if axis == 0 else pair[0]
        for axis, *pair in zip(axes, *sets)
    ]
    both[0] = jax.device_put(both[0], everywhere)
    both[1:] = jax.device_put(both[1:], along if row.batched else everywhere)
    run = jax.jit(jax.vmap(counted, axes))
    for _ in range(2):
        actual = run(*both)
    assert len(traces) == 1
    for number, arguments in enumerate(sets):
        one = jax.tree.map(lambda x, n=number: x[n], actual)
        assert_close(one, row.call(*arguments), row)
    for leaf in jax.tree.leaves(actual):
        axes = ["batch" if row.batched and n == BATCH else None for n in leaf.shape]
        assert ("batch" in axes) == row.batched
        expected = NamedSharding(mesh, PartitionSpec(*axes))
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), leaf.sharding


STEP = 1e-6


@pytest.mark.parametrize(("name", "kind"), cells(shift=1))
def test_grad_is_the_slope(name, kind):
    """In float64, along one direction of all weights and of the first array."""
    row, model = ROWS[name], MODELS[kind]
    arrays = row.inputs(model)
    with jax.enable_x64(True):
        model, arrays = jax.tree.map(wide, (model, arrays))
        moved = 2 if arrays and arrays[0].dtype == np.float64 else 1
        rng = np.random.default_rng(0)

        def scalar(*arguments):
            leaves = jax.tree.leaves(row.call(*arguments))
            return sum(weighted(leaf) for leaf in leaves)

        slope = jax.jit(jax.value_and_grad(scalar, tuple(range(moved))))
        point, rest = (model, *arrays)[:moved], arrays[moved - 1 :]
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), point)

        def value(step):
            moved_to = jax.tree.map(lambda x, d: x + step * d, point, direction)
            return float(slope(*moved_to, *rest)[0])

        expected = (value(STEP) - value(-STEP)) / (2 * STEP)
        _, gradient = jax.device_get(slope(*point, *rest))
    gradient, direction = map(jax.tree.leaves, (gradient, direction))
    assert all(np.isfinite(g).all() for g in gradient)
    if row.steps:
        assert not any(np.any(g) for g in gradient)
        return
    terms = np.concatenate([np.ravel(g * d) for g, d in zip(gradient, direction)])
    assert np.abs(terms).max() > 0
    np.testing.assert_allclose(terms.sum(), expected, rtol=1e-3, atol=1e-6)


def wide(array):
    return jnp.asarray(array, np.float64) if array.dtype == np.float32 else array


def weighted(leaf):
    """A sum with other weights for every entry; 0 of what has no derivative."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros((), np.float64)
    weights = np.random.default_rng(leaf.size).normal(size=leaf.shape)
    return (leaf.astype(np.float64) * weights).sum()
