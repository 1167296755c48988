"""The embedded data set `textured_digits`: real handwritten digits on real textures.

A 64x64 RGB image shows one digit (its class) at a random scale and position on a
texture (its context). Every class has one of ten contexts (texture x rotation x tint);
an image shows its class's own with probability `correlation`, otherwise one of the
other nine. The exact pixels of the digit are known, so are those of the context.

Image i is a pure function of (split, seed, i); the same i at another correlation is the
same digit at the same position, perhaps on another texture. Three quarters of the
digits and the left half of each texture are for training, the rest for testing.
Sources and licenses of the raw material are in `checkpoints/pack_textured_digits.py`,
which packs it.
"""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vitjax.data.records import Record, SourceError
from vitjax.messages import check_one_of, check_range, unknown

MATERIAL = pathlib.Path(__file__).with_name("textured_digits.npz")
SIDE = 64
TEXTURES = ("brick", "grass", "gravel")
TEXTURE_SIDE = 384
CLASSES = ("zero", "one", "two", "three", "four")
CLASSES += ("five", "six", "seven", "eight", "nine")

TINTS = {
    "red": (1.0, 0.60, 0.52),
    "green": (0.60, 0.95, 0.60),
    "blue": (0.52, 0.70, 1.0),
    "yellow": (1.0, 0.88, 0.45),
    "violet": (0.85, 0.58, 1.0),
}

CONTEXTS = (
    ("brick", 0, "red"),
    ("brick", 90, "blue"),
    ("brick", 45, "green"),
    ("grass", 0, "green"),
    ("grass", 90, "yellow"),
    ("grass", 45, "violet"),
    ("gravel", 0, "blue"),
    ("gravel", 90, "red"),
    ("gravel", 45, "yellow"),
    ("brick", 135, "violet"),
)
"""(texture, rotation in degrees, tint) of each class's own context; a tint alone, or
a texture alone, does not determine the context."""

SPLITS = {
    "train": ("train", 0.5),
    "test": ("test", 0.5),
    "test_0": ("test", 0.0),
    "test_0.5": ("test", 0.5),
    "test_1": ("test", 1.0),
}
"""Name after `textured_digits:` -> (part of the material, correlation)."""

LENGTHS = {"train": 100_000, "test": 5_000}
GLYPH = 32  # pixels of a digit's smooth enlargement, from which images are sampled
DRAWS = 20  # random numbers per image


Glyphs = Float[np.ndarray, "digit side side"]
Sheets = Float[np.ndarray, "context height width"]
Numbers = Int[np.ndarray, " batch"]
Draws = Float[np.ndarray, "batch draw"]
Pixels = Float[np.ndarray, "batch row column"]


class Images(NamedTuple):
    """A composed batch: pixels, digits, indices into `CONTEXTS`, exact masks."""

    images: UInt8[np.ndarray, "batch height width 3"]
    label: Numbers
    context: Numbers
    mask: Bool[np.ndarray, "batch height width"]


class Material(NamedTuple):
    """What one part (training or testing) is composed of.

    `glyphs` are enlarged digits, ink in [0, 1], with one empty pixel around; `sheets`
    one large gray image per context, in [0, 1].
    """

    glyphs: Glyphs
    labels: Int[np.ndarray, " digit"]
    sheets: Sheets


@dataclasses.dataclass(frozen=True, kw_only=True)
class TexturedDigits:
    """The embedded data set as a random-access source.

    `part`, "train" or "test", decides on digits and texture regions, `correlation` in
    [0, 1] is the probability that the context is the class's own, `deform` in [0, 1]
    the strength of random rotation, shear, stretch and stroke width of the digits.
    Other seeds give other images of the same material.
    """

    part: str = "test"
    correlation: float | int = 0.5
    seed: int = 0
    deform: float | int = 0.0
    length: int | None = None

    label_names = CLASSES

    def __post_init__(self):
        check_one_of("part", self.part, LENGTHS)
        check_range("correlation", self.correlation, 0, 1)

    @property
    def id(self) -> str:
        """Identifies the content of the data set."""
        return (
            f"textured_digits/1:{self.part},correlation={self.correlation:g},"
            f"seed={self.seed},deform={self.deform:g}"
        )

    def __len__(self) -> int:
        return LENGTHS[self.part] if self.length is None else self.length

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """One name per image."""
        return tuple(f"{self.part}_{index:06d}" for index in range(len(self)))

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range [0, {len(self)})")
        images, label, context, mask = self.compose(np.array([index]))
        return Record(
            image=images[0],
            label=CLASSES[label[0]],
            name=self.names[index],
            mask=mask[0],
            context=int(context[0]),
        )

    def compose(self, indices: Numbers) -> Images:
        """Many images at once, also beyond the length; equal to `getitem` of each."""
        part = ("train", "test").index(self.part)
        draws = uniform((self.seed, part), indices)
        material = load_material(self.part)
        number = pick(draws[:, 0], len(material.labels))
        label = material.labels[number]
        other = (label + 1 + pick(draws[:, 1], 9)) % 10
        context = np.where(draws[:, 2] < self.correlation, label, other)
        ground = paint_context(material.sheets, context, draws[:, 3:9])
        ink = place_digits(material.glyphs, number, draws[:, 9:16], self.deform)
        color = (1 - 0.25 * draws[:, 16:19]).astype(np.float32)
        opacity = (0.7 + 0.25 * draws[:, 19]).astype(np.float32)
        alpha = (ink * opacity[:, None, None])[..., None]
        images = ground + alpha * (color[:, None, None] - ground)
        images = (images * np.float32(255) + np.float32(0.5)).astype(np.uint8)
        return Images(images, label, context, ink > 0.5)


def open_split(split: str) -> TexturedDigits:
    """The source that `textured_digits:SPLIT` names."""
    if split not in SPLITS:
        raise SourceError(unknown("split", split, SPLITS))
    part, correlation = SPLITS[split]
    return TexturedDigits(part=part, correlation=correlation)


def uniform(key: tuple[int, ...], indices: Numbers) -> Draws:
    """`DRAWS` numbers in [0, 1) per index, from raw bits of a generator per index.

    Raw bits are the same in every numpy release, a distribution's values need not be.
    """
    rows = [
        np.random.PCG64(np.random.SeedSequence((*key, int(i)))).random_raw(DRAWS)
        for i in indices
    ]
    bits = np.array(rows, np.uint64).reshape(len(rows), DRAWS)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def pick(draw, count: int):
    """A number in [0, 1) as one of `count` choices."""
    return (draw * count).astype(np.int64)


def paint_context(
    sheets: Sheets, context: Numbers, draws: Draws
) -> Float[np.ndarray, "batch side side 3"]:
    """A window of each context's sheet, perhaps upside down, tinted."""
    span = sheets.shape[1] - SIDE + 1
    corner = pick(draws[:, :2], span)
    windows = np.lib.stride_tricks.sliding_window_view(sheets, (SIDE, SIDE), (1, 2))
    gray = windows[context, corner[:, 0], corner[:, 1]]
    flipped = draws[:, 2] < 0.5
    gray = np.where(flipped[:, None, None], gray[:, ::-1, ::-1], gray)
    tint = np.array([TINTS[name] for _, _, name in CONTEXTS])[context]
    tint = tint * (1 + 0.1 * (draws[:, 3:6] - 0.5)) * 0.95
    return (0.1 + 0.6 * gray)[..., None] * tint[:, None, None].astype(np.float32)


def place_digits(
    glyphs: Glyphs, number: Numbers, draws: Draws, deform: float | int
) -> Pixels:
    """The ink of each digit in [0, 1], at a random scale and position."""
    scale = 34 + 10 * draws[:, 0]
    corner = draws[:, 1:3] * (SIDE - scale)[:, None]
    angle, shear, stretch, weight = (2 * draws[:, 3:7].T - 1) * deform
    pixels = np.arange(SIDE) + 0.5
    half = scale / 2
    center = corner + half[:, None]
    y = ((pixels[None] - center[:, :1]) / half[:, None])[:, :, None]
    x = ((pixels[None] - center[:, 1:]) / half[:, None])[:, None, :]
    cos, sin = (f(0.25 * angle)[:, None, None] for f in (np.cos, np.sin))
    widen = np.exp(0.15 * stretch)[:, None, None]
    u = (cos * x + sin * y) * widen + 0.2 * shear[:, None, None] * y
    v = (cos * y - sin * x) / widen
    ink = sample(glyphs, number, v.astype(np.float32), u.astype(np.float32))
    threshold = np.float32(0.42) + (0.1 * weight).astype(np.float32)[:, None, None]
    return np.clip((ink - threshold) * np.float32(4) + np.float32(0.5), 0, 1)


def sample(glyphs: Glyphs, number: Numbers, v: Pixels, u: Pixels) -> Pixels:
    """Bilinear interpolation at (v, u) in [-1, 1]; beyond is the empty border."""
    side = glyphs.shape[1]

    def locate(t):
        t = (t + 1) * np.float32(GLYPH / 2) + np.float32(0.5)
        t = np.clip(t, 0, np.float32(side - 1.001))
        low = t.astype(np.int32)
        return low, t - low

    (row, down), (column, right) = locate(v), locate(u)
    start = (number * side * side).astype(np.int32)[:, None, None] + row * side + column
    flat = glyphs.reshape(-1)
    above = flat[start] * (1 - right) + flat[start + 1] * right
    start += side
    below = flat[start] * (1 - right) + flat[start + 1] * right
    return above * (1 - down) + below * down


@functools.lru_cache(maxsize=2)
def load_material(part: str) -> Material:
    """The digits and the ten sheets of texture of one part, "train" or "test"."""
    with np.load(MATERIAL) as file:
        packed, labels, textures = file["digits"], file["labels"], file["textures"]
    testing = np.arange(len(labels)) % 4 == 3
    chosen = testing if part == "test" else ~testing
    middle = TEXTURE_SIDE // 2
    half = slice(middle, None) if part == "test" else slice(None, middle)
    regions = [equalize(texture[:, half]) for texture in textures]
    sheets = [rotate(regions[TEXTURES.index(name)], turn) for name, turn, _ in CONTEXTS]
    return Material(
        glyphs=enlarge(packed[chosen]),
        labels=labels[chosen].astype(np.int64),
        sheets=np.stack(sheets),
    )


def equalize(texture: UInt8[np.ndarray, "height width"]) -> np.ndarray:
    """Mean 0.5 and standard deviation 0.18 for every texture, within [0, 1]."""
    gray = texture.astype(np.float32)
    gray = (gray - gray.mean()) / gray.std()
    return np.clip(0.5 + 0.18 * gray, 0, 1)


def rotate(
    region: Float[np.ndarray, "height width"], degrees: float | int, *, side: int = 256
) -> Float[np.ndarray, "side side"]:
    """A square cut from the rotated region, which mirrors beyond its edges."""
    angle = np.deg2rad(degrees)
    grid = np.arange(side) - (side - 1) / 2
    y, x = np.meshgrid(grid, grid, indexing="ij")
    positions = (
        np.cos(angle) * y - np.sin(angle) * x,
        np.sin(angle) * y + np.cos(angle) * x,
    )

    def locate(t, length):
        t = np.mod(t + (length - 1) / 2, 2 * (length - 1))
        t = np.minimum(t, 2 * (length - 1) - t)
        low = np.minimum(t.astype(np.int64), length - 2)
        return low, (t - low).astype(np.float32)

    (row, down), (column, right) = map(locate, positions, region.shape)
    above = region[row, column] * (1 - right) + region[row, column + 1] * right
    below = region[row + 1, column] * (1 - right) + region[row + 1, column + 1] * right
    return above * (1 - down) + below * down


def enlarge(packed: UInt8[np.ndarray, "digit byte"]) -> Glyphs:
    """8x8 digits smoothly at `GLYPH` pixels a side, ink in [0, 1], an empty border."""
    digits = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1, 8, 8) / 15
    weights = cubic_weights(8, GLYPH)
    glyphs = np.clip(weights @ digits @ weights.T, 0, 1)
    return np.pad(glyphs, ((0, 0), (1, 1), (1, 1))).astype(np.float32)


def cubic_weights(small: int, large: int) -> Float[np.ndarray, "large small"]:
    """Catmull-Rom interpolation, zero beyond the edges, as a matrix."""
    center = (np.arange(large) + 0.5) * small / large - 0.5
    t = np.abs(center[:, None] - np.arange(small))
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))
