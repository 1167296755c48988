"""The token explorer: the images of a run and what every token of them says.

The arrays of each image (zlib, base64) are unpacked by the page when the image is
opened, so that hundreds of images load at once. What a run does not hold is not shown;
only the recipe `tokens` writes all of it.
"""

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int16

from vitjax.recipes import schema
from vitjax.report.map_grid import POSITIVE, SIGNED
from vitjax.report.per_image import Run
from vitjax.report.token_maps import Preview, image_url, previews

ARRAYS = {
    "rank": schema.RANK("residual"),
    "classes": schema.TOKEN_CLASSES(),
    "probabilities": schema.TOKEN_PROBABILITIES(),  # in units of 1/255
    "on_object": schema.PATCH_LABEL(),
    "attention": schema.ATTENDED(),  # in units of `attention_scale`
    "relevancy": schema.HELPFUL(),
}
"""Name in the page -> in the run."""


def explorer_data(runs: Sequence[Run], *, limit: int = 200) -> dict[str, Any]:
    """What the template takes of the first images of each run; empty without any."""
    entries, packs = [], {}
    for number, run in enumerate(runs):
        images = previews(run, limit=limit)
        if not images:
            continue
        entries.append(describe(run, number, images))
        arrays = read_arrays(run, images)
        for place, image in enumerate(images):
            rows = {name: values[place] for name, values in arrays.items()}
            if image.label < 0:
                del rows["rank"]
            kind = "png" if entries[-1]["pixelated"] else "jpeg"
            packs[f"explorer-{number}-{image.index}"] = {
                "url": image_url(image.pixels, kind=kind),
                "arrays": {name: pack(values) for name, values in rows.items()},
            }
    if not entries:
        return {}
    colors = {name: color_table(name) for name in (POSITIVE, SIGNED)}
    return {
        "data": {"runs": entries, "colors": colors},
        "packs": packs,
        "complete": all(ARRAYS["classes"] in run for run in runs),
    }


def describe(run: Run, number: int, images: Sequence[Preview]) -> dict[str, Any]:
    """What the page knows of a run before an image is opened."""
    config = run.config
    registers = [f"register {n}" for n in range(config.registers)]
    keys = ("index", "name", "label", "prediction")
    return {
        "name": run.name,
        "number": number,
        "classes": run.classes,
        "depth": config.depth,
        "heads": config.heads,
        "grid": config.grid,
        "prefix": ["[CLS]"] * config.class_token + registers,
        "pool": config.pool,
        "data": run.manifest["data"]["id"],
        "pixelated": max(config.shape) <= 128,  # PNG, enlarged without smoothing
        "images": [{key: getattr(image, key) for key in keys} for image in images],
    }


def read_arrays(run: Run, images: Sequence[Preview]) -> dict[str, np.ndarray]:
    """Rows of images as the page takes them."""
    indices = np.array([image.index for image in images])
    held = {key: name for key, name in ARRAYS.items() if name in run}
    arrays = {key: run.read(name, indices) for key, name in held.items()}
    if "probabilities" in arrays:
        probabilities = np.nan_to_num(arrays["probabilities"])
        arrays["probabilities"] = np.rint(255 * probabilities).astype(np.uint8)
    for key in arrays.keys() & {"attention", "relevancy"}:
        arrays[f"{key}_scale"], arrays[key] = quantize(arrays[key])
    return arrays


def quantize(
    maps: Float[np.ndarray, "*maps patch"],
) -> tuple[Float[np.ndarray, "*maps"], Int16[np.ndarray, "*maps patch"]]:
    """(scale, steps): their product is the map within half a scale."""
    maps = np.nan_to_num(maps)
    scale = np.abs(maps).max(-1) / np.float32(2**15 - 1)
    steps = maps / np.where(scale > 0, scale, 1)[..., None]
    return scale.astype(np.float32), np.rint(steps).astype(np.int16)


def pack(values: np.ndarray) -> dict[str, Any]:
    """An array as JSON, its bytes in the order that browsers read."""
    content = values.astype(values.dtype.newbyteorder("<")).tobytes()
    text = base64.b64encode(zlib.compress(content)).decode()
    kind = f"{values.dtype.name.capitalize()}Array"  # in JavaScript
    return {"type": kind, "shape": values.shape, "bytes": text}


def color_table(name: str) -> str:
    """A color map as 256 times six hexadecimal digits."""
    from matplotlib import colormaps

    return colormaps[name](np.arange(256), bytes=True)[:, :3].tobytes().hex()
