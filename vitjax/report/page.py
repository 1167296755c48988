"""The page of a report: figures, maps and numbers of runs in one file to read."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vitjax.report import marks, token_maps
from vitjax.report.explorer import color_table, explorer_data
from vitjax.report.figure import Figure, ReportOptions, Section, number
from vitjax.report.map_grid import POSITIVE
from vitjax.report.per_image import Run, as_runs, short_data
from vitjax.report.section import provenance, sections
from vitjax.report.token_maps import MapFigure
from vitjax.runner.results import Results


def write_report(
    runs: Sequence[Results],
    out: str | os.PathLike,
    *,
    tests: Any = "images",
    subset: int = 500,
    names: Sequence[str] = (),
) -> Any:
    """Write a page about one run, or about several side by side; return its path.

    `report.html` needs no other file; `figures/` receives every figure as PNG and its
    numbers as CSV. Files of an earlier report are replaced. A run of the recipe
    `tokens` beside another one of the same model and data only adds its explorer to it.

    Args:
        runs: rows of recipes with predictions, such as `identifiability`, finished or
            not.
        out: folder to write to, local or gs://; created where it is missing.
        tests: what tests take for independent, see `ReportOptions`: "images",
            "within_images" or "vilas2023".
        subset: on how many images tests with tokens as units rest.
        names: of the runs; by default what tells them apart.

    Raises:
        ValueError: there is no run, or one holds no predictions.
        OSError: the folder cannot be written.
    """
    from etils import epath

    explored = pair_token_runs(runs)
    names = [name for place, name in enumerate(names) if place in explored]
    shown = as_runs([runs[place] for place in explored], names)
    made = sections(shown, ReportOptions(tests=tests, subset=subset))
    maps = token_maps.map_figure(shown)
    tokens = [Run(run, each.name) for run, each in zip(explored.values(), shown)]
    content = render_page(shown, made, maps, explorer_data(tokens))
    folder = epath.Path(out) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    items = [item for each in made for item in (*each.figures, *each.tables)]
    items += [maps] if maps and maps.labeled else []
    for item in items:
        (folder / f"{item.key}.csv").write_bytes(item.csv().encode())
        if isinstance(item, Figure):
            (folder / f"{item.key}.png").write_bytes(item.png())
    page = epath.Path(out) / "report.html"
    page.write_text(content, encoding="utf-8")
    return page


def pair_token_runs(runs: Sequence[Results]) -> dict[int, Results]:
    """Place of each run that the page is about -> the run that its explorer shows."""

    def key(run: Results) -> tuple:
        model, data = run.manifest["model"], run.manifest["data"]
        computed = run.manifest.get("dtype"), str(run.manifest.get("masks"))
        return model.get("parameters_sha256"), data["id"], *computed

    tokens = [run for run in runs if run.manifest["recipe"] == "tokens"]
    shown = {key(run): run for run in tokens if token_maps.previews(Run(run), limit=1)}
    others = {key(run) for run in runs if run.manifest["recipe"] != "tokens"}
    return {
        place: shown.get(key(run), run) if key(run) in others else run
        for place, run in enumerate(runs)
        if run.manifest["recipe"] != "tokens" or key(run) not in others
    }


def render_page(
    runs: Sequence[Run],
    made: Sequence[Section],
    maps: MapFigure | None,
    explorer: Mapping[str, Any],
) -> str:
    """The page as HTML; every text that is not marked safe is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tables = {table.key: table.data for section in made for table in section.tables}
    tiled = len(runs) == 1 and "summary" in tables
    return environment.get_template("report.html.jinja").render(
        title=title(runs),
        runs=runs,
        tiles=tables["summary"].head(3).to_dict("records") if tiled else [],
        sentences=sentences(runs, made),
        sections=made,
        maps=maps,
        explorer=explorer,
        provenance=provenance,
        colors=list(zip(marks.COLORS, marks.DARK)),
        number=number,
        short=token_maps.short_name,
        image_url=token_maps.image_url,
        ramp=color_table(POSITIVE),
    )


def sentences(runs: Sequence[Run], made: Sequence[Section]) -> dict[str, list[str]]:
    """Name of each run -> what its numbers say, without that name before each line."""
    every, lines = [line for section in made for line in section.sentences], {}
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        own = [line.removeprefix(prefix) for line in every if line.startswith(prefix)]
        lines |= {run.name: own} if own else {}
    return lines


def title(runs: Sequence[Run]) -> str:
    """Which models on which data."""
    names = [run.name for run in runs] if len(runs) < 4 else [f"{len(runs)} runs"]
    data = {short_data(run.manifest) for run in runs}
    where = f" on {data.pop()}" if len(data) == 1 else ""
    ranked = any(run.streams for run in runs)
    what = "Class identifiability" if ranked else "Interventions"
    return f"{what}: {', '.join(names)}{where}"
