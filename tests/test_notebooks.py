"""Notebooks are thin, kept without outputs, and run as they stand."""

import ast
import importlib
import json
import os
import pathlib
import re

import nbclient
import nbformat
import pytest

import vitjax
from vitjax.data.textured_digits import CLASSES

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
FOUR_DEVICES = "--xla_force_host_platform_device_count=4"
"""Alone: code compiled without optimization is slow on a whole model."""


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def syntax(cell) -> ast.Module:
    """Without commands of IPython."""
    return ast.parse(re.sub(r"(?m)^( *)[%!].*$", r"\1pass", cell.source))


def execute(name, folder, **flags):
    """Run it with other values in its first cell; kinds of everything it showed."""
    notebook = read(name)
    first = code_cells(notebook)[0]
    for flag, value in flags.items():
        line = f"{flag} = {value!r}"
        first.source, count = re.subn(rf"(?m)^{flag} = .*$", line, first.source)
        assert count == 1, flag
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=600, resources=resources)
    client.execute(env=os.environ | {"XLA_FLAGS": FOUR_DEVICES})
    assert not list(folder.glob("pins.txt"))  # nothing was installed
    outputs = [out for cell in code_cells(notebook) for out in cell.outputs]
    shown = [out.get("data", {}) for out in outputs]
    kinds = [kind for data in shown for kind in data]
    for data in shown:  # images in the HTML of what is no image itself
        if "image/png" not in data:
            images = str(data.get("text/html", "")).count("data:image/png")
            kinds += ["image/png"] * images
    return kinds


@pytest.mark.parametrize("name", NAMES)
def test_form(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in code_cells(notebook):
        assert not (cell.outputs or cell.execution_count or cell.metadata)
        assert len(cell.source.splitlines()) <= 45  # thin
    assert "colab-badge.svg" in notebook.cells[0].source
    text = (FOLDER / f"{name}.ipynb").read_text("utf8")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
    assert not re.search(r"/(work|tmp|home|root|Users)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_first_cell_installs_only_what_is_missing_and_keeps_jax(name):
    notebook = read(name)
    first = code_cells(notebook)[0]
    assert notebook.cells[1] is first
    flags, rest = first.source.split("\nimport ", 1)
    assert 'MODEL = "textured_digits"' in flags
    assert re.search(r"(?m)^IMAGES = \d+$", flags)
    # The rest is the same in every notebook.
    assert rest == code_cells(read(NAMES[0]))[0].source.split("\nimport ", 1)[1]
    ((indent, pip),) = re.findall(r"(?m)^( *)%pip install (.*)$", rest)
    assert indent and "only-if-needed --constraint pins.txt" in pip  # if missing
    assert not re.search(r"-U\b|--upgrade(?!-)|jax\[", pip)
    (guard,) = [node for node in syntax(first).body if isinstance(node, ast.If)]
    assert ast.unparse(guard.test) == "importlib.util.find_spec('vitjax') is None"
    pinned = re.compile(re.search(r're\.compile\(r"(.*)"\)', rest)[1])
    names = "jax jaxlib libtpu jax-cuda12-plugin jax_cuda13_pjrt jaxtyping jaxopt numpy"
    assert list(filter(pinned.match, names.split())) == names.split()[:5]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_vitjax_exists(name):
    names = set()
    for cell in code_cells(read(name)):
        for node in ast.walk(syntax(cell)):
            match node:
                case ast.ImportFrom(module=module) if module.startswith("vitjax"):
                    names |= {(module, alias.name) for alias in node.names}
                case ast.Attribute(value=ast.Name(id="vitjax"), attr=attribute):
                    names.add(("vitjax", attribute))
    assert len(names) > 3
    for module, attribute in names:
        assert hasattr(importlib.import_module(module), attribute), attribute


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebooks_run(name, tmp_path):
    assert "image/png" in execute(name, tmp_path, IMAGES=20)


@pytest.mark.slow
@pytest.mark.parametrize("name", ("00_tutorial", "03_explainability"))
def test_notebooks_run_on_a_real_model(name, tmp_path, shared):
    (file,) = (shared / "assets" / "vit_ti16").glob("*.safetensors")
    flags = {"MODEL": "vit_ti16", "CHECKPOINT": str(file), "IMAGES": 4}
    flags["DATA"] = f"imagenet_s:{shared / 'assets' / 'imagenet_s_standin'}"
    if name == "03_explainability":
        flags["METHODS"] = ("class_projection", "random")
    assert execute(name, tmp_path, **flags).count("image/png") >= 3


@pytest.mark.slow
def test_a_finished_run_is_shown_without_computing(tmp_path):
    config = vitjax.Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=24)
    model = vitjax.init(config, classes=CLASSES, seed=1)
    done = tmp_path / "done"
    options = {"batch_size": 8, "limit": 16, "show_progress": False}
    vitjax.run("paper", model, "textured_digits", done, **options)
    flags = {"CHECKPOINT": "none", "RUN": str(done)}
    kinds = execute("01_class_identifiability", tmp_path, **flags)
    assert kinds.count("image/png") >= 5
