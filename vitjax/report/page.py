"""The report of runs: figures and tables by name, a page to read, an explorer."""

import dataclasses
import html
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jinja2
from etils import epath

from vitjax.report import (
    appendix,
    faithfulness,
    identifiability,
    interventions,
    lenses,
    paper,
    pictures,
)
from vitjax.report.explorer import explorer_data
from vitjax.report.figure import COLORS, DARK, Figure, Section
from vitjax.report.per_image import Frame, Run, as_runs, short_data
from vitjax.runner.results import Results

Units = Literal["images", "within_images", "vilas2023", "published"]


def figures(results: Results | Sequence[Results]) -> dict[str, Figure]:
    """Every figure that `vitjax report` draws of some runs.

    Args:
        results: rows of any recipe with predictions, finished or not; several runs
            stand side by side.

    Returns:
        Name of its file -> the figure. A notebook shows it as the last line of a cell;
        `figure.data` are its numbers, `figure.png()` is its file.

    Raises:
        ValueError: no run, or one without predictions.

    Example:
        >>> vitjax.figures(run)["identifiability"]
    """
    made = sections(as_runs(results))
    return {figure.key: figure for section in made for figure in section.figures}


def tables(
    results: Results | Sequence[Results], *, tests: Units = "images", subset: int = 500
) -> dict[str, Frame]:
    """Every table that `vitjax report` writes of some runs.

    Args:
        results: as for `figures`.
        tests, subset: as for `write_report`.

    Returns:
        Name of its file -> the numbers, a data frame.

    Raises:
        ValueError: no run, or one without predictions.

    Example:
        >>> vitjax.tables(run)["summary"]
    """
    made = sections(as_runs(results), tests, subset)
    return {table.key: table.data for section in made for table in section.tables}


@dataclasses.dataclass(frozen=True)
class Html:
    """HTML that a notebook shows."""

    text: str

    def _repr_html_(self) -> str:
        return self.text


def explorer(
    results: Results | Sequence[Results], *, limit: int = 50, height: int = 900
) -> Html:
    """The images of some runs and what every token of them says, for a notebook.

    Args:
        results: as for `figures`; only the recipe `tokens` writes all that can be
            shown.
        limit: show at most so many images of each run.
        height: of the frame, in pixels.

    Returns:
        An object that a notebook shows as the last line of a cell.

    Raises:
        ValueError: no run kept an image, or one is without predictions.

    Example:
        >>> vitjax.explorer(run, limit=10)
    """
    content = explorer_data(as_runs(results), limit=limit)
    if not content:
        raise ValueError("Expected runs that kept images; these kept none.")
    page = html.escape(render_page((), (), content))
    size = f"width:100%;height:{height}px;border:0"
    return Html(
        f'<iframe srcdoc="{page}" title="token explorer" style="{size}"></iframe>'
    )


def write_report(
    runs: Sequence[Results],
    out: str | os.PathLike,
    *,
    tests: Units = "images",
    subset: int = 500,
    names: Sequence[str] = (),
) -> Any:
    """Write a page about one run, or about several side by side; return its path.

    `report.html` needs no other file; `figures/` receives every figure as PNG and its
    numbers as CSV. Files of an earlier report are replaced. Runs of the recipe `tokens`
    beside others only add the explorer.

    Args:
        runs: rows of recipes with predictions, such as `identifiability`, finished or
            not.
        out: folder to write to, local or gs://; created where it is missing.
        tests: units of tests: "images"; besides, where object tokens are compared with
            context tokens, tokens "within_images"; or tokens of all images as in the
            published code, "vilas2023", which also tests right against wrong images.
            "published" is another name of it.
        subset: number of images in tests whose units are tokens.
        names: of the runs; by default what tells them apart.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: there is no run, or one holds no predictions.
        OSError: the folder cannot be written.

    Example:
        >>> vitjax.write_report([vitjax.open_results("results")], "report")
    """
    every = as_runs(runs, names)
    tokens = [run for run in every if run.manifest["recipe"] == "tokens"]
    shown = [run for run in every if run not in tokens] or every
    if not names:  # those that are not shown are no reason for longer ones
        shown, tokens = (
            as_runs([run.results for run in each]) if each else []
            for each in (shown, tokens)
        )
    made = sections(shown, tests, subset)
    content = render_page(shown, made, explorer_data(tokens) or explorer_data(shown))
    folder = epath.Path(out) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for item in (item for each in made for item in (*each.figures, *each.tables)):
        (folder / f"{item.key}.csv").write_bytes(item.csv().encode())
        if isinstance(item, Figure):
            (folder / f"{item.key}.png").write_bytes(item.png())
    page = epath.Path(out) / "report.html"
    page.write_text(content, encoding="utf-8")
    return page


def sections(
    runs: Sequence[Run], tests: Units = "images", subset: int = 500
) -> list[Section]:
    """The sections that some runs have the rows for, in the order of the page: the
    pictures, what the recipe is about, the rest.
    """
    ranked = [run for run in runs if run.streams]
    every = [interventions.ablation(runs), interventions.patching(runs)]
    every += [interventions.editing(runs), lenses.lenses(runs), lenses.errors(runs)]
    if ranked:
        every = [
            pictures.predictions(ranked),
            faithfulness.maps(ranked),
            pictures.token_maps(ranked),
            faithfulness.probes(ranked),
            identifiability.section(ranked),
            paper.section(ranked),
            *every,
            appendix.distributions(ranked),
            appendix.tests(ranked, tests, subset),
        ]
    return [section for section in every if section.figures or section.tables]


RECIPES = {
    "identifiability": (
        "Class identifiability",
        "How well can the true class be read from every token, block by block?",
    ),
    "paper": (
        "How the class comes about",
        "Where can the true class be read from tokens, and which layers and memories "
        "write it there?",
    ),
    "tokens": (
        "Token by token",
        "Which classes does every token name after every block, and where does the "
        "model look?",
    ),
    "faithfulness": (
        "Faithfulness of explanation methods",
        "Whose maps show what the prediction rests on?",
    ),
    "probes": (
        "Linear probes against class projection",
        "What do tokens hold of the class, and how much of it does the model read?",
    ),
    "ablation": (
        "Ablation",
        "What is every head, attention and MLP worth to the prediction?",
    ),
    "patching": (
        "Activation patching",
        "Where in the network is it decided between two classes?",
    ),
    "editing": (
        "Edits of memories",
        "Do the memories that promote a class hold it?",
    ),
    "lens": (
        "Tuned lenses",
        "What would every block answer, if the head could read it?",
    ),
    "errors": (
        "Errors foreseen",
        "Does the way to an answer tell that it errs?",
    ),
}
RECIPES["one_pass"] = RECIPES["paper"]
"""Recipe -> (title, what it asks)."""


def heading(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """Title of the page; its opening: what was asked, of which models and images."""
    recipes = dict.fromkeys(run.manifest["recipe"] for run in runs)
    known = [
        RECIPES.get(name, (f"Recipe {name}", f"What does the recipe {name} find?"))
        for name in recipes
    ]
    names = [run.name for run in runs] if len(runs) < 4 else [f"{len(runs)} runs"]
    data = {short_data(run.manifest) for run in runs}
    where = f" on {data.pop()}" if len(data) == 1 else ""
    what = " and ".join(dict.fromkeys(title for title, _ in known))
    title = f"{what}: {', '.join(names)}{where}"
    return title, [
        " ".join(dict.fromkeys(question for _, question in known)),
        f"Asked of {'; and of '.join(map(describe_run, runs))}.",
    ]


def describe_run(run: Run) -> str:
    """The model of a run and its images, in words."""
    config, model = run.config, run.manifest["model"]
    size = f"{config.depth} blocks of {config.heads} heads, {config.patches} patches"
    pooled = "with [CLS]" if config.class_token else "without [CLS]"
    trained = "" if model.get("sha256") else ", randomly initialized"
    return (
        f"{model['name']} ({size}, {pooled}, {len(run.classes):,} classes{trained}), "
        f"on {run.done:,} images of {short_data(run.manifest)}"
    )


def render_page(
    runs: Sequence[Run], made: Sequence[Section], explorer: Mapping[str, Any]
) -> str:
    """The page as HTML; every text that is not marked safe is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title, opening = heading(runs) if runs else ("Token explorer", [])
    drawn = [section for section in made if section.figures]
    if explorer:
        # After pictures that the recipe is about, before all others.
        first = bool(drawn) and drawn[0].key in ("predictions", "faithfulness")
        drawn.insert(first, Section(key="explorer", title="Token explorer"))
    return environment.get_template("report.html.jinja").render(
        title=title,
        opening=opening,
        runs=runs,
        drawn=drawn,
        tested=[section for section in made if section.key == "tests"],
        tables=[t for each in made if each.key != "tests" for t in each.tables],
        sentences=[line for section in made for line in section.sentences],
        explorer=explorer,
        provenance=provenance,
        colors=list(zip(COLORS, DARK)),
    )


LONG = 20
"""More values than these are told by their number."""


def provenance(run: Run) -> dict[str, str]:
    """What the manifest says of how a run was computed, in lines."""
    used = f"{run.done} of {run.total} done, {len(run.image)} used"
    lines = {"images": used}
    hidden = {"format", "format_version", "arrays", "skipped", "no_object_tokens"}
    for name, value in run.manifest.items():
        whole = not isinstance(value, Mapping) or name not in ("model", "data")
        parts = {name: value} if whole else {f"{name} {k}": v for k, v in value.items()}
        lines |= {key: listed(part) for key, part in parts.items() if key not in hidden}
    return {key: text for key, text in lines.items() if text}


def listed(value: Any) -> str:
    """A value of a manifest in a line; empty where there is none."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {listed(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        known = len(value) < LONG
        return ", ".join(map(listed, value)) if known else f"{len(value)}"
    if type(value) is float:
        return f"{value:.4g}"
    return "" if value is None else str(value)
