"""Estimates against the run itself."""

import dataclasses
import math
import os
import pathlib
import tracemalloc

import jax.numpy as jnp
import pytest
from photos import CLASSES, TINY

import vitjax
from vitjax.recipes.recipe import Recipe, Setup
from vitjax.runner import estimate as estimates
from vitjax.runner import mesh as meshes
from vitjax.runner.estimate import estimate
from vitjax.runner.loop import make_job
from vitjax.runner.options import RunOptions


def make(recipe, model, photos, **options):
    settings = RunOptions(**{"batch_size": 8, **options})
    return make_job(recipe, model, f"folder:{photos}", options=settings)


def planned_bytes(*arguments, **options):
    job = make(*arguments, **options)
    return estimates.planned_bytes(job, job.setup.carry)


def test_disk_and_objects_are_those_of_the_run(tiny, photos, whole):
    estimated = estimate("identifiability", tiny, f"folder:{photos}", batch_size=8)
    files = [path for path in pathlib.Path(whole.path).rglob("*") if path.is_file()]
    chunks = [path for path in files if path.name != "zarr.json"]
    assert estimated.objects == len(files)
    size = sum(path.stat().st_size for path in chunks)
    assert estimated.disk_bytes == pytest.approx(size, rel=0.4)
    assert estimated.images == 29 and estimated.images_per_second > 0
    seconds = estimated.compile_seconds + 29 / estimated.images_per_second
    assert estimated.seconds == pytest.approx(seconds)
    assert estimated.device == "4 x cpu" and estimated.batch_size == 8
    assert "29 images" in str(estimated) and "smaller" not in str(estimated)
    small = dataclasses.replace(estimated, device_limit=1)
    assert "smaller --batch-size" in str(small)
    with pytest.raises(ValueError, match="several passes"):
        options = {"train": f"folder:{photos}"}
        estimate("probes", tiny, f"folder:{photos}", options=options)


@pytest.mark.slow
def test_a_recipe_of_one_pass_is_estimated_and_run(tiny, photos, run_tiny, tmp_path):
    options = {"ablations": ("mean",), "draws": 0, "reference_images": 8}
    source = f"folder:{photos}"
    estimated = estimate("ablation", tiny, source, options=options, batch_size=8)
    run = run_tiny(tmp_path / "run", recipe="ablation", options=options)
    assert estimated.images == 29 and estimated.disk_bytes > 0
    assert run["effect_mean_head"].dims == ("image", "layer", "head")
    assert run["done"].all() and run.manifest["study"]["reference"].endswith("8 images")
    images_per_chunk = run.manifest["images_per_chunk"]
    assert images_per_chunk == 8  # as many chunks as a recipe of a step has


@pytest.mark.slow
def test_memory_grows_with_the_batch_by_what_a_batch_takes(tiny, photos):
    few, many = (
        planned_bytes("identifiability", tiny, photos, batch_size=size)
        for size in (4, 24)
    )
    images = math.prod((*TINY.shape, 3)) * 4
    assert many - few > 2 * 5 * images  # on each of four devices


def test_the_setup_counts_where_it_is_the_peak(tiny, photos):
    def product(model, *, seed):
        matrix = jnp.arange(1 << 20, dtype=jnp.float32).reshape(1 << 10, -1)
        return Setup((matrix @ matrix)[:1, 0])

    recipe = Recipe(
        name="product",
        step=lambda model, batch, carry: {"least": jnp.tile(carry, batch.label.shape)},
        dims={"least": ()},
        setup=product,
    )
    assert 4 << 20 < planned_bytes(recipe, tiny, photos) < 40 << 20
    light = dataclasses.replace(recipe, setup=lambda m, *, seed: Setup(jnp.ones(1)))
    assert planned_bytes(light, tiny, photos) < 1 << 20


def test_weights_as_they_were_loaded_count_in_another_dtype(tiny, photos):
    weights = estimates.total_bytes(tiny.params)
    recipe = Recipe(name="x", step=lambda m, batch: {"l": batch.label}, dims={"l": ()})
    full, half = (
        planned_bytes(recipe, tiny, photos, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    assert half - full == weights // 2


@pytest.mark.slow
def test_the_hosts_images_and_rows_are_those_of_a_run(photos, tmp_path):
    """What numpy holds at most while a run goes on."""
    config = vitjax.Config(256, 64, dim=8, depth=1, heads=1, mlp_dim=8)
    model = vitjax.init(config, classes=CLASSES)

    def run(out):
        options = {"batch_size": 8, "show_progress": False}
        return vitjax.run("identifiability", model, f"folder:{photos}", out, **options)

    run(tmp_path / "first")  # compiles
    tracemalloc.start()
    try:
        run(tmp_path / "second")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    job = make("identifiability", model, photos)
    planned = estimates.host_bytes(job)
    assert 0.4 < planned / peak < 2.5, (planned, peak)


def test_cpus_share_what_the_host_leaves():
    mesh = meshes.make_mesh()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    whole = estimates.memory_limit(mesh, host=0)
    assert whole is not None and whole * 4 <= memory
    assert estimates.memory_limit(mesh, host=4 << 20) == whole - (1 << 20)
    sizes = map(estimates.size, (12, 2048, 3 << 20, 5 << 40))
    assert list(sizes) == ["12 B", "2 KiB", "3.00 MiB", "5,120.00 GiB"]
