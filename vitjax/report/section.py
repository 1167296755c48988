"""The sections of a report, and all figures and tables of runs by name."""

from collections.abc import Sequence

from vitjax.report import (
    appendix,
    faithfulness,
    identifiability,
    paper,
    probes,
    tests,
)
from vitjax.report.figure import Figure, ReportOptions, Section, Table
from vitjax.report.marks import Frame
from vitjax.report.per_image import Run, as_runs
from vitjax.runner.results import Results

__all__ = [
    "SECTIONS",
    "Figure",
    "ReportOptions",
    "Run",
    "Section",
    "Table",
    "as_runs",
    "figures",
    "sections",
    "tables",
]

SECTIONS = (
    identifiability.section,
    paper.section,
    appendix.section,
    faithfulness.section,
    probes.section,
    tests.section,
)
"""(runs, options) -> Section, or None where no run has the rows; in order."""


def sections(runs: Sequence[Run], options: ReportOptions) -> list[Section]:
    """The sections that some runs have the rows for."""
    made = [section(runs, options) for section in SECTIONS]
    return [section for section in made if section is not None]


def figures(
    results: Results | Sequence[Results], options: ReportOptions = ReportOptions()
) -> dict[str, Figure]:
    """Every figure that `vitjax report` draws of the numbers of some runs.

    Args:
        results: rows of any recipe with ranks, finished or not; several runs stand side
            by side.
        options: see `ReportOptions`.

    Returns:
        Name of its file -> the figure. A notebook shows it as the last line of a cell;
        `figure.data` are its numbers.

    Raises:
        ValueError: no run, or one without ranks.
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
