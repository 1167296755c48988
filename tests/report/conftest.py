"""Fake runs and what a report says of them."""

import pytest
from fake_runs import fake_run

from vitjax.report.page import sections
from vitjax.report.per_image import Run, as_runs


@pytest.fixture(scope="session")
def report():
    """report(*results, ...) -> (key -> figure, key -> table, sentences)."""

    def make(*results, **options):
        made = sections(as_runs(results), **options)
        figures = {figure.key: figure for each in made for figure in each.figures}
        tables = {table.key: table for each in made for table in each.tables}
        return figures, tables, [line for each in made for line in each.sentences]

    return make


@pytest.fixture(scope="session")
def paper_results():
    """Rows of the recipe `paper` with masks."""
    return fake_run("paper", images=30, masks=True, depth=2)


@pytest.fixture(scope="session")
def paper_run(paper_results):
    """The same as a report reads it."""
    return Run(paper_results, "a")
