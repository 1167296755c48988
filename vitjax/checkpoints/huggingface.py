"""Hugging Face folders: architecture, class names and preprocessing of ViT and DeiT."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from vitjax import messages
from vitjax.checkpoints import json_fields as read
from vitjax.checkpoints.files import CheckpointError
from vitjax.data.images import Interpolation, Preprocess
from vitjax.types import Config

EPSILON = 1e-12
"""transformers' default for ViT and DeiT, for a file without its config.json."""

GELUS = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_fast": "tanh",
}
"""transformers' name of an activation -> `Config.gelu`."""

MODEL_TYPES = {"vit": "ViT", "deit": "DeiT"}
"""Those that are read -> the image processor of a file that names none."""


def architecture(config_json: Mapping[str, Any]) -> Config:
    """The architecture of a config.json; absent fields have transformers' default."""

    def get(field, default):
        value = config_json.get(field)
        return default if value is None else value

    def integer(field, default):
        return read.integer(field, get(field, default))

    patch = get("patch_size", 16)
    height, width = read.height_and_width("patch_size", patch)
    if height != width:
        raise CheckpointError(f"Patches of {patch} pixels are not square.")
    config = Config(
        image_size=image_size(config_json),
        patch_size=height,
        dim=integer("hidden_size", 768),
        depth=integer("num_hidden_layers", 12),
        heads=integer("num_attention_heads", 12),
        mlp_dim=integer("intermediate_size", 3072),
        registers=int(config_json["model_type"] == "deit"),
        qkv_bias=read.boolean("qkv_bias", get("qkv_bias", True)),
        channels=integer("num_channels", 3),
    )
    return with_numerics(config, config_json)


def image_size(config_json: Mapping[str, Any]) -> int | tuple[int, int]:
    """The image size that the position embeddings are of."""
    size = config_json.get("image_size")
    return read.image_size("image_size", 224 if size is None else size)


def with_numerics(config: Config, config_json: Mapping[str, Any]) -> Config:
    """The architecture with a config.json's epsilon and GELU; it may be empty."""
    act, epsilon = config_json.get("hidden_act"), config_json.get("layer_norm_eps")
    act = "gelu" if act is None else act
    if not isinstance(act, str) or act not in GELUS:
        raise CheckpointError(messages.unknown("hidden_act", act, GELUS))
    epsilon = EPSILON if epsilon is None else epsilon
    fields: dict[str, Any] = {
        "epsilon": read.number("layer_norm_eps", epsilon, low=0.0),
        "gelu": GELUS[act],
    }
    return dataclasses.replace(config, **fields)


def class_names(config_json: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes in the order of the logits; empty where it has none."""
    return read.class_names("id2label", config_json.get("id2label"))


CLIP_COLORS: dict[str, Any] = dict(
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)
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
    "Levit": SHORTER
    | dict(image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225)),
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


def preprocessing(
    fields: Mapping[str, Any], config_json: Mapping[str, Any] | None = None
) -> Preprocess:
    """The pipeline that a preprocessor_config.json describes.

    The image processor decides the defaults; that of a file which names none is the
    model type's of the config.json.

    Raises:
        ValueError: it describes something that `Preprocess` cannot.
    """
    kind = processor(fields, config_json or {})
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
    values = defaults | given
    switches = {
        key: read.boolean(key, values[key]) for key in values if key.startswith("do_")
    }
    if not switches["do_resize"]:
        raise CheckpointError(f"do_resize=False is not supported. {ADVICE}")
    geometry = resize_and_crop(kind, values, switches["do_center_crop"])
    resample = read.integer("resample", values["resample"], low=0)
    filters = get_args(Interpolation)
    if resample >= len(filters):
        raise CheckpointError(f"The filter resample={resample} is not known. {ADVICE}")
    # (factor x - mean) / deviation, as (x / 255 - m) / s.
    factor, mean, std = 1.0, (0.0,) * 3, (1.0,) * 3
    if switches["do_rescale"]:
        factor = read.number("rescale_factor", values["rescale_factor"])
    if switches["do_normalize"]:
        mean = read.colors("image_mean", values["image_mean"])
        std = read.colors("image_std", values["image_std"])
    if factor <= 0 or min(std) <= 0:
        raise CheckpointError(
            f"rescale_factor={factor} and image_std={std} must be positive."
        )
    scale = factor * 255
    if abs(scale - 1) > 1e-6:
        mean, std = (tuple(value / scale for value in each) for each in (mean, std))
    colors: dict[str, Any] = {"mean": mean, "std": std}
    return Preprocess(**geometry, interpolation=filters[resample], **colors)


NEEDED = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
"""What has no default where a file says null; transformers fails then, too."""

ADVICE = "Pass preprocess= with a vitjax.Preprocess that does what the model expects."


def processor(fields: Mapping[str, Any], config_json: Mapping[str, Any]) -> str:
    """The kind of an image processor, without the words that its versions differ in."""
    named = fields.get("image_processor_type") or fields.get("feature_extractor_type")
    if named is None:
        return MODEL_TYPES.get(str(config_json.get("model_type")), "ViT")
    kind = str(named).removesuffix("Fast").removesuffix("Pil")
    kind = kind.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if kind not in PROCESSORS:
        known = [f"{kind}ImageProcessor" for kind in PROCESSORS]
        message = messages.unknown("image_processor_type", named, known)
        raise CheckpointError(f"{message} {ADVICE}")
    return kind


def resize_and_crop(kind: str, values: Mapping[str, Any], crop: bool) -> dict[str, Any]:
    """The geometry of a `Preprocess`."""
    edge, size = edge_or_size(values)
    target: Any = size
    if kind == "ConvNext":
        share = read.number("crop_pct", values["crop_pct"])
        if edge is None or crop or not 0 < share <= 1:
            raise CheckpointError(
                f"size={values['size']!r}, crop_pct={share} and do_center_crop={crop} "
                f"are not supported of ConvNextImageProcessor. {ADVICE}"
            )
        target, crop = (edge, edge), edge < 384
        if crop:
            edge = int(edge / share)
        else:
            size, edge = target, None
    elif crop:
        target = read.height_and_width("crop_size", values["crop_size"])
    if kind == "Levit" and edge is not None:
        edge = int((256 / 224) * edge)
    if edge is not None and not crop:
        raise CheckpointError(
            f"size={values['size']!r} keeps the shape of each image and nothing crops "
            f"it, but the model takes one size. {ADVICE}"
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


def edge_or_size(values: Mapping[str, Any]) -> Any:
    """(the shortest edge, None) or (None, (height, width)) of a size."""
    size = values["size"]
    square = read.boolean("default_to_square", values["default_to_square"])
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
