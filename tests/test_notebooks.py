"""Notebooks are thin, keep small outputs, use public names and run as they stand.

`python tests/test_notebooks.py [NAME...]` runs them and writes their outputs anew.
"""

import ast
import base64
import io
import json
import os
import pathlib
import re
import socket
import sys
import tempfile

import nbclient
import nbformat
import pytest
from PIL import Image

import vitjax

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
FOUR_DEVICES = "--xla_force_host_platform_device_count=4"
"""Alone: code compiled without optimization is slow on a whole model."""
IMAGE = re.compile(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)")
LARGEST = 60_000
"""Bytes of an image."""


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def syntax(cell) -> ast.Module:
    """Without commands of IPython."""
    return ast.parse(re.sub(r"(?m)^( *)[%!].*$", r"\1pass", cell.source))


def images(output) -> list[str]:
    """Those of an output, in base64: itself, or in its HTML."""
    data = output.get("data", {})
    own = [data[kind] for kind in ("image/png", "image/jpeg") if kind in data]
    return own + IMAGE.findall(data.get("text/html", ""))


def execute(folder, flags, *names, **environment):
    """Run notebooks, one after the other, with other knobs: they, and their outputs.

    In one kernel, which forgets all names in between: its start takes seconds.
    """
    read_in, changed = {name: read(name) for name in names}, set()
    together = nbformat.v4.new_notebook()
    for notebook in read_in.values():
        _, knobs, *_ = code_cells(notebook)
        for flag, value in flags.items():
            line = f"{flag} = {value!r}"
            knobs.source, n = re.subn(rf"(?m)^{flag} = .*$", line, knobs.source)
            changed |= {flag} if n else set()
        forget = nbformat.v4.new_code_cell("%reset -f")
        together.cells += [forget, *code_cells(notebook)]
    assert changed == set(flags)
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(
        together, timeout=600, resources=resources, record_timing=False
    )
    client.execute(env=os.environ | environment)
    return read_in


def figures(notebook) -> int:
    return sum(
        len(images(out)) for cell in code_cells(notebook) for out in cell.outputs
    )


@pytest.mark.parametrize("name", NAMES)
def test_form(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in code_cells(notebook):
        assert not cell.metadata
        assert len(cell.source.splitlines()) <= 45  # thin
    assert "colab-badge.svg" in notebook.cells[0].source
    text = (FOLDER / f"{name}.ipynb").read_text("utf8")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
    assert not re.search(r"/(work|tmp|home|root|Users|content)/", text)
    words = re.sub(r'"image/\w+": "[^"]*"', "", text)
    assert socket.gethostname() not in re.findall(r"[\w.-]+", words)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_one_run_and_small(name):
    cells = code_cells(read(name))
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [out for cell in cells for out in cell.outputs]
    assert {out.output_type for out in outputs} <= {
        "stream",
        "execute_result",
        "display_data",
    }
    assert all(out.name == "stdout" for out in outputs if out.output_type == "stream")
    sizes = [len(image) * 3 / 4 for out in outputs for image in images(out)]
    assert sizes and max(sizes) <= LARGEST + 2  # padding
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 350_000


def test_all_notebooks_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_500_000


@pytest.mark.parametrize("name", NAMES)
def test_first_cell_installs_only_what_is_missing(name):
    notebook = read(name)
    first, knobs, *_ = code_cells(notebook)
    assert notebook.cells[1] is first
    assert first.source == code_cells(read(NAMES[0]))[0].source
    assert len(re.findall(r"\S.*", first.source)) == 3
    guard = syntax(first).body[-1]
    assert isinstance(guard, ast.If)
    assert ast.unparse(guard.test) == "importlib.util.find_spec('vitjax') is None"
    (options,) = re.findall(r"(?m)^ +%pip install (.*)$", first.source)
    assert options == "--quiet .."  # which leaves alone what is new enough
    assert all(isinstance(node, ast.Assign) for node in syntax(knobs).body)
    assert 'MODEL = "textured_digits"' in knobs.source
    assert re.search(r"(?m)^IMAGES = \d+$", knobs.source)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_vitjax_are_public(name):
    names = set()
    for cell in code_cells(read(name)):
        for node in ast.walk(syntax(cell)):
            match node:
                case ast.ImportFrom(module=module):
                    assert not module.startswith("vitjax")
                case ast.Import(names=modules):
                    assert not any(m.name.startswith("vitjax.") for m in modules)
                case ast.Attribute(value=ast.Name(id="vitjax"), attr=attribute):
                    names.add(attribute)
    assert len(names) > 3
    assert names <= {*vitjax.__all__}


@pytest.mark.slow
def test_notebooks_run(tmp_path):
    flags = {"IMAGES": 8, "TRAIN_IMAGES": 20, "PHOTO_MODEL": "textured_digits"}
    ran = execute(tmp_path, flags, *NAMES)
    for name in NAMES:
        assert figures(ran[name]) == figures(read(name)), name  # as they are kept


@pytest.mark.slow
def test_notebooks_run_on_a_real_model(tmp_path, shared):
    (file,) = (shared / "assets" / "vit_ti16").glob("*.safetensors")
    flags = {"MODEL": "vit_ti16", "CHECKPOINT": str(file), "IMAGES": 3}
    flags |= {"DATA": f"imagenet_s:{shared / 'assets' / 'imagenet_s_standin'}"}
    names = "00_tutorial", "01_class_identifiability"
    ran = execute(tmp_path, flags, *names, XLA_FLAGS=FOUR_DEVICES)
    for name in names:
        assert figures(ran[name]) == figures(read(name)), name
    (*_, last) = code_cells(ran["00_tutorial"])
    printed = [out.text for out in last.outputs if out.get("name") == "stdout"]
    assert "cat" in printed[0]  # of the photo


def shrink(png: str, width: int = 720) -> tuple[str, str]:
    """A PNG no wider than that, of few colors; one that stays large as a JPEG."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if image.width > width:
        size = width, round(image.height * width / image.width)
        image = image.resize(size, Image.Resampling.LANCZOS)
    for kind, small in ("png", image.quantize(64)), ("jpeg", image):
        buffer = io.BytesIO()
        small.save(buffer, format=kind, optimize=True, quality=80)
        if buffer.tell() < LARGEST:
            return f"image/{kind}", base64.b64encode(buffer.getvalue()).decode()
    return shrink(png, width - 60)


def save_outputs(*names: str) -> None:
    """Run notebooks as they stand and keep what they print and draw, small."""
    with tempfile.TemporaryDirectory() as folder:
        ran = execute(folder, {}, *names, JAX_PLATFORMS="cpu")
    for name, notebook in ran.items():
        for count, cell in enumerate(code_cells(notebook), start=1):
            cell.execution_count = count
            printed = [out.text for out in cell.outputs if out.get("name") == "stdout"]
            stream = nbformat.v4.new_output("stream", text="".join(printed))
            shown = [out for out in cell.outputs if out.output_type != "stream"]
            cell.outputs = [stream] * bool(printed) + shown
            for out in shown:
                if out.output_type == "execute_result":
                    out.execution_count = count
                if png := out.data.pop("image/png", None):
                    kind, small = shrink(png)
                    out.data[kind] = small
                if page := out.data.get("text/html"):
                    out.data["text/html"] = IMAGE.sub(
                        lambda m: "data:{};base64,{}".format(*shrink(m[1])), page
                    )
        text = json.loads(nbformat.writes(notebook))
        text = json.dumps(text, indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{name}.ipynb").write_text(text, "utf8")


if __name__ == "__main__":
    save_outputs(*sys.argv[1:] or NAMES)
