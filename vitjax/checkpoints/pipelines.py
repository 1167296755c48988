"""Preprocessing as transformers, timm and open_clip describe it.

Each makes a `Preprocess`, or raises a CheckpointError that names what it cannot do.
"""

import math
from collections.abc import Mapping
from typing import Any, get_args

from vitjax import messages
from vitjax.checkpoints import json_fields as read
from vitjax.checkpoints.files import CheckpointError
from vitjax.checkpoints.json_fields import Fields
from vitjax.data.images import Interpolation, Preprocess

ADVICE = "Pass preprocess= with a vitjax.Preprocess that does what the model expects."
FILTERS = get_args(Interpolation)

IMAGENET: Any = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLIP: Any = dict(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
TORCHVISION: Any = dict(resize_size=256, interpolation="bicubic", **IMAGENET)
"""The usual pipeline of torchvision, with ImageNet's mean and deviation of colors."""
CLIP_COLORS = {f"image_{name}": values for name, values in CLIP.items()}
SQUARE: dict[str, Any] = dict(
    size=224,
    default_to_square=True,
    crop_size=224,
    resample=3,
    image_mean=0.5,
    image_std=0.5,
    do_resize=True,
    do_center_crop=False,
    do_rescale=True,
    do_normalize=True,
    rescale_factor=1 / 255,
)
SHORTER = SQUARE | dict(default_to_square=False, do_center_crop=True)
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": SQUARE | dict(resample=2),
    "DeiT": SQUARE | dict(size=256, do_center_crop=True),
    "Beit": SQUARE,
    "Siglip": SQUARE
    | dict(default_to_square=False, size={"height": 224, "width": 224}),
    "CLIP": SHORTER | CLIP_COLORS,
    "Bit": SHORTER | CLIP_COLORS,
    "Levit": SHORTER | {f"image_{name}": values for name, values in IMAGENET.items()},
    "ConvNext": SHORTER | dict(size=384, do_center_crop=False, crop_pct=224 / 256),
}
"""Image processors of transformers 5 -> their defaults; keys beyond these and those of
`WITHOUT_EFFECT` are not understood."""

WITHOUT_EFFECT = {
    *("image_processor_type", "feature_extractor_type", "processor_class"),
    *("do_convert_rgb", "data_format", "input_data_format", "return_tensors", "device"),
    *("disable_grouping", "_valid_processor_keys", "transformers_version", "backend"),
    *("do_reduce_labels", "reduce_labels"),
}
"""Keys that do not change the pixels of an RGB image."""

NEEDED = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
"""What has no default where a file says null; transformers fails then, too."""


def hugging_face(fields: Mapping[str, Any], processor: str = "ViT") -> Preprocess:
    """The pipeline that a preprocessor_config.json describes.

    The image processor decides the defaults; `processor` is that of a file which names
    none.
    """
    kind = image_processor(fields) or processor
    defaults = PROCESSORS[kind]
    given = {
        key: False if value is None and key.startswith("do_") else value
        for key, value in fields.items()
        if value is not None or key.startswith("do_") or key in NEEDED
    }
    off = {key for key in ("do_pad", "use_square_size") if given.get(key) is False}
    if unknown := sorted(set(given) - set(defaults) - WITHOUT_EFFECT - off):
        raise CheckpointError(
            f"The preprocessing has {unknown[0]}={given[unknown[0]]!r}, which vitjax "
            f"does not know of {kind}ImageProcessor. {ADVICE}"
        )
    values = Fields(defaults | given)
    switches = {
        key: values.get(key, parse=read.boolean)
        for key in values.values
        if key.startswith("do_")
    }
    if not switches["do_resize"]:
        raise CheckpointError(f"do_resize=False is not supported. {ADVICE}")
    geometry = resize_and_crop(kind, values, switches["do_center_crop"])
    resample = read.integer("resample", values.get("resample"), low=0)
    if resample >= len(FILTERS):
        raise CheckpointError(f"The filter resample={resample} is not known. {ADVICE}")
    # (factor x - mean) / deviation, as (x / 255 - m) / s.
    scale, mean, std = 255.0, (0.0,) * 3, (1.0,) * 3
    if switches["do_rescale"]:
        scale *= values.get("rescale_factor", parse=read.number)
        if scale <= 0:
            raise CheckpointError(f"rescale_factor={scale / 255} must be positive.")
    if switches["do_normalize"]:
        mean = values.get("image_mean", parse=read.colors)
        std = values.get("image_std", parse=read.deviations)
    if abs(scale - 1) > 1e-6:
        mean, std = (tuple(value / scale for value in each) for each in (mean, std))
    colors: dict[str, Any] = {"mean": mean, "std": std}
    return Preprocess(**geometry, interpolation=FILTERS[resample], **colors)


def image_processor(fields: Mapping[str, Any]) -> str:
    """The kind of an image processor, without the words that its versions differ in."""
    named = fields.get("image_processor_type") or fields.get("feature_extractor_type")
    if named is None:
        return ""
    kind = str(named).removesuffix("Fast").removesuffix("Pil")
    kind = kind.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if kind not in PROCESSORS:
        known = [f"{kind}ImageProcessor" for kind in PROCESSORS]
        message = messages.unknown("image_processor_type", named, known)
        raise CheckpointError(f"{message} {ADVICE}")
    return kind


def resize_and_crop(kind: str, values: Fields, crop: bool) -> dict[str, Any]:
    """The geometry of a `Preprocess`."""
    edge, size = edge_or_size(values)
    target: Any = size
    if kind == "ConvNext":
        share = values.get("crop_pct", parse=read.number)
        if edge is None or crop or not 0 < share <= 1:
            raise CheckpointError(
                f"size={values.get('size')!r}, crop_pct={share} and do_center_crop="
                f"{crop} are not supported of ConvNextImageProcessor. {ADVICE}"
            )
        target, crop = (edge, edge), edge < 384
        if crop:
            edge = int(edge / share)
        else:
            size, edge = target, None
    elif crop:
        target = values.get("crop_size", parse=read.height_and_width)
    if kind == "Levit" and edge is not None:
        edge = int((256 / 224) * edge)
    if edge is not None and not crop:
        raise CheckpointError(
            f"size={values.get('size')!r} keeps the shape of each image and nothing "
            f"crops it, but the model takes one size. {ADVICE}"
        )
    fields: dict[str, Any] = dict(height=target[0], width=target[1])
    if size == target:
        return fields
    if edge is None and size[0] != size[1]:
        raise CheckpointError(f"A crop from {size} pixels is not supported. {ADVICE}")
    side = size[0] if edge is None else edge
    if side < max(target):
        raise CheckpointError(
            f"A crop of {target[0]} x {target[1]} from {side} pixels pads the image, "
            f"which is not supported. {ADVICE}"
        )
    fields |= dict(resize="square" if edge is None else "shorter", resize_size=side)
    if edge is not None or any((side - length) % 2 for length in target):
        fields["crop"] = "floor"
    return fields


def edge_or_size(values: Fields) -> Any:
    """(the shortest edge, None) or (None, (height, width)) of a size."""
    size = values.get("size")
    square = values.get("default_to_square", parse=read.boolean)
    if not isinstance(size, Mapping | list | tuple) and not square:
        return read.integer("size", size), None
    if isinstance(size, Mapping):
        sides = {key: side for key, side in size.items() if side is not None}
        if sides.keys() == {"shortest_edge"}:
            return read.integer("size.shortest_edge", sides["shortest_edge"]), None
        if sides.keys() != {"height", "width"}:
            raise CheckpointError(
                f"size={size!r} is not supported: only shortest_edge, or height and "
                f"width. {ADVICE}"
            )
    return None, read.height_and_width("size", size)


def timm(fields: Fields, size: tuple[int, int]) -> Preprocess:
    """timm's evaluation, by a `pretrained_cfg` and the input's height and width."""
    share = fields.get("crop_pct", 0.875, read.number) or 0.875
    if not 0 < share <= 1:
        raise read.wrong("crop_pct", share, "in (0, 1]")
    mode = fields.get("crop_mode") or "center"
    sides = [math.floor(side / share) for side in size]
    return torchvision(fields, size, sides, mode, "center", IMAGENET)


def open_clip(fields: Fields, size: tuple[int, int]) -> Preprocess:
    """open_clip's evaluation, by a `preprocess_cfg` and the input's size."""
    mode = fields.get("resize_mode") or "shortest"
    return torchvision(fields, size, list(size), mode, "shortest", CLIP)


def torchvision(
    fields: Fields,
    size: tuple[int, int],
    sides: list[int],
    mode: str,
    shorter: str,
    colors: Mapping[str, Any],
) -> Preprocess:
    """A pipeline of torchvision's transforms: resize to `sides`, crop the center.

    `shorter` is the library's name for resizing the shorter side.
    """
    interpolation = fields.get("interpolation") or "bicubic"
    if interpolation not in FILTERS or mode not in (shorter, "squash"):
        raise CheckpointError(
            f"interpolation={interpolation!r} with a resize by {mode!r} is not "
            f"supported. {ADVICE}"
        )
    geometry: dict[str, Any] = {}
    if mode == shorter or sides != list(size):
        if size[0] != size[1]:
            raise CheckpointError(
                f"A crop of {size[0]} x {size[1]} pixels is not supported. {ADVICE}"
            )
        geometry["resize"] = "shorter" if mode == shorter else "square"
        geometry["resize_size"] = sides[0]
    return Preprocess(
        *size,
        **geometry,
        interpolation=interpolation,
        mean=read.colors("mean", fields.get("mean") or colors["mean"]),
        std=read.deviations("std", fields.get("std") or colors["std"]),
    )
