"""The token explorer: the images of a run and what every token of them says.

The arrays of each image (zlib, base64) are unpacked by the page when the image is
opened, so that hundreds of images load at once:

    rank           rank of the label at every token after every block, -1 where absent
    classes        top classes of every token after every block
    probabilities  theirs, in units of 1/255
    on_object      1 on the object, 0 in the context, -1 unknown
    attention, relevancy  of every block and head, in units of that map's own scale,
    attention_scale, relevancy_scale  its largest magnitude / 32767

What a run does not hold (only the recipe `tokens` writes all of it) is not shown.
"""

import base64
import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int16

from vitjax.recipes import schema
from vitjax.report.map_grid import POSITIVE, SIGNED
from vitjax.report.per_image import Run
from vitjax.report.templates import render
from vitjax.report.token_maps import LOSSLESS, Preview, image_url, previews

ARRAYS = {
    "rank": schema.RANK("residual"),
    "classes": schema.TOKEN_CLASSES(),
    "probabilities": schema.TOKEN_PROBABILITIES(),
    "on_object": schema.PATCH_LABEL(),
    "attention": schema.ATTENDED(),
    "relevancy": schema.HELPFUL(),
}
"""Name in the page -> in the run."""

STEPS = 2**15 - 1
"""Of a map's largest magnitude: finer than its sums need."""


def explorer_html(runs: Sequence[Run], *, limit: int = 200) -> str:
    """The first images of each run; empty where no run kept an image."""
    entries, packs = [], {}
    for number, run in enumerate(runs):
        images = previews(run, limit=limit)
        arrays = read_arrays(run, images)
        if images:
            entries.append(describe(run, number, images))
        for place, image in enumerate(images):
            rows = {name: values[place] for name, values in arrays.items()}
            if image.label < 0:
                del rows["rank"]
            kind = "png" if max(image.pixels.shape) <= LOSSLESS else "jpeg"
            content = {"url": image_url(image.pixels, kind=kind), "arrays": pack(rows)}
            packs[f"explorer-{number}-{image.index}"] = to_json(content)
    if not entries:
        return ""
    colors = {name: color_table(name) for name in (POSITIVE, SIGNED)}
    return render(
        "explorer.html.jinja",
        data=to_json({"runs": entries, "colors": colors}),
        packs=packs,
        complete=all(ARRAYS["classes"] in run for run in runs),
    )


def describe(run: Run, number: int, images: Sequence[Preview]) -> dict[str, Any]:
    """What the page knows of a run before an image is opened."""
    config = run.config
    registers = [f"register {n}" for n in range(config.registers)]
    return {
        "name": run.name,
        "number": number,
        "classes": run.classes,
        "depth": config.depth,
        "heads": config.heads,
        "grid": config.grid,
        "prefix": ["[CLS]"] * config.class_token + registers,
        "pooled": not config.class_token,
        "data": run.manifest["data"]["id"],
        "pixelated": max(config.shape) <= LOSSLESS,
        "images": [
            {
                "index": image.index,
                "name": pathlib.PurePath(image.name).name,
                "label": image.label,
                "prediction": image.prediction,
            }
            for image in images
        ],
    }


def read_arrays(run: Run, images: Sequence[Preview]) -> dict[str, np.ndarray]:
    """Rows of images as the page takes them."""
    indices = np.array([image.index for image in images], int)
    arrays = {
        key: run.read(name, indices) for key, name in ARRAYS.items() if name in run
    }
    if "probabilities" in arrays:
        probabilities = np.nan_to_num(arrays["probabilities"])
        arrays["probabilities"] = np.rint(255 * probabilities).astype(np.uint8)
    for key in ("attention", "relevancy"):
        if key in arrays:
            arrays[f"{key}_scale"], arrays[key] = quantize(arrays[key])
    return arrays


def quantize(
    maps: Float[np.ndarray, "*maps patch"],
) -> tuple[Float[np.ndarray, "*maps"], Int16[np.ndarray, "*maps patch"]]:
    """(scale, steps): their product is the map within half a scale."""
    maps = np.nan_to_num(maps)
    scale = np.abs(maps).max(-1) / np.float32(STEPS)
    steps = maps / np.where(scale > 0, scale, 1)[..., None]
    return scale.astype(np.float32), np.rint(steps).astype(np.int16)


def pack(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays as JSON, their bytes in the order that browsers read."""
    return {
        name: {
            "dtype": values.dtype.name,
            "shape": values.shape,
            "bytes": base64.b64encode(
                zlib.compress(values.astype(values.dtype.newbyteorder("<")).tobytes())
            ).decode(),
        }
        for name, values in arrays.items()
    }


def color_table(name: str) -> str:
    """A color map as 256 times six hexadecimal digits."""
    from matplotlib import colormaps

    colors = colormaps[name](np.arange(256), bytes=True)
    return np.asarray(colors)[:, :3].astype(np.uint8).tobytes().hex()


def to_json(value: Any) -> str:
    """JSON in which no text can end the element around it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
