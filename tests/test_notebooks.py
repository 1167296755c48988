"""Notebooks are thin, kept without outputs, and run as they stand."""

import ast
import importlib
import json
import pathlib
import re

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NAMES = (
    "00_tutorial",
    "01_class_identifiability",
    "02_mechanistic_interpretability",
    "03_explainability",
    "04_linear_probing",
    "05_research_code",
)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def python(cell) -> ast.Module:
    """A code cell's syntax; commands of IPython do nothing."""
    return ast.parse(re.sub(r"(?m)^( *)[%!].*$", r"\1pass", cell.source))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_flags(notebook, **flags):
    """The same notebook with other values in its first cell."""
    first = code_cells(notebook)[0]
    for name, value in flags.items():
        line = f"{name} = {value!r}"
        first.source, count = re.subn(rf"(?m)^{name} = .*$", line, first.source)
        assert count == 1, name
    return notebook


def executed(notebook, folder):
    """Run it; every figure and table that it showed."""
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    outputs = [out for cell in code_cells(notebook) for out in cell.outputs]
    return [kind for out in outputs for kind in out.get("data", {})]


def test_there_is_one_for_every_chapter():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_form(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in code_cells(notebook):
        assert not cell.outputs and cell.execution_count is None
        assert not cell.metadata
        assert len(cell.source.splitlines()) <= 45  # thin
    assert "colab-badge.svg" in notebook.cells[0].source
    assert notebook.cells[1] is code_cells(notebook)[0]


@pytest.mark.parametrize("name", NAMES)
def test_first_cell_installs_only_what_is_absent_and_keeps_jax(name):
    source = code_cells(read(name))[0].source
    flags, rest = source.split("\nimport ", 1)
    assert 'MODEL = "textured_digits"' in flags
    assert re.search(r"(?m)^PICTURES = \d+$", flags)
    # The rest is the same in every notebook.
    assert rest == code_cells(read(NAMES[0]))[0].source.split("\nimport ", 1)[1]
    (pip,) = re.findall(r"(?m)^( *)%pip install (.*)$", source)
    assert pip[0]  # inside the condition
    assert "--upgrade-strategy only-if-needed --constraint held.txt" in pip[1]
    assert not re.search(r"-U\b|--upgrade(?!-)|jax\[", pip[1])
    (guard,) = [node for node in python(code_cells(read(name))[0]).body if is_if(node)]
    assert ast.unparse(guard.test) == "importlib.util.find_spec('vitjax') is None"
    assert "print(jax.devices())" in source
    assert source.endswith("welcome(MODEL, checkpoint=CHECKPOINT, data=DATA)")


def is_if(node):
    return isinstance(node, ast.If)


def test_held_versions_are_those_of_jax_alone():
    source = code_cells(read(NAMES[0]))[0].source
    ours = re.compile(re.search(r're\.compile\(r"(.*)"\)', source)[1])
    held = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax_cuda13_pjrt")
    assert all(ours.match(name) for name in held)
    assert not any(ours.match(name) for name in ("jaxtyping", "jaxopt", "numpy"))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_vitjax_exists(name):
    seen = 0
    for cell in code_cells(read(name)):
        for node in ast.walk(python(cell)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("vitjax"):
                module = importlib.import_module(node.module)
                seen += all(hasattr(module, alias.name) for alias in node.names)
                assert all(hasattr(module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Attribute) and is_vitjax(node.value):
                assert hasattr(importlib.import_module("vitjax"), node.attr), node.attr
                seen += 1
    assert seen > 3


def is_vitjax(node):
    return isinstance(node, ast.Name) and node.id == "vitjax"


@pytest.mark.parametrize("name", NAMES)
def test_files_are_written_as_they_are_kept(name):
    text = (FOLDER / f"{name}.ipynb").read_text("utf8")
    kept = json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
    assert text == kept
    assert not re.search(r"/(work|tmp|home|root|Users)/", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebooks_run(name, tmp_path):
    kinds = executed(with_flags(read(name), PICTURES=40), tmp_path)
    assert "image/png" in kinds
    assert not list(tmp_path.glob("held.txt"))  # nothing was installed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["00_tutorial", "03_explainability"])
def test_notebooks_run_on_a_real_model(name, tmp_path, shared):
    assets = shared / "assets"
    if not (assets / "vit_ti16").is_dir():
        pytest.skip(f"{assets} has no real weights")
    (file,) = (assets / "vit_ti16").glob("*.safetensors")
    flags = {
        "MODEL": "vit_ti16",
        "CHECKPOINT": str(file),
        "DATA": f"imagenet_s:{assets / 'imagenet_s_standin'}",
        "PICTURES": 4,
    }
    if name == "03_explainability":
        flags["METHODS"] = ("class_projection", "random")
    kinds = executed(with_flags(read(name), **flags), tmp_path)
    assert kinds.count("image/png") >= 3


@pytest.mark.slow
def test_a_finished_run_is_shown_without_computing(tmp_path):
    import vitjax
    from vitjax.data.textured_digits import CLASSES

    shape = vitjax.Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=24)
    model = vitjax.init(shape, classes=CLASSES, seed=1)
    done = tmp_path / "done"
    vitjax.run(
        *("paper", model, "textured_digits", done),
        batch_size=8,
        limit=16,
        show_progress=False,
    )
    notebook = read("01_class_identifiability")
    kinds = executed(with_flags(notebook, CHECKPOINT="none", RUN=str(done)), tmp_path)
    assert kinds.count("image/png") >= 5
