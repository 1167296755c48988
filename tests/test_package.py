"""Source distribution, wheel and editable install all hold what the demo needs."""

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
from vitjax.data.datasets import open_data
model = vitjax.load("textured_digits")
logits, _ = vitjax.forward(model, np.zeros((1, 64, 64, 3), np.float32))
source = open_data("textured_digits", classes=model.classes)
print(vitjax.__file__, logits.shape, source[0].image.shape)
"""


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, and the wheel that is built from it alone."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "-o", str(out), ".", cwd=ROOT)
    return out


def test_wheel_holds_every_file_and_no_test(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "vitjax"
    files = [path for path in package.rglob("*.*") if "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in files} <= names
    assert "vitjax/checkpoints/textured_digits/model.safetensors" in names
    assert not [name for name in names if name.startswith("tests")]
    assert wheel.stat().st_size < 8e6


@pytest.mark.parametrize("kind", ("wheel", "editable"))
def test_the_model_is_found(built, kind, tmp_path):
    """In an environment that sees the packages of this one, but no vitjax."""
    what = ["-e", ROOT] if kind == "editable" else [*built.glob("*.whl")]
    venv.create(tmp_path / "venv", symlinks=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = pathlib.Path(run(python, "-c", where, cwd=tmp_path).strip())
    (site / "outer.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
    pip += ["--no-deps", "--no-build-isolation", "--force-reinstall"]
    run(*pip, *what, cwd=tmp_path)
    file, shapes = run(python, "-I", "-c", USE, cwd=tmp_path).split(maxsplit=1)
    home = ROOT if kind == "editable" else tmp_path / "venv"
    assert pathlib.Path(file).is_relative_to(home)
    assert shapes.split() == ["(1,", "10)", "(64,", "64,", "3)"]
