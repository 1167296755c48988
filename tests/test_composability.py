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
SHAPE: Any = dict(image_size=4, patch_size=2, dim=8, depth=2, heads=2, mlp_dim=8)
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
    """One function as a function of a model and arrays.

    Args:
        call: `(model, *arrays) -> pytree`.
        inputs: model -> its arrays, batch first.
        steps: why it has no derivative, where it has none: then it is 0, or what comes
            out are truths or numbers of classes.
        models: those that it takes.
        batched: False where the arrays are weights, and not of images.
        tolerance: of the largest entry.
    """

    call: Callable[..., Any]
    inputs: Callable[[Any], tuple[Any, ...]]
    steps: str = ""
    models: tuple[str, ...] = ("cls", "mean")
    batched: bool = True
    tolerance: float = 1e-4


def draw(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def numbers(size, *shape):
    return np.random.default_rng(7).integers(size, size=shape).astype(np.int32)


def pixels(model):
    return (tiny.images(model.config, BATCH),)


def targets(model):
    return (*pixels(model), numbers(7, BATCH))


def states(model):
    return (draw(BATCH, model.config.tokens, 8),)


def logits(model):
    return (draw(BATCH, model.config.tokens, 7), numbers(7, BATCH, 1))


def steps_of(model):
    return (draw(BATCH, 5),)


def maps(model):
    patches = model.config.patches
    return draw(BATCH, patches), numbers(2, BATCH, patches) > 0


def coefficients(model):
    """Coefficients of the MLP's memories, and a label for every token."""
    return (*states(model), numbers(7, BATCH, model.config.tokens))


def removed(model):
    return (*targets(model), maps(model)[0])


def kept(model):
    return (*pixels(model), maps(model)[1])


def selected(model):
    return (*pixels(model), numbers(4, BATCH, 3))


def probed(model):
    return draw(BATCH, 8), draw(7, 8)[None].repeat(BATCH, 0)


def read(params, stream_in, trace, label):
    return trace.residual.mean(-1) * label[:, None], trace.attention_weights


def written(model):
    return (*pixels(model), *states(model))


def pairs(model):
    return (*pixels(model), tiny.images(model.config, BATCH, seed=1))


def square(logits):
    return (logits**2).sum()


def square_each(logits):
    return (logits**2).sum(-1)


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
    return Row(call, targets, known.get(method, ""), models, tolerance=tolerance)


def edited(make, inputs=pixels, **options):
    """Logits under the edits that a builder makes of the model and arrays."""

    def call(model, images, *arrays):
        return vitjax.forward(model, images, edits=make(model, *arrays))[0]

    return Row(call, inputs, **options)


ROWS = {
    "forward": Row(
        lambda m, x: vitjax.forward(m, x, capture=("embedding", *BLOCK_FIELDS)), pixels
    ),
    "scan_blocks": Row(
        lambda m, x, t: vitjax.scan_blocks(m, x, read, args=t.astype(x.dtype)), targets
    ),
    "relevancy": Row(
        lambda m, x, t: vitjax.relevancy(m, x, t, query="all", of="attention_update"),
        targets,
    ),
    "encode_image": Row(vitjax.encode_image, pixels, models=("map", "two")),
    "helpful_minus_attended": Row(vitjax.helpful_minus_attended, targets),
    "removal_curve": Row(
        lambda m, x, t, i: vitjax.removal_curve(m, x, t, i, keep_counts=(1, 3)),
        removed,
        "right or wrong",
    ),
    "attention_gradients": Row(
        lambda m, x: vitjax.attention_gradients(m, x, square), pixels
    ),
    "logit_attribution": Row(
        vitjax.logit_attribution, targets, models=("cls", "mean", "map", "two")
    ),
    "attribution_patching": Row(
        lambda m, x, y: vitjax.attribution_patching(m, x, y, square_each), pairs
    ),
    "ablate": edited(
        lambda m, v: vitjax.ablate(m, "mlp_update", tokens=[2], value=v[None]), written
    ),
    "patch": edited(
        lambda m, v: vitjax.patch(m, Trace(residual=v[None]), "residual", layers=[0]),
        written,
    ),
    "steer": edited(
        lambda m, v: vitjax.steer(m, v[None, :, 1:2], layers=[-1]), written
    ),
    "encode_text": Row(
        vitjax.encode_text,
        lambda text: (text_towers.draw_ids(text.config, BATCH),),
        models=("text",),
    ),
    "refinement_logits": Row(vitjax.refinement_logits, pixels, models=("refined",)),
    "self_only": edited(lambda m: vitjax.self_only(m, layers=(1,), renormalize=True)),
    "no_cls": edited(lambda m: vitjax.no_cls(m, heads=(0,)), models=("cls",)),
    "keep_tokens": edited(lambda m, keep: vitjax.keep_tokens(keep), kept),
    "select_tokens": edited(lambda m, which: vitjax.select_tokens(which), selected),
    "memory_values": Row(vitjax.memory_values, lambda m: (), batched=False),
    "memory_classes": Row(
        lambda m, v: vitjax.memory_classes(m.class_space, v),
        states,
        "numbers of classes and memories",
        batched=False,
    ),
    "class_value_agreement": Row(
        lambda m, v: vitjax.class_value_agreement(m.class_space, v),
        states,
        batched=False,
    ),
    "memory_coefficients": Row(
        lambda m, x: vitjax.memory_coefficients(
            Trace(mixed_values=x.reshape(*x.shape[:-1], 2, 4), mlp_hidden=x)
        ),
        states,
    ),
    "key_value_agreement": Row(
        lambda m, x, label: vitjax.key_value_agreement(
            m.class_space, x, mlp_values(m), label, k=2
        ),
        coefficients,
        "true or false",
    ),
    "compositionality": Row(
        lambda m, x, top: vitjax.compositionality(
            m.class_space, x, mlp_values(m), top, k=2
        ),
        coefficients,
        "true or false",
    ),
    "project": Row(lambda m, x: vitjax.project(m.class_space, x), states),
    "project_tokens": Row(vitjax.project_tokens, states, models=("map", "two")),
    "zero_shot": Row(
        lambda m, x: vitjax.zero_shot(m, x, classes=NAMES).class_space.embedding,
        lambda m: (draw(BATCH, 8),),
        models=("map",),
        batched=False,
    ),
    "with_memory_values": Row(
        lambda m, v: vitjax.memory_values(vitjax.with_memory_values(m, {"mlp": v})),
        lambda m: (draw(m.config.depth, m.config.mlp_dim, 8),),
        batched=False,
    ),
    "scale_memories": Row(
        lambda m, f: vitjax.scale_memories(m, "mlp", f).params,
        lambda m: (draw(m.config.depth, m.config.mlp_dim),),
        batched=False,
    ),
    "remove_class": Row(
        lambda m, x: vitjax.remove_class(m, 2).params,
        lambda m: (draw(1),),
        batched=False,
    ),
    "rank_one_edit": Row(
        lambda m, k, v: vitjax.rank_one_edit(m, layer=0, key=k, value=v).params,
        lambda m: (draw(m.config.mlp_dim), draw(8)),
        batched=False,
    ),
    "apply_lens": Row(
        lambda m, x, w: vitjax.apply_lens(
            vitjax.TunedLens(weights=w, bias=w[..., 0]), jnp.stack([x] * len(w))
        ),
        lambda m: (*states(m), draw(m.config.depth, 8, 8)),
        batched=False,
    ),
    "rank": Row(lambda m, z, label: vitjax.rank(z, label), logits, "counts classes"),
    "identifiability": Row(
        lambda m, z, label: vitjax.identifiability(z, label), logits, "counts classes"
    ),
    "top_k": Row(lambda m, z, label: vitjax.top_k(z, k=3), logits),
    "similarity_change": Row(
        lambda m, z, label: vitjax.similarity_change(z, -z, label),
        logits,
        "true or false",
    ),
    "residual_composition": Row(
        lambda m, top, _: vitjax.residual_composition(
            top, before=(top + 1) % 3, attention=top % 2, mlp=top % 3
        ),
        lambda m: (numbers(7, BATCH, 5), numbers(7, BATCH)),
        "true or false",
    ),
    "area_under_curve": Row(
        lambda m, x: vitjax.area_under_curve(x, (0, 1, 2, 3, 4), tokens=4), steps_of
    ),
    "localisation": Row(
        lambda m, x, mask: vitjax.localisation(x, mask), maps, "counts patches"
    ),
    "Probe.scores": Row(
        lambda m, x, w: vitjax.Probe(
            weights=w[0], bias=w[0, :, 0], centre=w[0, 0]
        ).scores(x),
        probed,
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


def prepared(name, kind):
    row, model = ROWS[name], MODELS[kind]
    return row, model, row.inputs(model)


UNJITTED: dict[tuple[str, str], Any] = {}


def unjitted(name, kind):
    """What a plain call returns; once for all columns."""
    if (name, kind) not in UNJITTED:
        row, model, arrays = prepared(name, kind)
        UNJITTED[name, kind] = jax.tree.map(np.asarray, row.call(model, *arrays))
    return UNJITTED[name, kind]


def assert_close(actual, expected, row):
    def close(left, right):
        top = np.abs(right).max() if right.dtype.kind == "f" else 0
        np.testing.assert_allclose(left, right, rtol=0, atol=row.tolerance * top)

    jax.tree.map(close, actual, expected)


@pytest.mark.parametrize(("name", "kind"), cells())
def test_vmap_in_the_users_jit_over_devices_is_a_loop(name, kind):
    """Two sets of arrays side by side, of each a part on every device: the numbers are
    those of plain calls, each device keeps its part, and nothing is retraced.
    """
    row, model, arrays = prepared(name, kind)
    traces = []

    def counted(*arguments):
        traces.append(name)
        return row.call(*arguments)

    mesh = make_mesh()
    everywhere = NamedSharding(mesh, PartitionSpec())
    along = NamedSharding(mesh, PartitionSpec(None, "batch"))
    if arrays:
        others = [np.roll(array, 1, axis=0) for array in arrays]
        other = row.call(model, *others)
        run = jax.jit(jax.vmap(counted, (None, *(0 for _ in arrays))))
        both = [np.stack(pair) for pair in zip(arrays, others)]
        both = jax.device_put(both, along if row.batched else everywhere)
        both = jax.device_put(model, everywhere), *both
    else:  # a function of the weights alone: over models
        second = tiny.make(model.config, seed=1)
        other, run = row.call(second), jax.jit(jax.vmap(counted))
        both = (jax.tree.map(lambda *x: jnp.stack(x), model, second),)
        both = jax.device_put(both, everywhere)
    for _ in range(2):
        actual = run(*both)
    assert len(traces) == 1
    expected = unjitted(name, kind), jax.tree.map(np.asarray, other)
    for number, values in enumerate(expected):
        assert_close(jax.tree.map(lambda x, n=number: x[n], actual), values, row)
    for leaf in jax.tree.leaves(actual):
        axes = ["batch" if row.batched and n == BATCH else None for n in leaf.shape]
        assert ("batch" in axes) == row.batched
        expected = NamedSharding(mesh, PartitionSpec(*axes))
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), leaf.sharding


STEP = 1e-6


@pytest.mark.parametrize(("name", "kind"), cells(shift=1))
def test_grad_is_the_slope(name, kind):
    """In float64, along one direction of all weights and of the first array."""
    row, model, arrays = prepared(name, kind)
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
        below, above = [
            float(
                slope(
                    *jax.tree.map(lambda x, d, s=s: x + s * d, point, direction), *rest
                )[0]
            )
            for s in (-STEP, STEP)
        ]
        _, gradient = slope(*point, *rest)
        leaves = map(jax.tree.leaves, (gradient, direction))
        parts = [(np.asarray(g), d) for g, d in zip(*leaves)]
    assert all(np.isfinite(g).all() for g, _ in parts)
    if row.steps:
        assert not any(g.any() for g, _ in parts)
        return
    terms = np.concatenate([(g * d).ravel() for g, d in parts])
    assert np.abs(terms).max() > 0
    expected = (above - below) / (2 * STEP)
    np.testing.assert_allclose(terms.sum(), expected, rtol=1e-3, atol=1e-6)


def wide(array):
    return jnp.asarray(array, np.float64) if array.dtype == np.float32 else array


def weighted(leaf):
    """A sum with other weights for every entry; 0 of what has no derivative."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros((), np.float64)
    weights = np.random.default_rng(leaf.size).normal(size=leaf.shape)
    return (leaf.astype(np.float64) * weights).sum()
