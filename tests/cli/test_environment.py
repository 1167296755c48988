"""What a notebook prints first, and the compilation cache of commands."""

import jax
import pytest

from vitjax.checkpoints import download, registry
from vitjax.cli import compilation_cache, environment


def test_device_weights_and_data_are_printed(capsys, monkeypatch):
    monkeypatch.setattr(environment, "find_accelerator", lambda: None)
    environment.print_environment("textured_digits", data="textured_digits:test_0")
    device, weights, images = capsys.readouterr().out.splitlines()
    assert f"jax {jax.__version__} computes on cpu." in device
    assert "no accelerator" in device
    assert "textured_digits" in weights and "nothing is downloaded" in weights
    assert "textured_digits:test_0" in images and "come with vitjax" in images
    environment.print_environment("textured_digits", data="folder:photos")
    assert "read from this machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "files", "expected"),
    [
        ({}, (), None),
        ({"TPU_NAME": ""}, (), None),
        ({"TPU_NAME": "pod"}, (), "tpu"),
        ({"COLAB_TPU_ADDR": "10.0.0.2"}, (), "tpu"),
        ({}, ("accel0",), "tpu"),
        ({}, ("nvidia0",), "gpu"),
    ],
)
def test_accelerators_are_found(variables, files, expected, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    patterns = {"gpu": (f"{tmp_path}/nvidia*",), "tpu": (f"{tmp_path}/accel*",)}
    assert environment.find_accelerator(variables, patterns) == expected


@pytest.mark.parametrize(
    ("platform", "present", "variables", "words"),
    [
        ("gpu", "gpu", {}, "in use"),
        ("cpu", None, {}, "Change runtime type"),
        ("cpu", "gpu", {}, f'"jax[cuda13]=={jax.__version__}"'),
        ("cpu", "tpu", {}, f'"jax[tpu]=={jax.__version__}"'),
        ("cpu", "gpu", {"JAX_PLATFORMS": "cpu"}, "JAX_PLATFORMS=cpu"),
        ("cpu", "gpu", {"JAX_PLATFORMS": "cuda,cpu"}, "jax[cuda13]"),
    ],
)
def test_advice_on_the_device(platform, present, variables, words):
    assert words in environment.device_advice(platform, present, variables)


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
    assert str(compilation_cache.enable_compilation_cache()) == chosen
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("VITJAX_CACHE", str(tmp_path))
        folder = compilation_cache.enable_compilation_cache()
        assert folder == tmp_path / "compiled" / compilation_cache.machine()
        assert folder.is_dir() and jax.config.jax_compilation_cache_dir == str(folder)
        jax.config.update("jax_compilation_cache_dir", None)
        (tmp_path / "file").touch()
        monkeypatch.setenv("VITJAX_CACHE", str(tmp_path / "file"))
        assert compilation_cache.enable_compilation_cache() is None
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", chosen)
