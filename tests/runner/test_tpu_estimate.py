"""Steps compiled for TPUs that are not here."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from vitjax.runner.job import make_job
from vitjax.runner.tpu_estimate import compile_for, find_topology, plan, surroundings

from vitjax.runner import mesh as meshes
from vitjax.runner import tpu_estimate
from vitjax.runner.estimate import planned_bytes

LIBRARY = os.environ.get("LIBTPU", "")
"""The file libtpu.so, where tests may use it; the extra `tpu` installs one."""


@pytest.fixture
def here(monkeypatch):
    """The devices that are here, under the name of a topology."""
    monkeypatch.setattr(tpu_estimate, "find_topology", lambda name: meshes.make_mesh())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plan_is_that_of_a_run_on_the_same_devices(here, tiny, photos, dtype):
    same = {"batch_size": 6, "dtype": dtype}
    found = plan("identifiability", tiny, topology="x", masks=False, **same)
    job = make_job("identifiability", tiny, f"folder:{photos}", limit=None, **same)
    assert found.device_bytes == planned_bytes(job)
    assert found.batch_size == 8 and found.device == "4 x cpu"
    assert "4 x cpu (x), identifiability" in str(found)


def test_weights_are_neither_needed_nor_made(here, monkeypatch):
    name, seen = "vit_b32", []

    def compiled(mesh, step, *arguments, **options):
        seen.extend(jax.tree.leaves(arguments))
        return compile_for(mesh, jax.jit(lambda *arguments: 0), *arguments)

    monkeypatch.setattr(tpu_estimate, "compile_for", compiled)
    found = plan("one_pass", name, topology="x", dtype="bfloat16", options={"k": 3})
    assert found.model == name and found.dtype == "bfloat16"
    assert seen and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in seen)


def test_masks_ask_more_of_the_paper(here, tiny):
    with_masks, without = (
        plan("paper", tiny, topology="x", batch_size=4, masks=masks).device_bytes
        for masks in (True, False)
    )
    assert with_masks > without


def test_what_goes_wrong_is_said(monkeypatch):
    from jax.experimental import topologies as known

    def missing(name, platform, **chips):
        raise RuntimeError("no library")

    def unknown(name, platform, **chips):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no such TPU\nmore")

    monkeypatch.setattr(known, "get_topology_desc", missing)
    with pytest.raises(ImportError, match=r"vitjax\[tpu\]"):
        find_topology("v5e:2x2")
    monkeypatch.setattr(known, "get_topology_desc", unknown)
    with pytest.raises(ValueError, match=r"'v9:1x1' \(INVALID_ARGUMENT: no such TPU\)"):
        find_topology("v9:1x1")


class Full:
    """A step that needs more memory than there is, or fails for another reason."""

    def __init__(self, reason):
        self.reason = reason

    def lower(self, *arguments):
        return self

    def compile(self):
        raise jax.errors.JaxRuntimeError(f"{self.reason}: 20 GiB of 15\nlines")


def test_devices_that_are_too_small_are_told_from_other_failures():
    mesh = meshes.make_mesh()
    with pytest.raises(MemoryError, match="does not fit 4 x cpu .*20 GiB of 15.*Give"):
        compile_for(mesh, Full("RESOURCE_EXHAUSTED"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile_for(mesh, Full("INTERNAL"))


def test_surroundings_last_for_the_block_and_give_way_to_the_users(monkeypatch):
    monkeypatch.setenv("VITJAX_TEST_SET", "users")
    monkeypatch.delenv("VITJAX_TEST_NEW", raising=False)
    with surroundings({"VITJAX_TEST_SET": "ours", "VITJAX_TEST_NEW": "ours"}):
        assert os.environ["VITJAX_TEST_SET"] == "users"
        assert os.environ["VITJAX_TEST_NEW"] == "ours"
    assert "VITJAX_TEST_NEW" not in os.environ


SIZES = """
from vitjax.runner.tpu_estimate import find_topology
for name in ("v4:2x2x2", "v5e:2x2", "v5e:1x1", "v6e:1x1"):
    print(find_topology(name).size)
"""
SCRIPT = """
import jax, vitjax
from vitjax.cli.main import main
from vitjax.runner import mesh as meshes
from vitjax.runner import tpu_estimate
from vitjax.benchmark import bench
from vitjax.recipes.registry import find_recipe
from vitjax.runner.tpu_estimate import compile_for, find_topology, placed

mesh = find_topology("v5e:2x2")
model = jax.eval_shape(lambda: vitjax.init("textured_digits"))
split = meshes.along_batch(mesh)
with jax.default_matmul_precision("highest"):
    for name in ("identifiability", "one_pass", "tokens"):
        recipe = find_recipe(name)
        arguments = placed(recipe, model, mesh, 16, True)
        step = jax.jit(meshes.on_each_device(recipe.rows, mesh))
        text = compile_for(mesh, step, *arguments).as_text()
        print(name, *{word for word in WORDS if word in text})
    for name in ("relevancy", "chefer", "rollout", "integrated_presence"):
        step = bench.explanation(name, model.config.patches)
        sharding = None if name in bench.UNSPLIT else split
        step = jax.jit(step, out_shardings=sharding)
        text = compile_for(mesh, step, *arguments[:2]).as_text()
        print(name, *{word for word in WORDS if word in text})
asked = "--json --model textured_digits --topology v5e:2x2 --batch-size 401"
main.main(["estimate", "identifiability", *asked.split()])
"""
WORDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


def in_a_process(*arguments):
    """Run with the compiler for TPUs, which wants a process of its own."""
    if not pathlib.Path(LIBRARY).is_file():
        pytest.skip("set LIBTPU to a libtpu.so to compile for TPUs")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"TPU_LIBRARY_PATH": LIBRARY, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout


@pytest.mark.slow
def test_a_chip_is_one_device():
    assert in_a_process("-c", SIZES).split() == ["8", "4", "1", "1"]


@pytest.mark.slow
def test_steps_compile_for_tpus_and_their_devices_do_not_wait_for_each_other():
    lines = in_a_process("-c", f"WORDS = {WORDS!r}\n{SCRIPT}").splitlines()
    assert lines[:-1] == [
        *("identifiability", "one_pass", "tokens"),
        *("relevancy", "chefer", "rollout", "integrated_presence"),
    ]
    found = json.loads(lines[-1])
    assert found["device"] == "4 x TPU v5 lite" and found["batch_size"] == 404
    assert found["device_bytes"] > 2 * 101 * 4 * 3 * 64 * 64  # two batches of pixels
