"""The table of models: architecture, preprocessing, labels, source.

No behavior depends on a model's name: every difference is a field of its row.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from vitjax import messages
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    `labels` makes (class names, class ids). `tag` is the exact name of the same weights
    on the Hugging Face hub: a bare timm name may stand for other weights. `sha256` is
    that of the file at `url`, or its first digits, as far as public metadata tell.
    `packaged` is a folder of weights that comes with vitjax. `obtain` says how to get
    weights without a URL. "" and None stand for what is not known.
    """

    name: str
    config: Config
    preprocess: Preprocess | None
    labels: Callable[[], Labels] = imagenet1k
    url: str = ""
    tag: str = ""
    packaged: str = ""
    sha256: str = ""
    license: str = ""
    source: str = ""
    obtain: str = ""


TINY: dict[str, Any] = dict(dim=192, depth=12, heads=3, mlp_dim=768)
SMALL: dict[str, Any] = dict(dim=384, depth=12, heads=6, mlp_dim=1536)
BASE: dict[str, Any] = dict(dim=768, depth=12, heads=12, mlp_dim=3072)
LARGE: dict[str, Any] = dict(dim=1024, depth=24, heads=16, mlp_dim=4096)

TORCHVISION: dict[str, Any] = dict(
    resize_size=256,
    interpolation="bicubic",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
"""The usual pipeline of torchvision, with ImageNet's mean and deviation of colors."""
UNSCALED: dict[str, Any] = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

AUGREG_224 = {
    ("Ti", 16): ("none", "0.03", "0.0", "0.03"),
    ("S", 32): ("light1", "0.03", "0.0", "0.03"),
    ("S", 16): ("light1", "0.03", "0.0", "0.03"),
    ("B", 32): ("medium1", "0.03", "0.0", "0.03"),
    ("B", 16): ("medium1", "0.1", "0.0", "0.01"),
    ("B", 8): ("medium1", "0.1", "0.0", "0.01"),
    ("L", 16): ("medium1", "0.1", "0.1", "0.01"),
}
"""Letter and patch -> augmentation, weight decay and dropout of pre-training, and the
learning rate of fine-tuning, as in the names of published files."""
AUGREG_384 = AUGREG_224 | {("B", 32): ("light1", "0.1", "0.0", "0.03")}
del AUGREG_384["B", 8]
AUGREG_SIZES = {
    "Ti": ("tiny", TINY),
    "S": ("small", SMALL),
    "B": ("base", BASE),
    "L": ("large", LARGE),
}
"""Letters in file names -> the size in timm's names, and the architecture."""


def augreg(letters: str, patch: int, recipe: tuple[str, ...], *, size=224) -> Variant:
    """A row of Steiner et al. 2021: ImageNet-21k, then ImageNet-1k at an image size."""
    augment, decay, dropout, rate = recipe
    timm, shape = AUGREG_SIZES[letters]
    file = (
        f"{letters}_{patch}-i21k-300ep-lr_0.001-aug_{augment}-wd_{decay}-do_{dropout}"
        f"-sd_{dropout}--imagenet2012-steps_20k-lr_{rate}-res_{size}.npz"
    )
    name = f"vit_{letters.lower()}{patch}"
    return Variant(
        name=name if size == 224 else f"{name}_{size}",
        config=Config(size, patch, **shape),
        preprocess=Preprocess(size, size),
        url=AUGREG + file,
        tag=f"timm/vit_{timm}_patch{patch}_{size}.augreg_in21k_ft_in1k",
        license="Apache-2.0",
        source="AugReg, ImageNet-21k then 1k",
    )


def in21k(row: Variant) -> Variant:
    """An AugReg row before its fine-tuning."""
    return dataclasses.replace(
        row,
        name=f"{row.name}_in21k",
        labels=imagenet21k,
        url=row.url.partition("--imagenet2012")[0] + ".npz",
        tag=row.tag.removesuffix("_ft_in1k"),
        source="AugReg, ImageNet-21k",
    )


def deit(size: str, timm: str, digest: str, shape: dict[str, Any]) -> Variant:
    """A data-efficient ViT without distillation (Touvron et al. 2021)."""
    return Variant(
        name=f"deit_{size}16",
        config=Config(224, 16, **shape),
        preprocess=Preprocess(224, 224, resize="shorter", **TORCHVISION),
        url=f"{DEIT}deit_{timm}_patch16_224-{digest}.pth",
        tag=f"timm/deit_{timm}_patch16_224.fb_in1k",
        sha256=digest,
        license="Apache-2.0",
        source="DeiT, ImageNet-1k",
    )


def refinement(name: str, *, heads: bool) -> Variant:
    """DeiT-B with or without its eleven refinement modules (Naseer et al. 2022)."""
    return Variant(
        name=name,
        config=Config(224, 16, **BASE, refinement=heads),
        preprocess=Preprocess(224, 224, resize="square", **TORCHVISION),
        url=TRM,
        license="not stated",
        source="DeiT-B with token refinement (Naseer et al.), ImageNet-1k",
    )


AUGREG_ROWS = tuple(augreg(*key, recipe) for key, recipe in AUGREG_224.items())

ROWS = (
    Variant(
        name="textured_digits",
        config=Config(64, 8, dim=128, depth=6, heads=4, mlp_dim=512),
        preprocess=Preprocess(64, 64),
        labels=lambda: (CLASSES, CLASSES),
        packaged="textured_digits",
        license="Apache-2.0",
        source="our own recipe, the embedded data",
    ),
    *AUGREG_ROWS,
    *(augreg(*key, recipe, size=384) for key, recipe in AUGREG_384.items()),
    *map(in21k, AUGREG_ROWS),
    deit("ti", "tiny", "a1311bcf", TINY),
    deit("s", "small", "cd65a155", SMALL),
    deit("b", "base", "b5f2ef4d", BASE),
    Variant(
        name="vit_b16_cifar100",
        config=Config(224, 16, **BASE),
        preprocess=Preprocess(224, 224),
        labels=cifar100,
        license="not stated",
        source="the paper's authors: ViT-B/16, ImageNet-21k then CIFAR-100",
        obtain="The paper's authors keep vit_base_patch16_224-CIFAR100.pt on Google "
        "Drive; github.com/martinagvilas/vit-cls_emb links to it. Download it there "
        "and pass its path as checkpoint= (on the command line --checkpoint). Any "
        "ViT-B/16 for CIFAR-100 in timm's or Hugging Face's layout also does.",
    ),
    Variant(
        name="vit_b16_miil",
        config=Config(224, 16, **BASE, qkv_bias=False),
        preprocess=Preprocess(224, 224, resize="shorter", resize_size=256, **UNSCALED),
        url=f"{TIMM}v0.1-tresnet/vit_base_patch16_224_1k_miil_84_4-2deb18e3.pth",
        tag="timm/vit_base_patch16_224_miil.in21k_ft_in1k",
        sha256="2deb18e3",
        license="MIT",
        source="MIIL, ImageNet-21k-P then 1k",
    ),
    refinement("vit_b16_refinement", heads=False),
    refinement("vit_b16_refinement_heads", heads=True),
    Variant(
        name="vit_b16_gap",
        config=Config(
            224, 16, **BASE, class_token=False, norm="residual_post", qkv_bias=False
        ),
        preprocess=Preprocess(224, 224),
        url=f"{TIMM}v0.1-tpu-weights/vit_base_patch16_rpn_224-sw-3b07e89d.pth",
        tag="timm/vit_base_patch16_rpn_224.sw_in1k",
        sha256="3b07e89d",
        license="Apache-2.0",
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
    """The row of that name; raises ValueError with near names."""
    if name in VARIANTS:
        return VARIANTS[name]
    advice = (
        "Or pass a vitjax.Config with checkpoint=, or the folder of a converted "
        "checkpoint."
    )
    if ours := spelled_elsewhere(name):
        raise ValueError(
            f"model={name!r} is a name of another library. Here that architecture is "
            f"{' or '.join(map(repr, ours))}; `vitjax list` says with which weights. "
            "For other weights of it, pass their file or folder as checkpoint=."
        )
    if re.search(r"://|\.(?:npz|safetensors|pth|pt|bin|ckpt|tar|pkl)$", name):
        raise ValueError(
            f"model={name!r} is a file or an address, which does not identify its "
            "architecture: pass it as checkpoint=, and as model a name or a "
            "vitjax.Config."
        )
    if re.fullmatch(r"(?:hf[-_]hub:)?[\w.-]+/[\w.-]+", name):
        advice = (
            f"No folder {name} is on this machine: download a repository of the "
            "Hugging Face hub and pass its folder. " + advice
        )
    raise ValueError(f"{messages.unknown('model', name, VARIANTS)} {advice}")


def spelled_elsewhere(name: str) -> tuple[str, ...]:
    """Rows that timm, Hugging Face or the papers call so, whatever the punctuation."""
    last = name.rsplit("/", 1)[-1]
    wanted = {squash(name), squash(last), squash(last.partition(".")[0])}
    return tuple(row.name for row in ROWS if wanted & spellings(row))


def spellings(row: Variant) -> set[str]:
    """A row's names elsewhere: its tag, its tag's stem, and our own otherwise put."""
    _, _, exact = row.tag.partition("/")
    stem, _, weights = exact.partition(".")
    names = {exact, stem, row.name}
    if weights.endswith("_in21k"):
        names = {exact, f"{stem}_in21k", row.name}
    return {squash(each) for each in names if each}


def squash(name: str) -> str:
    """Letters and digits alone, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def anonymous(config: Config) -> Variant:
    """A row for an architecture that has none."""
    return Variant(
        name="",
        config=config,
        preprocess=Preprocess(*config.shape),
        labels=lambda: ((), ()),
    )
