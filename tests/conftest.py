"""What every test shares: strict JAX, four forced devices, real data where present."""

import functools
import gc
import importlib.metadata
import os
import pathlib
import tempfile

# Imports and tracing make many objects, few of them garbage.
gc.set_threshold(50_000, 20, 20)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two test processes on two cores: threads of BLAS would wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
COMPILED = tempfile.TemporaryDirectory(prefix="vitjax-tests-")
"""Programs that this session compiled: its own processes need not do it again."""
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", COMPILED.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
FLAGS = [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=4",
    # Compiling takes most of the time.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if int(importlib.metadata.version("jaxlib").split(".")[1]) <= 10:
    # XLA ends where it does not know a flag.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(FLAGS)

import jax  # noqa: E402
import published  # noqa: E402
import pytest  # noqa: E402

import vitjax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_modifyitems(items):
    """The longest first, so that one of two processes does not end with it alone."""
    items.sort(key=lambda item: item.path.stem != "test_notebooks")


def pytest_collection_finish(session):
    """What is imported stays."""
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real weights, photos and published outputs; skips without it."""
    root = pathlib.Path(__file__).parents[1]
    folder = pathlib.Path(os.environ.get("VITJAX_TEST_DATA", root / "../shared"))
    if not (folder / "oracle").is_dir():
        pytest.skip(f"{folder} is absent; set VITJAX_TEST_DATA to run this test")
    return folder.resolve()


@pytest.fixture(scope="session")
def oracle(shared):
    """name -> the published code's outputs for that model."""

    def get(name):
        folder = published.folder(shared, name)
        return published.Oracle(folder, published.CONFIGS[name])

    return functools.cache(get)


@pytest.fixture(scope="session")
def published_model(shared):
    """name -> the model with the published code's weights, loaded once."""

    def get(name):
        path, config = published.weights(shared, name), published.CONFIGS[name]
        return vitjax.load(config, checkpoint=path)

    return functools.cache(get)


@pytest.fixture(scope="session")
def published_trace(oracle, published_model):
    """name -> (class logits, trace) of the oracle's first images, in numpy."""

    def get(name):
        images = oracle(name).images[: published.count(name)]
        model, capture = published_model(name), published.FIELDS
        return jax.device_get(vitjax.forward(model, images, capture=capture))

    return functools.cache(get)


@pytest.fixture(scope="session")
def published_logits(published_model, published_trace):
    """name -> {stream: class logits [layer batch token class]} of those images."""

    @jax.jit
    def project(space, streams):
        def of_block(block):
            return {name: vitjax.project(space, x) for name, x in block.items()}

        return jax.lax.map(of_block, streams)

    def get(name):
        _, trace = published_trace(name)
        streams = {name: getattr(trace, name) for name in published.STREAMS}
        return jax.device_get(project(published_model(name).class_space, streams))

    return functools.cache(get)
