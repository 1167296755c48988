"""What a notebook says first."""

import jax
import pytest

from vitjax.checkpoints import download
from vitjax.cli.main import welcome as welcomes


def test_welcome_says_device_weights_and_data(capsys, monkeypatch):
    monkeypatch.setattr(welcomes, "present_accelerator", lambda: None)
    welcomes.welcome("textured_digits", data="textured_digits:test_0")
    text = capsys.readouterr().out
    assert f"jax {jax.__version__} computes on cpu." in text
    assert "no accelerator here" in text
    assert "textured_digits comes with vitjax; nothing is downloaded" in text
    assert "They come with vitjax" in text


@pytest.mark.parametrize(
    ("environment", "gpu", "tpu", "found"),
    [
        ({}, False, False, None),
        ({"TPU_NAME": ""}, False, False, None),
        ({"TPU_NAME": "pod"}, False, False, "tpu"),
        ({"COLAB_TPU_ADDR": "10.0.0.2"}, False, False, "tpu"),
        ({}, False, True, "tpu"),
        ({}, True, False, "gpu"),
    ],
)
def test_present_accelerator(environment, gpu, tpu, found, tmp_path):
    for there, name in ((gpu, "nvidia0"), (tpu, "accel0")):
        if there:
            (tmp_path / name).touch()
    patterns = [(f"{tmp_path}/{name}[0-9]*",) for name in ("nvidia", "accel")]
    seen = welcomes.present_accelerator(
        environment=environment, gpu_files=patterns[0], tpu_files=patterns[1]
    )
    assert seen == found


@pytest.mark.parametrize(
    ("platform", "present", "environment", "words"),
    [
        ("gpu", "gpu", {}, "in use"),
        ("cpu", None, {}, "Change runtime type"),
        ("cpu", "gpu", {}, f'"jax[cuda13]=={jax.__version__}"'),
        ("cpu", "tpu", {}, f'"jax[tpu]=={jax.__version__}"'),
        ("cpu", "gpu", {"JAX_PLATFORMS": "cpu"}, "JAX_PLATFORMS=cpu"),
        ("cpu", "gpu", {"JAX_PLATFORMS": "cuda,cpu"}, "jax[cuda13]"),
    ],
)
def test_advice(platform, present, environment, words):
    assert words in welcomes.advice(platform, present, environment=environment)


def test_size_of_what_will_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("VITJAX_CACHE", str(tmp_path))
    text = welcomes.weights_text("vit_ti16")
    assert "about 23 MB will be downloaded once" in text  # 5,717,416 parameters
    assert str(tmp_path) in text
    assert "about 346 MB" in welcomes.weights_text("vit_b16")
    row = welcomes.variants.find("vit_ti16")
    download.published(row)[0].cached.touch()
    assert "downloaded before" in welcomes.weights_text("vit_ti16")


def test_weights_that_are_not_downloaded(tmp_path):
    assert "Google Drive" in welcomes.weights_text("vit_b16_cifar100")
    assert "my.npz" in welcomes.weights_text("vit_ti16", "my.npz")
    assert "nothing is downloaded" in welcomes.weights_text(str(tmp_path))
    with pytest.raises(ValueError, match="Did you mean 'vit_ti16'"):
        welcomes.weights_text("vit_ti61")


def test_data_of_ones_own():
    assert "nothing is downloaded" in welcomes.data_text("folder:photos")
