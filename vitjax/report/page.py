"""The page of a report: figures, maps and numbers of runs in one file to read."""

import os
from collections.abc import Sequence
from typing import Any

from vitjax.report import marks, token_maps
from vitjax.report.explorer import explorer_html
from vitjax.report.figure import ReportOptions, Section, number
from vitjax.report.per_image import Run, as_runs, short_data
from vitjax.report.section import provenance, sections
from vitjax.report.templates import render
from vitjax.runner.results import Results

ARXIV_URL = "https://arxiv.org/abs/2310.18969"


def write_report(
    runs: Sequence[Results],
    out: str | os.PathLike,
    *,
    tests: Any = "images",
    subset: int = 500,
    names: Sequence[str] = (),
) -> Any:
    """Write a page about one run, or about several side by side.

    `report.html` needs no other file; `figures/` receives every figure as PNG and its
    numbers as CSV. Files of an earlier report are replaced. A run of the recipe
    `tokens` beside another one of the same model and data only adds its explorer to it.

    Args:
        runs: rows of recipes with ranks, such as `identifiability`, finished or not.
        out: folder to write to, local or gs://; created where it is missing.
        tests: what tests take for independent, see `ReportOptions`: "images",
            "within_images" or "vilas2023".
        subset: on how many images tests with tokens as units rest.
        names: of the runs; by default what tells them apart.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: there is no run, or one holds no ranks.
        OSError: the folder cannot be written.
    """
    from etils import epath

    explored = pair_token_runs(runs)
    names = [name for place, name in enumerate(names) if place in explored]
    shown = as_runs([runs[place] for place in explored], names)
    options = ReportOptions(tests=tests, subset=subset, names=names)
    made = sections(shown, options)
    made += [maps] if (maps := token_maps.section(shown, options)) else []
    names = [run.name for run in shown]
    tokens = [Run(run, name) for run, name in zip(explored.values(), names)]
    content = render_page(shown, made, explorer_html(tokens))
    folder = epath.Path(out) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for section in made:
        write_files(folder, section)
    page = epath.Path(out) / "report.html"
    page.write_text(content, encoding="utf-8")
    return page


def pair_token_runs(runs: Sequence[Results]) -> dict[int, Results]:
    """Place of each run that the page is about -> the run that its explorer shows."""
    keys, tokens = [], {}
    for run in runs:
        model, data = run.manifest["model"], run.manifest["data"]
        computed = run.manifest.get("dtype"), str(run.manifest.get("masks"))
        keys.append((model.get("parameters_sha256"), data["id"], *computed))
        is_tokens = run.manifest["recipe"] == "tokens"
        if is_tokens and token_maps.previews(Run(run), limit=1):
            tokens[keys[-1]] = run
    others = {k for k, run in zip(keys, runs) if run.manifest["recipe"] != "tokens"}
    return {
        place: tokens.get(key, run) if key in others else run
        for place, (key, run) in enumerate(zip(keys, runs))
        if run.manifest["recipe"] != "tokens" or key not in others
    }


def write_files(folder: Any, section: Section) -> None:
    """Write figures as PNG and CSV, tables as CSV; what has no numbers has no file."""
    figures = [figure for figure in section.figures if figure.data.size]
    for figure in figures:
        (folder / f"{figure.key}.png").write_bytes(figure.png())
    for item in (*figures, *section.tables):
        (folder / f"{item.key}.csv").write_bytes(item.csv().encode())


def render_page(runs: Sequence[Run], made: Sequence[Section], explorer: str) -> str:
    """The page as HTML."""
    tables = {table.key: table.data for section in made for table in section.tables}
    tiled = len(runs) == 1 and "summary" in tables
    return render(
        "report.html.jinja",
        title=title(runs),
        runs=runs,
        tiles=tables["summary"].head(3).to_dict("records") if tiled else [],
        sentences=sentences(runs, made),
        sections=made,
        explorer=explorer,
        provenance=provenance,
        colors=list(zip(marks.COLORS, marks.DARK)),
        number=number,
        paper=ARXIV_URL,
    )


def sentences(runs: Sequence[Run], made: Sequence[Section]) -> dict[str, list[str]]:
    """Name of each run -> what its numbers say, without that name before each line."""
    lines = {}
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        every = [line for section in made for line in section.sentences]
        own = [line.removeprefix(prefix) for line in every if line.startswith(prefix)]
        lines |= {run.name: own} if own else {}
    return lines


def title(runs: Sequence[Run]) -> str:
    """Which models on which data."""
    names = (
        ", ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    )
    data = {short_data(run.manifest) for run in runs}
    where = f" on {data.pop()}" if len(data) == 1 else ""
    return f"Class identifiability: {names}{where}"
