"""What a notebook prints first, and the compilation cache of commands."""

import jax
import pytest

from vitjax.checkpoints import download, registry
from vitjax.cli import environment
from vitjax.cli.main import enable_compilation_cache


def test_device_weights_and_data_are_printed(capsys):
    environment.print_environment("textured_digits", data="textured_digits:test_0")
    device, weights, images = capsys.readouterr().out.splitlines()
    assert f"jax {jax.__version__} computes on cpu." in device
    assert "textured_digits" in weights and "nothing is downloaded" in weights
    assert "textured_digits:test_0" in images and "come with vitjax" in images
    environment.print_environment("textured_digits", data="folder:photos")
    assert "read from this machine" in capsys.readouterr().out


def test_advice_on_the_device():
    assert "in use" in environment.device_advice("gpu")
    for words in "Change runtime type", "vitjax[cuda]", "JAX_PLATFORMS":
        assert words in environment.device_advice("cpu")


def test_weights_to_download_have_a_size(tmp_path, monkeypatch):
    monkeypatch.setenv("VITJAX_CACHE", str(tmp_path))
    text = environment.describe_weights("vit_ti16")
    assert "23 MB" in text and str(tmp_path) in text  # 5,717,416 parameters
    assert "346 MB" in environment.describe_weights("vit_b16")
    cached = tmp_path / "cached.npz"
    monkeypatch.setattr(download, "cached", lambda row: cached)
    assert str(cached) in environment.describe_weights("vit_ti16")


def test_weights_that_are_not_downloaded(tmp_path):
    row = registry.find("vit_b16_cifar100")
    assert row.obtain in environment.describe_weights("vit_b16_cifar100")
    assert "my.npz" in environment.describe_weights("vit_ti16", "my.npz")
    assert "nothing is downloaded" in environment.describe_weights(str(tmp_path))
    with pytest.raises(ValueError, match="vit_ti61"):
        environment.describe_weights("vit_ti61")


def test_compiled_programs_are_cached_unless_the_user_chose_a_folder(
    tmp_path, monkeypatch
):
    chosen = jax.config.jax_compilation_cache_dir  # by this session's environment
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == chosen
    (tmp_path / "file").touch()
    folder = tmp_path / "compiled"
    try:
        for cache, expected in ("", str(folder)), ("file", None):
            jax.config.update("jax_compilation_cache_dir", None)
            monkeypatch.setenv("VITJAX_CACHE", str(tmp_path / cache))
            enable_compilation_cache()
            assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", chosen)
    assert folder.is_dir()
