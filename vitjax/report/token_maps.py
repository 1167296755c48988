"""Maps of token identifiability over depth, beside the image they belong to.

A map has one cell per image token: its color is the token's identifiability. A dot
marks an identifiable token (rank 0), a line the border of the object's mask, where
there is one, and a gray cell an absent token.
"""

import csv
import dataclasses
import functools
import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, UInt8

from vitjax.recipes import schema
from vitjax.report.figure import Figure, data_url
from vitjax.report.map_grid import POSITIVE, grid_png
from vitjax.report.per_image import Run

ABSENT = (128, 128, 128)
DOT = (10, 10, 14)


@dataclasses.dataclass(eq=False)
class Preview:
    """An image that a run kept as the model saw it, and what is known of its tokens.

    `index` is its position in the data set; `name`, of its file, is empty while the run
    is not finished; `label` and `prediction` are classes, -1 where unknown.
    """

    run: Run
    index: int
    name: str
    label: int
    prediction: int
    pixels: UInt8[np.ndarray, "height width channel"]

    def class_name(self, number: int) -> str:
        """Empty where unknown."""
        return self.run.classes[number] if number >= 0 else ""

    def read(self, name: str) -> np.ndarray:
        """The row of an array."""
        return self.run.read(name, np.array([self.index]))[0]

    @functools.cached_property
    def layers(self) -> Int[np.ndarray, " shown"]:
        """Blocks that have a map; none without a label."""
        depth = self.run.config.depth
        return shown_layers(depth)[: depth * (self.label >= 0)]

    @functools.cached_property
    def ranks(self) -> Int[np.ndarray, "shown row column"]:
        """Of the label after each shown block, -1 where absent."""
        config = self.run.config
        ranks = self.read(schema.RANK("residual"))[self.layers, config.prefix :]
        return ranks.reshape(-1, *config.grid)

    @functools.cached_property
    def mask(self) -> Bool[np.ndarray, "row column"] | None:
        """Image tokens that lie on the object; None without masks."""
        if schema.PATCH_LABEL() not in self.run:
            return None
        return (self.read(schema.PATCH_LABEL()) == 1).reshape(self.run.config.grid)

    @property
    def image(self) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels with the border of the object's mask, where there is one."""
        if self.mask is None:
            return self.pixels
        cell = self.pixels.shape[0] // self.mask.shape[0]
        scale = -(-12 // cell)  # a line on a small image must not hide it
        image = np.repeat(np.repeat(self.pixels, scale, 0), scale, 1)
        draw_border(image, self.mask, cell * scale)
        return image

    @functools.cached_property
    def maps(self) -> list[tuple[int, str, UInt8[np.ndarray, "height width 3"]]]:
        """(layer, top class of the pooled token after it, map) of every shown block."""
        classes = self.run.classes
        tops = self.read(schema.TOP_CLASSES())[self.layers, 0]
        names = [classes[top] for top in tops]
        maps = [draw_map(r, classes=len(classes), mask=self.mask) for r in self.ranks]
        return list(zip(self.layers.tolist(), names, maps))

    def table(self) -> pd.DataFrame:
        """The numbers of the maps, a row per block and image token."""
        place, row, column = np.indices(self.ranks.shape).reshape(3, -1)
        rank, classes = self.ranks.ravel(), len(self.run.classes)
        columns = {
            "run": self.run.name,
            "image": self.index,
            "name": self.name,
            "label": self.class_name(self.label),
            "prediction": self.class_name(self.prediction),
            "layer": self.layers[place],
            "row": row,
            "column": column,
            "rank": rank,
            "identifiability": np.where(rank >= 0, 1 - rank / classes, np.nan),
            "on_object": "" if self.mask is None else 1 * self.mask[row, column],
        }
        return pd.DataFrame(columns)


def previews(run: Run, *, limit: int) -> list[Preview]:
    """Images that a run with ranks kept, those that are done and valid, each once."""
    if schema.PREVIEW() not in run or not run.streams:
        return []
    done = np.flatnonzero(run.results["done"].values)
    valid = done[run.read(schema.VALID(), done)]
    kept = run.results[schema.PREVIEW_INDEX()].values
    indices, places, _ = np.intersect1d(kept, valid, return_indices=True)
    indices, places = indices[:limit], places[:limit]
    names = image_names(run.results.path)
    labels = run.read(schema.LABEL(), indices).tolist()
    predictions = run.read(schema.PREDICTION(), indices).tolist()
    pixels = run.results[schema.PREVIEW()][places].values
    columns = zip(indices.tolist(), labels, predictions, pixels)
    return [Preview(run, row[0], names.get(row[0], ""), *row[1:]) for row in columns]


def image_names(path: str) -> dict[int, str]:
    """Position -> file name, from images.csv, which a run writes at its end."""
    from etils import epath

    table = epath.Path(path) / "images.csv"
    content = table.read_bytes() if path and table.exists() else b""
    rows = csv.DictReader(io.StringIO(content.decode(errors="replace"), newline=""))
    return {int(row["index"]): row["name"] for row in rows}


def shown_layers(depth: int, *, count: int = 6) -> Int[np.ndarray, " shown"]:
    """Blocks evenly spread over the depth, ending with the last one."""
    count = min(count, depth)
    return -(-depth * np.arange(1, count + 1) // count) - 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MapFigure(Figure):
    """Previews and their maps; as HTML they are part of the page's template.

    A card holds the previews of one image by each run that kept it. `labeled` are all
    previews with a label: only they have maps. `several` says that there are several
    runs to tell apart.
    """

    cards: Sequence[Sequence[Preview]]
    labeled: Sequence[Preview]
    several: bool

    def png(self, *, dpi: int = 150) -> bytes:
        """Labeled images and their maps for print."""
        rows = []
        for one in self.labeled:
            label = f"label: {one.class_name(one.label)}"
            prediction = f"prediction: {one.class_name(one.prediction)}"
            cells = [(one.image, [one.run.name] * self.several + [label, prediction])]
            cells += [(image, [f"block {n}", top]) for n, top, image in one.maps]
            rows.append([(i, "\n".join(map(short_name, words))) for i, words in cells])
        options = {"side": 1.35, "bar_label": self.y_label, "dpi": dpi}
        return grid_png(rows, legend=self.caption, **options)


def map_figure(runs: Sequence[Run]) -> MapFigure | None:
    """Previews of every run with their maps; None where no run kept an image."""
    cards: dict[tuple, list[Preview]] = {}
    for run in runs:
        for preview in previews(run, limit=max(2, 8 // len(runs))):
            key = run.manifest["data"]["id"], preview.index
            cards.setdefault(key, []).append(preview)
    if not cards:
        return None
    labeled = [one for card in cards.values() for one in card if one.label >= 0]
    caption = (
        "Each cell is an image token, its color the identifiability of the label after "
        "the block; below the block's number stands the class that would be predicted "
        "from it. Dot: identifiable token (rank 0)"
    )
    if any(preview.mask is not None for preview in labeled):
        caption += "; line: border of the object's mask"
    if any((preview.ranks < 0).any() for preview in labeled):
        caption += "; gray: absent token"
    unlabeled = "The first images as the model saw them, with the predicted class"
    return MapFigure(
        key="maps",
        title="Image by image",
        caption=f"{caption if labeled else unlabeled}.",
        data=pd.concat([preview.table() for preview in labeled] or [pd.DataFrame()]),
        y_label="class identifiability",
        cards=list(cards.values()),
        labeled=labeled,
        several=len(runs) > 1,
    )


def draw_map(
    ranks: Int[np.ndarray, "row column"],
    *,
    classes: int,
    mask: Bool[np.ndarray, "row column"] | None = None,
    side: int = 196,
) -> UInt8[np.ndarray, "height width 3"]:
    """One map, a whole number of pixels per cell, its longer edge about `side`."""
    from matplotlib import colormaps

    cell = max(8, round(side / max(ranks.shape)))
    colors = colormaps[POSITIVE](1 - ranks / classes, bytes=True)[..., :3]
    colors = np.where((ranks < 0)[..., None], ABSENT, colors)
    image = np.repeat(np.repeat(colors, cell, 0), cell, 1).astype(np.uint8)
    radius = np.hypot(*(np.mgrid[:cell, :cell] - (cell - 1) / 2))
    image[np.kron(ranks == 0, radius <= 0.24 * cell).astype(bool)] = DOT
    if mask is not None:
        draw_border(image, mask, cell)
    return image


def draw_border(image: np.ndarray, mask: np.ndarray, cell: int) -> None:
    """Draw where the mask ends into an image of square cells, in place."""
    from PIL import Image, ImageFilter

    large = Image.fromarray(np.kron(mask, np.ones((cell, cell))).astype(np.uint8))
    for width, color in ((5, 0), (3, 255)):  # white on black shows on any ground
        low = np.asarray(large.filter(ImageFilter.MinFilter(width)))
        high = np.asarray(large.filter(ImageFilter.MaxFilter(width)))
        image[low != high] = color


def short_name(name: str, *, longest: int = 24) -> str:
    """The first of a class's synonyms, cut where it is long."""
    first = name.split(",")[0].strip() or name
    return first if len(first) <= longest else first[: longest - 1].rstrip() + "…"


def image_url(image: UInt8[np.ndarray, "height width 3"], *, kind: str = "png") -> str:
    """An image as the source of an `<img>`."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, optimize=True, quality=85)
    return data_url(buffer.getvalue(), f"image/{kind}")
