"""Maps of token identifiability over depth, beside the picture they belong to.

A map has one cell per image token: its colour is the token's identifiability, a dot
marks an identifiable token (rank 0), a line the border of the class's mask, where
there is one, and a grey cell a token that was absent.
"""

import base64
import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from vitjax.report import ink
from vitjax.report.panels import MEASURE_LABELS
from vitjax.report.per_image import Digest
from vitjax.runner.results import Results
from vitjax.runner.store import read_bytes

COLOUR_MAP = "viridis"
ABSENT = (128, 128, 128)
DOT = (10, 10, 14)
MAPS = 6
CELL, GAP = 1.35, 0.1
"""Inches: a map's width in print, the room between two."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maps:
    """What one run says about one of its pictures.

    Args:
        picture: as the model saw it.
        image: its position in the data set.
        name: of its file; empty while the run goes on.
        label: name of its class, None where unknown.
        prediction: name of the model's first class.
        correct: whether they are the same; None without a label.
        layers: which blocks are shown, from 0.
        readout: name of the first class of the readout after each of them; empty where
            the run did not write it.
        ranks: of the true class, -1 where absent; None without a label.
        mask: image tokens that lie on the class; None without masks.
        classes: how many classes there are.
    """

    picture: UInt8[np.ndarray, "height width channel"]
    image: int
    name: str
    label: str | None
    prediction: str
    correct: bool | None
    layers: tuple[int, ...]
    readout: tuple[str, ...]
    ranks: Int[np.ndarray, "shown row column"] | None
    mask: Bool[np.ndarray, "row column"] | None
    classes: int

    @property
    def shown(self) -> Sequence[np.ndarray]:
        """One grid of ranks per shown block; none without a label."""
        return () if self.ranks is None else tuple(self.ranks)


def picture_maps(run: Results, digest: Digest, *, most: int = 8) -> list[Maps]:
    """The pictures that a run kept, with what is needed to draw their maps.

    Args:
        run: rows of a recipe with ranks, such as `identifiability`.
        digest: of the same run.
        most: at most so many pictures.

    Returns:
        In the order of the run; pictures that were not written yet are left out.
    """
    if "picture" not in run or "picture_image" not in run:
        return []
    found, names = [], image_names(run)
    for place, image in enumerate(run["picture_image"][:].tolist()):
        there = image >= 0 and bool(run["done"][image]) and bool(run["valid"][image])
        if there and len(found) < most:
            found.append(_maps(run, digest, place, image, names.get(image, "")))
    return found


def _maps(run, digest, place, image, name) -> Maps:
    config, names = digest.config, digest.classes
    layers = shown_layers(config.depth)
    label, prediction = int(run["label"][image]), int(run["prediction"][image])
    shape = (len(layers), *config.grid)
    ranks = mask = None
    if label >= 0:
        ranks = run["rank_residual"][image][list(layers), config.prefix :]
        ranks = ranks.reshape(shape)
    if "patch_label" in run:
        mask = (run["patch_label"][image] == 1).reshape(config.grid)
    top = run["top_classes"][image][list(layers), 0] if "top_classes" in run else []
    return Maps(
        picture=run["picture"][place],
        image=image,
        name=name,
        label=names[label] if label >= 0 else None,
        prediction=names[prediction],
        correct=label == prediction if label >= 0 else None,
        layers=layers,
        readout=tuple(names[number] for number in top),
        ranks=ranks,
        mask=mask,
        classes=len(names),
    )


def image_names(run) -> dict[int, str]:
    """From images.csv, which a run writes at its end."""
    table = read_bytes(run.path, "images.csv")
    lines = [] if table is None else table.decode().splitlines()
    return {int(row["index"]): row["name"] for row in csv.DictReader(lines)}


def shown_layers(depth: int, *, count: int = MAPS) -> tuple[int, ...]:
    """Blocks, from 0, that are evenly spread over the depth; the last one is there."""
    count = min(count, depth)
    return tuple(-(-depth * step // count) - 1 for step in range(1, count + 1))


def map_image(
    ranks: Int[np.ndarray, "row column"],
    *,
    classes: int,
    mask: Bool[np.ndarray, "row column"] | None = None,
    side: int = 196,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw one map, a whole number of pixels per cell.

    Args:
        ranks: of the true class at every image token; -1 where absent.
        classes: how many classes there are.
        mask: image tokens that lie on the class; their border is drawn.
        side: of the longer edge in pixels, about.
    """
    from matplotlib import colormaps

    cell = max(8, round(side / max(ranks.shape)))
    colours = colormaps[COLOUR_MAP](1 - ranks / classes, bytes=True)[..., :3]
    colours = np.where((ranks < 0)[..., None], ABSENT, colours)
    image = np.repeat(np.repeat(colours, cell, 0), cell, 1).astype(np.uint8)
    centre = np.hypot(*(np.mgrid[:cell, :cell] - (cell - 1) / 2))
    image[np.kron(ranks == 0, centre <= 0.24 * cell).astype(bool)] = DOT
    if mask is not None:
        for width, colour in ((2, 0), (1, 255)):  # white on black shows on any ground
            image[_border(mask, cell, width)] = colour
    return image


def picture_image(maps: Maps) -> UInt8[np.ndarray, "height width 3"]:
    """The picture with the border of the class's mask, where there is one."""
    if maps.mask is None:
        return maps.picture
    cell = max(1, maps.picture.shape[0] // maps.mask.shape[0])
    scale = -(-12 // cell)  # a line on a small picture must not hide it
    image = np.repeat(np.repeat(maps.picture, scale, 0), scale, 1)
    for width, colour in ((2, 0), (1, 255)):
        image[_border(maps.mask, cell * scale, width)] = colour
    return image


def _border(mask, cell, width) -> Bool[np.ndarray, "height width"]:
    """Pixels within `width` of an edge between mask and rest, on both sides of it."""
    large = np.kron(mask, np.ones((cell, cell))).astype(bool)
    border = np.zeros_like(large)
    for axis in (0, 1):
        edges = np.argwhere(np.diff(large, axis=axis))
        for shift in range(1 - width, width + 1):
            shifted = edges.copy()
            shifted[:, axis] = (shifted[:, axis] + shift).clip(0, large.shape[axis] - 1)
            border[tuple(shifted.T)] = True
    return border


def maps_table(maps: Maps, *, run: str) -> list[dict[str, Any]]:
    """The numbers of the maps of one picture, one row per block and image token."""
    if maps.ranks is None:
        return []
    rows = []
    for place, rank in np.ndenumerate(maps.ranks):
        layer, where = maps.layers[place[0]], place[1:]
        rows.append(
            {
                "run": run,
                "image": maps.image,
                "name": maps.name,
                "label": maps.label,
                "prediction": maps.prediction,
                "layer": layer,
                "block": layer + 1,
                "row": where[0],
                "column": where[1],
                "rank": int(rank),
                "identifiability": 1 - rank / maps.classes if rank >= 0 else np.nan,
                "class_token": "" if maps.mask is None else int(maps.mask[where]),
            }
        )
    return rows


def short_name(name: str, *, longest: int = 22) -> str:
    """The first of a class's synonyms, cut where it is long."""
    first = name.split(",")[0].strip() or name
    return first if len(first) <= longest else first[: longest - 1].rstrip() + "…"


def png(rows: Sequence[tuple[str, Maps]], *, dpi: int = 150) -> bytes:
    """Pictures and their maps as one figure for print.

    Args:
        rows: (name of the run, empty where there is only one; maps of a picture).
        dpi: dots per inch.
    """
    from matplotlib import cm, colors
    from matplotlib.figure import Figure

    text = 0.45 if any(run for run, _ in rows) else 0.33
    heights = [CELL * m.picture.shape[0] / m.picture.shape[1] for _, m in rows]
    columns = 1 + max(len(maps.layers) for _, maps in rows)
    width = columns * (CELL + GAP) + 0.85
    height = sum(heights) + len(rows) * (text + GAP) + 0.3
    with ink.style():
        figure = Figure(figsize=(width, height))
        # One pair of axes, in inches: fifty of them would take seconds.
        sheet = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        sheet.set_axis_off()
        bottom = height
        for (run, maps), tall in zip(rows, heights):
            bottom -= text + tall
            for place, (image, words) in enumerate(_drawn(run, maps)):
                left = GAP / 2 + (CELL + GAP) * place
                extent = left, left + CELL, bottom, bottom + tall
                sheet.imshow(image, interpolation="nearest", extent=extent)
                sheet.text(left, bottom + tall + 0.04, words, fontsize=7)
            bottom -= GAP
        sheet.set(xlim=(0, width), ylim=(0, height), aspect="auto")
        sheet.text(GAP / 2, 0.1, explanation(rows), fontsize=8)
        tall = min(4.0, height - text - GAP - 0.3)
        left, low = columns * (CELL + GAP) + 0.1, height - text - tall
        box = left / width, low / height, 0.12 / width, tall / height
        bar = figure.colorbar(
            cm.ScalarMappable(colors.Normalize(0, 1), COLOUR_MAP),
            cax=figure.add_axes(box),
        )
        bar.set_label(MEASURE_LABELS["identifiability"])
        bar.outline.set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def explanation(rows: Sequence[tuple[str, Maps]]) -> str:
    """What the marks in some maps mean."""
    parts = ["dot: identifiable token (rank 0)"]
    if any(maps.mask is not None for _, maps in rows):
        parts.append("line: border of the class's mask")
    if any(maps.ranks is not None and (maps.ranks < 0).any() for _, maps in rows):
        parts.append("grey: absent token")
    return "; ".join(parts)


def _drawn(run: str, maps: Maps) -> Iterator[tuple[np.ndarray, str]]:
    """The picture and its maps, with the words above each."""
    words = [short_name(run, longest=24)] if run else []
    if maps.label is not None:
        words.append(f"label: {short_name(maps.label, longest=19)}")
    words.append(f"prediction: {short_name(maps.prediction, longest=14)}")
    yield picture_image(maps), "\n".join(words)
    for place, (layer, ranks) in enumerate(zip(maps.layers, maps.shown)):
        image = map_image(ranks, classes=maps.classes, mask=maps.mask)
        words = [f"block {layer + 1}"]
        if maps.readout:
            words.append(short_name(maps.readout[place], longest=19))
        yield image, "\n".join(words)


def data_url(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """A picture as text that an `<img>` shows."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def colour_bar() -> str:
    """The colour map from 0 to 1 as a CSS gradient."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    stops = colormaps[COLOUR_MAP](np.linspace(0, 1, 11))
    return f"linear-gradient(to right, {', '.join(to_hex(stop) for stop in stops)})"
