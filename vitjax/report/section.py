"""Sections of a report, figures and tables by name, and provenance of runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitjax.report import (
    appendix,
    faithfulness,
    identifiability,
    interventions,
    paper,
)
from vitjax.report.figure import Figure, ReportOptions, Section
from vitjax.report.marks import Frame
from vitjax.report.per_image import Run, as_runs
from vitjax.runner.results import Results

SECTIONS = (
    identifiability.section,
    paper.section,
    appendix.distributions,
    faithfulness.maps,
    faithfulness.probes,
    appendix.tests,
)
"""(runs with ranks, options) -> Section, or None where none has the rows; in order."""


def sections(runs: Sequence[Run], options: ReportOptions) -> list[Section]:
    """The sections that some runs have the rows for."""
    ranked = [run for run in runs if run.streams]
    made = [section(ranked, options) for section in SECTIONS]
    made += [interventions.ablation(runs), interventions.patching(runs)]
    return [section for section in made if section is not None]


def figures(
    results: Results | Sequence[Results], options: ReportOptions = ReportOptions()
) -> dict[str, Figure]:
    """Every figure that `vitjax report` draws of the numbers of some runs.

    Args:
        results: rows of any recipe with predictions, finished or not; several runs
            stand side by side.
        options: see `ReportOptions`.

    Returns:
        Name of its file -> the figure. A notebook shows it as the last line of a cell;
        `figure.data` are its numbers.

    Raises:
        ValueError: no run, or one without predictions.
    """
    made = sections(as_runs(results, options.names), options)
    return {figure.key: figure for section in made for figure in section.figures}


def tables(
    results: Results | Sequence[Results], options: ReportOptions = ReportOptions()
) -> dict[str, Frame]:
    """Every table of numbers that `vitjax report` writes of some runs, by name.

    Args and errors are those of `figures`.
    """
    made = sections(as_runs(results, options.names), options)
    return {table.key: table.data for section in made for table in section.tables}


def provenance(run: Run) -> dict[str, str]:
    """What is needed to compute a run's rows again, as far as its manifest says it."""
    manifest = run.manifest
    model, data = manifest["model"], manifest["data"]
    rate = manifest.get("images_per_second")
    pairs = {
        "recipe": manifest["recipe"],
        "model": model["name"],
        "architecture": listed(model["config"]),
        "classes": len(model["classes"]),
        "checkpoint": model.get("checkpoint") or "none (random initialization)",
        "checkpoint sha256": model.get("sha256"),
        "parameters sha256": model.get("parameters_sha256"),
        "preprocessing": listed(model.get("preprocess") or {}),
        "data": data["spec"],
        "data id": data["id"],
        "images": f"{run.done} of {run.total} done, {len(run.image)} used",
        "batch size": manifest.get("batch_size"),
        "dtype": manifest.get("dtype"),
        "matmul precision": manifest.get("matmul_precision"),
        "object tokens": listed(manifest.get("masks") or {}),
        "seed": manifest.get("seed"),
        "devices": listed(manifest.get("devices") or ()),
        "images per second": f"{rate:.4g}" if rate else None,
        "versions": listed(manifest["versions"]),
        "created": manifest.get("created"),
        "resumed": ", ".join(map(str, manifest.get("resumed") or ())),
        "finished": manifest.get("finished") or "not yet",
    }
    return {name: str(v) for name, v in pairs.items() if v not in (None, "")}


def listed(values: Mapping[str, Any] | Iterable[Any]) -> str:
    """A manifest's dict or list in a line."""
    pairs = values.items() if isinstance(values, Mapping) else [(v,) for v in values]
    return ", ".join(" ".join(map(str, pair)) for pair in pairs)
