"""Every figure of some runs, as data: what the page writes and a notebook shows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vitjax.report import faithfulness, probes, sections
from vitjax.report.mechanism import Mechanism, is_paper, mechanism
from vitjax.report.panels import panels
from vitjax.report.per_image import Digest, digest
from vitjax.report.reduction import curve_table
from vitjax.report.refinement import refinement
from vitjax.report.spreads import Spread, spreads
from vitjax.report.writing import Captioned
from vitjax.runner.results import Results

CURVES = {
    "identifiability": (("residual",), "identifiability"),
    "updates": (("attention_update", "mlp_update"), "identifiability"),
    "rate": (("residual",), "rate"),
}
"""Name of the files: (streams, measure)."""

BANDS = (
    "Line: mean over images; dark band: its 95 % bootstrap interval; light band, where "
    "there is one: the middle half of the images. Dashed: chance."
)
CURVE_WORDS = {
    "identifiability": (
        "Identifiability over the blocks",
        "Class identifiability of the block outputs, 1 - rank/C (section 4, Figure 2).",
    ),
    "updates": (
        "What attention and MLP write",
        "The same, for what each sub-layer adds to the stream, projected by itself.",
    ),
    "rate": (
        "Identifiability rate over the blocks",
        "Share of tokens of the block outputs whose first class is the true one; in "
        "the last block the paper's Table 1.",
    ),
}
"""Name of the files: (title, what is drawn)."""


class Reduced(NamedTuple):
    """Runs with what their figures and tables are made from.

    Args:
        names: short, telling the runs apart.
        runs: the runs.
        digests: one each.
        found: one each, None where a run is not of the recipe `paper`.
    """

    names: Sequence[str]
    runs: Sequence[Results]
    digests: Sequence[Digest]
    found: Sequence[Mechanism | None]


def reduced(names: Sequence[str], runs: Sequence[Results]) -> Reduced:
    """Read runs once, for everything that is drawn of them.

    Args:
        names: of the runs.
        runs: rows of any recipe, finished or not.

    Returns:
        Their per-image values.

    Raises:
        ValueError: a run holds no ranks.
    """
    digests = [digest(run) for run in runs]
    found = [
        mechanism(run, one) if is_paper(run) and len(one.image) else None
        for run, one in zip(runs, digests)
    ]
    return Reduced(names, runs, digests, found)


def drawings(read: Reduced) -> list[Captioned]:
    """Every figure but the maps, in the order of the page.

    Args:
        read: of some runs.

    Returns:
        Figures that have something to show; those of several runs side by side.
    """
    pairs = list(zip(read.names, read.runs))
    rows = [r for n, d in zip(read.names, read.digests) for r in curve_table(d, run=n)]
    probed = [pair for pair in pairs if probes.is_probes(pair[1])]
    tested = [pair for pair in pairs if faithfulness.is_faithfulness(pair[1])]
    return [
        *of_curves(rows),
        *of_sections(read),
        *of_spreads(read),
        *probes.figures(probed),
        *faithfulness.figures(tested),
    ]


def of_curves(rows: Sequence[Mapping[str, Any]]) -> Iterator[Captioned]:
    """Identifiability and its rate over the blocks.

    Args:
        rows: of `curve_table`, of one or more runs.
    """
    for key, (streams, measure) in CURVES.items():
        drawn = panels(rows, streams=streams, measure=measure)
        here = [r for r in rows if r["stream"] in streams and r["measure"] == measure]
        if drawn:
            title, caption = CURVE_WORDS[key]
            yield Captioned(key, title, f"{caption} {BANDS}", drawn, here)


def of_sections(read: Reduced) -> Iterator[Captioned]:
    """Figures of sections 5 and 6 of the paper, of the runs that have their rows."""
    by_key: dict[str, list[tuple[str, sections.Figure]]] = {}
    for name, run, data, one in zip(*read):
        of_paper = sections.figures(one) if one is not None else []
        for figure in (*of_paper, *refinement(run, data)):
            by_key.setdefault(figure.key, []).append((name, figure))
    for key, figures in by_key.items():
        rows = [row for n, f in figures for row in sections.curve_rows(f, run=n)]
        if not rows:
            continue
        figure = figures[0][1]
        plain = [{k: v for k, v in row.items() if k != "style"} for row in rows]
        drawn = sections.panels(figure, rows)
        yield Captioned(key, figure.title, figure.caption, drawn, plain)


def of_spreads(read: Reduced) -> Iterator[Captioned]:
    """Distributions, of every run side by side."""
    by_key: dict[str, list[Spread]] = {}
    several = len(read.names) > 1
    for name, _, data, one in zip(*read):
        for figure in spreads(data, one, run=name, several=several):
            by_key.setdefault(figure.key, []).append(figure)
    for key, figures in by_key.items():
        drawn = [panel for figure in figures for panel in figure.panels]
        rows = [row for figure in figures for row in figure.table]
        yield Captioned(key, figures[0].title, figures[0].caption, drawn, rows)
