"""The token explorer of the page: pictures and what every token of them says.

Each picture's arrays travel as one block of bytes (zlib, base64) that the page unpacks
when the picture is opened, so that hundreds of them load at once:

    rank           label's rank at every token after every block; the largest: absent
    classes        best classes of every token after every block
    probabilities  theirs, in units of 1/255
    mask           1 on the class, 0 off it, 2 unknown
    attended, helpful    of every block and head, in units of that map's own scale,
    attended_scale, helpful_scale    its largest magnitude / 32767

A run that lacks an array (only the recipe `tokens` writes all of them) is shown without
what would need it.
"""

import base64
import io
import json
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int16, UInt8

from vitjax.report.overlays import image_names
from vitjax.report.pictures import POSITIVE, SIGNED
from vitjax.runner.results import Results
from vitjax.types import Config

MOST = 200
GROUP = 32
"""Pictures whose rows are read at a time."""

LOSSLESS = 128
"""Pictures up to this size are PNG, larger ones JPEG."""

KINDS = {
    **{"uint8": "u8", "uint16": "u16", "uint32": "u32"},
    **{"int16": "i16", "float32": "f4"},
}
STEPS = 2**15 - 1
"""Of a map's largest magnitude: finer than its sums need."""


class Picture(NamedTuple):
    """A picture of a run.

    Args:
        image: its position in the data set.
        label: number of its class, -1 where unknown.
        prediction: number of the model's first class.
        pixels: as the model saw it.
        arrays: what the page is told of it, see above.
    """

    image: int
    label: int
    prediction: int
    pixels: UInt8[np.ndarray, "height width channel"]
    arrays: Mapping[str, np.ndarray]


def explorer(
    names: Sequence[str], runs: Sequence[Results], *, most: int = MOST
) -> dict[str, Any] | None:
    """What the page needs to show the pictures of some runs token by token.

    Args:
        names: of the runs.
        runs: rows of any recipe with ranks.
        most: pictures of each run, at most.

    Returns:
        `data`: JSON without the pictures; `packs`: (name of the element, JSON of a
        picture and its arrays); `complete`: whether every run has its tokens' classes.
        None where no run kept a picture.
    """
    entries, packs = [], []
    for number, (name, run) in enumerate(zip(names, runs)):
        pictures, files = [], image_names(run)
        for picture in chosen(run, most=most):
            key = f"explorer-{number}-{picture.image}"
            packs.append((key, in_script(packed(picture))))
            pictures.append(about(picture, files.get(picture.image, "")))
        if pictures:
            entries.append(described(name, number, run) | {"pictures": pictures})
    if not entries:
        return None
    data = {"runs": entries, "colours": {n: ramp(n) for n in (POSITIVE, SIGNED)}}
    return {
        "data": in_script(data),
        "packs": packs,
        "complete": all("token_classes" in run for run in runs),
    }


def chosen(run: Results, *, most: int = MOST) -> Iterator[Picture]:
    """The pictures that a run kept and finished, with their arrays."""
    if "picture" not in run or "picture_image" not in run:
        return
    images = run["picture_image"][:]
    there = images >= 0
    there[there] = run["done"][:][images[there]] & run["valid"][:][images[there]]
    _, firsts = np.unique(images, return_index=True)
    places = np.intersect1d(np.flatnonzero(there), firsts)[:most]
    for start in range(0, len(places), GROUP):
        group = places[start : start + GROUP]
        rows = {n: run[n][images[group]] for n in READ if n in run}
        pixels = run["picture"][group]
        for at, image in enumerate(images[group].tolist()):
            of_one = {name: values[at] for name, values in rows.items()}
            label, prediction = int(of_one["label"]), int(of_one["prediction"])
            arrays = told(of_one, classes=len(run.manifest["model"]["classes"]))
            yield Picture(image, label, prediction, pixels[at], arrays)


READ = (
    *("label", "prediction", "rank_residual", "token_classes", "token_probabilities"),
    *("patch_label", "attended", "helpful"),
)


def told(rows: Mapping[str, Any], *, classes: int) -> dict[str, np.ndarray]:
    """Rows of one image as the page takes them, widest numbers first."""
    numbers = np.uint16 if classes < 2**16 - 1 else np.uint32
    found: dict[str, np.ndarray] = {}
    for name in ("attended", "helpful"):
        if name in rows:
            found[f"{name}_scale"], found[name] = quantised(rows[name])
    if rows["label"] >= 0:
        ranks = rows["rank_residual"]
        absent = np.iinfo(numbers).max
        found["rank"] = np.where(ranks < 0, absent, ranks).astype(numbers)
    if "token_classes" in rows:
        found["classes"] = rows["token_classes"].astype(numbers)
        shares = np.nan_to_num(rows["token_probabilities"])
        found["probabilities"] = np.rint(255 * shares).astype(np.uint8)
    if "patch_label" in rows and (rows["patch_label"] >= 0).any():
        kinds = rows["patch_label"]
        found["mask"] = np.where(kinds < 0, 2, kinds).astype(np.uint8)
    return dict(sorted(found.items(), key=lambda item: -item[1].itemsize))


def quantised(
    maps: Float[np.ndarray, "layer head patch"],
) -> tuple[Float[np.ndarray, "layer head"], Int16[np.ndarray, "layer head patch"]]:
    """(scale, whole numbers): their product is the map within half a scale."""
    maps = np.nan_to_num(maps)
    scale = np.abs(maps).max(-1) / np.float32(STEPS)
    steps = maps / np.where(scale > 0, scale, 1)[..., None]
    return scale.astype(np.float32), np.rint(steps).astype(np.int16)


def packed(picture: Picture) -> dict[str, Any]:
    """A picture and its arrays as JSON."""
    content = b"".join(
        values.astype(values.dtype.newbyteorder("<")).tobytes()
        for values in picture.arrays.values()
    )
    return {
        "url": picture_url(picture.pixels),
        "layout": [
            {"name": name, "kind": KINDS[values.dtype.name], "shape": values.shape}
            for name, values in picture.arrays.items()
        ],
        "bytes": base64.b64encode(zlib.compress(content, 9)).decode(),
    }


def picture_url(pixels: UInt8[np.ndarray, "height width channel"]) -> str:
    """A picture as text that an `<img>` shows."""
    from PIL import Image

    buffer, small = io.BytesIO(), max(pixels.shape) <= LOSSLESS
    kind = "png" if small else "jpeg"
    options = {"optimize": True} if small else {"quality": 85}
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def about(picture: Picture, path: str) -> dict[str, Any]:
    """What is said of a picture before it is opened."""
    return {
        "image": picture.image,
        "name": pathlib.PurePath(path).name,
        "label": picture.label,
        "prediction": picture.prediction,
    }


def described(name: str, number: int, run: Results) -> dict[str, Any]:
    """What is said of a run."""
    model = run.manifest["model"]
    config = Config.from_dict(model["config"])
    prefix = ["[CLS]"] * config.class_token
    prefix += [f"register {place + 1}" for place in range(config.registers)]
    return {
        "name": name,
        "number": number,
        "classes": list(model["classes"]),
        "depth": config.depth,
        "heads": config.heads,
        "grid": config.grid,
        "prefix": prefix,
        "pooled": not config.class_token,
        "data": run.manifest["data"]["id"],
        "pixelated": max(config.shape) <= LOSSLESS,
    }


def ramp(name: str) -> str:
    """A colour map as 256 times six hexadecimal digits."""
    from matplotlib import colormaps

    colours: Int[np.ndarray, "256 4"] = colormaps[name](np.arange(256), bytes=True)
    return colours[:, :3].astype(np.uint8).tobytes().hex()


def in_script(value: Any) -> str:
    """JSON that no text in it can end the element around it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
