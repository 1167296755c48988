"""Wheel, source distribution and editable install all hold what the demo needs."""

import pathlib
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow

USE = """
import vitjax, numpy as np
model = vitjax.load("textured_digits")
logits, _ = vitjax.forward(model, np.zeros((1, 64, 64, 3), np.float32))
from vitjax.data.datasets import open_source
classes = dict(classes=model.classes, class_ids=model.class_ids)
source = open_source("textured_digits", **classes)
from vitjax.data.labels import imagenet1k
print(vitjax.__file__, logits.shape, len(source) > 0, len(imagenet1k()[0]))
"""


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "-o", str(out), ".", cwd=ROOT)
    return out


def environment(folder: pathlib.Path) -> str:
    """A fresh virtual environment that sees the packages of this one, but no vitjax."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = str(folder / "bin" / "python")
    site = run(
        python,
        "-c",
        "import sysconfig; print(sysconfig.get_paths()['purelib'])",
        cwd=folder,
    )
    pathlib.Path(site.strip(), "outer.pth").write_text(sysconfig.get_paths()["purelib"])
    return python


def check(python, cwd, where):
    file, *rest = run(python, "-c", USE, cwd=cwd).split(maxsplit=1)
    assert pathlib.Path(file).is_relative_to(where)
    assert rest[0].split() == ["(1,", "10)", "True", "1000"]


def test_wheel_holds_the_checkpoint_and_the_data(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "vitjax/checkpoints/textured_digits/model.safetensors",
        "vitjax/data/demo.npz",
        "vitjax/data/imagenet1k.tsv",
        "vitjax/report/report.html.jinja",
    ):
        assert name in names
    assert not [name for name in names if name.startswith("tests")]
    assert wheel.stat().st_size < 8e6


@pytest.mark.parametrize("kind", ("wheel", "sdist", "editable"))
def test_the_model_is_found(built, kind, tmp_path):
    python = environment(tmp_path / "venv")
    what = {
        "wheel": [str(next(built.glob("*.whl")))],
        "sdist": [str(next(built.glob("*.tar.gz")))],
        "editable": ["-e", str(ROOT)],
    }[kind]
    run(
        *(python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"),
        *("--force-reinstall", *what),
        cwd=tmp_path,
    )
    check(python, tmp_path, ROOT if kind == "editable" else tmp_path / "venv")
