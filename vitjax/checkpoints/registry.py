"""The table of models: architecture, preprocessing, labels, source.

No behavior depends on a model's name: every difference is a field of its row.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from vitjax import messages
from vitjax.checkpoints import configs
from vitjax.checkpoints.files import ARRAYS
from vitjax.data.images import Preprocess
from vitjax.data.labels import Labels, cifar100, imagenet1k, imagenet21k
from vitjax.data.textured_digits import CLASSES
from vitjax.types import Config

AUGREG = "https://storage.googleapis.com/vit_models/augreg/"
FACEBOOK = "https://dl.fbaipublicfiles.com/"
HUB = "https://huggingface.co/{}/resolve/main/{}"
OPENAI_URL = "https://openaipublic.azureedge.net/clip/models/"
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/"
TRM = (
    "https://github.com/Muzammal-Naseer/Improving-Adversarial-Transferability-of-"
    "Vision-Transformers/releases/download/v0/deit_base_trm.pth"
)


def no_labels() -> Labels:
    """Class names and ids of an encoder without a head."""
    return (), ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    `labels` makes (class names, class ids), none of an encoder without a head, and
    `head_labels` those of heads that are published as files of their own. `tag` is the
    exact name of the same weights on the Hugging Face hub, where `file` holds them: a
    bare timm name may stand for other weights. `aliases` are more names of them.
    `sha256` is that of the file at `url`, or its first digits, as far as public
    metadata tell. `packaged` is a folder of weights that comes with vitjax. `obtain`
    says how to get weights without a URL. "" and None stand for what is not known.
    """

    name: str
    config: Config
    preprocess: Preprocess | None
    family: str = ""
    labels: Callable[[], Labels] = imagenet1k
    head_labels: Callable[[], Labels] = no_labels
    url: str = ""
    tag: str = ""
    file: str = ARRAYS
    aliases: tuple[str, ...] = ()
    packaged: str = ""
    sha256: str = ""
    license: str = ""
    source: str = ""
    obtain: str = ""


SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "ti": ("tiny", dict(dim=192, depth=12, heads=3, mlp_dim=768)),
    "s": ("small", dict(dim=384, depth=12, heads=6, mlp_dim=1536)),
    "b": ("base", dict(dim=768, depth=12, heads=12, mlp_dim=3072)),
    "l": ("large", dict(dim=1024, depth=24, heads=16, mlp_dim=4096)),
    "h": ("huge", dict(dim=1280, depth=32, heads=16, mlp_dim=5120)),
    "so400m": ("so400m", dict(dim=1152, depth=27, heads=16, mlp_dim=4304)),
    "g": ("giant", dict(dim=1536, depth=40, heads=24, mlp_dim=4096, mlp="swiglu")),
}
"""Letters in our names -> the size in timm's names, and the architecture."""

SHORTER: dict[str, Any] = configs.DINOV2["pixels"]
CLIP_PIXELS: dict[str, Any] = configs.CLIP["pixels"]
OF_CLIP: dict[str, Any] = configs.CLIP["config"] | dict(epsilon=1e-5)


def build(
    name: str,
    *,
    config: Mapping[str, Any] = {},
    pixels: Mapping[str, Any] = {},
    license: str = "Apache-2.0",
    **fields: Any,
) -> Variant:
    """A row by letter, patch and image size in its name, and what it has beyond it."""
    letter, patch, size = re.search(r"_(so400m|[a-z]+)(\d+)(?:_(\d+))?", name).groups()  # pyright: ignore
    size = int(size or 224)
    return Variant(
        name=name,
        config=Config(size, int(patch), **SIZES[letter][1], **config),
        preprocess=Preprocess(size, size, **pixels),
        license=license,
        **fields,
    )


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


def augreg(letter: str, patch: int, size: int = 224, *, tuned: bool = True) -> Variant:
    """A row of Steiner et al. 2021: ImageNet-21k, then ImageNet-1k at an image size."""
    recipes = AUGREG_224 if size == 224 else AUGREG_384
    augment, decay, dropout, rate = recipes[letter, patch]
    small = letter.lower()
    file = (
        f"{letter}_{patch}-i21k-300ep-lr_0.001-aug_{augment}-wd_{decay}-do_{dropout}"
        f"-sd_{dropout}"
    )
    tag = f"timm/vit_{SIZES[small][0]}_patch{patch}_{size}.augreg_in21k"
    suffix, source, labels = "_in21k", "AugReg, ImageNet-21k", imagenet21k
    if tuned:
        file += f"--imagenet2012-steps_20k-lr_{rate}-res_{size}"
        tag += "_ft_in1k"
        suffix, source = "" if size == 224 else f"_{size}", f"{source} then 1k"
        labels = imagenet1k
    return build(
        f"vit_{small}{patch}{suffix}",
        family="AugReg",
        labels=labels,
        url=f"{AUGREG}{file}.npz",
        tag=tag,
        source=source,
    )


def deit(letter: str, digest: str) -> Variant:
    """A data-efficient ViT without distillation (Touvron et al. 2021)."""
    timm = f"deit_{SIZES[letter][0]}_patch16_224"
    return build(
        f"deit_{letter}16",
        family="DeiT",
        pixels=SHORTER,
        url=f"{FACEBOOK}deit/{timm}-{digest}.pth",
        tag=f"timm/{timm}.fb_in1k",
        sha256=digest,
        source="DeiT, ImageNet-1k",
    )


def refinement(name: str, *, heads: bool) -> Variant:
    """DeiT-B with or without its eleven refinement modules (Naseer et al. 2022)."""
    return build(
        name,
        family="DeiT",
        config=dict(refinement=heads),
        pixels=SHORTER | dict(resize="square"),
        url=TRM,
        license="not stated",
        source="DeiT-B with token refinement (Naseer et al.), ImageNet-1k",
    )


CLIP_PROJECTIONS = {"b": 512, "l": 768, "h": 1024}
"""Letter -> the width of embeddings."""


def clip(name: str, *, gelu: str, colors: Mapping = {}, **fields: Any) -> Variant:
    """A row of CLIP, or of a model with its architecture."""
    embedding = dict(projection=CLIP_PROJECTIONS[name[0]], head="cosine", gelu=gelu)
    return build(
        f"clip_{name}",
        family="CLIP",
        config=OF_CLIP | embedding,
        pixels={**CLIP_PIXELS, **colors},
        labels=no_labels,
        license="MIT",
        file="open_clip_model.safetensors",
        **fields,
    )


OPENAI = (
    ("B", 32, 224, "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    ("B", 16, 224, "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    ("L", 14, 224, "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    ("L", 14, 336, "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
)
"""Letter, patch, image size, and the digest that is in the address."""


def openai(letter: str, patch: int, size: int, digest: str) -> Variant:
    """A row of Radford et al. 2021."""
    word, at = SIZES[letter.lower()][0], "" if size == 224 else f"-{size}"
    name, timm = f"ViT-{letter}-{patch}{at}", f"timm/vit_{word}_patch{patch}_clip"
    return clip(
        f"{letter.lower()}{patch}{at.replace('-', '_')}_openai",
        gelu="quick",
        url=f"{OPENAI_URL}{digest}/{name}{at and 'px'}.pt",
        sha256=digest,
        tag=f"{timm}_{size}.openai",
        aliases=(
            f"openai/clip-vit-{word}-patch{patch}{at}",
            f"{timm}_quickgelu_{size}.openai",
            f"{name} openai",
            f"{name}-quickgelu openai",
        ),
        source="OpenAI CLIP, WIT-400M",
    )


LAION = (
    ("B", 32, "laion2B", "s34B-b79K"),
    ("B", 16, "laion2B", "s34B-b88K"),
    ("L", 14, "laion2B", "s32B-b82K"),
    ("H", 14, "laion2B", "s32B-b79K"),
    ("B", 32, "DataComp.XL", "s13B-b90K"),
    ("B", 16, "DataComp.XL", "s13B-b90K"),
    ("L", 14, "DataComp.XL", "s13B-b90K"),
)


def laion(letter: str, patch: int, data: str, training: str) -> Variant:
    """A row of open_clip (Cherti et al. 2023; Gadre et al. 2023)."""
    repository = f"laion/CLIP-ViT-{letter}-{patch}-{data}-{training}"
    name, word = data.split(".")[0].lower(), SIZES[letter.lower()][0]
    weights = f"{data.replace('.', '_')}_{training.replace('-', '_')}".lower()
    timm = "laion2b" if name == "laion2b" else "datacompxl"
    half = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    return clip(
        f"{letter.lower()}{patch}_{name}",
        gelu="erf",
        colors=half if (letter, name) == ("L", "laion2b") else {},
        url=HUB.format(repository, "open_clip_pytorch_model.bin"),
        tag=repository,
        aliases=(
            f"timm/vit_{word}_patch{patch}_clip_224.{timm}",
            f"ViT-{letter}-{patch} {weights}",
        ),
        source=f"OpenCLIP, {'LAION-2B' if name == 'laion2b' else 'DataComp-1B'}",
    )


CLIP_FINE_TUNED = (
    ("B", 32, "laion2b", 0.9),
    ("B", 16, "openai", 0.95),
    ("B", 16, "laion2b", 0.95),
    ("L", 14, "openai", 1.0),
    ("H", 14, "laion2b", 1.0),
)
"""Letter, patch, weights before, and the share of the image that a crop keeps."""


def clip_fine_tuned(letter: str, patch: int, data: str, share: float) -> Variant:
    """A CLIP that timm's author fine-tuned to classify: ImageNet-12k, then 1k."""
    word = SIZES[letter.lower()][0]
    tag = f"timm/vit_{word}_patch{patch}_clip_224.{data}_ft_in12k_in1k"
    return build(
        f"clip_{letter.lower()}{patch}_{data}_in1k",
        family="CLIP, fine-tuned",
        config=OF_CLIP,
        pixels=CLIP_PIXELS | dict(resize_size=math.floor(224 / share)),
        url=HUB.format(tag, ARRAYS),
        tag=tag,
        source=f"timm, {data} CLIP, then ImageNet-12k, then 1k",
    )


SIGLIP = (
    ("b", 16, 224),
    ("b", 16, 256),
    ("b", 16, 384),
    ("l", 16, 256),
    ("l", 16, 384),
    ("so400m", 14, 224),
    ("so400m", 14, 384),
)
"""Letter, patch and image size."""


def siglip(version: int, letter: str, patch: int, size: int) -> Variant:
    """A row of Zhai et al. 2023, or of SigLIP 2 (Tschannen et al. 2025).

    GELU is by tanh, as the weights were trained and transformers computes; timm and
    open_clip compute most of these image towers with erf, and logits differ in their
    third or fourth digit.
    """
    word, number = SIZES[letter][0], "" if version == 1 else "2"
    # timm and open_clip load the second so400m at 384 pixels as one of 378.
    theirs = 378 if (version, letter, size) == (2, "so400m", 384) else size
    at = "" if size == 224 else f"-{theirs}"
    webli = "webli" if version == 1 else "v2_webli"
    repository = f"google/siglip{number}-{word}-patch{patch}-{size}"
    name = f"ViT-{letter.upper()}-{patch}-SigLIP{number}{at}"
    return build(
        f"siglip{number}_{letter}{patch}{'' if size == 224 else f'_{size}'}",
        family="SigLIP",
        config=dict(
            **configs.SIGLIP["config"],
            gelu="tanh",
            head="cosine",
            sigmoid=True,
            truncate=size % patch != 0,
        ),
        pixels=configs.SIGLIP["pixels"],
        labels=no_labels,
        url=HUB.format(repository, ARRAYS),
        tag=repository,
        aliases=(
            f"timm/{name}",
            f"{name} webli",
            f"timm/vit_{word}_patch{patch}_siglip_{theirs}.{webli}",
        ),
        source=f"SigLIP{number and ' 2'}, WebLI",
    )


def dinov2(letter: str, registers: int) -> Variant:
    """A row of Oquab et al. 2023, or with registers of Darcet et al. 2024."""
    word, folder = SIZES[letter][0], f"dinov2_vit{letter}14"
    reg, hub, source = "", "", "DINOv2, LVD-142M"
    if registers:
        reg, hub = "_reg4", "-with-registers"
        source = "DINOv2 with registers, LVD-142M"
    return build(
        f"dinov2_{letter}14{reg[:4]}",
        family="DINOv2",
        config=dict(layer_scale=True, registers=registers),
        pixels=SHORTER,
        labels=no_labels,
        head_labels=imagenet1k,
        url=f"{FACEBOOK}dinov2/{folder}/{folder}{reg}_pretrain.pth",
        tag=f"timm/vit_{word}_patch14{reg}_dinov2.lvd142m",
        aliases=(f"facebook/dinov2{hub}-{word}", f"{folder}{reg[:4]}"),
        source=source,
    )


def mae(letter: str, patch: int, *, fine_tuned: bool) -> Variant:
    """A row of He et al. 2022: as pre-trained, without a head, or fine-tuned."""
    name, word = f"mae_{letter}{patch}", SIZES[letter][0]
    fields: dict[str, Any] = dict(family="MAE", pixels=SHORTER, license="CC-BY-NC-4.0")
    if fine_tuned:
        return build(
            f"{name}_in1k",
            config=dict(pool="mean"),
            url=f"{FACEBOOK}mae/finetune/mae_finetuned_vit_{word}.pth",
            source="MAE, then ImageNet-1k",
            **fields,
        )
    return build(
        name,
        labels=no_labels,
        url=f"{FACEBOOK}mae/pretrain/mae_pretrain_vit_{word}.pth",
        tag=f"timm/vit_{word}_patch{patch}_224.mae",
        aliases=(f"facebook/vit-mae-{word}",),
        source="MAE, ImageNet-1k without labels",
        **fields,
    )


ROWS = (
    Variant(
        name="textured_digits",
        family="vitjax",
        config=Config(64, 8, dim=128, depth=6, heads=4, mlp_dim=512),
        preprocess=Preprocess(64, 64),
        labels=lambda: (CLASSES, CLASSES),
        packaged="textured_digits",
        license="Apache-2.0",
        source="our own recipe, the embedded data",
    ),
    *(augreg(*key) for key in AUGREG_224),
    *(augreg(*key, 384) for key in AUGREG_384),
    *(augreg(*key, tuned=False) for key in AUGREG_224),
    deit("ti", "a1311bcf"),
    deit("s", "cd65a155"),
    deit("b", "b5f2ef4d"),
    refinement("vit_b16_refinement", heads=False),
    refinement("vit_b16_refinement_heads", heads=True),
    build(
        "vit_b16_cifar100",
        family="paper",
        labels=cifar100,
        license="not stated",
        source="the paper's authors: ViT-B/16, ImageNet-21k then CIFAR-100",
        obtain="The paper's authors keep vit_base_patch16_224-CIFAR100.pt on Google "
        "Drive; github.com/martinagvilas/vit-cls_emb links to it. Download it there "
        "and pass its path as checkpoint= (on the command line --checkpoint). Any "
        "ViT-B/16 for CIFAR-100 in timm's or Hugging Face's layout also does.",
    ),
    build(
        "vit_b16_miil",
        family="paper",
        config=dict(qkv_bias=False),
        pixels=dict(resize="shorter", resize_size=256, mean=(0.0,) * 3, std=(1.0,) * 3),
        url=f"{TIMM}v0.1-tresnet/vit_base_patch16_224_1k_miil_84_4-2deb18e3.pth",
        tag="timm/vit_base_patch16_224_miil.in21k_ft_in1k",
        sha256="2deb18e3",
        license="MIT",
        source="MIIL, ImageNet-21k-P then 1k",
    ),
    build(
        "vit_b16_gap",
        family="paper",
        config=dict(class_token=False, norm="residual_post", qkv_bias=False),
        url=f"{TIMM}v0.1-tpu-weights/vit_base_patch16_rpn_224-sw-3b07e89d.pth",
        tag="timm/vit_base_patch16_rpn_224.sw_in1k",
        sha256="3b07e89d",
        source="timm, ImageNet-1k",
    ),
    *(openai(*key) for key in OPENAI),
    *(laion(*key) for key in LAION),
    *(clip_fine_tuned(*key) for key in CLIP_FINE_TUNED),
    *(siglip(version, *key) for version in (1, 2) for key in SIGLIP),
    *(dinov2(letter, registers) for registers in (0, 4) for letter in "sblg"),
    *(
        mae(letter, patch, fine_tuned=fine_tuned)
        for fine_tuned in (False, True)
        for letter, patch in {"b": 16, "l": 16, "h": 14}.items()
    ),
)

VARIANTS = {row.name: row for row in ROWS}


def list_models() -> tuple[str, ...]:
    """Names that `load` and `init` know.

    Returns:
        The names; `VARIANTS` maps each to its row of the table.

    Example:
        >>> [name for name in vitjax.list_models() if name.startswith("dinov2")]
    """
    return tuple(VARIANTS)


def find(name: str) -> Variant:
    """The row of that name; raises ValueError with near names."""
    if name in VARIANTS:
        return VARIANTS[name]
    advice = (
        "`vitjax list` shows all. Or pass a vitjax.Config with checkpoint=, or the "
        "folder of a converted checkpoint."
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


def spelled_elsewhere(name: str) -> list[str]:
    """Rows that others call so, punctuation aside; several if it names no weights."""
    last = name.rsplit("/", 1)[-1]
    wanted = {squash(name), squash(last)}, {squash(last.partition(".")[0])}
    exact, stems = [], []
    for row in ROWS:
        names, bare = {row.name}, {row.name}
        for tag in filter(None, (row.tag, *row.aliases)):
            last = tag.rsplit("/", 1)[-1]
            stem, _, weights = last.partition(".")
            names |= {tag, last}
            bare.add(f"{stem}_in21k" if weights.endswith("_in21k") else stem)
        exact += [row.name] * bool(wanted[0] & set(map(squash, names)))
        stems += [row.name] * bool(wanted[1] & set(map(squash, bare)))
    return exact or stems


def squash(name: str) -> str:
    """Letters and digits alone, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def anonymous(config: Config) -> Variant:
    """A row for an architecture that has none."""
    return Variant(
        name="",
        config=config,
        preprocess=Preprocess(*config.shape),
        labels=no_labels,
    )
