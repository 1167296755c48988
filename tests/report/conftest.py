"""Fake runs and what their curves are, with loops."""

import numpy as np
import pytest
from fake_runs import fake_run

from vitjax.report.page import sections
from vitjax.report.per_image import Run, as_runs


@pytest.fixture(scope="session")
def make_run():
    """make_run(...) -> a `Run` of `fake_run`."""
    return lambda *args, name="a", **options: Run(fake_run(*args, **options), name)


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


@pytest.fixture(scope="session")
def by_hand():
    """by_hand(run, stream, kind, measure) -> [image, layer], with loops."""
    return curves_by_hand


def curves_by_hand(run, stream, kind, measure):
    ranks = run.results[f"rank_{stream}"].values
    cls = int(run.config.class_token)
    prefix, count = cls + run.config.registers, len(run.classes)
    expected = np.full((len(run.image), ranks.shape[1]), np.nan)
    for row, image in enumerate(run.image):
        tokens = {
            "cls": range(cls),
            "register": range(cls, prefix),
            "image": range(prefix, ranks.shape[2]),
        }.get(kind)
        if tokens is None:
            patch_label = run.results["patch_label"].values[image]
            number = 1 if kind == "object" else 0
            tokens = prefix + np.flatnonzero(patch_label == number)
        for layer in range(ranks.shape[1]):
            own = [r for r in ranks[image, layer, list(tokens)] if r >= 0]
            if own and measure == "rate":
                expected[row, layer] = sum(r == 0 for r in own) / len(own)
            elif own:
                expected[row, layer] = sum(1 - r / count for r in own) / len(own)
    return expected
