"""What bench counts; what it times is for users to see, no test depends on it."""

import jax
import pytest

import vitjax
from vitjax.benchmark.bench import (
    bench,
    explanation,
    noise,
    plain_forward,
)


def test_bench_measures_both_programs(tiny):
    found = bench(tiny, batch_size=6, repetitions=2)
    assert found.batch_size == 8 and found.repetitions == 2
    assert found.device == "4 x cpu" and found.matmul_precision == "highest"
    for timing in (found.forward, found.identifiability):
        assert timing.images_per_second == pytest.approx(8 / timing.seconds)
        assert timing.compile_seconds > 0
        assert timing.peak_bytes > timing.temporary_bytes > 0
        assert timing.device_peak_bytes is None  # the CPU does not count
    assert found.identifiability.floor == pytest.approx(found.ratio_floor, rel=0.05)
    expected = found.identifiability.seconds / found.forward.seconds
    assert found.ratio == pytest.approx(expected)


@pytest.mark.slow
def test_bench_runs_on_the_devices_it_is_given(tiny, monkeypatch):
    monkeypatch.setattr("vitjax.saliency.removal.BUCKETS", 1)  # one program, not eight
    found = bench(
        *(tiny,),
        batch_size=3,
        repetitions=1,
        devices=jax.devices()[:1],
        explanations=("relevancy", "removal_curve"),
        against=("flax.linen",),
    )
    assert found.device == "1 x cpu" and found.batch_size == 3
    curve, relevancy = found.more["removal_curve"], found.more["relevancy"]
    steps = curve.seconds / found.forward.seconds / tiny.config.patches
    assert curve.passes == pytest.approx(steps)
    assert curve.floor == pytest.approx(1, rel=0.01)  # one bucket: nothing is shorter
    passes = relevancy.seconds / found.forward.seconds
    assert relevancy.passes == pytest.approx(passes) and relevancy.floor > 1
    assert found.more["flax.linen"].floor == found.forward.floor == 1
    assert list(found.programs)[:4] == [*FIRST, "relevancy"]
    with pytest.raises(ValueError, match="repetitions"):
        bench(tiny, repetitions=0)
    with pytest.raises(ValueError, match="method='chefr'.*Did you mean 'chefer'"):
        explanation("chefr", 4)


FIRST = ("forward", "identifiability", "one_pass")


def test_what_cannot_be_compared_is_refused(tiny):
    with pytest.raises(ValueError, match="keras.*flax.linen, timm"):
        bench(tiny, against=("keras",))
    with pytest.raises(ValueError, match="float32"):
        bench(tiny, against=("timm",), dtype="bfloat16")
    pooled = vitjax.Config(16, 8, dim=8, depth=1, heads=1, mlp_dim=8, class_token=False)
    with pytest.raises(ValueError, match="plain ViTs only"):
        bench(vitjax.init(pooled, classes=2), against=("flax.linen",))
    with pytest.raises(ValueError, match="no recipe 'papr'"):
        bench(tiny, recipes=("papr",))


def test_the_plain_forward_is_the_models(tiny):
    batch = noise(tiny, 4)
    logits, _ = vitjax.forward(tiny, batch.images)
    found = jax.jit(plain_forward)(tiny, batch)
    assert abs(found - logits).max() < 1e-5
