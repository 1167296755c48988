"""What bench counts; what it times is for users to see, no test depends on it."""

import math

import jax
import pytest

import vitjax
from vitjax.runner.bench import (
    bench,
    bench_data,
    explanation,
    forward_multiplications,
    median_rate,
    noise,
    plain_forward,
    ratio_floor,
)
from vitjax.runner.experiments import RECIPES


def test_bench_measures_both_programs(tiny):
    found = bench(tiny, batch_size=6, repetitions=2)
    assert found.batch_size == 8 and found.repetitions == 2
    assert found.device == "4 x cpu" and found.matmul_precision == "highest"
    for timing in (found.forward, found.identifiability):
        assert timing.images_per_second == pytest.approx(8 / timing.seconds)
        assert timing.compile_seconds > 0
        assert timing.peak_bytes > timing.temporary_bytes > 0
        assert timing.device_peak_bytes is None  # the CPU does not count
    expected = found.identifiability.seconds / found.forward.seconds
    assert found.ratio == pytest.approx(expected)


def test_bench_runs_on_the_devices_it_is_given(tiny, monkeypatch):
    monkeypatch.setattr("vitjax.maps.removal.BUCKETS", 1)  # one program, not eight
    found = bench(
        *(tiny,),
        batch_size=3,
        repetitions=1,
        devices=jax.devices()[:1],
        explanations=("relevancy", "removal_curve"),
    )
    assert found.device == "1 x cpu" and found.batch_size == 3
    curve, relevancy = found.more["removal_curve"], found.more["relevancy"]
    steps = curve.seconds / found.forward.seconds / tiny.config.patches
    assert found.more_ratios["removal_curve"] == pytest.approx(steps)
    passes = relevancy.seconds / found.forward.seconds
    assert found.more_ratios["relevancy"] == pytest.approx(passes)
    with pytest.raises(ValueError, match="repetitions"):
        bench(tiny, repetitions=0)
    with pytest.raises(ValueError, match="no method 'chefr'. Did you mean chefer"):
        explanation("chefr", 4)


def count(jaxpr):
    """Multiplications in the matrix products and convolutions of a traced function."""
    total = 0
    for equation in jaxpr.eqns:
        name, shapes = equation.primitive.name, [v.aval.shape for v in equation.invars]
        inner = [p for p in equation.params.values() if hasattr(p, "eqns")]
        repeats = equation.params["length"] if name == "scan" else 1
        total += repeats * sum(map(count, inner))
        size = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += size * math.prod(shapes[0][axis] for axis in contracted)
        if name == "conv_general_dilated":
            total += size * math.prod(shapes[1][:-1])
    return total


@pytest.mark.parametrize("class_token", [True, False])
def test_multiplications_are_those_of_the_traced_programs(class_token):
    config = vitjax.Config(
        32, 8, dim=16, depth=3, heads=2, mlp_dim=48, class_token=class_token
    )
    model = vitjax.init(config, classes=50)
    batch = noise(model, 1)
    plain = count(jax.make_jaxpr(plain_forward)(model, batch).jaxpr)
    assert plain == forward_multiplications(config, classes=50)
    step = count(jax.make_jaxpr(RECIPES["identifiability"].step)(model, batch).jaxpr)
    shift = config.dim * 50  # the norm's shift through the head, once per batch
    assert (step - shift) / plain == pytest.approx(ratio_floor(config, classes=50))


def test_the_floor_of_b32_is_what_two_projections_add():
    config = vitjax.variants.VARIANTS["vit_b32"].config
    # 4.4 G multiplications forward (published); 50 tokens x 768 x 1000 per projection
    assert forward_multiplications(config, classes=1000) == pytest.approx(
        4.4e9, rel=0.01
    )
    added = 25 * 50 * 768 * 1000
    forward = forward_multiplications(config, classes=1000)
    assert ratio_floor(config, classes=1000) == pytest.approx(1 + added / forward)


def test_the_plain_forward_is_the_models(tiny):
    batch = noise(tiny, 4)
    logits, _ = vitjax.forward(tiny, batch.images)
    found = jax.jit(plain_forward)(tiny, batch)
    assert abs(found - logits).max() < 1e-5


def test_the_host_pipeline_is_measured_by_itself(tiny, photos):
    found = bench_data(f"folder:{photos}", tiny, batch_size=4)
    assert found.images == 29 and found.workers == 0 and found.threads >= 1
    assert found.images_per_second > 0 and found.data.startswith("folder/")
    with pytest.raises(ValueError, match="29 images; a measurement needs 40"):
        bench_data(f"folder:{photos}", tiny, batch_size=10, workers=2)


def test_the_rate_is_the_median_batch():
    # Two processes hand over two batches of 10 at once, every second but one.
    arrived = [float(t) for t in (0, 0, 1, 1, 2, 2, 7, 7, 8, 8, 9, 9)]
    assert median_rate(arrived, 10, together=2) == 20
