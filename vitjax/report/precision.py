"""Rows of the recipe `precision` -> what another precision changes, in tables.

Tokens and blocks are averaged within an image, so that intervals are over images.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from vitjax.report import writing
from vitjax.report.panels import Panel, Series
from vitjax.report.per_image import STREAMS, TOKENS
from vitjax.report.writing import Captioned
from vitjax.runner.results import Results
from vitjax.statistics import bootstrap_mean
from vitjax.types import Config

RANKS = {"same_rank": "equal rank", "near_rank": "within 1 % of the classes"}
MAPS = {
    "spearman": "Spearman's correlation",
    "pearson": "Pearson's correlation",
    "overlap": "overlap of the top fifth",
}
EDITS = {"self_only": "self-only", "no_cls": "without links to [CLS]"}
CHANGES = {
    "residual": "block",
    "attention_update": "attention",
    "mlp_update": "MLP",
    "mlp_update_published": "MLP, published",
}
SYSTEMS = {"attention": "attention", "mlp": "MLP"}
MEMORIES = {
    "agreement": "key-value agreement",
    "agreement_code": "key-value agreement, published",
    "simple": "compositionality",
}
ORDERS = {
    "negative": "least important patches go first",
    "positive": "most important patches go first",
}
NEW = 4
"""Place of "composed" on the axis `category`: the block's answer is a new class."""


class Line(NamedTuple):
    """A line of the table.

    Args:
        analysis: what is compared.
        tokens: of which kind, or "".
        agreement: array of shares of equal answers and what it counts, or None.
        difference: array of differences and what of, or None.
        place: on the axis `kind` or `category` of both, or None where they have none.
        labelled: whether it is about the true class.
    """

    analysis: str
    tokens: str
    agreement: tuple[str, str] | None
    difference: tuple[str, str] | None
    place: int | None = None
    labelled: bool = True


def is_precision(run: Results) -> bool:
    """Whether a run holds the rows that this file reads."""
    return run.manifest.get("recipe") == "precision"


def compared(run: Results) -> str:
    """What float32 is compared with, in words."""
    against = str(run.manifest["recipe_options"]["against"])
    return "float32, default precision" if against == "float32" else against


def methods(run: Results) -> list[str]:
    """Explanation methods of a run, in the order in which they were asked for."""
    return [str(name) for name in run.manifest["recipe_options"]["methods"]]


def kinds(run: Results) -> list[str]:
    """Kinds of tokens, as they stand on the axis `kind`."""
    config = Config.from_dict(run.manifest["model"]["config"])
    there = {"cls": config.class_token, "register": config.registers > 0}
    return [kind for kind in ("cls", "register", "image") if there.get(kind, True)]


def usable(run: Results, *, labelled: bool) -> Bool[np.ndarray, " image"]:
    """Images that are done and valid and, where it matters, labelled."""
    use = run["done"][:] & run["valid"][:]
    return use & (run["label"][:] >= 0) if labelled else use


def lines(run: Results) -> Iterator[Line]:
    """Every line of the table, analysis by analysis."""
    yield Line(
        *("class logits", "", ("same_prediction", "equal answers")),
        ("distance_logits", "largest of any class, in deviations over classes"),
        labelled=False,
    )
    places = [(place, TOKENS[kind]) for place, kind in enumerate(kinds(run))]
    yield from of_streams(places)
    yield Line(
        *("residual composition", "", ("same_composition", "equal answers")),
        *(("shift_composition", "of the share of new classes"), NEW, False),
    )
    yield from of_memories()
    for name, title in EDITS.items():
        same = (f"same_prediction_{name}", "equal answers")
        yield Line(f"intervention: {title}", "", same, None, labelled=False)
        for place, tokens in places:
            yield from ranked(f"intervention: {title}", tokens, name, place)
    for order, title in ORDERS.items():
        same = (f"same_removal_{order}", "equal answers")
        yield Line(f"removal: {title}", "", same, None, labelled=False)
        area = (f"shift_removal_{order}", "of the area")
        yield Line(f"removal: {title}", "", None, area)


def of_streams(places: Sequence[tuple[int, str]]) -> Iterator[Line]:
    """Projections and class similarity change, by kind of tokens."""
    for stream, title in STREAMS.items():
        for place, tokens in places:
            yield from ranked(f"projection: {title}", tokens, stream, place)
            top = (f"same_first_{stream}", "equal top class")
            yield Line(f"projection: {title}", tokens, top, None, place, labelled=False)
    for name, title in CHANGES.items():
        for place, tokens in places:
            yield Line(
                *(f"class similarity change: {title}", tokens),
                (f"same_change_{name}", "equal answers"),
                *((f"shift_change_{name}", "of the rate"), place),
            )


def of_memories() -> Iterator[Line]:
    """What tokens call of the weights."""
    for name, title in MEMORIES.items():
        for system, word in SYSTEMS.items():
            yield Line(
                *(f"{title}: {word}", ""),
                (f"same_{name}_{system}", "equal answers"),
                *((f"shift_{name}_{system}", "of the rate"), None, name != "simple"),
            )


def ranked(analysis: str, tokens: str, name: str, place: int) -> Iterator[Line]:
    """Both lines about ranks of the true class."""
    yield Line(
        *(analysis, tokens, (f"same_rank_{name}", RANKS["same_rank"])),
        *((f"shift_{name}", "of identifiability"), place),
    )
    yield Line(
        *(analysis, tokens, (f"near_rank_{name}", RANKS["near_rank"])),
        *((f"distance_{name}", "of identifiability, absolute"), place),
    )


def values(
    run: Results, name: str, *, place: int | None, labelled: bool
) -> Float[np.ndarray, "image ..."]:
    """An array of usable images, at a place of its last axis if that is a kind."""
    found = run[name][:][usable(run, labelled=labelled)].astype(float)
    axis = run.manifest["arrays"][name][-1]
    return found[..., place] if axis in ("kind", "category") else found


def cell(
    values: Float[np.ndarray, "image ..."], what: str, *, blocks: bool = False
) -> dict[str, Any] | None:
    """Mean over images and whatever else, its interval, and the worst block.

    Args:
        values: of every image; NaN where it has none.
        what: is counted.
        blocks: whether the second axis is that of blocks.

    Returns:
        `value`, `low`, `high`, `what`; `least`, the smallest mean of a block, and the
        `block` from 1, NaN and None without blocks; None where no image has a value.
    """
    if not np.isfinite(values).any():
        return None
    flat = values.reshape(len(values), -1)
    interval = bootstrap_mean(flat.mean(1)[:, None])
    made = {
        "value": float(interval.mean[0]),
        "low": float(interval.low[0]),
        "high": float(interval.high[0]),
    }
    made |= {"what": what, "least": float("nan"), "block": None}
    if blocks:
        means = values.mean(0)
        made |= {"least": float(means.min()), "block": int(means.argmin()) + 1}
    return made


def table(run: Results, *, name: str) -> list[dict[str, Any]]:
    """Every analysis, a line each.

    Args:
        run: its rows.
        name: of the run.

    Returns:
        `run`, `analysis`, `tokens`, `agreement` and `difference` (see `cell`, or None).
        Differences are the other precision minus float32.
    """
    made = []
    for line in lines(run):
        found: dict[str, Any] = {"agreement": None, "difference": None}
        for key in found:
            asked = getattr(line, key)
            if asked is not None and asked[0] in run:
                array, what = asked
                one = values(run, array, place=line.place, labelled=line.labelled)
                blocks = "layer" in run.manifest["arrays"][array]
                found[key] = cell(one, what, blocks=blocks)
        if any(found.values()):
            start = {"run": name, "analysis": line.analysis, "tokens": line.tokens}
            made.append(start | found)
    return made + weights(run, name=name)


def weights(run: Results, *, name: str) -> list[dict[str, Any]]:
    """Lines about class-value agreement, which needs no image: over classes."""
    made = []
    for system, word in SYSTEMS.items():
        moved = run[f"shift_class_value_{system}"][:].T.astype(float)
        if np.isfinite(moved).all():
            found = cell(abs(moved), "of the cosine, absolute, over classes")
            start = {"run": name, "analysis": f"class-value agreement: {word}"}
            made.append(start | {"tokens": "", "agreement": None, "difference": found})
    return made


def map_table(run: Results, *, name: str) -> list[dict[str, Any]]:
    """Maps: a line per method, a cell per measure of `MAPS`."""
    made = []
    for method in methods(run):
        found = {
            key: cell(values(run, f"{key}_{method}", place=None, labelled=False), title)
            for key, title in MAPS.items()
        }
        made.append({"run": name, "method": method, **found})
    return made


def flat(rows: Sequence[Mapping[str, Any]], maps: Sequence[Mapping[str, Any]]):
    """Both tables as one, a row per number."""
    cells = [
        (row["run"], row["analysis"], row["tokens"], key, row[key])
        for row in rows
        for key in ("agreement", "difference")
    ]
    cells += [
        (row["run"], f"maps: {row['method']}", "", "agreement", row[key])
        for row in maps
        for key in MAPS
    ]
    names = ("run", "analysis", "tokens", "measure")
    return [{**dict(zip(names, c)), **c[-1]} for c in cells if c[-1] is not None]


def rank_rows(run: Results, *, name: str) -> list[dict[str, Any]]:
    """Rank agreement block by block, for the figure."""
    made = []
    for measure, title in RANKS.items():
        for place, kind in enumerate(kinds(run)):
            for style, (stream, word) in enumerate(STREAMS.items()):
                shares = values(run, f"{measure}_{stream}", place=place, labelled=True)
                if not len(shares):
                    continue
                interval = bootstrap_mean(shares)
                made += [
                    {
                        **{"run": name, "panel": f"{TOKENS[kind]}: {title}"},
                        **{"measure": measure, "series": word, "style": style},
                        **{"block": block + 1, "images": len(shares)},
                        "mean": float(interval.mean[block]),
                        "low": float(interval.low[block]),
                        "high": float(interval.high[block]),
                        "chance": float("nan"),
                    }
                    for block in range(shares.shape[1])
                ]
    return made


def map_rows(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Agreement of maps, a row per measure and method, for the figure."""
    return [
        {
            **{"run": line["run"], "panel": title, "measure": key},
            **{"series": "mean over images", "style": 0},
            **{"block": place + 1, "tick": line["method"]},
            **{"mean": found["value"], "low": found["low"], "high": found["high"]},
            "chance": float("nan"),
        }
        for key, title in MAPS.items()
        for place, line in enumerate(table)
        if (found := line[key]) is not None
    ]


def panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """A panel for each run and title; measures below each other."""
    grouped: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        series = grouped.setdefault((row["run"], row["panel"]), {})
        series.setdefault(row["series"], []).append(row)
    several, of_maps = len({run for run, _ in grouped}) > 1, "tick" in rows[0]
    return [
        Panel(
            title=f"{title} ({run})" if several else title,
            stream=run if of_maps else next(iter(series.values()))[0]["measure"],
            series=tuple(
                Series(name=name, style=found[0]["style"], rows=tuple(found))
                for name, found in series.items()
            ),
            measure="maps" if of_maps else "tokens",
            quartiles=False,
            drawn="named" if of_maps else "lines",
            fitted=True,
            axis="method" if of_maps else "block",
        )
        for (run, title), series in grouped.items()
    ]


FIGURES = {
    "precision_ranks": (
        "Precision: ranks of the true class",
        "Share of tokens whose rank of the true class is the same in {other} as in "
        "float32, and share of those whose two ranks are at most one in a hundred "
        "classes apart. Line: mean over images; band: its 95 % bootstrap interval.",
    ),
    "precision_maps": (
        "Precision: explanation maps",
        "How well the maps in {other} agree with those in float32, over the patches "
        "of an image. Bar: mean over images; line: its 95 % bootstrap interval.",
    ),
}


def draw(
    folder: Any, names: Sequence[str], runs: Sequence[Results]
) -> dict[str, Any] | None:
    """Write the figures and the tables of those runs that have them.

    Args:
        folder: where to; `etils.epath.Path` or alike.
        names: of the runs.
        runs: any runs.

    Returns:
        "figures", each of `writing.draw_captioned`; "lines", "maps" and "titles" of
        the tables; "speeds"; "other", what float32 is compared with; "csv". None where
        no run has rows.
    """
    pairs = [(name, run) for name, run in zip(names, runs) if is_precision(run)]
    rows = [row for name, run in pairs for row in table(run, name=name)]
    maps = [row for name, run in pairs for row in map_table(run, name=name)]
    numbers = flat(rows, maps)
    if not numbers:
        return None
    other = ", ".join(dict.fromkeys(compared(run) for _, run in pairs))
    ranks = [row for name, run in pairs for row in rank_rows(run, name=name)]
    drawings = {"precision_ranks": ranks, "precision_maps": map_rows(maps)}
    figures = [
        writing.draw_captioned(folder, figure(key, found, other=other))
        for key, found in drawings.items()
        if found
    ]
    return {
        "figures": figures,
        "lines": rows,
        "maps": maps,
        "titles": MAPS,
        "speeds": [line for name, run in pairs for line in speeds(run, name=name)],
        "other": other,
        "csv": writing.write_csv(folder / "precision.csv", numbers),
    }


def figure(key: str, rows: Sequence[Mapping[str, Any]], *, other: str) -> Captioned:
    """One figure, with what float32 is compared with in its caption."""
    title, caption = FIGURES[key]
    plain = [{k: v for k, v in row.items() if k != "style"} for row in rows]
    return Captioned(key, title, caption.format(other=other), panels(rows), plain)


def speeds(run: Results, *, name: str) -> list[dict[str, Any]]:
    """Images per second in both precisions, a line per program; none while partial."""
    measured = (run.manifest.get("measured") or {}).get("images_per_second") or {}
    return [{"run": name, "program": key, **pair} for key, pair in measured.items()]
