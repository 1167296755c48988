"""What every test shares: strict JAX, four forced devices, real data where present."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real weights, photos and published outputs; skips without it."""
    root = pathlib.Path(__file__).parents[1]
    folder = pathlib.Path(os.environ.get("VITJAX_TEST_DATA", root / "../shared"))
    if not (folder / "oracle").is_dir():
        pytest.skip(f"{folder} is absent; set VITJAX_TEST_DATA to run this test")
    return folder.resolve()
