"""The walls between rooms: what a file may import of ours, and of others."""

import ast
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "vitjax"

MAY_IMPORT = {
    "types": set(),
    "models": {"types"},
    "data": {"types"},
    "analysis": {"types"},
    "maps": {"types", "models", "analysis"},
    "statistics": set(),
    "storage": set(),
    "results": {"storage"},
    "variants": {"types", "models", "data"},
    "loading": {"types", "models", "data", "variants"},
    "api": {"types", "models", "analysis", "maps"},
    "runner": {
        *("types", "models", "data", "analysis", "maps"),
        *("statistics", "variants", "loading", "api", "results", "storage"),
    },
    "report": {"results", "statistics", "storage", "types"},
}
ANY = {"cli", "commands", "__main__", "__init__"}

THIRD_PARTY = {
    "statistics": {"numpy", "scipy", "jaxtyping"},
    "storage": {"numpy", "tensorstore"},
    "results": {"numpy", "tensorstore", "etils", "jaxtyping", "xarray", "zarr"},
    "analysis": {"jax", "numpy", "jaxtyping", "optax", "scipy"},
    "report": {"numpy", "matplotlib", "jinja2", "jaxtyping", "PIL", "etils"},
    "types": {"jax", "numpy", "jaxtyping"},
}
FLAX = {"models", "runner"}

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(path: pathlib.Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            assert all(alias.name != "*" for alias in node.names), f"{path}: star"
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_of_ours(path):
    here = room(path)
    if here in ANY:
        return
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("vitjax.")}
    ours.discard("__version__")
    assert ours <= MAY_IMPORT[here] | {here}, f"{path} crosses a wall"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_of_others(path):
    import sys

    here = room(path)
    others = {name.split(".")[0] for name in imported(path)} - {"vitjax"}
    others -= set(sys.stdlib_module_names)
    if here in THIRD_PARTY:
        assert others <= THIRD_PARTY[here], f"{path} imports {others}"
    if here not in FLAX | ANY:
        assert "flax" not in others
    if here in {"analysis", "maps", "models", "data"}:
        assert "matplotlib" not in others


def test_every_room_is_in_the_table():
    rooms = {room(path) for path in FILES}
    assert rooms <= set(MAY_IMPORT) | ANY


def test_subpackages_export_nothing():
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent == PACKAGE:
            continue
        body = ast.parse(path.read_text("utf8")).body
        assert all(isinstance(node, ast.Expr) for node in body), path


def test_no_behaviour_depends_on_a_models_name():
    for path in FILES:
        if room(path) in {"variants", "cli", "commands", "data"}:
            continue
        assert not re.search(
            r"[\"']vit_\w+[\"']\s*(in|==)|(==|in)\s*[\"']vit_", path.read_text()
        )


def test_types_are_checked_at_run_time_not_quoted_away():
    for path in FILES:
        assert "from __future__ import annotations" not in path.read_text("utf8"), path


def test_tests_mirror_the_package():
    tests = pathlib.Path(__file__).parent
    missing = []
    for path in FILES:
        relative = path.relative_to(PACKAGE)
        if path.name.startswith("__"):
            continue
        mirrored = tests / relative.parent / f"test_{path.name}"
        if not mirrored.exists() and str(relative) not in ELSEWHERE:
            missing.append(str(relative))
    assert not missing
    assert all((tests / test).exists() for test in ELSEWHERE.values())


COMMANDS = (
    "command",
    "running",
    "reading",
    "weights",
    "measuring",
    "terminal",
    "compiled",
)

ELSEWHERE = {
    "types.py": "test_api.py",
    "models/links.py": "analysis/test_interventions.py",
    "models/dialects.py": "models/test_convert.py",
    "models/tree.py": "models/test_convert.py",
    "models/readout.py": "test_api.py",
    "data/records.py": "data/test_sources.py",
    "models/model.py": "test_loading.py",
    **{f"commands/{name}.py": "test_cli.py" for name in COMMANDS},
    "models/tail.py": "maps/test_relevancy.py",
    "runner/recipe.py": "runner/test_experiments.py",
    "runner/programs.py": "runner/test_bench.py",
    "models/initial.py": "test_loading.py",
}
"""Files whose tests stand in another's: source -> test."""
