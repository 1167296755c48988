"""What is drawn over blocks, as data: which curves share a pair of axes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vitjax.report.per_image import STREAMS, TOKENS

MEASURE_LABELS = {
    "identifiability": "class identifiability",
    "rate": "identifiability rate",
    "change": "class similarity change rate",
    "composition": "share of tokens",
    "agreement": "key-value agreement rate",
    "class_value": "class-value agreement",
    "simple": "share of tokens",
    "images": "share of images",
    "difference": "agreement rate, correct - wrong",
    "top1": "top-1 accuracy",
    "accuracy": "accuracy of the model",
    "tokens": "share of tokens",
    "maps": "agreement of maps",
}

# One kind of tokens keeps its colour in every figure of a single run.
KIND_STYLE = {"cls": 0, "image": 1, "register": 5, "class": 3, "context": 2}


Drawn = Literal["lines", "bars", "boxes", "dots", "histogram", "named"]
"""How the rows of a panel are drawn; bars stand on top of each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One line: rows of `curve_table` over the blocks of one run.

    Args:
        name: in the legend.
        style: which colour and marker of `figures`, modulo their number.
        rows: one per block, in order.
    """

    name: str
    style: int
    rows: tuple[Mapping[str, Any], ...]

    def column(self, key: str) -> list[float]:
        """One number per block."""
        return [float(row[key]) for row in self.rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes.

    Args:
        title: above it.
        stream: key of `STREAMS`.
        series: at least one.
        measure: what is on the vertical axis.
        relative: horizontal axis in fractions of the depth, for models that differ in
            depth, instead of blocks.
        quartiles: draw the band between the quartiles over images too.
        drawn: as lines, or otherwise; see `Drawn`.
        fitted: the vertical axis holds what is drawn, not all values that there are.
        axis: what is on the horizontal axis: blocks, or where rows have a column `x`,
            a share in [0, 1].
        chance_name: in the legend, where chance differs from block to block; it is then
            drawn along the blocks instead of as one level.
    """

    title: str
    stream: str
    series: tuple[Series, ...]
    measure: str
    relative: bool = False
    quartiles: bool = True
    drawn: Drawn = "lines"
    fitted: bool = False
    axis: str = "block"
    chance_name: str = ""

    @property
    def chance(self) -> tuple[float, ...]:
        """Chance levels, one per number of classes; those that are NaN are none."""
        if self.chance_name:
            return ()
        levels = {s.rows[0]["chance"] for s in self.series}
        return tuple(sorted(level for level in levels if level == level))

    @property
    def stacked(self) -> bool:
        """Whether series stand on top of each other."""
        return self.drawn == "bars"

    @property
    def shares(self) -> bool:
        """Whether the horizontal axis holds shares instead of blocks."""
        return "x" in self.series[0].rows[0]

    @property
    def depth(self) -> int:
        """Blocks of the deepest model."""
        return max(len(series.rows) for series in self.series)

    def tick(self, place: int) -> str:
        """What a table calls this place of the horizontal axis."""
        rows = max((series.rows for series in self.series), key=len)
        row = rows[place]
        return str(row["tick"] if "tick" in row else row["block"])

    def x(self, series: Series) -> list[float]:
        """Horizontal positions of a series."""
        if self.shares:
            return series.column("x")
        blocks = series.column("block")
        return [b / len(blocks) for b in blocks] if self.relative else blocks


def panels(
    rows: Sequence[Mapping[str, Any]], *, streams: Sequence[str], measure: str
) -> list[Panel]:
    """Arrange curves: kinds of tokens in a panel for one run, runs for several.

    Args:
        rows: of `curve_table`, of one or more runs.
        streams: which streams, keys of `STREAMS`.
        measure: "identifiability" or "rate".

    Returns:
        Panels that have something to show, streams in the given order.
    """
    curves = _curves(rows, measure)
    runs = list(dict.fromkeys(run for run, _, _ in curves))
    depths = {len(lines) for lines in curves.values()}
    if len(runs) > 1:
        groups = [(kind,) for kind in TOKENS]
    elif measure == "rate":  # [CLS] and image tokens often differ tenfold
        groups = [("cls",), ("register",), ("image",), ("class", "context")]
    else:
        groups = [("cls", "register", "image"), ("class", "context")]
    found = []
    for stream in (name for name in STREAMS if name in streams):
        for group in groups:
            keys = [k for kind in group for k in curves if k[1:] == (stream, kind)]
            if not keys:
                continue
            series = tuple(_series(key, curves[key], runs) for key in keys)
            found.append(
                Panel(
                    title=_title(stream, [kind for *_, kind in keys], streams),
                    stream=stream,
                    series=series,
                    measure=measure,
                    relative=len(depths) > 1,
                    # A rate of one token per image is 0 or 1: quartiles say nothing.
                    quartiles=len(runs) == 1 and measure != "rate",
                )
            )
    return found


def _curves(rows, measure) -> dict[tuple[str, str, str], list]:
    """Rows by (run, stream, kind), without curves that no image has."""
    curves: dict[tuple[str, str, str], list] = {}
    for row in rows:
        if row["measure"] == measure:
            key = row["run"], row["stream"], row["tokens"]
            curves.setdefault(key, []).append(row)
    return {k: rows for k, rows in curves.items() if any(r["images"] for r in rows)}


def _series(key, rows, runs) -> Series:
    run, _, kind = key
    if len(runs) > 1:
        return Series(name=run, style=runs.index(run), rows=tuple(rows))
    return Series(name=TOKENS[kind], style=KIND_STYLE[kind], rows=tuple(rows))


def _title(stream, kinds, streams) -> str:
    names = ", ".join(TOKENS[kind] for kind in dict.fromkeys(kinds))
    names = names.replace("class tokens,", "class,")
    short = STREAMS[stream].removesuffix(" update")
    return f"{short}: {names}" if len(streams) > 1 else names


def accuracy_panels(rows: Sequence[Mapping[str, Any]], *, axis: str) -> list[Panel]:
    """Accuracy while something is taken away: a panel for each run and order.

    Args:
        rows: with `run`, `panel`, `series` and `style`, steps of a line in order.
        axis: what is on the horizontal axis.
    """
    grouped: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        lines = grouped.setdefault((row["run"], row["panel"]), {})
        lines.setdefault(row["series"], []).append(row)
    several = len({run for run, _ in grouped}) > 1
    return [
        Panel(
            title=f"{title} ({run})" if several else title,
            stream=run,
            series=tuple(
                Series(name=name, style=line[0]["style"], rows=tuple(line))
                for name, line in lines.items()
            ),
            measure="accuracy",
            quartiles=False,
            fitted=True,
            axis=axis,
        )
        for (run, title), lines in grouped.items()
    ]
