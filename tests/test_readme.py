"""What the README shows is there, is complete, and runs as it stands."""

import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from PIL import Image

import vitjax
from vitjax.cli.main import main
from vitjax.recipes.registry import RECIPES
from vitjax.saliency.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
FENCED = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
INLINE = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", PROSE)]


def blocks(language: str) -> list[str]:
    return [text for kind, text in FENCED if kind == language]


def shell_lines() -> list[str]:
    """Commands of the fenced blocks; comments and line breaks are the shell's."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    parts = re.split(r"\n|&&", re.sub(r"#.*", "", text))
    return [" ".join(part.split()) for part in parts if part.strip()]


def commands() -> list[str]:
    """Every `vitjax ...`, of blocks and of prose."""
    lines = [line.removeprefix("srun ") for line in shell_lines()]
    return [line for line in (*lines, *INLINE) if line.startswith("vitjax ")]


STANDS_FOR = {
    "RECIPE": "identifiability",
    "...": "--model M --data D --out DIR",
    "IMAGE...": "IMAGE",
    "DIR...": "DIR",
}
NEEDS = {
    "run": ("--model M", "--data D", "--out DIR"),
    "estimate": ("--model M", "--data D"),
    **{name: ("--model M",) for name in ("explain", "neurons", "bench")},
}


def spelt_out(line: str) -> list[str]:
    """Words of a command; what a line of prose leaves open is filled in."""
    line = " ".join(STANDS_FOR.get(word, word) for word in line.split())
    name = line.split()[1]
    more = [flag for flag in NEEDS.get(name, ()) if flag.split()[0] not in line]
    return shlex.split(" ".join((line, *more)))[1:]


def test_every_fenced_block_is_of_a_kind_that_is_tested():
    assert {kind for kind, _ in FENCED} == {"python", "bash", "bibtex", ""}
    assert len(blocks("python")) >= 5 and len(blocks("bibtex")) == len(blocks("")) == 1
    programs = {line.split()[0] for line in shell_lines()}
    assert programs == {"pip", "vitjax", "pytest", "srun", "bash", "pre-commit"}
    for line in shell_lines():
        if line.startswith("bash "):
            assert (ROOT / line.split()[1]).exists()


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_every_command_line_parses(line):
    name, *rest = line.split()[1:]
    if name == "COMMAND":
        return
    assert name in main.COMMANDS, line
    if not rest:  # prose about a command
        return
    found = main.parse(spelt_out(line))
    assert isinstance(found, main.COMMANDS[name])
    if name in ("run", "estimate"):
        assert found.recipe in {*RECIPES, "probes"}


def test_every_extra_that_is_installed_exists():
    asked = re.findall(r'pip install (?:-e )?"\.\[([^\]]+)\]"', README)
    extras = {name for text in asked for name in text.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])
    assert {"test", "dev", "docs", "torch", "cuda", "tpu", "notebooks"} <= extras


def test_everything_public_is_named():
    words = set(re.findall(r"\w+", " ".join(INLINE)))
    names = {*vitjax.__all__, *METHODS, *RECIPES, *main.COMMANDS, "probes"}
    assert names - words <= {"__version__", "Batch"}
    table = README[README.index("## The analyses") : README.index("**Two conv")]
    for name in (*RECIPES, "probes"):
        assert re.search(f"vitjax run {name}[` ]|`{name}`", table), name


def test_the_map_is_the_tree():
    (text,) = blocks("")
    paths = [line.split()[0] for line in text.splitlines() if line[0] != " "]
    assert all((ROOT / path).exists() for path in paths)
    ours = {
        path.removeprefix("vitjax/").rstrip("/") for path in paths if "vitjax/" in path
    }
    there = {path.name for path in (ROOT / "vitjax").iterdir()}
    assert ours == {name for name in there if not name.startswith("__")}


def test_files_links_and_headings_that_it_names_are_there():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            heading = target[1:].replace("-", " ")
            assert re.search(rf"(?mi)^##+ {heading}$", README), target
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target
    for text in INLINE:
        if re.fullmatch(r"[\w./]*\w\.py", text) and "/x/" not in text:
            places = ROOT / text, ROOT / "vitjax" / text, ROOT / "tests" / text
            assert any(place.exists() for place in places), text
    for name in re.findall(r"`(?:notebooks/)?(0\d_\w+)(?:\.ipynb)?`", README):
        assert (ROOT / "notebooks" / f"{name}.ipynb").exists(), name


def test_it_says_each_thing_once():
    headings = re.findall(r"(?m)^##+ (.+)$", README)
    assert len(headings) == len(set(headings))
    for word in ("Speed", "Many devices", "Contribute", "libraries", "wrong", "Cite"):
        assert any(word in heading for heading in headings), word


@pytest.mark.slow
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


@pytest.mark.slow
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


EMBEDDED = {
    **{name: "textured_digits" for name in ("M", "SOURCE", "vit_ti16")},
    **{"D": "textured_digits:test_0", "DIR": "results", "rows": "results"},
    **{"IMAGE": "photos/seven/0.png", "NAME": "seven", "M1,M2": "rollout,legrad"},
}
SMALL = {
    "run": "--limit 8 --batch-size 8",
    "estimate": "--limit 8 --batch-size 8",
    "bench": "--batch-size 2 --repetitions 1",
}


@pytest.mark.slow
def test_commands_of_the_readme_on_the_embedded_model(tmp_path, monkeypatch, capsys):
    """The first block of `A whole data set`, and the table of commands."""
    monkeypatch.chdir(tmp_path)
    for name in ("seven", "two"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (80, 60), (90, 0, 0)).save(f"photos/{name}/0.png")
    section = README[README.index("## A whole data set") :]
    lines = re.findall(r"(?m)^(vitjax .*)$", section.split("```")[1])
    lines += re.findall(r"(?m)^\| `(vitjax [^`]*)` \|", section)
    assert len(lines) >= 10
    for line in lines:
        words = [EMBEDDED.get(word, word) for word in spelt_out(line)]
        if words[0] in ("train", "demo"):  # an hour; tested above
            continue
        words += SMALL.get(words[0], "").split()
        if words[0] == "convert":
            words[-1] = "converted"
        if words[0] == "run" and "folder:photos" not in words:
            words[words.index("--out") + 1] = "again"
        assert main.main(words) == 0, f"{line}\n{capsys.readouterr().err}"
    assert (tmp_path / "results/report.html").exists()
    assert (tmp_path / "vitjax-explain/explain.png").exists()


@pytest.mark.slow
def test_the_reference_is_built_from_the_docstrings(tmp_path):
    (command,) = re.findall(r"`[^`]*&& (pdoc [^`]*)`", README)
    words = [sys.executable, "-W", "error", "-m", *command.split()]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "reference/vitjax.html").read_text("utf8")
    for name in vitjax.__all__:
        assert f'id="{name}"' in page, name
        section = re.search(rf'<section id="{name}">.*?</section>', page, re.DOTALL)
        assert name == "__version__" or "docstring" in section[0], name
