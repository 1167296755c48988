"""The table of models: architecture, preprocessing, labels, source.

No behaviour depends on a model's name: every difference is a field of its row.
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from vitjax.data.images import Preprocess
from vitjax.data.labels import Labels, cifar100, imagenet1k, imagenet21k
from vitjax.data.textured_digits import CLASSES
from vitjax.types import Config

AUGREG = "https://storage.googleapis.com/vit_models/augreg/"
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/"
DEIT = "https://dl.fbaipublicfiles.com/deit/"
TRM = (
    "https://github.com/Muzammal-Naseer/Improving-Adversarial-Transferability-of-"
    "Vision-Transformers/releases/download/v0/deit_base_trm.pth"
)


Shape = dict[str, Any]
"""Fields of a `Config` that rows share."""


def digits() -> Labels:
    """Names and ids of the embedded data set's classes."""
    return CLASSES, CLASSES


def unlabelled() -> Labels:
    """Of an architecture that has no row."""
    return (), ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Args:
        name: what `load` calls it.
        config: the architecture.
        preprocess: image to array, as the weights expect it.
        labels: makes (class names, class ids).
        url: where the weights are published, or "".
        tag: the exact name of the same weights on the Hugging Face hub, or "": a bare
            timm name may stand for other weights.
        packaged: folder of weights that comes with vitjax, or "".
        sha256: of the file at `url`, or the first digits of it, as far as public
            metadata tell; "" where they do not.
        licence: of the weights.
        source: in words: data, recipe, who published it.
        obtain: for weights without a URL: how to get them.
    """

    name: str
    config: Config
    preprocess: Preprocess
    labels: Callable[[], Labels]
    url: str = ""
    tag: str = ""
    packaged: str = ""
    sha256: str = ""
    licence: str = ""
    source: str = ""
    obtain: str = ""


TINY: Shape = dict(dim=192, depth=12, heads=3, mlp_dim=768)
SMALL: Shape = dict(dim=384, depth=12, heads=6, mlp_dim=1536)
BASE: Shape = dict(dim=768, depth=12, heads=12, mlp_dim=3072)
LARGE: Shape = dict(dim=1024, depth=24, heads=16, mlp_dim=4096)

IMAGENET: dict[str, Any] = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's colours, which torchvision's pipelines use."""


@dataclasses.dataclass(frozen=True)
class AugReg:
    """An architecture of Steiner et al. 2021, and what its published files are called.

    Args:
        size: letters in file names.
        timm: the size in timm's names.
        patch: patch size.
        shape: the rest of the architecture.
        pretraining: the recipe in the names of its files.
        rate: learning rate of the fine-tuning to 224.
        large: the recipe of the 384 file where it is another; "" where there is none.
    """

    size: str
    timm: str
    patch: int
    shape: Shape
    pretraining: str
    rate: str
    large: str | None = ""


def recipe(augment: str, decay: str, dropout: str) -> str:
    """The part of an AugReg file's name that says how it was pre-trained."""
    return f"i21k-300ep-lr_0.001-aug_{augment}-wd_{decay}-do_{dropout}-sd_{dropout}"


AUGREG_MODELS = (
    AugReg("Ti", "tiny", 16, TINY, recipe("none", "0.03", "0.0"), "0.03"),
    AugReg("S", "small", 32, SMALL, recipe("light1", "0.03", "0.0"), "0.03"),
    AugReg("S", "small", 16, SMALL, recipe("light1", "0.03", "0.0"), "0.03"),
    AugReg(
        *("B", "base", 32, BASE, recipe("medium1", "0.03", "0.0"), "0.03"),
        large=recipe("light1", "0.1", "0.0"),
    ),
    AugReg("B", "base", 16, BASE, recipe("medium1", "0.1", "0.0"), "0.01"),
    AugReg("B", "base", 8, BASE, recipe("medium1", "0.1", "0.0"), "0.01", large=None),
    AugReg("L", "large", 16, LARGE, recipe("medium1", "0.1", "0.1"), "0.01"),
)


def augreg(model: AugReg, *, size: int, classes: int) -> Variant:
    """A row of Steiner et al. 2021: ImageNet-21k, or then ImageNet-1k."""
    name = f"vit_{model.size.lower()}{model.patch}"
    tag = f"timm/vit_{model.timm}_patch{model.patch}_{size}.augreg_in21k"
    file = f"{model.size}_{model.patch}-"
    file += (model.large or model.pretraining) if size == 384 else model.pretraining
    common: dict[str, Any] = dict(
        config=Config(size, model.patch, **model.shape),
        preprocess=Preprocess(size, size),
        licence="Apache-2.0",
    )
    if classes == 21843:
        return Variant(
            name=f"{name}_in21k",
            labels=imagenet21k,
            url=f"{AUGREG}{file}.npz",
            tag=tag,
            source="AugReg, ImageNet-21k",
            **common,
        )
    rate = "0.03" if size == 384 and model.large else model.rate
    return Variant(
        name=name if size == 224 else f"{name}_{size}",
        labels=imagenet1k,
        url=f"{AUGREG}{file}--imagenet2012-steps_20k-lr_{rate}-res_{size}.npz",
        tag=f"{tag}_ft_in1k",
        source="AugReg, ImageNet-21k then 1k",
        **common,
    )


def deit(size: str, timm: str, digest: str, shape: Shape) -> Variant:
    """A data-efficient ViT without distillation (Touvron et al. 2021)."""
    return Variant(
        name=f"deit_{size}16",
        config=Config(224, 16, **shape),
        preprocess=Preprocess(
            *(224, 224),
            resize="shorter",
            resize_size=256,
            interpolation="bicubic",
            **IMAGENET,
        ),
        labels=imagenet1k,
        url=f"{DEIT}deit_{timm}_patch16_224-{digest}.pth",
        tag=f"timm/deit_{timm}_patch16_224.fb_in1k",
        sha256=digest,
        licence="Apache-2.0",
        source="DeiT, ImageNet-1k",
    )


def refinement(name: str, *, heads: bool) -> Variant:
    """DeiT-B with or without its eleven refinement modules (Naseer et al. 2022)."""
    return Variant(
        name=name,
        config=Config(224, 16, **BASE, refinement=heads),
        preprocess=Preprocess(
            *(224, 224),
            resize="square",
            resize_size=256,
            interpolation="bicubic",
            **IMAGENET,
        ),
        labels=imagenet1k,
        url=TRM,
        licence="not stated",
        source="DeiT-B with token refinement (Naseer et al.), ImageNet-1k",
    )


ROWS = (
    Variant(
        name="textured_digits",
        config=Config(64, 8, dim=128, depth=6, heads=4, mlp_dim=512),
        preprocess=Preprocess(64, 64),
        labels=digits,
        packaged="textured_digits",
        licence="Apache-2.0",
        source="our own recipe, the embedded data",
    ),
    *(augreg(model, size=224, classes=1000) for model in AUGREG_MODELS),
    *(
        augreg(model, size=384, classes=1000)
        for model in AUGREG_MODELS
        if model.large is not None
    ),
    *(augreg(model, size=224, classes=21843) for model in AUGREG_MODELS),
    deit("ti", "tiny", "a1311bcf", TINY),
    deit("s", "small", "cd65a155", SMALL),
    deit("b", "base", "b5f2ef4d", BASE),
    Variant(
        name="vit_b16_cifar100",
        config=Config(224, 16, **BASE),
        preprocess=Preprocess(224, 224),
        labels=cifar100,
        licence="not stated",
        source="the paper's authors: ViT-B/16, ImageNet-21k then CIFAR-100",
        obtain="The paper's authors keep vit_base_patch16_224-CIFAR100.pt on Google "
        "Drive; github.com/martinagvilas/vit-cls_emb links to it. Download it there "
        "and pass its path as checkpoint= (on the command line --checkpoint). Any "
        "ViT-B/16 for CIFAR-100 in timm's or Hugging Face's layout also does.",
    ),
    Variant(
        name="vit_b16_miil",
        config=Config(224, 16, **BASE, qkv_bias=False),
        preprocess=Preprocess(
            *(224, 224),
            resize="shorter",
            resize_size=256,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        ),
        labels=imagenet1k,
        url=f"{TIMM}v0.1-tresnet/vit_base_patch16_224_1k_miil_84_4-2deb18e3.pth",
        tag="timm/vit_base_patch16_224_miil.in21k_ft_in1k",
        sha256="2deb18e3",
        licence="MIT",
        source="MIIL, ImageNet-21k-P then 1k",
    ),
    refinement("vit_b16_refinement", heads=False),
    refinement("vit_b16_refinement_heads", heads=True),
    Variant(
        name="vit_b16_gap",
        config=Config(
            *(224, 16),
            **BASE,
            class_token=False,
            norm="residual_post",
            qkv_bias=False,
        ),
        preprocess=Preprocess(224, 224),
        labels=imagenet1k,
        url=f"{TIMM}v0.1-tpu-weights/vit_base_patch16_rpn_224-sw-3b07e89d.pth",
        tag="timm/vit_base_patch16_rpn_224.sw_in1k",
        sha256="3b07e89d",
        licence="Apache-2.0",
        source="timm, ImageNet-1k",
    ),
)

VARIANTS = {row.name: row for row in ROWS}


def list_models() -> tuple[str, ...]:
    """Names that `load` and `init` know.

    Returns:
        The names; `VARIANTS` maps each to its row of the table.
    """
    return tuple(VARIANTS)


def find(name: str) -> Variant:
    """The row of that name.

    Raises:
        ValueError: there is none; the message has near names.
    """
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"There is no model {name!r}.{hint} Known: {', '.join(VARIANTS)}; or pass "
            "a vitjax.Config with checkpoint=, or the folder of a converted checkpoint."
        )
    return VARIANTS[name]


def anonymous(config: Config) -> Variant:
    """A row for an architecture that has none."""
    return Variant(
        name="",
        config=config,
        preprocess=Preprocess(*config.shape),
        labels=unlabelled,
    )
