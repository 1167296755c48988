"""What a run will take: against the run itself, and with a clock of our own."""

import dataclasses
import math
import os
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
import tiny as tiny_models
from vitjax.runner.buffer import Part
from vitjax.runner.folder import images_per_chunk
from vitjax.runner.job import Job, make_job

import vitjax
from vitjax.data.images import ImageError
from vitjax.recipes.recipe import Prepared, Recipe
from vitjax.runner import estimate as estimating
from vitjax.runner import mesh as meshes
from vitjax.runner.estimate import Calibration, encoded_bytes, estimate, rate_of, size
from vitjax.runner.results import ArraySpec
from vitjax.types import Config


def part(start, stop):
    return Part(start, {"valid": np.ones(stop - start, bool)}, [], [])


def test_disk_and_objects_are_those_of_the_run(tiny, photos, tmp_path):
    data = f"folder:{photos}"
    found = estimate("identifiability", tiny, data, batch_size=8)
    results = vitjax.run(
        *("identifiability", tiny, data, tmp_path),
        batch_size=8,
        show_progress=False,
    )
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    rows = [f for f in files if f.parent.name != results.path and "zarr" in str(f)]
    chunks = [file for file in rows if file.name != "zarr.json"]
    # Coordinates and files of a few bytes are what the estimate leaves out.
    coordinates = 6
    assert abs(found.objects - len(files)) <= 2 * coordinates + 1
    assert found.disk_bytes == pytest.approx(
        sum(file.stat().st_size for file in chunks), rel=0.3
    )
    assert found.images == 29 and found.images_per_second > 0
    assert found.seconds == pytest.approx(
        found.compile_seconds + 29 / found.images_per_second
    )
    assert found.device == "4 x cpu" and found.batch_size == 8


def test_memory_grows_with_the_batch_by_what_a_batch_takes(tiny, photos):
    few, many = (
        estimate("identifiability", tiny, f"folder:{photos}", batch_size=batch)
        for batch in (4, 24)
    )
    images = math.prod((*tiny.config.shape, 3)) * 4
    assert many.device_bytes - few.device_bytes > 2 * 5 * images  # on each of 4 devices
    assert few.device_limit > few.device_bytes


def job_of(recipe, model, photos, **options):
    plain = {"batch_size": 8, "dtype": "float32", "limit": None}
    return make_job(recipe, model, f"folder:{photos}", **plain | options)


def test_what_a_recipe_prepares_counts_where_it_is_the_peak(tiny, photos):
    traced = []

    def prepare(model, *, seed):
        traced.append(seed)
        place = jnp.arange(1 << 20, dtype=jnp.float32).reshape(1 << 10, -1)
        return Prepared((place @ place)[:1, 0], {})

    def light(model, *, seed):
        return Prepared(jnp.ones(1), {})

    recipe = Recipe(
        name="product",
        step=lambda model, batch, aux: {"least": jnp.tile(aux, batch.label.shape)},
        dims={"least": ()},
        prepare=prepare,
    )
    job = job_of(recipe, tiny, photos)
    assert 4 << 20 < estimating.planned_bytes(job) < 40 << 20
    assert job.prepared.aux.shape == (1,) and traced == [0]  # compiled and run once
    job = job_of(dataclasses.replace(recipe, prepare=light), tiny, photos)
    assert estimating.planned_bytes(job) < 1 << 20


def test_weights_as_they_were_loaded_count_in_another_dtype(tiny, photos):
    weights = estimating.total_bytes(tiny.params)
    recipe = Recipe("labels", lambda model, batch: {"l": batch.label}, {"l": ()})
    full, half = (
        estimating.planned_bytes(job_of(recipe, tiny, photos, dtype=dtype))
        for dtype in ("float32", "bfloat16")
    )
    assert half - full == weights // 2


def test_the_hosts_images_and_rows_are_those_of_a_run(photos, tmp_path):
    """What numpy holds at most while a run goes on."""
    config = Config(256, 64, dim=8, depth=1, heads=1, mlp_dim=8)
    model = tiny_models.make(config, classes=tuple(sorted(os.listdir(photos))))

    def go(out):
        options = {"batch_size": 8, "show_progress": False}
        vitjax.run("identifiability", model, f"folder:{photos}", out, **options)

    go(tmp_path / "first")  # compiles
    tracemalloc.start()
    try:
        go(tmp_path / "second")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    job = job_of("identifiability", model, photos, batch_size=8)
    chunk = images_per_chunk(job.specs.values(), batch_size=8)
    threads = estimating.host_bytes(job, chunk=chunk)
    # It need not be all full at once, and threads hold what they decode as well.
    assert 0.4 * threads < peak < 1.3 * threads
    job = dataclasses.replace(job, workers=2)
    assert estimating.host_bytes(job, chunk=chunk) > threads


def test_cpus_share_what_the_host_leaves():
    mesh = meshes.make_mesh()
    whole = estimating.memory_limit(mesh, host=0)
    assert mesh.size == 4
    assert whole - estimating.memory_limit(mesh, host=400) == 100
    assert estimating.memory_limit(mesh, host=1 << 60) == 0


def test_the_first_batch_fills_the_pipeline_and_is_not_timed():
    parts = [part(0, 8), part(8, 16), part(16, 20)]
    assert rate_of(parts, [100.0, 102.0, 103.0], 0.0) == pytest.approx(12 / 3)
    assert rate_of(parts[:1], [100.0], 90.0) == pytest.approx(0.8)


NO_JOB = object.__new__(Job)
PARTS = [part(start, start + 8) for start in range(0, 48, 8)]


def watched(monkeypatch, parts, times):
    """What a calibration on a clock of ours hands on, and what it says when."""
    clock = iter(times)
    monkeypatch.setattr(estimating, "planned_bytes", lambda job: 5)
    made = Calibration(NO_JOB, images=99, chunk=8, clock=lambda: next(clock))
    monkeypatch.setattr(made, "conclude", lambda parts, arrived: len(parts))
    events = []
    for one in made.watch(iter(parts), lambda count: events.append(f"said {count}")):
        events.append(one.start)
    return events


def test_it_is_said_once_before_the_first_part_is_handed_on(monkeypatch):
    starts = [part.start for part in PARTS]
    quick = watched(monkeypatch, PARTS, [0, 0, 1, 2, 3, 4])
    assert quick == ["said 4", *starts]
    slow = watched(monkeypatch, PARTS, [0, 0, 60, 120])
    assert slow == ["said 2", *starts]
    assert watched(monkeypatch, PARTS[:2], [0, 0, 1, 2]) == ["said 2", *starts[:2]]
    assert watched(monkeypatch, [], [0, 0]) == []
    blank = [part(48, 48), part(48, 48)]  # a process whose images are done
    assert watched(monkeypatch, blank, [0, 0, 1, 2]) == [48, 48]
    mixed = [PARTS[0], *blank]
    assert watched(monkeypatch, mixed, [0, 0, 1, 2, 3]) == ["said 1", 0, 48, 48]


def test_what_came_before_an_error_is_handed_on(monkeypatch):
    def failing():
        yield PARTS[0]
        raise ImageError("b.png", "it is no picture")

    seen = []
    monkeypatch.setattr(estimating, "planned_bytes", lambda job: 5)
    made = Calibration(NO_JOB, images=9, chunk=8)
    with pytest.raises(ImageError, match="b.png"):
        for one in made.watch(failing(), seen.append):
            seen.append(one)
    assert seen == [PARTS[0]]


def test_rows_are_encoded_as_on_disk():
    spec = ArraySpec(("image", "token"), (1000, 50), "int32")
    noise = np.random.default_rng(0).integers(0, 2**31, (100, 50), np.int32)
    assert encoded_bytes(spec, noise) == pytest.approx(noise.nbytes, rel=0.1)
    assert encoded_bytes(spec, np.zeros((100, 50), np.int32)) < 200


def test_a_sentence_with_a_warning_where_it_does_not_fit():
    found = estimating.Estimate(
        *(50_000, 32, "1 x TPU v4", 3 * 2**30, 2 * 2**30),
        *(6 * 2**20, 5 * 2**20, 1200),
        *(12.0, 100.0, 512.0),
    )
    text = str(found)
    assert "50,000 images in batches of 32 on 1 x TPU v4: 3.00 GiB of memory" in text
    assert "on each device and 6.00 MiB of the host's, 5.00 MiB on disk in" in text
    assert "in 1,200 objects, 0:08:32 (100.0 images/s" in text
    assert "more than the 2.00 GiB there are: give a smaller --batch-size" in text
    assert size(1023) == "1,023 B" and size(5 * 2**40) == "5,120.00 GiB"
