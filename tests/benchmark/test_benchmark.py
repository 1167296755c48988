"""What the benchmark counts and refuses; no test depends on times."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

import vitjax
from vitjax.benchmark import bench as benchmark
from vitjax.benchmark.bench import bench, measure_input, noise, plain_forward
from vitjax.benchmark.macs import count_macs
from vitjax.benchmark.reference_vits import is_plain, linen_forward
from vitjax.recipes.registry import RECIPES

CONFIG = vitjax.Config(32, 8, dim=16, depth=2, heads=2, mlp_dim=48)
TINY = vitjax.init(CONFIG, classes=7)


def forward_macs(config, classes):
    """Embedding, projections and attention of every block, and the head, by hand."""
    tokens, dim = config.tokens, config.dim
    embed = config.patches * 3 * config.patch_size**2 * dim
    block = tokens * dim * (4 * dim + 2 * config.mlp_dim) + 2 * tokens**2 * dim
    return embed + config.depth * block + dim * classes


def test_programs_are_measured_in_turns():
    result = bench(TINY, batch_size=6, repetitions=2)
    assert (result.batch_size, result.repetitions) == (8, 2)
    assert (result.device, result.matmul_precision) == ("4 x cpu", "highest")
    assert list(result.programs) == ["forward", "identifiability", "one_pass"]
    for timing in result.programs.values():
        assert timing.images_per_second == pytest.approx(8 / timing.seconds)
        assert timing.compile_seconds > 0
        assert timing.peak_bytes > timing.temporary_bytes > 0
        assert timing.device_peak_bytes is None  # the CPU does not count
    forward, identifiability, one_pass = result.programs.values()
    expected = identifiability.seconds / forward.seconds
    assert identifiability.passes == pytest.approx(expected)
    assert one_pass.floor > identifiability.floor > forward.floor == 1


@pytest.mark.slow
def test_programs_of_one_device(monkeypatch):
    monkeypatch.setattr("vitjax.saliency.removal.BUCKETS", 1)  # one program, not eight
    monkeypatch.setattr(benchmark, "ANALYSES", ())  # those of the test above
    result = bench(
        TINY,
        batch_size=3,
        repetitions=1,
        devices=jax.devices()[:1],
        explanations=("relevancy", "removal_curve"),
        against=("flax.linen",),
    )
    assert (result.device, result.batch_size) == ("1 x cpu", 3)
    curve, relevancy = (result.programs[n] for n in ("removal_curve", "relevancy"))
    counts = curve.seconds / result.programs["forward"].seconds / CONFIG.patches
    assert curve.passes == pytest.approx(counts)
    assert curve.floor == pytest.approx(1, rel=0.01)  # one bucket: nothing is shorter
    assert relevancy.floor > 1 == result.programs["flax.linen"].floor


def test_slow_programs_are_called_twice():
    programs = {name: benchmark.Program(lambda: None) for name in ("forward", "slow")}
    programs["forward"].seconds, programs["slow"].seconds = [1e3], [1e9]
    benchmark.measure(programs, 5)
    assert [len(program.seconds) for program in programs.values()] == [6, 3]


def test_what_is_not_measured_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(benchmark, "compile_program", None)
    mean_pooled = dataclasses.replace(CONFIG, class_token=False)
    with pytest.raises(ValueError, match="keras"):
        bench(TINY, against=("keras",))
    with pytest.raises(ValueError, match="gone"):
        bench(TINY, against=("timm",))
    with pytest.raises(ValueError, match="plain ViTs"):
        bench(vitjax.init(mean_pooled, classes=2), against=("flax.linen",))
    with pytest.raises(ValueError, match="papr"):
        bench(TINY, recipes=("papr",))
    with pytest.raises(ValueError, match="probes"):
        bench(TINY, recipes=("probes",))
    with pytest.raises(ValueError, match="repetitions=0"):
        bench(TINY, repetitions=0)
    with pytest.raises(ValueError, match="chefr.*'chefer'"):
        bench(TINY, explanations=("chefr",))


@pytest.mark.parametrize("class_token", [True, False])
def test_macs_of_a_model_are_those_of_its_layers(class_token):
    config = dataclasses.replace(CONFIG, class_token=class_token)
    model = tiny.make(config, classes=tuple(map(str, range(50))))
    batch = noise(model, 1)
    plain = count_macs(plain_forward, model, batch)
    assert plain == forward_macs(config, 50)
    step = count_macs(RECIPES["identifiability"].step, model, batch)
    # Two projections per block, one of its input; the norm's shift once per batch.
    projections = (2 * config.depth + 1) * config.tokens
    assert step - plain == (projections + 1) * config.dim * 50


def test_macs_of_b32_are_the_published():
    config = vitjax.checkpoints.registry.VARIANTS["vit_b32"].config
    assert forward_macs(config, 1000) == pytest.approx(4.4e9, rel=0.01)


def test_macs_follow_loops_branches_and_nested_programs():
    a, b = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5))
    one = 2 * 3 * 4 * 5  # batch, rows, contracted, columns

    def product(a, b):
        return jnp.einsum("bij,bjk->bik", a, b)

    def scanned(a, b):
        return jax.lax.scan(lambda c, _: (c + product(a, b).sum(), None), 0.0, length=7)

    def branched(a, b):
        one, two = (lambda: product(a, b)), (lambda: product(a, b) + product(a, b))
        return jax.lax.cond(a.sum() > 0, one, two)

    def repeated(a, b):
        def body(state):
            return state[0] + 1, state[1] + product(a, b)

        return jax.lax.while_loop(lambda s: s[0] < 9, body, (0, jnp.zeros((2, 3, 5))))

    gradient = jax.grad(lambda a, b: product(a, b).sum(), (0, 1))
    assert count_macs(product, a, b) == one
    assert count_macs(jax.jit(jax.checkpoint(product)), a, b) == one
    assert count_macs(scanned, a, b) == 7 * one
    assert count_macs(branched, a, b) == 2 * one
    assert count_macs(repeated, a, b) == one
    assert count_macs(gradient, a, b) == 3 * one


def test_macs_of_a_convolution_count_the_inputs_of_a_group():
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 3}

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID", **options)

    macs = count_macs(convolve, jnp.ones((1, 8, 8, 6)), jnp.ones((3, 3, 2, 12)))
    assert macs == 6 * 6 * 12 * 3 * 3 * 2


@pytest.mark.parametrize("gelu", tiny.slow_but(("erf", "tanh"), "tanh"))
def test_plain_and_reference_forward_give_the_models_logits(gelu):
    model = tiny.make(dataclasses.replace(CONFIG, gelu=gelu, depth=1))
    batch = noise(model, 2)
    expected, _ = vitjax.forward(model, batch.images)
    forward, params = linen_forward(model)
    for logits in (
        jax.jit(plain_forward)(model, batch),
        jax.jit(forward)(params, batch),
    ):
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_only_plain_models_have_a_reference():
    changes = {"class_token": False}, {"registers": 1}, {"norm": "residual_post"}
    changes += {"qkv_bias": False}, {"layer_scale": True}
    assert is_plain(CONFIG)
    assert not any(is_plain(dataclasses.replace(CONFIG, **new)) for new in changes)


def test_input_speed_needs_two_batches_from_each_process(tmp_path):
    for number in range(15):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
    speed = measure_input(f"folder:{tmp_path}", TINY, batch_size=4)
    assert (speed["images"], speed["workers"]) == (15, 0)
    assert speed["images_per_second"] > 0 and speed["data"].startswith("folder/")
    with pytest.raises(ValueError, match="15 images.*16"):
        measure_input(f"folder:{tmp_path}", TINY, batch_size=4, workers=2)
