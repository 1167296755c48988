"""What the README and the guide show is there, is complete, and runs as it stands."""

import doctest
import inspect
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from PIL import Image

import vitjax
from vitjax.cli import main
from vitjax.recipes import schema
from vitjax.recipes.registry import RECIPES
from vitjax.saliency.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]
GUIDE = ROOT / "vitjax" / "guide"
PAGES = {page.name: page.read_text("utf8") for page in sorted(GUIDE.glob("*.md"))}
PAGES["README.md"] = README = (ROOT / "README.md").read_text("utf8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page) if kind == language]


def code_spans(page: str) -> list[str]:
    spans = re.findall(r"`([^`]+)`", FENCE.sub("", page))
    return [" ".join(span.split()) for span in spans]


def commands(page: str) -> list[str]:
    """Every `vitjax ...`, of blocks and of prose."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [" ".join(line.split()) for line in re.sub(r"#.*", "", text).splitlines()]
    lines = [line.removeprefix("srun ") for line in (*lines, *code_spans(page))]
    return [line for line in lines if line.startswith("vitjax ")]


PLACEHOLDERS = {"RECIPE": "identifiability", "IMAGE...": "IMAGE", "DIR...": "DIR"}
REQUIRED = dict.fromkeys(("explain", "look", "neurons", "bench"), ("--model M",))
REQUIRED |= {"estimate": ("--model M", "--data D")}
REQUIRED |= {"run": ("--model M", "--data D", "--out DIR")}


def arguments(line: str) -> list[str]:
    """Words of a command line; what a line of prose leaves open is filled in."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)[1:]]
    missing = [f for f in REQUIRED.get(words[0], ()) if f.split()[0] not in words]
    return words + shlex.split(" ".join(missing))


@pytest.mark.parametrize(
    "line", sorted({c for p in PAGES.values() for c in commands(p)})
)
def test_command_lines_parse(line):
    name, *rest = line.split()[1:]
    if name in ("COMMAND", "help") or "--help" in rest:
        return
    assert name in main.COMMANDS
    if rest:  # otherwise it is prose about a command
        assert isinstance(main.parse(arguments(line)), main.COMMANDS[name])


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_refers_to_exists(name):
    page, folder = PAGES[name], ROOT if name == "README.md" else GUIDE
    assert {kind for kind, _ in FENCE.findall(page)} <= {"python", "bash", "bibtex", ""}
    for extras in re.findall(r'pip install (?:-e )?"\.\[([^\]]+)\]"', page):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    for target in re.findall(r"\]\(([^)]+)\)", page):
        assert target.startswith("http") or (folder / target).exists(), target
    for span in code_spans(page):
        if re.fullmatch(r"[\w./]+/(\w+\.(py|md|ipynb)|)|\w+\.py", span):
            places = (ROOT, ROOT / "vitjax", ROOT / "tests")
            assert any((place / span).exists() for place in places), span


def test_the_readme_is_short_and_names_everything():
    assert len(README.splitlines()) <= 200
    assert len(blocks(README, "python")) == 3
    assert all(f"(vitjax/guide/{page.name})" in README for page in GUIDE.glob("*.md"))
    words = set(re.findall(r"\w+", " ".join(code_spans(README))))
    assert {*vitjax.__all__, *RECIPES} - words == {"__version__"}
    table = PAGES["methods.md"].split("## How faithful")[0]
    assert set(re.findall(r"(?m)^\| `(\w+)`", table)) == set(METHODS)
    for page in (README, PAGES["runs.md"]):
        assert {line.split()[1] for line in commands(page)} >= set(main.COMMANDS)


def test_the_map_is_the_tree():
    (text,) = blocks(PAGES["contributing.md"], "")
    paths = [line.split()[0] for line in text.splitlines()]
    assert all((ROOT / path).exists() for path in paths)
    rooms = {path.split("/")[1] for path in paths if path.startswith("vitjax/")}
    tree = {path.name for path in (ROOT / "vitjax").iterdir()}
    assert rooms == {name for name in tree if not name.startswith("__")}


def rows_table() -> str:
    """The table of arrays in rows.md, and the keys of their names, from the schema."""
    keys = {id(v): k[:-1] for k, v in vars(schema).items() if isinstance(v, dict)}
    lines = ["| array | axes | needs a label | meaning |", "| --- | --- | --- | --- |"]
    used = {}
    for family in schema.FAMILIES:
        names = [keys[id(mapping)] for mapping in family.keys]
        used |= dict(zip(names, family.keys))
        array = next(iter(family))
        cells = (
            f"`{family.template.format(*names)}`",
            " or ".join(dict.fromkeys(" ".join(array.axes) for array in family)),
            "yes" if array.needs_label else "",
            family.meaning.format(*names),
        )
        lines.append(f"| {' | '.join(cells)} |")
    for name, mapping in used.items():
        lines += ["", f"| {name} | |", "| --- | --- |"]
        lines += [f"| `{key}` | {words} |" for key, words in mapping.items()]
    return "\n".join(lines) + "\n"


def cards() -> str:
    """A section for each method: its question, its picture, and its other cells of the
    tables of methods.md by column.
    """
    facts: dict[str, dict[str, str]] = {name: {} for name in METHODS}
    for table in re.findall(r"(?m)^\| method \|.*\n(?:\|.*\n)+", PAGES["methods.md"]):
        lines = [line.strip("|").split("|") for line in table.splitlines()]
        (_, *columns), _, *rows = [[cell.strip() for cell in line] for line in lines]
        for name, *cells in rows:
            facts[name.strip("`")] |= dict(zip(columns, cells))
    text = ""
    for name, cells in facts.items():
        words = schema.METHODS.get(name, name).replace("_", " ")
        text += f"## {words[0].upper()}{words[1:]}\n\n{cells.pop('question')}\n\n"
        text += f"![A photo of a cat and its map](maps/{name}.webp)\n\n"
        text += f"| `{name}` | |\n| --- | --- |\n"
        text += "".join(f"| {k} | {v} |\n" for k, v in cells.items() if v) + "\n"
    return text.rstrip() + "\n"


GENERATED = {"rows.md": rows_table, "cards.md": cards}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_are_those_of_the_tables(name):
    """To rewrite them: `python tests/test_readme.py`."""
    assert PAGES[name].split("<!-- generated -->\n")[1] == GENERATED[name]()


def check_python(*arguments, cwd):
    command = [sys.executable, "-W", "error::DeprecationWarning:vitjax", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


EXAMPLES = """
import os
import jax, jax.numpy as jnp, numpy as np, vitjax
config = vitjax.Config(32, 8, dim=48, depth=12, heads=6, mlp_dim=64)
model = vitjax.init(config, classes=10).replace(preprocess=vitjax.Preprocess(32, 32))
images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
noise, corrupted, photo = images[::-1], images[::-1], np.zeros((32, 32, 3), np.uint8)
label, labels, direction = np.array([3, 5]), np.array([0, 1]), model.params["cls"][0, 0]
fields = "residual", "attention_update", "mlp_update", "mixed_values", "mlp_hidden"
_, trace = vitjax.forward(model, images, capture=fields)
maps, mask = vitjax.explain(model, images, label), np.arange(32).reshape(2, 16) % 2 == 0
run = vitjax.run(
    "identifiability", "textured_digits", "textured_digits:test_0", "results", limit=8
)
zeros = np.zeros((12, 48, 48), np.float32)
lens = vitjax.TunedLens(weights=zeros, bias=zeros[:, 0])
names = dict(globals())
"""
FILES = {"load", "load_text", "encode_text", "class_embeddings", "refinement_logits"}
FILES |= {"zero_shot", "encode_image", "open_data", "run", "open_results", "Recipe"}
"""Examples with files that are not here."""


@pytest.mark.slow
def test_python_blocks_and_examples_run(tmp_path):
    """In one process; every block has names and every page a folder of its own."""
    code = EXAMPLES
    for name in vitjax.__all__:
        source = inspect.getdoc(getattr(vitjax, name)) or ""
        lines = [e.source for e in doctest.DocTestParser().get_examples(source)]
        block = "".join(lines).replace("vit_b16", "textured_digits")
        block = block.replace(':train", steps=100', ':test_0", steps=5')
        if name not in FILES:
            code += f"exec(compile({block!r}, {name!r}, 'exec'), dict(names))\n"
    for name, page in PAGES.items():
        (tmp_path / name).mkdir()
        code += f"os.chdir({str(tmp_path / name)!r})\n"
        for block in blocks(page, "python"):
            code += f"exec(compile({block!r}, {name!r}, 'exec'), {{}})\n"
    check_python("-c", code, cwd=tmp_path)


STAND_INS = dict.fromkeys(("M", "SOURCE", "vit_ti16"), "textured_digits")
STAND_INS |= {"D": "textured_digits:test_0", "DIR": "results"}
STAND_INS |= {"IMAGE": "photos/seven/0.png", "NAME": "seven", "M1,M2": "rollout,legrad"}
SMALL = dict.fromkeys(("run", "estimate"), "--limit 8 --batch-size 8")
SMALL |= {"bench": "--batch-size 2 --repetitions 1", "demo": "--images 40"}


@pytest.mark.slow
def test_commands_of_the_guide_run(tmp_path, monkeypatch, capsys):
    """The first block of runs.md and its table of commands, on the embedded model."""
    monkeypatch.chdir(tmp_path)
    for name in ("seven", "two"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (80, 60), (90, 0, 0)).save(f"photos/{name}/0.png")
    lines = FENCE.search(PAGES["runs.md"])[2].splitlines()
    lines += re.findall(r"(?m)^\| `(vitjax [^`]*)` \|", PAGES["runs.md"])
    assert len(lines) >= 10
    for line in lines:
        words = [STAND_INS.get(word, word) for word in arguments(line)]
        words += SMALL.get(words[0], "").split()
        if words[0] == "convert":
            words[-1] = "converted"
        if words[0] == "run" and "folder:photos" not in words:
            words[words.index("--out") + 1] = "again"
        assert main.main(words) == 0, f"{line}\n{capsys.readouterr().err}"
        shown = capsys.readouterr().out
        assert words[0] != "demo" or "top-1 accuracy" in shown and "95 % low" in shown
    for path in ("results", "vitjax-demo"):
        assert (tmp_path / path / "report.html").stat().st_size > 50_000
    assert (tmp_path / "vitjax-explain" / "explain.png").exists()


@pytest.mark.slow
def test_the_reference_has_every_name_and_page(tmp_path):
    (command,) = re.findall(r"`[^`]*&& (pdoc [^`]*)`", README)
    check_python("-W", "error", "-m", *command.split(), cwd=tmp_path)
    page = (tmp_path / "reference/vitjax.html").read_text("utf8")
    for name in vitjax.__all__:
        section = re.search(rf'<section id="{name}">.*?</section>', page, re.DOTALL)
        assert name == "__version__" or "docstring" in section[0], name
    guide = (tmp_path / "reference/vitjax/guide.html").read_text("utf8")
    for name in set(PAGES) - {"README.md"}:
        title = PAGES[name].splitlines()[0].removeprefix("# ")
        assert re.search(rf"<h1[^>]*>{re.escape(title)}</h1>", guide), name


if __name__ == "__main__":
    for name, make in GENERATED.items():
        head = PAGES[name].split("<!-- generated -->\n")[0]
        (GUIDE / name).write_text(f"{head}<!-- generated -->\n{make()}", "utf8")
