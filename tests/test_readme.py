"""What the README and the notebooks show runs as it stands."""

import pathlib
import re
import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=str)
def test_notebooks_run_and_are_kept_without_outputs(path, tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [o for c in notebook.cells for o in c.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
