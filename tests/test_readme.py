"""What the README shows runs as it stands."""

import pathlib
import re
import subprocess
import sys

import pytest

import vitjax
from vitjax.runner.experiments import RECIPES

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf8")
pytestmark = pytest.mark.slow


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda c: c.splitlines()[0])
def test_python_of_the_readme(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:vitjax", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_demo_of_the_readme(tmp_path):
    assert "vitjax demo" in README
    done = subprocess.run(
        [sys.executable, "-m", "vitjax", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.rglob("report.html")
    assert report.stat().st_size > 50_000
    assert str(report.name) in done.stdout


def test_every_command_named_in_the_readme_exists():
    commands = set(re.findall(r"vitjax ([a-z]+)\b", "\n".join(blocks("bash"))))
    assert {"demo", "run", "report"} <= commands
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "vitjax", command, "--help"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, command


def test_the_reference_is_built_from_the_docstrings(tmp_path):
    (command,) = re.findall(r"`[^`]*&& (pdoc [^`]*)`", README)
    words = [sys.executable, "-m", *command.split()]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference/vitjax.html").read_text("utf8")
    for name in vitjax.__all__:
        assert f'id="{name}"' in page, name


def test_every_notebook_and_recipe_of_the_readme_exists():
    for name in re.findall(r"`(?:notebooks/)?(0\d_\w+)(?:\.ipynb)?`", README):
        assert (ROOT / "notebooks" / f"{name}.ipynb").exists(), name
    for name in RECIPES:
        assert f"vitjax run {name}" in README or f"`{name}`" in README, name
