"""The arrows between rooms: what a file may import of vitjax, and of others."""

import ast
import pathlib
import re
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "vitjax"

ARROWS = {
    "types": set(),
    "checks": {"types", "messages"},
    "messages": set(),
    "statistics": {"messages"},
    "models": {"types", "messages", "checks"},
    "analysis": {"types", "messages", "checks"},
    "data": {"types", "messages"},
    "checkpoints": {"types", "messages", "models", "data"},
    "saliency": {"types", "messages", "checks", "models", "analysis"},
    "recipes": {"types", "messages", "models", "analysis", "data", "saliency"},
    "runner": {"types", "messages", "models", "data", "checkpoints", "recipes"},
    "api": {"types", "checks", "models", "analysis", "saliency"},
    "report": {"types", "messages", "analysis", "statistics"},
}
"""Room -> rooms that it may import from. The rest may import from all."""

ARROWS["benchmark"] = {*ARROWS, "benchmark"} - {"report"}
REPORT_READS = (
    "vitjax.recipes.schema",
    "vitjax.runner.results",
    "vitjax.runner.store",
    "vitjax.saliency.methods",
)
FREE = {"cli", "guide", "__main__", "__init__"}

ONLY = {
    "types": "jax numpy jaxtyping",
    "messages": "",
    "statistics": "numpy scipy jaxtyping",
    "analysis": "jax numpy jaxtyping optax scipy",
    "report": "jax numpy pandas xarray matplotlib jinja2 jaxtyping PIL etils",
}
"""Third-party packages of a room, where they are few by design."""

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Full names of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{path}: star"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path):
    here = room(path)
    names = imports(path)
    others = {name.split(".")[0] for name in names} - {"vitjax"}
    others -= set(sys.stdlib_module_names)
    assert others <= set(ONLY[here].split() if here in ONLY else others)
    if here in FREE:
        return
    assert here in {"models", "benchmark"} or "flax" not in others
    ours = {name for name in names if name.startswith("vitjax.")}
    if here == "report":
        ours = {name for name in ours if not name.startswith(REPORT_READS)}
    rooms = {name.split(".")[1] for name in ours}
    assert rooms - {"__version__"} <= ARROWS[here] | {here}


def test_every_room_is_in_the_table_and_holds_about_a_dozen_files():
    rooms = {room(path) for path in FILES}
    assert rooms == set(ARROWS) | FREE
    for folder in PACKAGE.iterdir():
        assert len(list(folder.glob("*.py"))) <= 24


def test_subpackages_export_nothing():
    for path in PACKAGE.glob("*/__init__.py"):
        body = ast.parse(path.read_text("utf8")).body
        assert all(isinstance(node, ast.Expr) for node in body), path


MODEL = r"[\"'](vit|deit)_\w+[\"']"
ARRAY = "rank|logit|first|agreement|chance|simple|prediction|class_value|map|removal"
FORBIDDEN = {
    rf"{MODEL}\s*(in|==)|(==|in)\s*{MODEL}": {"checkpoints", "cli", "data"},
    rf"f\"({ARRAY}|pixels|correct)_\{{": {"schema"},
    "from __future__ import annotations": set(),  # types are checked at run time
    r"jax\._src": set(),
}
"""Behavior by a model's name, names of arrays, ... -> rooms and files that may."""


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_what_no_file_holds(pattern):
    for path in FILES:
        if not {room(path), path.stem} & FORBIDDEN[pattern]:
            assert not re.search(pattern, path.read_text("utf8")), path
