"""The page: figures, maps and numbers of one or more runs in one file to read."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from vitjax.report import (
    explorer,
    faithfulness,
    gallery,
    ink,
    overlays,
    precision,
    probes,
    wording,
)
from vitjax.report.per_image import Digest
from vitjax.report.provenance import provenance
from vitjax.report.reduction import curve_table, summary_table
from vitjax.report.tables import (
    Tests,
    accuracy_tests,
    control_tests,
    intervention_table,
    published,
    significant,
    test_table,
    token_tests,
)
from vitjax.report.writing import draw_captioned, write_csv
from vitjax.runner.results import Results

PAPER = "https://arxiv.org/abs/2310.18969"


def write_report(
    runs: Sequence[Results],
    out: str | os.PathLike,
    *,
    tests: Tests = "images",
    subset: int = 500,
) -> Any:
    """Write a page about one run, or about several side by side.

    Beside `report.html`, which holds all that it shows, `figures/` receives every
    figure as PNG and every plotted number as CSV under the same name. Rows are read
    some hundred images at a time; files of an earlier report are replaced.

    The page's token explorer shows the pictures that a run kept. A run of the recipe
    `tokens` beside another one of the same model and data adds its explorer to that
    one, nothing else.

    Args:
        runs: rows of recipes with ranks, such as `identifiability`, finished or not.
        out: folder to write to, local or gs://; made where it is missing.
        tests: besides the tests over images, class against context tokens with tokens
            as units: "within_images", or "published" as the published code, which
            also tests right against wrong images.
        subset: on how many images those rest.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: there is no run, or one holds other rows.
        OSError: the folder cannot be written.
    """
    from etils import epath

    if not runs:
        raise ValueError("write_report expects at least one run; got none.")
    explored, runs = companions(runs)
    names = run_names([run.manifest for run in runs])
    read = gallery.reduced(names, runs)
    digests, found = read.digests, read.found
    curves = [row for n, d in zip(names, digests) for row in curve_table(d, run=n)]
    tables = [summary_table(d) for d in digests]
    edits = [intervention_table(one) if one else [] for one in found]
    most = max(2, 8 // len(runs))
    maps = [overlays.picture_maps(run, d, most=most) for run, d in zip(runs, digests)]
    out = epath.Path(out)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    flat = [{"run": n, **row} for n, table in zip(names, tables) for row in table]
    context = {
        "title": _title(names, [run.manifest for run in runs]),
        "runs": [_run(n, d, t) for n, d, t in zip(names, digests, tables)],
        "words": _words(names, digests, curves, tables, edits),
        "summary": _summary(tables),
        "summary_csv": write_csv(folder / "summary.csv", flat),
        "figures": {key: None for key in gallery.CURVES}
        | {one["key"]: one for one in _written(folder, gallery.of_curves(curves))},
        "sections": _written(
            folder, (*gallery.of_sections(read), *gallery.of_spreads(read))
        ),
        "probes": probes.draw(folder, names, runs),
        "faithfulness": faithfulness.draw(folder, names, runs),
        "precision": precision.draw(folder, names, runs),
        "edits": _edits(folder, names, edits),
        "tests": _tests(folder, names, runs, digests, found, tests, subset),
        "published": [
            published(run.manifest, data, table, rows)
            for run, data, table, rows in zip(runs, digests, tables, edits)
        ],
        "above": [_above_chance(n, d, curves) for n, d in zip(names, digests)],
        "maps": _maps(folder, names, digests, maps),
        "explorer": explorer.explorer(names, explored),
        "exploring": script("explorer.js"),
        "sorting": script("sorting.js"),
        "provenance": [provenance(run.manifest, d) for run, d in zip(runs, digests)],
        "colours": list(zip(ink.COLOURS, ink.DARK)),
        "paper": PAPER,
    }
    page = out / "report.html"
    page.write_text(_render(context), encoding="utf-8")
    return page


def companions(runs: Sequence[Results]) -> tuple[list[Results], list[Results]]:
    """(of each run on the page, the one that its explorer shows; those on the page)."""

    def of(run: Results) -> tuple:
        model, data = run.manifest["model"], run.manifest["data"]
        computed = run.manifest.get("dtype"), str(run.manifest.get("masks"))
        return model.get("parameters_sha256"), data["id"], *computed

    tokens = {
        of(run): run
        for run in runs
        if run.manifest["recipe"] == "tokens" and next(explorer.chosen(run), None)
    }
    others = [run for run in runs if run.manifest["recipe"] != "tokens"]
    beside = {of(run) for run in others}
    shown = [run for run in runs if run in others or of(run) not in beside]
    return [tokens.get(of(run), run) if run in others else run for run in shown], shown


def script(name: str) -> str:
    """A script of the page."""
    return resources.files("vitjax.report").joinpath(name).read_text("utf-8")


def run_names(manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Short names that tell runs apart: the model, and more only where it differs."""
    fields = [
        _short_data,
        lambda m: m.get("dtype"),
        lambda m: pathlib.PurePath(str(m["model"].get("checkpoint"))).name,
        lambda m: str(m["model"].get("sha256"))[:8],
        lambda m: f"seed {m.get('seed')}",
    ]
    names = [m["model"]["name"] for m in manifests]
    for place, field in enumerate(fields):
        values = [str(field(m)) for m in manifests]
        # Other data is always worth saying, the rest only to tell namesakes apart.
        needed = place == 0 or len(set(names)) < len(names)
        if needed and len(set(values)) > 1:
            names = [f"{name} · {value}" for name, value in zip(names, values)]
    return [
        name if names.count(name) == 1 else f"{name} ({names[:place].count(name) + 1})"
        for place, name in enumerate(names)
    ]


def _title(names: Sequence[str], manifests: Sequence[Mapping[str, Any]]) -> str:
    data = list(dict.fromkeys(map(_short_data, manifests)))
    where = f" on {data[0]}" if len(data) == 1 else ""
    who = ", ".join(names) if len(names) < 4 else f"{len(names)} runs"
    return f"Class identifiability: {who}{where}"


def _short_data(manifest: Mapping[str, Any]) -> str:
    """The data as on the command line, of a path only the last part."""
    spec = str(manifest["data"]["spec"])
    return pathlib.PurePath(spec).name if "/" in spec else spec


def _run(name: str, digest: Digest, table: Sequence[Mapping]) -> dict[str, Any]:
    """What the head of the page says about a run."""
    manifest = digest.manifest
    return {
        "name": name,
        "used": len(digest.image),
        "total": digest.total,
        "done": digest.done,
        "finished": digest.done == digest.total and bool(manifest.get("finished")),
        "skipped": digest.skipped,
        "degenerate": digest.config.norm == "residual_post"
        and str(manifest["model"].get("checkpoint")).startswith("random weights"),
        "vanished": len(manifest.get("vanished") or ()),
        "unlabelled": digest.unlabelled,
        "classes": len(digest.classes),
        "class_token": digest.config.class_token,
        "tiles": table[:3],
    }


def _words(names, digests, curves, tables, edits) -> list[dict[str, Any]]:
    """Of every run that used an image, what its numbers say."""
    said = []
    for name, data, table, rows in zip(names, digests, tables, edits):
        own = [row for row in curves if row["run"] == name]
        lines = wording.sentences(data, own, table, rows)
        said += [{"run": name, "lines": lines}] if lines else []
    return said


def _summary(tables: Sequence[Sequence[Mapping]]) -> list[dict[str, Any]]:
    """Rows of the table of numbers: a quantity, a cell per run, chance."""
    quantities = dict.fromkeys(row["quantity"] for table in tables for row in table)
    rows = []
    for quantity in quantities:
        cells = [
            next((row for row in table if row["quantity"] == quantity), None)
            for table in tables
        ]
        levels = {cell["chance"] for cell in cells if cell} - {None}
        chance = ", ".join(f"{level:.4g}" for level in sorted(levels)) or "–"
        rows.append({"quantity": quantity, "cells": cells, "chance": chance})
    return rows


def _written(folder, drawings) -> list[dict[str, Any]]:
    """Write figures and their numbers; what the page shows of them."""
    return [draw_captioned(folder, one) for one in drawings]


def _edits(folder, names, edits) -> dict[str, Any] | None:
    """The table of interventions."""
    rows = [{"run": name, **row} for name, own in zip(names, edits) for row in own]
    return (
        {"rows": rows, "csv": write_csv(folder / "edits.csv", rows)} if rows else None
    )


def _tests(folder, names, runs, digests, found, kind, subset) -> dict[str, Any] | None:
    """Tests block by block, in words and as CSV."""
    tables = []
    for name, run, data, one in zip(names, runs, digests, found):
        table = test_table(data, one)
        if kind != "images":
            table += token_tests(run, data, kind=kind, subset=subset)
        if kind == "published" and one is not None:
            table += accuracy_tests(run, data)
        tables.append((name, table))
    tables += [(names[place], table) for place, table in control_tests(digests)]
    rows = [{"run": name, **row} for name, table in tables for row in table]
    if not rows:
        return None
    words = [
        {"run": name, **line} for name, table in tables for line in significant(table)
    ]
    return {"words": words, "csv": write_csv(folder / "tests.csv", rows)}


def _above_chance(name: str, digest: Digest, curves: Sequence[Mapping]) -> dict | None:
    """The block from which on the interval of the mean stays above chance."""
    cells = {}
    for kind in ("cls", "image"):
        key = (name, "residual", kind, "identifiability")
        columns = ("run", "stream", "tokens", "measure")
        lines = [row for row in curves if tuple(row[c] for c in columns) == key]
        if kind in digest.tokens and all(row["low"] == row["low"] for row in lines):
            cells[kind] = wording.above_chance(lines)
    return {"name": name, "cells": cells} if cells else None


def _maps(folder, names, digests, maps) -> dict[str, Any] | None:
    """Write the maps and their numbers; cards of one picture and a strip per run."""
    rows = [(name, one) for name, all_maps in zip(names, maps) for one in all_maps]
    if not rows:
        return None
    data = {n: d.manifest["data"]["id"] for n, d in zip(names, digests)}
    several = len(names) > 1
    if several:  # the same picture under different models, one below the other
        seen = list(dict.fromkeys((data[name], one.image) for name, one in rows))
        rows.sort(key=lambda row: seen.index((data[row[0]], row[1].image)))
    shown = [(name if several else "", m) for name, m in rows if m.ranks is not None]
    if shown:
        (folder / "maps.png").write_bytes(overlays.png(shown))
        table = [row for name, m in rows for row in overlays.maps_table(m, run=name)]
        write_csv(folder / "maps.csv", table)
    cards: dict[Any, dict[str, Any]] = {}
    for name, one in rows:
        key = data[name], one.image
        card = cards[key] if key in cards else cards.setdefault(key, _card(one))
        card["strips"].append(_strip(name if several else "", one))
    return {
        "cards": list(cards.values()),
        "explanation": overlays.explanation(shown),
        "bar": overlays.colour_bar(),
        "numbers": bool(shown),
    }


def _card(maps: overlays.Maps) -> dict[str, Any]:
    return {
        "image": maps.image,
        "name": pathlib.PurePath(maps.name).name,
        "label": maps.label,
        "picture": overlays.data_url(overlays.picture_image(maps)),
        "small": max(maps.picture.shape) <= 128,  # enlarged without smoothing
        "strips": [],
    }


def _strip(name: str, maps: overlays.Maps) -> dict[str, Any]:
    return {
        "run": name,
        "maps": maps,
        "images": [
            {
                "block": layer + 1,
                "readout": readout,
                "url": overlays.data_url(
                    overlays.map_image(one, classes=maps.classes, mask=maps.mask)
                ),
            }
            for one, layer, readout in zip(
                maps.shown, maps.layers, maps.readout or [""] * len(maps.layers)
            )
        ],
    }


def _render(context: Mapping[str, Any]) -> str:
    """Fill the template; every text from a run is escaped."""
    import jinja2

    source = resources.files("vitjax.report").joinpath("report.html.jinja")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": wording.number, "short": overlays.short_name}
    return environment.from_string(source.read_text("utf-8")).render(context)
