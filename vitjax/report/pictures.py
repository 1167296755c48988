"""Pictures of images that runs kept: maps of token identifiability, predictions.

A map has one cell per image token: its color is the token's identifiability. A dot
marks an identifiable token (rank 0), a line the border of the object's mask, where
there is one, and a gray cell an absent token. Images without a label show predictions
and attention, which need no true class.
"""

import csv
import dataclasses
import functools
import html
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from etils import epath
from jaxtyping import Bool, Int, UInt8
from matplotlib import colormaps
from PIL import Image, ImageFilter

from vitjax.recipes import schema
from vitjax.report.figure import (
    POSITIVE,
    SIGNED,
    Figure,
    Section,
    Table,
    data_url,
    with_name,
)
from vitjax.report.overlays import (
    Panel,
    Scale,
    draw_grid,
    lay_over,
    scale_of,
    to_grid,
    to_photo,
)
from vitjax.report.per_image import BAND, Frame, Run

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

    @property
    def classes(self) -> dict[str, str]:
        """Names of its label and its prediction, empty where unknown."""
        numbers = {"label": self.label, "prediction": self.prediction}
        return {k: self.run.classes[n] if n >= 0 else "" for k, n in numbers.items()}

    def read(self, name: str) -> np.ndarray:
        """The row of an array."""
        return self.run.read(name, np.array([self.index]))[0]

    @property
    def mask(self) -> Bool[np.ndarray, "row column"] | None:
        """Image tokens that lie on the object; None without masks."""
        if schema.PATCH_LABEL() not in self.run:
            return None
        return (self.read(schema.PATCH_LABEL()) == 1).reshape(self.run.config.grid)

    @functools.cached_property
    def photo(self) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels, small ones enlarged."""
        return to_photo(self.pixels)

    @property
    def image(self) -> UInt8[np.ndarray, "height width 3"]:
        """The same with the border of the object's mask, where there is one."""
        image, mask = self.photo.copy(), self.mask
        if mask is not None:
            draw_border(image, mask, image.shape[0] // mask.shape[0])
        return image

    @property
    def words(self) -> str:
        """What stands above the image: its classes, where they are known."""
        known = {key: name for key, name in self.classes.items() if name}
        return "\n".join(f"{key}: {short_name(name)}" for key, name in known.items())

    @property
    def facts(self) -> dict[str, Any]:
        """Which image it is, as columns of a table."""
        image = {"run": self.run.name, "image": self.index, "name": self.name}
        return image | self.classes

    def lay_over(
        self,
        words: str,
        values: np.ndarray,
        *,
        signed: bool = False,
        opacity: float | None = 0.75,
        largest: float | None = None,
    ) -> Panel:
        """A map of patches over the image, on a scale of its own or, with the largest
        magnitude that others have, on a signed one.
        """
        grid = to_grid(values, self.run.config.grid)
        scale = scale_of(grid, signed=signed, percentile=98, opacity=opacity)
        if largest is not None:
            scale = Scale(SIGNED, -largest, largest, opacity)
        return Panel(lay_over(self.photo, grid, scale), words, scale)


Maps = Iterator[tuple[Panel, dict[str, Any]]]
"""Pictures of one image, and the columns of each in a table."""


def gallery(
    runs: Sequence[Run],
    maps_of: Callable[[Preview], Maps],
    *,
    limit: int = 8,
    labeled: bool = True,
    **drawing: Any,
) -> "list[PictureFigure]":
    """Images that runs kept with their pictures; those of one image stand together."""
    each = max(1, limit // max(1, len(runs)))
    shown = [one for run in runs for one in previews(run, limit=each)]
    shown = [one for one in shown if (one.label >= 0) == labeled]
    shown.sort(key=lambda one: (one.run.manifest["data"]["id"], one.index))
    rows, alone, data = [], [], []
    for one in shown:
        name = f"{one.run.name}\n" if len(runs) > 1 else ""
        lead, maps = Panel(one.image, name + one.words), list(maps_of(one))
        data += [pd.DataFrame(one.facts | columns) for _, columns in maps]
        if maps:
            rows.append([lead, *(panel for panel, _ in maps)])
        else:
            alone.append(lead)
            data.append(pd.DataFrame(one.facts, index=[0]))
    rows += [alone] * bool(alone)
    return [PictureFigure(data=pd.concat(data), rows=rows, **drawing)] if rows else []


def previews(run: Run, *, limit: int) -> list[Preview]:
    """Images that a run kept, those that are done and valid, each once."""
    if schema.PREVIEW() not in run:
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
    table = epath.Path(path) / "images.csv"
    content = table.read_bytes() if path and table.exists() else b""
    rows = csv.DictReader(io.StringIO(content.decode(errors="replace"), newline=""))
    return {int(row["index"]): row["name"] for row in rows}


def shown_layers(depth: int, *, count: int = 6) -> Int[np.ndarray, " shown"]:
    """Blocks evenly spread over the depth, ending with the last one."""
    count = min(count, depth)
    return -(-depth * np.arange(1, count + 1) // count) - 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PictureFigure(Figure):
    """Rows of pictures with words above them; one scale for all, or of each its own."""

    rows: Sequence[Sequence[Panel]]
    scale: Scale | None = None
    y_label: str = ""
    hidden: Sequence[str] = ()

    def png(self, *, dpi: int = 150) -> bytes:
        """All rows with their color bars."""
        return draw_grid(self.rows, scale=self.scale).png(dpi)

    def html(self) -> str:
        """Every picture by itself: as many stand side by side as there is room for."""
        rows = "".join(
            f'<div class="pictures" style="--count: {len(row)}">'
            f"{''.join(map(picture, row))}</div>"
            for row in self.rows
        )
        bar = f'<div class="shared">{color_bar(self.scale)}</div>' if self.scale else ""
        source = f"Numbers: <code>figures/{self.key}.csv</code>."
        return self._frame(f'{bar}<div class="gallery">{rows}</div>', source)


def picture(panel: Panel) -> str:
    """A picture of a page with the words above it and its color bar below."""
    kind = "jpeg" if panel.scale else "png"
    image = f'<img alt="" src="{image_url(panel.image, kind=kind, most=224)}">'
    words = "<br>".join(map(html.escape, panel.words.split("\n")))
    bar = color_bar(panel.scale) if panel.scale else ""
    return f"<div><p>{words}</p>{image}{bar}</div>"


def color_bar(scale: Scale) -> str:
    """The colors of a scale, the numbers at its ends and its words."""
    low, high = scale.ends
    words = "".join(
        f"<span>{html.escape(text)}</span>" for text in (low, scale.words, high)
    )
    return (
        f'<img class="strip" alt="" src="{image_url(scale.strip)}">'
        f'<div class="ends">{words}</div>'
    )


def token_maps(runs: Sequence[Run]) -> Section:
    """Maps of the labeled images that runs kept."""
    figures = gallery(
        runs,
        rank_maps,
        key="maps",
        title="Identifiability over the blocks, token by token",
        see="Bright tokens know the class: watch where they are first, and how many "
        "they become.",
        caption="Each cell is an image token, its color the identifiability of the "
        "label after the block; below the block's number stands the class that would "
        "be predicted from it. Dot: identifiable token (rank 0); line: border of the "
        "object's mask; gray: absent token.",
        scale=Scale(POSITIVE, 0, 1, words="class identifiability"),
    )
    return Section(key="maps", title="Image by image", figures=figures)


def rank_maps(one: Preview) -> Maps:
    """Ranks of the label after blocks, and the class that comes first there."""
    mask, names, config = one.mask, one.run.classes, one.run.config
    tops, ranks = one.read(schema.TOP_CLASSES()), one.read(schema.RANK("residual"))
    row, column = np.indices(config.grid).reshape(2, -1)
    for layer in shown_layers(config.depth):
        rank = ranks[layer, config.prefix :]
        image = draw_map(rank.reshape(config.grid), classes=len(names), mask=mask)
        yield (
            Panel(image, f"block {layer}\n{short_name(names[tops[layer, 0]])}"),
            {
                "layer": layer,
                "row": row,
                "column": column,
                "rank": rank,
                "identifiability": np.where(rank >= 0, 1 - rank / len(names), np.nan),
                "on_object": "" if mask is None else 1 * mask.ravel(),
            },
        )


def draw_map(
    ranks: Int[np.ndarray, "row column"],
    *,
    classes: int,
    mask: Bool[np.ndarray, "row column"] | None = None,
    side: int = 196,
) -> UInt8[np.ndarray, "height width 3"]:
    """One map, a whole number of pixels per cell, its longer edge about `side`."""
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
    large = Image.fromarray(np.kron(mask, np.ones((cell, cell))).astype(np.uint8))
    for width, color in ((5, 0), (3, 255)):  # white on black shows on any ground
        low = np.asarray(large.filter(ImageFilter.MinFilter(width)))
        high = np.asarray(large.filter(ImageFilter.MaxFilter(width)))
        image[low != high] = color


def short_name(name: str, *, longest: int = 24) -> str:
    """The first of a class's synonyms, cut where it is long."""
    first = name.split(",")[0].strip() or name
    return first if len(first) <= longest else first[: longest - 1].rstrip() + "…"


def image_url(
    image: UInt8[np.ndarray, "height width 3"], *, kind: str = "png", most: int = 0
) -> str:
    """An image as the source of an `<img>`, its longer side at most `most` pixels."""
    buffer, picture = io.BytesIO(), Image.fromarray(image)
    if most:
        picture.thumbnail((most, most))
    picture.save(buffer, format=kind, quality=85)
    return data_url(buffer.getvalue(), f"image/{kind}")


SHOWN = 50
"""Images that the table shows; its CSV has all."""


def predictions(runs: Sequence[Run]) -> Section:
    """Predictions, and from which block on they stand, of runs with such images."""
    runs = [run for run in runs if run.unlabeled]
    tables = [prediction_table(pd.concat(map(prediction_rows, runs)))] if runs else []
    return Section(
        key="predictions",
        title="Predictions",
        sentences=[
            sentence for run in runs for sentence in with_name(run, runs, describe(run))
        ],
        figures=[*photos(runs), *settling(runs)],
        tables=tables,
    )


def settled(run: Run) -> np.ndarray:
    """Whether the class of the last block is first after each block, [image layer]."""
    tops = run.read(schema.TOP_CLASSES(), run.valid)[..., 0]
    return tops == tops[:, -1:]


def describe(run: Run) -> Iterator[str]:
    """How many classes were predicted, and from which block on."""
    prediction = run.read(schema.PREDICTION(), run.valid)
    yield (
        f"The model predicts {len(np.unique(prediction)):,} of its "
        f"{len(run.classes):,} classes for {len(prediction):,} images, "
        f"{len(run.image) or 'none'} of them with a label."
    )
    if schema.TOP_CLASSES() in run:
        stands = np.logical_and.accumulate(settled(run)[:, ::-1], axis=1).sum(1)
        yield (
            "In half of the images the answer stands from block "
            f"{run.config.depth - int(np.median(stands))} on; the last is block "
            f"{run.config.depth - 1}."
        )


def settling(runs: Sequence[Run]) -> Iterator[Figure]:
    """Share of images whose final class is first already."""
    rows = [
        run.line("all images", run.name, style, settled(run))
        for style, run in enumerate(runs)
        if schema.TOP_CLASSES() in run
    ]
    if rows:
        yield Figure(
            key="settling",
            title="When the prediction is settled",
            see="A late rise: the answer is decided in the last blocks.",
            caption="Share of images whose predicted class is first already after the "
            f"block, at the token that the prediction is read from. {BAND}",
            data=pd.concat(rows, ignore_index=True),
            y_label="share of images",
        )


def prediction_rows(run: Run) -> Frame:
    """A row per image that was read: what is predicted, and the runner-up."""
    names = image_names(run.results.path)
    prediction = run.read(schema.PREDICTION(), run.valid)
    columns = {
        "run": run.name,
        "image": run.valid,
        "name": [names.get(int(index), "") for index in run.valid],
        "prediction": [run.classes[number] for number in prediction],
    }
    if schema.TOP_LOGITS() in run and len(run.classes) > 1:
        tops = run.read(schema.TOP_CLASSES(), run.valid)[:, -1]
        logits = run.read(schema.TOP_LOGITS(), run.valid)[:, -1, :2]
        columns |= {"second": [run.classes[number] for number in tops[:, 1]]}
        columns |= {"margin": logits.astype(float) @ [1, -1]}
    return pd.DataFrame(columns)


def prediction_table(rows: Frame) -> Table:
    """The first images; CSV: all."""
    shown = rows.head(SHOWN).rename(columns={"margin": "ahead by (logit)"})
    if not rows["name"].any():
        shown = shown.drop(columns="name")
    return Table(
        key="predictions",
        title="Predictions",
        caption=f"The first {SHOWN} images at most; the CSV has all. Second: the class "
        "with the next largest logit, and by how much the prediction is ahead of it.",
        data=rows,
        shown=shown,
    )


def photos(runs: Sequence[Run]) -> list[PictureFigure]:
    """Unlabeled photos that runs kept; where a run holds it, attention block by block.

    Attention is that of the pooled token, or of all tokens where there is no [CLS].
    """
    see = "What the model saw, and what it answers."
    caption = "Photos as the model saw them."
    if any(schema.ATTENDED() in run for run in runs):
        see = "Where the model looks, block by block, and what it would answer there."
        caption += " Colors: attention weights of the token that the prediction is "
        caption += "read from, mean over heads; below the block, the class that is "
        caption += "first there."
    return gallery(
        runs,
        attention_maps,
        labeled=False,
        key="photos",
        title="Photos and predictions",
        see=see,
        caption=caption,
    )


def attention_maps(one: Preview) -> Maps:
    """Attention weights over the image, mean over heads."""
    names, tops = one.run.classes, one.read(schema.TOP_CLASSES())[:, 0]
    held = schema.ATTENDED() in one.run
    for layer in shown_layers(one.run.config.depth) if held else ():
        values = one.read(schema.ATTENDED())[layer].mean(0)
        words = f"block {layer}\n{short_name(names[tops[layer]])}"
        columns = {"layer": layer, "patch": np.arange(len(values))}
        yield one.lay_over(words, values), columns | {"attention": values}
