"""Maps laid over photos, as figures for papers, slides and notebooks.

`show` makes the figure; `draw_grid` draws any rows of images with words above them.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image

from vitjax.messages import check_one_of, check_range
from vitjax.recipes import schema
from vitjax.report.figure import POSITIVE, SIGNED, Canvas, settings
from vitjax.saliency.methods import METHODS, SIGNED_METHODS

HEAT = "inferno"
"""Color map of values from 0 that lie over a photo."""

Style = Literal["overlay", "patches"]

SIDE, GAP, BAR, LINE = 1.7, 0.12, 0.07, 0.125
"""Inches: an image, the space between two, a color bar, a line of text."""

FONT, LETTERS = 7, 18
"""Points, and how many letters of it fit into an inch."""

SHARP = 384
"""Pixels of a photo's longer side, at least: a smaller one is enlarged."""


class Scale(NamedTuple):
    """A color map of matplotlib, the values at its ends, and its words.

    `opacity` is that of the strongest colors over a photo: where a map is weak the
    photo shows. None covers the photo.
    """

    colors: str
    low: float | int
    high: float | int
    opacity: float | int | None = None
    words: str = ""

    @property
    def signed(self) -> bool:
        """Whether 0 is in the middle."""
        return self.low == -self.high

    @property
    def ends(self) -> tuple[str, str]:
        """The numbers at its ends."""
        low, high = (f"{end:.2g}".replace("-", "−") for end in (self.low, self.high))
        return low, high

    @property
    def strip(self) -> UInt8[np.ndarray, "one width 3"]:
        """Its colors from end to end."""
        values = np.linspace(self.low, self.high, 256)[None]
        return self.blend(np.full((1, 256, 3), 200, np.uint8), values)

    def blend(
        self,
        photo: UInt8[np.ndarray, "height width 3"],
        values: Float[np.ndarray, "height width"],
    ) -> UInt8[np.ndarray, "height width 3"]:
        """The colors of values over a photo, of one map or of a color bar."""
        width = (self.high - self.low) or 1
        shares = np.clip((np.nan_to_num(values) - self.low) / width, 0, 1)
        if self.opacity is None:
            return colormaps[self.colors](shares, bytes=True)[..., :3]
        strength = shares**0.8  # shows a little more of what is weak
        if self.signed:  # without the palest colors, which would be a haze
            strength = np.abs(2 * shares - 1)
            shares = 0.5 + np.sign(shares - 0.5) * (0.1 + 0.4 * strength)
            photo = mute(photo)
        alpha = self.opacity * strength[..., None]
        colors = 255 * colormaps[self.colors](shares)[..., :3]
        return np.rint(alpha * colors + (1 - alpha) * photo).astype(np.uint8)


def mute(
    photo: UInt8[np.ndarray, "height width 3"],
) -> Float[np.ndarray, "height width 3"]:
    """A paler photo, whose own blue and red are not taken for a map's."""
    gray = photo.mean(-1, keepdims=True)
    return 50 + (photo + gray) / 2 * (205 / 255)


class Panel(NamedTuple):
    """An image, the words above it, and the scale whose bar stands below it."""

    image: UInt8[np.ndarray, "height width 3"]
    words: str = ""
    scale: Scale | None = None


def show(
    image: Any,
    maps: Any,
    *,
    titles: str | Sequence[str] | None = None,
    style: Style = "overlay",
    signed: bool | None = None,
    grid: tuple[int, int] | None = None,
    opacity: float | int = 0.75,
    percentile: float | int = 98,
    shared: bool = False,
    columns: int | None = None,
    width: float | int | None = None,
) -> Canvas:
    """Draw maps laid over their photos, with a color bar each.

    A map is enlarged with a bicubic filter; the stronger it is, the less of the photo
    shows. Maps with evidence for and against a class (`signed`) are red and blue around
    0; others run from dark to bright. Colors end at a percentile, so that a few
    outliers do not decide them.

    Args:
        image: RGB pixels [height width 3], 0 to 255, of any size that the maps cover,
            or a Pillow image; several of them, [image height width 3] or a sequence,
            are a row each.
        maps: a map, [patch] or [row column]; or title -> map, a column each, where the
            name of a method is written in words. Of several images, maps have a leading
            axis `image`. A sequence of such mappings is a row each, for one image or as
            many.
        titles: words above the photo; of several rows, above each row's.
        style: "overlay", or "patches": every patch in one color, without the photo.
        signed: whether colors are those of values around 0; by default what the method
            says or, of a title that is none, whether any of its values is negative.
        grid: (rows, columns) of patches, for maps [patch] that are not square.
        opacity: of the strongest colors, in [0, 1].
        percentile: of the values, or of their magnitudes, at which colors end.
        shared: whether all maps have one scale, which then has one bar.
        columns: put at most so many maps into a row.
        width: of the figure in inches, such as 5.5 for a page.

    Returns:
        A matplotlib figure, which a notebook shows; `figure.savefig("maps.pdf")` writes
        it as PNG, PDF or SVG.

    Raises:
        ValueError: maps, images and titles that do not fit together, or an option out
            of its range.

    Example:
        >>> maps = vitjax.explain(model, images, 3, method="chefer")
        >>> vitjax.show(photo, {"chefer": maps[0]})
    """
    check_one_of("style", style, get_args(Style))
    check_range("opacity", opacity, 0, 1)
    check_range("percentile", percentile, 50, 100)
    several = isinstance(image, Sequence) or np.ndim(image) == 4
    photos = [to_photo(one) for one in (image if several else [image])]
    rows = to_rows(maps, len(photos) if several else None)
    if several and len(rows) != len(photos):
        raise ValueError(f"{len(photos)} images need as many rows, not {len(rows)}.")
    words = [titles] if isinstance(titles, str) else list(titles or [])
    if len(words) not in (0, 1, len(rows)):
        raise ValueError(f"{len(words)} titles do not fit {len(rows)} rows.")
    grids = [{key: to_grid(value, grid) for key, value in row.items()} for row in rows]
    both_signs = signed_titles(grids, signed)
    if shared:
        both_signs = dict.fromkeys(both_signs, any(both_signs.values()))
    look: dict[str, Any] = {"percentile": percentile}
    look |= {"opacity": opacity if style == "overlay" else None}
    scales = [
        {name: scale_of(v, signed=both_signs[name], **look) for name, v in row.items()}
        for row in grids
    ]
    common = None
    if shared:
        every = [scale for row in scales for scale in row.values()]
        low, high = min(e.low for e in every), max(e.high for e in every)
        common = every[0]._replace(low=low, high=high)
    panels, most = [], columns or max(map(len, grids))
    for number, row in enumerate(grids):
        photo, cells = photos[number if several else 0], []
        for name, values in row.items():
            scale = common or scales[number][name]
            drawn = lay_over(photo, values, scale)
            cells.append(Panel(drawn, in_words(name), None if common else scale))
        lead = None
        if several or number == 0 or len(words) > 1:
            lead = Panel(photo, words[number] if number < len(words) else "")
        for start in range(0, len(cells), most):
            panels.append([None if start else lead, *cells[start : start + most]])
    return draw_grid(panels, width=width, scale=common)


def to_photo(image: Any) -> UInt8[np.ndarray, "height width 3"]:
    """RGB pixels, small ones enlarged by a whole number."""
    pixels = np.asarray(
        image.convert("RGB") if isinstance(image, Image.Image) else image
    )
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"image is {pixels.dtype}{list(pixels.shape)}, not RGB pixels uint8[height "
            "width 3]: of a preprocessed one, take model.preprocess.denormalize(image)."
        )
    factor = -(-SHARP // max(pixels.shape)) if max(pixels.shape) < SHARP else 1
    return pixels.repeat(factor, 0).repeat(factor, 1)


def to_rows(maps: Any, images: int | None) -> list[Mapping[str, Any]]:
    """Rows of title -> map, of the forms that `show` takes."""
    rows: list[Any]
    if isinstance(maps, Sequence) and all(isinstance(row, Mapping) for row in maps):
        rows = list(maps)
    else:
        named = maps if isinstance(maps, Mapping) else {"": maps}
        if images is None:
            rows = [named]
        else:
            for name, values in named.items():
                if len(values) != images:
                    raise ValueError(
                        f"maps {name!r} are of {len(values)} images, not {images}."
                    )
            rows = [{k: v[i] for k, v in named.items()} for i in range(images)]
    if not rows or not all(rows):
        raise ValueError("Give at least one map of each image.")
    return rows


def to_grid(
    values: Any, grid: tuple[int, int] | None
) -> Float[np.ndarray, "row column"]:
    """A map by rows and columns; undefined values are 0."""
    values = np.nan_to_num(np.asarray(values, np.float32))
    if values.ndim == 1:
        side = round(len(values) ** 0.5)
        rows, columns = grid or (side, side)
        if rows * columns != len(values):
            raise ValueError(
                f"A map of {len(values)} patches is not {rows} x {columns}: give "
                "grid=(rows, columns), that of model.config.grid."
            )
        return values.reshape(rows, columns)
    if values.ndim != 2:
        raise ValueError(
            f"A map has the axes [patch] or [row column], not {values.ndim} of them: "
            f"its shape is {values.shape}."
        )
    return values


def signed_titles(
    rows: Sequence[Mapping[str, np.ndarray]], signed: bool | None
) -> dict[str, bool]:
    """Title -> whether its maps have both signs: as its method says, or its values."""
    both = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        negative = any((row[name] < 0).any() for row in rows if name in row)
        declared = name in SIGNED_METHODS if name in METHODS else negative
        both[name] = declared if signed is None else signed
    return both


def in_words(name: str) -> str:
    """A title; a method's name in words."""
    return schema.METHODS.get(name, name.replace("_", " ") if name in METHODS else name)


def scale_of(
    values: Float[np.ndarray, "row column"],
    *,
    signed: bool,
    percentile: float | int,
    opacity: float | int | None,
) -> Scale:
    """The scale of a map, robust to outliers: it ends at a percentile."""
    if signed:
        magnitudes = np.abs(values)
        high = np.percentile(magnitudes, percentile) or magnitudes.max()
        return Scale(SIGNED, -float(high), float(high), opacity)
    low, high = np.percentile(values, (100 - percentile, percentile))
    if low == high:
        low, high = values.min(), values.max()
    colors = POSITIVE if opacity is None else HEAT
    return Scale(colors, float(low), float(high), opacity)


def lay_over(
    photo: UInt8[np.ndarray, "height width 3"],
    values: Float[np.ndarray, "row column"],
    scale: Scale,
) -> UInt8[np.ndarray, "height width 3"]:
    """A map in colors, at the size of its photo."""
    height, width, _ = photo.shape
    smooth = scale.opacity is not None
    resample = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    large = Image.fromarray(values).resize((width, height), resample)
    return scale.blend(photo, np.asarray(large))


def draw_grid(
    rows: Sequence[Sequence[Panel | None]],
    *,
    width: float | int | None = None,
    scale: Scale | None = None,
    dpi: int = 200,
) -> Canvas:
    """Draw rows of panels; with a scale for all of them, its bar stands below."""
    columns = max(len(row) for row in rows)
    side = SIDE if columns <= 6 else max(0.8, 6 * SIDE / columns)
    if width is not None:
        side = (width - GAP) / columns - GAP
        if side <= 0:
            raise ValueError(
                f"width={width} inches is too narrow for {columns} panels."
            )
    width = columns * (side + GAP) + GAP
    letters = max(8, int(LETTERS * side))
    rows = [[panel and wrap(panel, letters) for panel in row] for row in rows]
    heights = [measure(row, side) for row in rows]
    foot = 0.0 if scale is None else BAR + LINE + GAP
    height = sum(map(sum, heights)) + len(rows) * GAP + foot + GAP
    with settings():
        canvas = Canvas(figsize=(width, height), dpi=dpi)
        # One pair of axes, in inches: fifty of them would take seconds.
        axes = canvas.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        top = height - 0.5 * GAP
        for row, (words, tall, below) in zip(rows, heights):
            for column, panel in enumerate(row):
                if panel is None:
                    continue
                left = GAP + (side + GAP) * column
                low = top - words - side * panel.image.shape[0] / panel.image.shape[1]
                extent = left, left + side, low, top - words
                axes.imshow(panel.image, interpolation="antialiased", extent=extent)
                axes.text(
                    left,
                    top - words + 0.07,
                    panel.words,
                    fontsize=FONT,
                    linespacing=1.15,
                    va="baseline",
                )
                if panel.scale is not None:
                    draw_bar(axes, panel.scale, left, low - 0.04, side)
            top -= words + tall + below + GAP
        if scale is not None:
            draw_bar(axes, scale, GAP, top, min(2 * side + GAP, width - 2 * GAP))
        axes.set(xlim=(0, width), ylim=(0, height), aspect="auto")
    return canvas


def wrap(panel: Panel, letters: int) -> Panel:
    """The panel with its words in lines of at most so many letters."""
    text = panel.words.replace(" %", "\N{NO-BREAK SPACE}%")
    lines = (textwrap.fill(line, letters) for line in text.split("\n"))
    return panel._replace(words="\n".join(lines))


def measure(row: Sequence[Panel | None], side: float) -> tuple[float, float, float]:
    """Inches of a row's words, images and color bars."""
    panels = [panel for panel in row if panel is not None]
    lines = max(panel.words.count("\n") + bool(panel.words) for panel in panels)
    tall = max(side * p.image.shape[0] / p.image.shape[1] for p in panels)
    bars = any(panel.scale is not None for panel in panels)
    return LINE * lines + 0.07, tall, (BAR + LINE + 0.04) * bars


def draw_bar(axes: Any, scale: Scale, left: float, top: float, length: float) -> None:
    """Draw a color bar with the numbers at its ends and what it shows."""
    extent = left, left + length, top - BAR, top
    axes.imshow(scale.strip, interpolation="nearest", extent=extent)
    text = {"fontsize": FONT - 1, "va": "top"}
    middle = "0" if scale.signed else scale.words
    words = {"left": scale.ends[0], "center": middle, "right": scale.ends[1]}
    for place, (side, word) in enumerate(words.items()):
        x = left + length * place / 2
        axes.text(x, top - BAR - 0.03, word, ha=side, **text)
