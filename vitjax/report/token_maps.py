"""Maps of token identifiability over depth, beside the image they belong to.

A map has one cell per image token: its color is the token's identifiability. A dot
marks an identifiable token (rank 0), a line the border of the object's mask, where
there is one, and a gray cell an absent token.
"""

import csv
import dataclasses
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, UInt8

from vitjax.recipes import schema
from vitjax.report.figure import Figure, Section, data_url
from vitjax.report.marks import POSITIVE, Frame
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

    @property
    def ranks(self) -> Int[np.ndarray, "shown row column"]:
        """Of the label after each shown block, -1 where absent."""
        config = self.run.config
        ranks = self.read(schema.RANK("residual"))[shown_layers(config.depth)]
        return ranks[:, config.prefix :].reshape(-1, *config.grid)

    @property
    def mask(self) -> Bool[np.ndarray, "row column"] | None:
        """Image tokens that lie on the object; None without masks."""
        if schema.PATCH_LABEL() not in self.run:
            return None
        return (self.read(schema.PATCH_LABEL()) == 1).reshape(self.run.config.grid)

    @property
    def image(self) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels with the border of the object's mask, where there is one."""
        mask = self.mask
        if mask is None:
            return self.pixels
        cell = self.pixels.shape[0] // mask.shape[0]
        scale = -(-12 // cell)  # a line on a small image must not hide it
        image = np.repeat(np.repeat(self.pixels, scale, 0), scale, 1)
        draw_border(image, mask, cell * scale)
        return image

    def row(self) -> list[Any]:
        """The image and its maps, as panels."""
        from vitjax.report.overlays import Panel

        run, mask = self.run, self.mask
        names = [self.class_name(n) for n in (self.label, self.prediction)]
        label, prediction = map(short_name, names)
        words = f"{short_name(run.name)}\nlabel: {label}\nprediction: {prediction}"
        cells = [Panel(self.image, words)]
        tops = self.read(schema.TOP_CLASSES())[:, 0]
        for layer, ranks in zip(shown_layers(run.config.depth), self.ranks):
            image = draw_map(ranks, classes=len(run.classes), mask=mask)
            words = f"block {layer}\n{short_name(run.classes[tops[layer]])}"
            cells.append(Panel(image, words))
        return cells

    def table(self) -> Frame:
        """The numbers of the maps, a row per block and image token."""
        ranks, mask, classes = self.ranks, self.mask, len(self.run.classes)
        place, row, column = np.indices(ranks.shape).reshape(3, -1)
        rank = ranks.ravel()
        columns = {
            "run": self.run.name,
            "image": self.index,
            "name": self.name,
            "label": self.class_name(self.label),
            "prediction": self.class_name(self.prediction),
            "layer": shown_layers(self.run.config.depth)[place],
            "row": row,
            "column": column,
            "rank": rank,
            "identifiability": np.where(rank >= 0, 1 - rank / classes, np.nan),
            "on_object": "" if mask is None else 1 * mask[row, column],
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
    """A row per labeled preview: the image and its maps."""

    previews: Sequence[Preview]

    def png(self, *, dpi: int = 150) -> bytes:
        """All rows and a color bar."""
        from vitjax.report.overlays import Scale, draw_grid

        rows = [preview.row() for preview in self.previews]
        scale = Scale(POSITIVE, 0, 1, words=self.y_label)
        buffer = io.BytesIO()
        draw_grid(rows, scale=scale).savefig(buffer, format="png", dpi=dpi)
        return buffer.getvalue()

    def html(self) -> str:
        """The PNG; on a narrow page it scrolls."""
        return (
            f'<figure><div class="scroll maps"><img src="{data_url(self.png())}" '
            f'alt="{self.title}"></div><figcaption><p>{html.escape(self.caption)} '
            "Numbers: <code>figures/maps.csv</code>.</p></figcaption></figure>"
        )


def section(runs: Sequence[Run]) -> Section:
    """Maps of the labeled images that runs kept, those of one image together."""
    shown = [one for run in runs for one in previews(run, limit=max(2, 8 // len(runs)))]
    shown = [one for one in shown if one.label >= 0]
    if not shown:
        return Section(key="maps", title="Image by image")
    shown.sort(key=lambda one: (one.run.manifest["data"]["id"], one.index))
    figure = MapFigure(
        key="maps",
        title="Image by image",
        caption="Each cell is an image token, its color the identifiability of the "
        "label after the block; below the block's number stands the class that would "
        "be predicted from it. Dot: identifiable token (rank 0); line: border of the "
        "object's mask; gray: absent token.",
        data=pd.concat([preview.table() for preview in shown]),
        y_label="class identifiability",
        hidden=(),
        previews=shown,
    )
    return Section(key="maps", title=figure.title, figures=[figure])


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
