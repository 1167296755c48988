"""What JSON files beside weights say of them: vitjax, transformers, timm, open_clip.

Each class reads one library's words: `file` names the description; `stated` are fields
of `Config` that it says and no array shows; `image_size` is that which the position
embeddings are of; `architecture` is whole but for what the arrays have beyond it;
`labels` are class names and ids, empty where it has none; `preprocess` is its pipeline.
The functions below them make a `Preprocess` of what each library says, or a
CheckpointError that names what it cannot do.
"""

import functools
import math
import os
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from vitjax import messages
from vitjax.checkpoints import json_fields as read
from vitjax.checkpoints.convert import Checkpoint
from vitjax.checkpoints.files import CONFIG, CheckpointError
from vitjax.checkpoints.json_fields import Fields
from vitjax.checkpoints.positions import RESIZE
from vitjax.data.images import Interpolation, Preprocess
from vitjax.data.labels import Labels, imagenet1k
from vitjax.types import Config

FILTERS = get_args(Interpolation)

IMAGENET_COLORS: Any = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLIP_COLORS: Any = dict(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
TORCHVISION: Any = dict(resize_size=256, interpolation="bicubic", **IMAGENET_COLORS)
"""The usual pipeline of torchvision, with ImageNet's mean and deviation of colors."""
GELUS = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_fast": "tanh",
    "quick_gelu": "quick",
    "gelu_tanh": "tanh",  # timm
    "quickgelu": "quick",
}
"""Libraries' names of an activation -> `Config.gelu`."""

VIT: Any = dict(
    patch_size=16,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    num_register_tokens=0,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    config={},
    processor="ViT",
    pixels={},
)
CLIP = VIT | dict(
    patch_size=32,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    config=dict(embed_norm=True, patch_bias=False),
    processor="CLIP",
    pixels=dict(resize="shorter", interpolation="bicubic", **CLIP_COLORS),
)
SIGLIP = VIT | dict(
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
    config=dict(class_token=False, pool="map"),
    processor="Siglip",
    pixels=dict(interpolation="bicubic"),
)
DINOV2 = VIT | dict(
    patch_size=14,
    mlp_ratio=4,
    layer_norm_eps=1e-6,
    config=dict(layer_scale=True),
    processor="Bit",
    pixels=dict(resize="shorter", **TORCHVISION),
)
MODEL_TYPES: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "deit": VIT | dict(config=dict(registers=1), processor="DeiT"),
    **dict.fromkeys(("clip", "clip_vision_model"), CLIP),
    **dict.fromkeys(("siglip", "siglip_vision_model"), SIGLIP),
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2 | dict(num_register_tokens=4),
}
"""Model types of transformers -> defaults of fields, what every such model has, the
image processor of a file that names none, and the pipeline at 224 pixels where there is
no such file."""

NOT_READ = {
    "siglip2": "NaFlex resizes its positions for each image. Take a SigLIP 2 of fixed "
    "resolution, whose model_type is siglip.",
    "siglip2_vision_model": "NaFlex resizes its positions for each image.",
    "beit": "its attention has a bias for relative positions.",
    "data2vec-vision": "its attention has a bias for relative positions.",
    "dinov3_vit": "its positions are rotations of queries and keys.",
}
"""Model types that are known and not read, and why."""


class Own:
    """config.json of a folder that `vitjax.save` wrote."""

    library, file, stated = "vitjax", CONFIG, {}
    keys = "name", "config", "classes", "class_ids", "preprocess", "position_resize"

    def __init__(self, fields: Mapping[str, Any], folder: str | os.PathLike):
        damaged = (
            f"{CONFIG} of {folder} %s: it is damaged, or another version of vitjax "
            "wrote it."
        )
        if missing := set(self.keys) - set(fields):
            raise CheckpointError(damaged % f"lacks {', '.join(sorted(missing))}")
        try:
            self.config = Config.from_dict(fields["config"])
            self.pipeline = fields["preprocess"] and own_pipeline(fields["preprocess"])
            self.names = tuple(map(str, fields["classes"]))
            self.ids = tuple(map(str, fields["class_ids"]))
        except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as err:
            raise CheckpointError(damaged % f"is not understood ({err})") from err
        self.name, self.resize = str(fields["name"]), fields["position_resize"]
        self.image_size = self.config.image_size
        messages.check_one_of("position_resize", self.resize, RESIZE)

    def architecture(self, found: Checkpoint) -> Config:
        return self.config

    def labels(self) -> Labels:
        return self.names, self.ids

    def preprocess(self) -> Preprocess | None:
        return self.pipeline


class HuggingFace:
    """transformers' config.json; `assumed` is the pipeline of no file of its own."""

    library, file = "huggingface", CONFIG

    def __init__(self, fields: Mapping[str, Any]):
        self.fields = Fields(fields)
        self.kind = MODEL_TYPES[fields["model_type"]]
        self.assumed = Preprocess(224, 224, **self.kind["pixels"])
        self.tower = self.fields
        if "vision_config" in fields:
            self.tower = self.fields.section("vision_config")

    @property
    def stated(self) -> dict[str, Any]:
        return hugging_face_numerics(self.tower, self.kind)

    @property
    def image_size(self) -> int | tuple[int, int]:
        return self.tower.get("image_size", 224, read.image_size)

    def architecture(self, found: Checkpoint | None = None) -> Config:
        tower, kind = self.tower, self.kind
        patch = tower.get("patch_size", kind["patch_size"])
        height, width = read.height_and_width("patch_size", patch)
        if height != width:
            raise CheckpointError(f"Patches of {patch} pixels are not square.")
        blocks, hidden = hugging_face_blocks(tower, kind), kind["intermediate_size"]
        if "mlp_ratio" in kind:
            ratio = tower.get("mlp_ratio", kind["mlp_ratio"], read.number)
            hidden = int(blocks["dim"] * ratio)
            if tower.get("use_swiglu_ffn", False, read.boolean):
                hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        fields = kind["config"] | blocks
        if registers := tower.get("num_register_tokens", kind["num_register_tokens"]):
            fields["registers"] = read.integer("num_register_tokens", registers)
        return Config(
            image_size=self.image_size,
            patch_size=height,
            mlp_dim=tower.get("intermediate_size", hidden, read.integer),
            qkv_bias=tower.get("qkv_bias", True, read.boolean),
            truncate=truncates(self.image_size, height),
            **fields,
        )

    def labels(self) -> Labels:
        names = read.class_names("id2label", self.fields.get("id2label"))
        imagenet, wordnet_ids = imagenet1k()
        return names, wordnet_ids if names == imagenet else read.unique_ids(names)


def hugging_face_numerics(tower: Fields, defaults: Mapping) -> dict[str, Any]:
    """Epsilon and GELU of an image or a text tower."""
    number = functools.partial(read.number, low=0.0)
    return {
        "epsilon": tower.get("layer_norm_eps", defaults["layer_norm_eps"], number),
        "gelu": tower.one_of("hidden_act", GELUS, defaults["hidden_act"]),
    }


def hugging_face_blocks(tower: Fields, defaults: Mapping) -> dict[str, Any]:
    """The blocks of an image or a text tower, but for the width of their MLP."""
    keys = dict(
        dim="hidden_size", depth="num_hidden_layers", heads="num_attention_heads"
    )
    sizes = {
        field: tower.get(key, defaults[key], read.integer)
        for field, key in keys.items()
    }
    return sizes | hugging_face_numerics(tower, defaults)


def truncates(size: int | tuple[int, int], patch: int) -> bool:
    """Whether a convolution drops pixels at the edge of an image."""
    sides = (size,) if isinstance(size, int) else size
    return any(side % patch and side > patch for side in sides)


HEADS = {
    ("tiny", 192): 3,
    ("xsmall", 256): 4,
    ("wee", 256): 4,
    ("little", 320): 5,
    ("small", 384): 6,
    ("medium", 512): 8,
    ("betwixt", 640): 10,
    ("base", 640): 10,
    ("base", 768): 12,
    ("base", 896): 14,
    ("so150m", 896): 14,
    ("large", 1024): 16,
    ("so400m", 1152): 16,
    ("huge", 1280): 16,
    ("giant", 1408): 16,
    ("giantopt", 1536): 16,
    ("giant", 1536): 24,
    ("gigantic", 1664): 16,
}
"""The size in a name, and the width -> attention heads, which no array tells."""

TIMM_WITHOUT_EFFECT = """
num_classes in_chans img_size patch_size embed_dim depth mlp_ratio qkv_bias qk_norm
init_values class_token reg_tokens no_embed_class fc_norm drop_rate pos_drop_rate
patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate weight_init pre_norm
dynamic_img_size strict_img_size global_pool num_heads act_layer pretrained
pretrained_strict features_only scriptable exportable
"""
"""Arguments of a model that its arrays show as well, or that the logits do not need."""

QUICK_TAGS = ("openai", "metaclip_400m", "metaclip_2pt5b", "dfn2b", "dfn5b")
"""timm's tags of weights that were trained with QuickGELU, whatever the architecture
that they are loaded into computes."""


class Timm:
    """timm's config.json: mostly the name of an architecture."""

    library, file = "timm", CONFIG

    def __init__(self, fields: Mapping[str, Any]):
        self.fields = Fields(fields)
        self.arguments = self.fields.section("model_args")
        # Older files have no part for preprocessing and classes.
        nested = self.fields.section("pretrained_cfg")
        self.pretrained = nested if nested.values else self.fields
        self.name: str = fields["architecture"]

    @property
    def stated(self) -> dict[str, Any]:
        named, tag = "quickgelu" in self.name, self.pretrained.get("tag")
        if self.arguments.get("act_layer") is not None:
            return {"gelu": self.arguments.one_of("act_layer", GELUS, "gelu")}
        if named or ("_clip_" in self.name and tag in QUICK_TAGS):
            return {"gelu": "quick"}
        # timm builds most with erf, but the weights were trained with tanh.
        return {"gelu": "tanh"} if "_siglip_" in self.name else {}

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the input."""
        size = self.pretrained.get("input_size") or (3, 224, 224)
        if not isinstance(size, list | tuple) or len(size) != 3:
            raise read.wrong("input_size", size, "channels, height and width")
        sides = self.arguments.get("img_size") or size[1:]
        return read.height_and_width("img_size", sides)

    @property
    def image_size(self) -> int | tuple[int, int]:
        return read.image_size("img_size", self.shape)

    def architecture(self, found: Checkpoint) -> Config:
        arrays, arguments = found.arrays, self.arguments
        values = arguments.values.items()
        unknown = {key for key, value in values if value not in (None, False)}
        odd = sorted(unknown - {*TIMM_WITHOUT_EFFECT.split()})
        if not self.name.startswith(("vit_", "deit_", "deit3_")) or odd:
            raise CheckpointError(
                f"The architecture {self.name!r}{f' with {odd[0]}' if odd else ''} is "
                "none that vitjax knows of timm. If it is a plain Vision Transformer, "
                "give its vitjax.Config and the folder as checkpoint=."
            )

        def shape(key: str, axes: int) -> tuple[int, ...]:
            if key not in arrays or len(arrays[key]().shape) != axes:
                raise CheckpointError(
                    f"The checkpoint has no array {key} with {axes} axes, which a "
                    "Vision Transformer of timm has."
                )
            return arrays[key]().shape

        dim, _, patch_size, _ = shape("patch_embed.proj.weight", 4)
        sizes = (HEADS[k] for k in HEADS if k[0] in self.name and k[1] == dim)
        heads = arguments.get("num_heads") or next(sizes, None)
        if heads is None:
            raise CheckpointError(
                f"How many attention heads {self.name!r} of width {dim} has is not "
                "known: give a vitjax.Config, and the folder as checkpoint=."
            )
        class_token = "cls_token" in arrays
        pools = {"token": "cls", "avg": "mean", "map": "map"}
        pool = arguments.get("global_pool") or self.fields.get("global_pool")
        pool = pool or ("token" if class_token else "avg")
        if pool not in pools or (pool == "token" and not class_token):
            raise CheckpointError(
                f"global_pool={pool!r} is not supported of a model "
                f"{'with' if class_token else 'without'} a class token."
            )
        fields: dict[str, Any] = {"pool": pools[pool]} | self.stated
        if "norm_pre.weight" in arrays:
            fields["epsilon"] = 1e-5
            # timm fills the bias of CLIP's projection with zeros.
            zeros = "head.bias" in arrays and not np.any(arrays["head.bias"]())
            if zeros and not self.labels()[0]:
                fields |= dict(projection=shape("head.weight", 2)[0], head="cosine")
        attention = "blocks.0.attn."
        return Config(
            image_size=self.image_size,
            patch_size=patch_size,
            dim=dim,
            depth=len({key.split(".")[1] for key in arrays if key[:7] == "blocks."}),
            heads=read.integer("num_heads", heads),
            mlp_dim=shape("blocks.0.mlp.fc2.weight", 2)[1],
            class_token=class_token,
            registers=shape("reg_token", 3)[1] if "reg_token" in arrays else 0,
            norm="residual_post" if "_rpn_" in self.name else "pre",
            qkv_bias=bool({attention + "qkv.bias", attention + "q_bias"} & {*arrays}),
            truncate=truncates(self.image_size, patch_size),
            **fields,
        )

    def labels(self) -> Labels:
        fields = Fields({**self.pretrained.values, **self.fields.values})
        names = fields.get("label_names") or fields.get("labels")
        ids = read.class_names("label_names", names)
        words = fields.section("label_descriptions")
        names = tuple(read.class_name(words.get(each, each)) for each in ids)
        return names, ids if len(set(ids)) == len(ids) else read.unique_ids(ids)

    def preprocess(self) -> Preprocess:
        fields, size = self.pretrained, self.shape
        share = fields.get("crop_pct", 0.875, read.number) or 0.875
        if not 0 < share <= 1:
            raise read.wrong("crop_pct", share, "in (0, 1]")
        sides = [math.floor(side / share) for side in size]
        mode = fields.get("crop_mode") or "center"
        return torchvision(fields, size, sides, mode, "center", IMAGENET_COLORS)


class OpenClip:
    """open_clip_config.json: an image tower of its own, or one of timm."""

    library, file = "open_clip", "open_clip_config.json"

    def __init__(self, fields: Mapping[str, Any]):
        self.fields = Fields(fields)
        self.model = self.fields.section("model_cfg")
        self.tower = self.model.section("vision_cfg")
        self.of_timm = self.tower.get("timm_model_name")

    @property
    def trunk(self) -> Timm:
        """The description of an image tower of timm."""
        size = self.tower.get("image_size", 224)
        arguments = {"img_size": size, "global_pool": self.tower.get("timm_pool")}
        return Timm({"architecture": str(self.of_timm), "model_args": arguments})

    @property
    def stated(self) -> dict[str, Any]:
        if self.of_timm:
            return self.trunk.stated
        return open_clip_numerics(self.model, self.tower)

    @property
    def image_size(self) -> int | tuple[int, int]:
        return self.tower.get("image_size", 224, read.image_size)

    def architecture(self, found: Checkpoint) -> Config:
        if self.of_timm:
            return self.trunk.architecture(found)
        tower = self.tower
        width = tower.get("width", 768, read.integer)
        after = tower.get("final_ln_after_pool", False, read.boolean)
        ratio = tower.get("mlp_ratio", 4.0, read.number)
        patch = tower.get("patch_size", 16, read.integer)
        pool = tower.one_of("pool_type", {"tok": "cls", "avg": "mean"}, "tok")
        return Config(
            image_size=self.image_size,
            patch_size=patch,
            dim=width,
            depth=tower.get("layers", 12, read.integer),
            heads=width // tower.get("head_width", 64, read.integer),
            mlp_dim=int(width * ratio),
            embed_norm=not tower.get("no_ln_pre", False, read.boolean),
            patch_bias=False,
            pool=pool,
            pool_norm="after" if pool == "cls" or after else "before",
            truncate=truncates(self.image_size, patch),
            **self.stated,
        )

    def labels(self) -> Labels:
        return (), ()

    def preprocess(self) -> Preprocess:
        fields = self.fields.section("preprocess_cfg")
        size = read.height_and_width("image_size", self.image_size)
        mode = fields.get("resize_mode") or "shortest"
        return torchvision(fields, size, [*size], mode, "shortest", CLIP_COLORS)


def open_clip_numerics(model: Fields, tower: Fields) -> dict[str, Any]:
    """Epsilon and GELU of an image or a text tower."""
    quick = model.get("quick_gelu", False, read.boolean)
    tanh = tower.section("act_kwargs").get("approximate") == "tanh"
    return {
        "epsilon": tower.section("norm_kwargs").get("eps", 1e-5, read.number),
        "gelu": "quick" if quick else "tanh" if tanh else "erf",
    }


Description = Own | HuggingFace | Timm | OpenClip


def describe(fields: Mapping[str, Any]) -> Description | None:
    """The description that a config.json or open_clip_config.json is, if it is one."""
    if "model_cfg" in fields:
        return OpenClip(fields)
    if isinstance(fields.get("architecture"), str):
        return Timm(fields)
    return HuggingFace(fields) if fields.get("model_type") in MODEL_TYPES else None


def image_colors(mean: Any, std: Any) -> dict[str, Any]:
    """A mean and a deviation as image processors name them."""
    return dict(image_mean=mean, image_std=std)


SQUARE: dict[str, Any] = dict(
    size=224,
    default_to_square=True,
    crop_size=224,
    resample=3,
    **image_colors(mean=0.5, std=0.5),
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
    **dict.fromkeys(("CLIP", "Bit"), SHORTER | image_colors(**CLIP_COLORS)),
    "Levit": SHORTER | image_colors(**IMAGENET_COLORS),
    "ConvNext": SHORTER | dict(size=384, do_center_crop=False, crop_pct=224 / 256),
}
"""Image processors of transformers 5 -> their defaults; keys beyond these and those of
`WITHOUT_EFFECT` are not understood."""

WITHOUT_EFFECT = """
image_processor_type feature_extractor_type processor_class do_convert_rgb
data_format input_data_format return_tensors device disable_grouping
_valid_processor_keys transformers_version backend do_reduce_labels reduce_labels
"""
"""Keys that do not change the pixels of an RGB image."""

NEEDED = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
"""What has no default where a file says null; transformers fails then, too."""


def hugging_face_pipeline(
    fields: Mapping[str, Any], processor: str = "ViT"
) -> Preprocess:
    """The pipeline of a preprocessor_config.json; `processor` if it names none."""
    kind = processor
    named = fields.get("image_processor_type") or fields.get("feature_extractor_type")
    if named is not None:
        kind = str(named)
        for suffix in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
            kind = kind.removesuffix(suffix)
        if kind not in PROCESSORS:
            known = [f"{kind}ImageProcessor" for kind in PROCESSORS]
            raise unsupported(messages.unknown("image_processor_type", named, known))
    defaults = PROCESSORS[kind]
    given = {
        key: False if value is None and key.startswith("do_") else value
        for key, value in fields.items()
        if value is not None or key.startswith("do_") or key in NEEDED
    }
    off = {key for key in ("do_pad", "use_square_size") if given.get(key) is False}
    if unknown := sorted(given.keys() - {*defaults, *off, *WITHOUT_EFFECT.split()}):
        raise unsupported(
            f"The preprocessing has {unknown[0]}={given[unknown[0]]!r}, which vitjax "
            f"does not know of {kind}ImageProcessor."
        )
    values = Fields(defaults | given)
    switches = {
        key: values.get(key, parse=read.boolean)
        for key in values.values
        if key.startswith("do_")
    }
    if not switches["do_resize"]:
        raise unsupported("do_resize=False is not supported.")
    geometry = resize_and_crop(kind, values, switches["do_center_crop"])
    resample = read.integer("resample", values.get("resample"), low=0)
    if resample >= len(FILTERS):
        raise unsupported(f"The filter resample={resample} is not known.")
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


def unsupported(problem: str) -> CheckpointError:
    """The error for a pipeline that `Preprocess` has not."""
    return CheckpointError(
        f"{problem} Pass preprocess= with a vitjax.Preprocess that does what the model "
        "expects."
    )


def resize_and_crop(kind: str, values: Fields, crop: bool) -> dict[str, Any]:
    """The geometry of a `Preprocess`."""
    edge, size = edge_or_size(values)
    target: Any = size
    if kind == "ConvNext":
        share = values.get("crop_pct", parse=read.number)
        if edge is None or crop or not 0 < share <= 1:
            raise unsupported(
                f"size={values.get('size')!r}, crop_pct={share} and do_center_crop="
                f"{crop} are not supported of ConvNextImageProcessor."
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
        raise unsupported(
            f"size={values.get('size')!r} keeps the shape of each image and nothing "
            "crops it, but the model takes one size."
        )
    fields: dict[str, Any] = dict(height=target[0], width=target[1])
    if size == target:
        return fields
    if edge is None and size[0] != size[1]:
        raise unsupported(f"A crop from {size} pixels is not supported.")
    side = size[0] if edge is None else edge
    if side < max(target):
        raise unsupported(
            f"A crop of {target[0]} x {target[1]} from {side} pixels pads the image, "
            "which is not supported."
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
            raise unsupported(
                f"size={size!r} is not supported: only shortest_edge, or height and "
                "width."
            )
    return None, read.height_and_width("size", size)


def torchvision(
    fields: Fields,
    size: tuple[int, int],
    sides: list[int],
    mode: str,
    shorter: str,
    colors: Mapping[str, Any],
) -> Preprocess:
    """Resize to `sides`, or the shorter by the mode `shorter`; crop the center."""
    interpolation = fields.get("interpolation") or "bicubic"
    if interpolation not in FILTERS or mode not in (shorter, "squash"):
        raise unsupported(
            f"interpolation={interpolation!r} with a resize by {mode!r} is not "
            "supported."
        )
    geometry: dict[str, Any] = {}
    if mode == shorter or sides != list(size):
        if size[0] != size[1]:
            raise unsupported(
                f"A crop of {size[0]} x {size[1]} pixels is not supported."
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


def change_pipeline(base: Preprocess, fields: Mapping[str, Any]) -> Preprocess:
    """A pipeline with other fields, or Hugging Face's that they describe."""
    if {"image_processor_type", "image_mean", "image_std", "size"} & set(fields):
        return hugging_face_pipeline(fields)
    return own_pipeline({**base.to_dict(), **fields})


OWN_FIELDS = {
    **dict.fromkeys(("height", "width", "resize_size"), read.integer),
    **dict.fromkeys(("mean", "std"), read.colors),
    "orient": read.boolean,
}


def own_pipeline(fields: Mapping[str, Any]) -> Preprocess:
    """A `Preprocess` of fields that people write, with what means nothing named."""
    values = dict(fields)
    for key, parse in OWN_FIELDS.items():
        if key in values and (values[key] is not None or key != "resize_size"):
            values[key] = parse(key, values[key])
    return Preprocess.from_dict(values)
