"""The token explorer: the images of a run and what every token of them says.

The arrays of each image (zlib, base64) are unpacked by the page when the image is
opened, so that hundreds of images load at once. What a run does not hold is not shown;
only the recipe `tokens` writes all of it.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int16
from matplotlib import colormaps

from vitjax.recipes import schema
from vitjax.report.figure import POSITIVE, SIGNED
from vitjax.report.per_image import Run
from vitjax.report.pictures import Preview, image_url, previews

ARRAYS = {
    "rank": schema.RANK("residual"),
    "classes": schema.TOKEN_CLASSES(),
    "probabilities": schema.TOKEN_PROBABILITIES(),  # in units of 1/255
    "on_object": schema.PATCH_LABEL(),
    "attention": schema.ATTENDED(),  # in units of `attention_scale`
    "relevancy": schema.HELPFUL(),
}
"""Name in the page -> in the run."""

LARGE = {
    "chosen": schema.CHOSEN_CLASSES(),
    "ranks": schema.CHOSEN_RANKS(),
    "logits": schema.CHOSEN_LOGITS(),  # in units of `logits_scale`
    "normalizer": schema.TOKEN_NORMALIZER(),
    "between": schema.TOKEN_ATTENTION(),  # in units of `between_largest` / 63
    "between_largest": schema.TOKEN_ATTENTION_LARGEST(),
}
"""The same of arrays that only as many images get as fit in `PAGE_BYTES`."""

PAGE_BYTES = 25_000_000


def explorer_data(runs: Sequence[Run], *, limit: int = 200) -> dict[str, Any]:
    """What the template takes of the first images of each run; empty without any."""
    entries, packs, opening = [], {}, {}
    whole, possible, room = 0, 0, PAGE_BYTES
    for number, run in enumerate(runs):
        images = previews(run, limit=limit) if run.streams else []
        if not images:
            continue
        entries.append(describe(run, number, images))
        first, layer, token = find_opening(run, images)
        index, large = images[first].index, LARGE["chosen"] in run
        opening = opening or dict(run=number, image=index, layer=layer, token=token)
        possible += len(images) * large
        arrays = read_arrays(run, images)
        for place in sorted(range(len(images)), key=lambda place: place != first):
            rows = {name: values[place] for name, values in arrays.items()}
            if (rows["rank"] < 0).all():  # of an image without a label
                del rows["rank"]
            pack = pack_arrays(rows)
            packs[f"explorer-{number}-{images[place].index}"] = pack
            room -= len(entries[-1]["images"][place]["url"]) + len(json.dumps(pack))
            if room > 0 and large:
                more = pack_arrays(read_large(images[place]))
                room -= len(json.dumps(more))
                pack |= more
                whole += 1
    if not entries:
        return {}
    colors = {
        name: colormaps[name](np.arange(256), bytes=True)[:, :3].tobytes().hex()
        for name in (POSITIVE, SIGNED)
    }
    return {
        "data": {"runs": entries, "colors": colors, "opening": opening},
        "packs": packs,
        "complete": all(ARRAYS["classes"] in run for run in runs),
        "whole": whole,
        "possible": possible,
    }


def describe(run: Run, number: int, images: Sequence[Preview]) -> dict[str, Any]:
    """What the page knows of a run before an image is opened."""
    config = run.config
    registers = [f"register {n}" for n in range(config.registers)]
    keys = ("index", "name", "label", "prediction")
    pixelated = max(config.shape) <= 128  # PNG, enlarged without smoothing
    kind = "png" if pixelated else "jpeg"
    return {
        "name": run.name,
        "number": number,
        "classes": run.classes,
        "depth": config.depth,
        "heads": config.heads,
        "grid": config.grid,
        "prefix": ["[CLS]"] * config.class_token + registers,
        "pool": config.pooling,
        "data": run.manifest["data"]["id"],
        "pixelated": pixelated,
        "images": [
            {key: getattr(image, key) for key in keys}
            | {"url": image_url(image.pixels, kind=kind)}
            for image in images
        ],
    }


def find_opening(run: Run, images: Sequence[Preview]) -> tuple[int, int, int]:
    """(place, layer, token) where most is to be seen, in the last third of the blocks.

    Of the images predicted correctly, those with a mask if there are any: where
    log(1 + rank) on the object lies furthest below that around it or, without masks,
    varies most. The token is one of the label's best; without a label, the first.
    """
    config = run.config
    indices = np.array([image.index for image in images])
    labels = np.array([image.label for image in images])
    correct = labels == [image.prediction for image in images]
    ranks = run.read(ARRAYS["rank"], indices)[:, 2 * config.depth // 3 :]
    logs = np.log1p(ranks[:, :, config.prefix :].clip(0))
    spread, use = logs.std(-1), np.ones((len(images), config.patches), bool)
    if ARRAYS["on_object"] in run:
        patch_label = run.read(ARRAYS["on_object"], indices)
        masked = correct & (patch_label == 1).any(-1) & (patch_label == 0).any(-1)
        if masked.any():
            correct, use = masked, patch_label == 1
            outside, inside = (
                np.einsum("ilp,ip->il", logs, on) / np.maximum(on.sum(-1), 1)[:, None]
                for on in (patch_label == 0, use)
            )
            spread = outside - inside
    spread[correct < correct.max()] = -np.inf
    place, layer = np.unravel_index(spread.argmax(), spread.shape)
    row = np.where(use[place], logs[place, layer], np.inf)
    best = np.flatnonzero(row == row.min())
    token = config.prefix + best[len(best) // 2] if labels[place] >= 0 else 0
    return int(place), 2 * config.depth // 3 + int(layer), int(token)


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


def read_large(image: Preview) -> dict[str, np.ndarray]:
    """The arrays `LARGE` of one image as the page takes them."""
    arrays = {key: image.read(name) for key, name in LARGE.items()}
    if len(image.run.classes) < 2**16:
        arrays["ranks"] = arrays["ranks"].astype(np.uint16)
    logits = arrays["logits"]
    flat = logits.reshape(len(logits), -1)
    arrays["logits_scale"], steps = quantize(flat, least=0.02)
    arrays["logits"] = steps.reshape(logits.shape)
    arrays["between"] = np.rint(arrays["between"] * (63 / 255)).astype(np.uint8)
    return arrays


def quantize(
    maps: Float[np.ndarray, "*maps patch"], *, least: float = 0
) -> tuple[Float[np.ndarray, "*maps"], Int16[np.ndarray, "*maps patch"]]:
    """(scale, steps): their product is the map within half a scale, `least` or more."""
    maps = np.nan_to_num(maps)
    scale = np.maximum(np.abs(maps).max(-1) / (2**15 - 1), least)
    steps = maps / np.where(scale > 0, scale, 1)[..., None]
    return scale.astype(np.float32), np.rint(steps).astype(np.int16)


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays as JSON, their bytes in the order that browsers read."""
    packed = {}
    for name, values in arrays.items():
        content = values.astype(values.dtype.newbyteorder("<")).tobytes()
        text = base64.b64encode(zlib.compress(content)).decode()
        kind = f"{values.dtype.name.capitalize()}Array"  # in JavaScript
        packed[name] = {"type": kind, "shape": values.shape, "bytes": text}
    return packed
