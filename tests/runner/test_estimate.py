"""Estimates against the run itself, and ahead-of-time compilation for TPUs."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tracemalloc
import types

import jax
import jax.numpy as jnp
import pytest
from photos import CLASSES, TINY

import vitjax
from vitjax.recipes.recipe import Recipe, Setup
from vitjax.runner import estimate as estimates
from vitjax.runner import loop
from vitjax.runner import mesh as meshes
from vitjax.runner.estimate import estimate, estimate_tpu
from vitjax.runner.loop import make_job
from vitjax.runner.options import RunOptions

LIBTPU = os.environ.get("LIBTPU", "")


def make(recipe, model, photos, **options):
    settings = RunOptions(**{"batch_size": 8, **options})
    return make_job(recipe, model, f"folder:{photos}", options=settings)


def test_disk_and_objects_are_those_of_the_run(tiny, photos, whole):
    estimated = estimate("identifiability", tiny, f"folder:{photos}", batch_size=8)
    files = [path for path in pathlib.Path(whole.path).rglob("*") if path.is_file()]
    chunks = [path for path in files if path.name != "zarr.json"]
    # Coordinates are what the estimate leaves out.
    coordinates = 2 * len(whole.coords)
    assert abs(estimated.objects - len(files)) <= coordinates + 2
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
        options = {"train": "textured_digits"}
        estimate("probes", tiny, f"folder:{photos}", options=options)


def test_memory_grows_with_the_batch_by_what_a_batch_takes(tiny, photos):
    few, many = (
        estimates.planned_bytes(make("identifiability", tiny, photos, batch_size=size))
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
    planned = estimates.planned_bytes(make(recipe, tiny, photos))
    assert 4 << 20 < planned < 40 << 20
    light = dataclasses.replace(recipe, setup=lambda m, *, seed: Setup(jnp.ones(1)))
    assert estimates.planned_bytes(make(light, tiny, photos)) < 1 << 20


def test_weights_as_they_were_loaded_count_in_another_dtype(tiny, photos):
    weights = estimates.total_bytes(tiny.params)
    recipe = Recipe(name="x", step=lambda m, batch: {"l": batch.label}, dims={"l": ()})
    full, half = (
        estimates.planned_bytes(make(recipe, tiny, photos, dtype=dtype))
        for dtype in ("float32", "bfloat16")
    )
    assert half - full == weights // 2


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
        chunk = run(tmp_path / "second").manifest["images_per_chunk"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    job = make("identifiability", model, photos)
    planned = estimates.host_bytes(job, chunk=chunk)
    assert 0.4 < planned / peak < 2.5, (planned, peak)


def test_cpus_share_what_the_host_leaves():
    mesh = meshes.make_mesh()
    whole = estimates.memory_limit(mesh, host=0)
    assert whole is not None and whole * 4 <= os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_PHYS_PAGES"
    )
    assert estimates.memory_limit(mesh, host=4 << 20) == whole - (1 << 20)
    sizes = map(estimates.size, (12, 2048, 3 << 20, 5 << 40))
    assert list(sizes) == ["12 B", "2 KiB", "3.00 MiB", "5,120.00 GiB"]


# TPUs that are not here.


@pytest.fixture
def local_topology(monkeypatch):
    """The devices that are here, under the name of a topology."""
    monkeypatch.setattr(estimates, "find_topology", lambda name: meshes.make_mesh())


def test_a_plan_for_the_same_devices_is_that_of_the_run(local_topology, tiny, photos):
    plan = estimate_tpu(
        "one_pass", tiny, topology="x", batch_size=7, masks=False, options={"k": 3}
    )
    job = make(
        dataclasses.replace(
            vitjax.recipes.registry.find_recipe("one_pass").with_options({"k": 3})
        ),
        tiny,
        photos,
    )
    assert plan.batch_size == 8 and plan.device == "4 x cpu"
    assert plan.device_bytes == pytest.approx(estimates.planned_bytes(job), rel=0.02)
    assert "batches of 8" in str(plan)


def test_weights_are_neither_needed_nor_made(local_topology, monkeypatch):
    def program(*arguments, **options):
        raise AssertionError("it was run")

    monkeypatch.setattr(jax, "device_put", program)
    plan = estimate_tpu(
        "identifiability", "textured_digits", topology="x", dtype="bfloat16"
    )
    assert plan.model == "textured_digits" and plan.dtype == "bfloat16"


def test_what_is_missing_or_unknown_is_named(monkeypatch):
    from jax.experimental import topologies

    def missing(name, platform, **chips):
        raise RuntimeError("no library")

    def unknown(name, platform, **chips):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no such TPU\nmore")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(ImportError, match=r"vitjax\[tpu\]"):
        estimates.find_topology("v5e:2x2")
    monkeypatch.setattr(topologies, "get_topology_desc", unknown)
    with pytest.raises(ValueError, match="v9:1x1"):
        estimates.find_topology("v9:1x1")


def test_devices_that_are_too_small_are_told_from_other_failures(
    local_topology, tiny, monkeypatch
):
    class Failing:
        def __init__(self, reason):
            self.reason = reason

        def lower(self, *arguments):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError(f"{self.reason}: 20 GiB of 15\nlines")

    for reason, error in (
        ("RESOURCE_EXHAUSTED", MemoryError),
        ("INTERNAL", jax.errors.JaxRuntimeError),
    ):
        monkeypatch.setattr(loop, "jitted_step", lambda *a, r=reason: Failing(r))
        with pytest.raises(error, match="20 GiB of 15"):
            estimate_tpu("identifiability", tiny, topology="x")


def test_variables_for_libtpu_give_way_to_the_users(monkeypatch):
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_WORKER_ID", "7")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)

    def describe(name, platform, **chips):
        assert os.environ["TPU_WORKER_ID"] == "7"
        assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
        return types.SimpleNamespace(devices=jax.devices())

    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    assert estimates.find_topology("v5e:2x2").size == 4
    assert "TPU_SKIP_MDS_QUERY" not in os.environ


COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
PROGRAM = f"""
import jax, vitjax
from vitjax.benchmark import bench
from vitjax.cli import main
from vitjax.recipes.registry import find_recipe
from vitjax.runner import estimate, loop
from vitjax.runner import mesh as meshes

sizes = ("v4:2x2x2", "v5e:2x2", "v5e:1x1", "v6e:1x1")
print(*(estimate.find_topology(name).size for name in sizes))
mesh = estimate.find_topology("v5e:2x2")
model = jax.eval_shape(lambda: vitjax.init("textured_digits"))
batch = jax.eval_shape(lambda: loop.empty_batch(model.config, 16, masks=True))

def place(sharding, tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )

model = place(meshes.replicated(mesh), model)
batch = place(meshes.batch_sharding(mesh), batch)
with jax.default_matmul_precision("highest"):
    for name in ("identifiability", "one_pass", "tokens"):
        recipe = find_recipe(name)
        carry = loop.jitted_setup(recipe, mesh).eval_shape(model, seed=0).carry
        carry = place(meshes.replicated(mesh), carry)
        step = loop.jitted_step(recipe.run_step, mesh)
        text = step.lower(model, batch, carry).compile().as_text()
        print(name, *(word for word in {COLLECTIVES!r} if word in text))
words = "--json --model textured_digits --topology v5e:2x2 --batch-size 401"
main.main(["estimate", "identifiability", *words.split()])
"""


@pytest.mark.slow
def test_steps_compile_for_tpus_whose_devices_exchange_nothing():
    if not pathlib.Path(LIBTPU).is_file():
        pytest.skip("set LIBTPU to a libtpu.so to compile for TPUs")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"TPU_LIBRARY_PATH": LIBTPU, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(  # libtpu wants a process of its own
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    sizes, *names, estimated = done.stdout.splitlines()
    assert sizes == "8 4 1 1" and names == ["identifiability", "one_pass", "tokens"]
    plan = json.loads(estimated)
    assert plan["device"] == "4 x TPU v5 lite" and plan["batch_size"] == 404
    assert plan["device_bytes"] > 2 * 101 * 4 * 3 * 64 * 64  # two batches of pixels
