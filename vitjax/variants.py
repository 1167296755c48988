"""The table of models: architecture, preprocessing, labels, source; load and init.

No behaviour depends on a model's name: every difference is a field of its row.
"""

import dataclasses
import difflib
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vitjax.data.demo import CLASSES
from vitjax.data.images import Preprocess
from vitjax.models import files
from vitjax.models.convert import convert, count_classes
from vitjax.models.model import Model, Provenance, initialise
from vitjax.models.tree import flatten
from vitjax.types import Config

AUGREG = "https://storage.googleapis.com/vit_models/augreg/"
AUGREG_LICENCE = "Apache-2.0"


@functools.cache
def imagenet1k() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and WordNet ids of ImageNet-1k, in the order of the logits."""
    path = pathlib.Path(__file__).parent / "data" / "imagenet1k.tsv"
    rows = [line.split("\t") for line in path.read_text("utf8").splitlines()]
    return tuple(name for _, _, name in rows), tuple(wnid for _, wnid, _ in rows)


def digits() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and ids of the embedded data set's classes."""
    return CLASSES, CLASSES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Args:
        name: what `load` calls it.
        config: the architecture.
        preprocess: image to array, as the weights expect it.
        labels: makes (class names, class ids).
        url: where the weights are published, or "".
        packaged: folder of weights that comes with vitjax, or "".
        sha256: of the file at `url`, or "" where it could not be established.
        licence: of the weights.
    """

    name: str
    config: Config
    preprocess: Preprocess
    labels: Callable[[], tuple[tuple[str, ...], tuple[str, ...]]]
    url: str = ""
    packaged: str = ""
    sha256: str = ""
    licence: str = ""


def augreg(name: str, file: str, **architecture: Any) -> Variant:
    """An AugReg ViT, ImageNet-21k then ImageNet-1k at 224 (Steiner et al. 2021)."""
    return Variant(
        name=name,
        config=Config(image_size=224, **architecture),
        preprocess=Preprocess(224, 224),
        labels=imagenet1k,
        url=f"{AUGREG}{file}.npz",
        licence=AUGREG_LICENCE,
    )


TINY = dict(dim=192, depth=12, heads=3, mlp_dim=768)
SMALL = dict(dim=384, depth=12, heads=6, mlp_dim=1536)
BASE = dict(dim=768, depth=12, heads=12, mlp_dim=3072)
LARGE = dict(dim=1024, depth=24, heads=16, mlp_dim=4096)

ROWS = (
    Variant(
        name="textured_digits",
        config=Config(64, 8, dim=128, depth=6, heads=4, mlp_dim=512),
        preprocess=Preprocess(64, 64),
        labels=digits,
        packaged="textured_digits",
        licence="Apache-2.0",
    ),
    augreg(
        "vit_ti16",
        "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"
        "--imagenet2012-steps_20k-lr_0.03-res_224",
        patch_size=16,
        **TINY,
    ),
    augreg(
        "vit_s32",
        "S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0"
        "--imagenet2012-steps_20k-lr_0.03-res_224",
        patch_size=32,
        **SMALL,
    ),
    augreg(
        "vit_s16",
        "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0"
        "--imagenet2012-steps_20k-lr_0.03-res_224",
        patch_size=16,
        **SMALL,
    ),
    augreg(
        "vit_b32",
        "B_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.03-do_0.0-sd_0.0"
        "--imagenet2012-steps_20k-lr_0.03-res_224",
        patch_size=32,
        **BASE,
    ),
    augreg(
        "vit_b16",
        "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
        "--imagenet2012-steps_20k-lr_0.01-res_224",
        patch_size=16,
        **BASE,
    ),
    augreg(
        "vit_l16",
        "L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1"
        "--imagenet2012-steps_20k-lr_0.01-res_224",
        patch_size=16,
        **LARGE,
    ),
)

VARIANTS = {row.name: row for row in ROWS}


def list_models() -> tuple[str, ...]:
    """Names that `load` and `init` know.

    Returns:
        The names; `vitjax.variants.VARIANTS` maps each to its row of the table.
    """
    return tuple(VARIANTS)


def load(
    model: str | Config,
    *,
    checkpoint: str | os.PathLike | None = None,
    classes: int | Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Model:
    """A model with its published, packaged or own weights.

    Args:
        model: a name out of `list_models()`, an architecture, or the path of a folder
            that `vitjax convert` wrote.
        checkpoint: your own file (`.npz`, `.safetensors`, `.pth`) or such a folder,
            local or remote. Without it a named model comes from the package, or is
            downloaded once into `VITJAX_CACHE` or the user's cache.
        classes: class names, or their number, where they are not the row's.
        image_size: another input size; position embeddings are resized in the way of
            the library that the file comes from.

    Returns:
        The model, float32, on the default device.

    Raises:
        ValueError: no such name, or neither name nor checkpoint.
        FileNotFoundError: there is no such file, or it cannot be downloaded.
        CheckpointError: the file cannot be read or does not fit; what is missing and
            what is extra is listed.
    """
    if isinstance(model, str) and model not in VARIANTS and os.path.isdir(model):
        return load_folder(model, None, classes, image_size)
    row = find(model) if isinstance(model, str) else anonymous(model)
    path = checkpoint if checkpoint is not None else weights(row)
    if is_folder(path):
        return load_folder(path, row, classes, image_size)
    return load_file(path, row, classes, image_size)


def init(
    model: str | Config,
    *,
    seed: int = 0,
    classes: int | Sequence[str] | None = None,
) -> Model:
    """A model with random weights: the paper's control.

    As timm 0.6.12, which the paper's control uses: weights of dense layers and position
    embeddings are normal with deviation 0.02, [CLS] and registers with 1e-6, the patch
    embedding is uniform in +-1/sqrt(fan-in), biases 0, norms 1 and 0. In
    residual-post-norm blocks the norms' scales start at 1e-5, which makes every block
    all but an identity: that control is degenerate, its class logits are constant over
    depth.

    Args:
        model: a name out of `list_models()`, or an architecture.
        seed: same seed, same weights.
        classes: class names or their number; by default the row's, or 1000.

    Returns:
        The model, float32.

    Raises:
        ValueError: no such name.
    """
    row = find(model) if isinstance(model, str) else anonymous(model)
    known = row.labels()
    names, ids = labels(classes, known if known[0] else numbered(1000))
    return initialise(
        row.config,
        classes=names,
        class_ids=ids,
        seed=seed,
        preprocess=row.preprocess,
        provenance=Provenance(name=row.name, path=f"random weights, seed {seed}"),
    )


def save(model: Model, folder: str | os.PathLike, *, dtype: Any = "float32") -> None:
    """Write a model as our own folder, which `load` reads back.

    Args:
        model: the model.
        folder: made where it does not exist.
        dtype: of the arrays on disk; float32 reloads bit for bit.
    """
    arrays = {k: np.asarray(v).astype(dtype) for k, v in flatten(model.params).items()}
    config = {
        "format": "vitjax",
        "name": model.provenance.name,
        "config": dataclasses.asdict(model.config),
        "classes": model.classes,
        "class_ids": model.class_ids,
        "preprocess": model.preprocess and model.preprocess.to_dict(),
        "position_resize": model.provenance.position_resize,
        "source": {"path": model.provenance.path, "sha256": model.provenance.sha256},
    }
    files.write_folder(folder, arrays, config)


def find(name: str) -> Variant:
    """The row of that name."""
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
        labels=lambda: ((), ()),
    )


def numbered(count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of classes that have none: their numbers."""
    names = tuple(map(str, range(count)))
    return names, names


def labels(classes, known) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(class names, class ids), where the caller may have given names or a number."""
    if classes is None:
        return known
    if isinstance(classes, int):
        return known if classes == len(known[0]) else numbered(classes)
    names = tuple(classes)
    if len(set(names)) < len(names) or isinstance(classes, str):
        raise ValueError(
            f"classes must be distinct names, or their number; got {classes!r}."
        )
    return names, names


def load_file(path, row: Variant, classes, image_size) -> Model:
    """A foreign file as a model of a row's architecture."""
    config = resized(row.config, image_size)
    with files.open_arrays(path) as arrays:
        known = row.labels()
        known = known if known[0] else numbered(count_classes(arrays))
        names, ids = labels(classes, known)
        params, position_resize = convert(arrays, config, classes=len(names))
    return Model(
        params=params,
        config=config,
        classes=names,
        class_ids=ids,
        preprocess=row.preprocess.resized_to(*config.shape),
        provenance=Provenance(
            name=row.name,
            path=os.fspath(path),
            sha256=files.sha256(path),
            position_resize=position_resize,
        ),
    )


def load_folder(folder, row: Variant | None, classes, image_size) -> Model:
    """Our own folder as a model; what it says of itself must fit the row."""
    written = files.read_config(folder)
    config = Config.from_dict(written["config"])
    if row is not None and dataclasses.replace(
        row.config, image_size=config.image_size
    ) != dataclasses.replace(config):
        raise files.CheckpointError(
            f"{folder} holds {config}, but {row.name or 'the architecture asked for'} "
            f"is {row.config}. Load it by its own name or path."
        )
    if image_size is None and row is not None:
        image_size = row.config.image_size
    config = resized(config, image_size)
    preprocess = written["preprocess"]
    known = (tuple(written["classes"]), tuple(written["class_ids"]))
    names, ids = labels(classes, known)
    file = pathlib.Path(folder) / files.ARRAYS
    with files.open_arrays(file) as arrays:
        resize = written["position_resize"]
        params, _ = convert(arrays, config, classes=len(names), resize=resize)
    return Model(
        params=params,
        config=config,
        classes=names,
        class_ids=ids,
        preprocess=preprocess
        and Preprocess.from_dict(preprocess).resized_to(*config.shape),
        provenance=Provenance(
            name=written["name"],
            path=os.fspath(folder),
            sha256=files.sha256(file),
            position_resize=resize,
        ),
    )


def resized(config: Config, image_size) -> Config:
    """The architecture at another input size."""
    if image_size is None:
        return config
    return dataclasses.replace(config, image_size=image_size)


def is_folder(path) -> bool:
    """Whether a path, local or remote, is a folder."""
    from etils import epath

    return epath.Path(path).is_dir()


def packaged(folder: str) -> pathlib.Path:
    """A checkpoint that comes with vitjax: in a wheel, or in a clone beside it."""
    package = pathlib.Path(__file__).parent
    for root in (package / "checkpoints", package.parent / "checkpoints"):
        if (root / folder / files.CONFIG).exists():
            return root / folder
    raise FileNotFoundError(
        f"The packaged checkpoint {folder} is missing from this installation of "
        "vitjax; install it again, or pass checkpoint=."
    )


def weights(row: Variant) -> pathlib.Path:
    """Where a row's own weights lie on this machine; downloaded where they do not."""
    if row.packaged:
        return packaged(row.packaged)
    if not row.url:
        raise ValueError(
            "An architecture has no weights of its own: pass checkpoint= with a file, "
            "or call vitjax.init for random ones."
        )
    return download(row)


def cached(row: Variant) -> pathlib.Path:
    """Where the file of a row is, or would be, kept."""
    import pooch

    cache = os.environ.get("VITJAX_CACHE") or pooch.os_cache("vitjax")
    return pathlib.Path(cache) / row.url.rsplit("/", 1)[-1]


def download(row: Variant) -> pathlib.Path:
    """Fetch a row's file into the cache, once."""
    import pooch

    target = cached(row)
    if target.exists() and not row.sha256:
        return target
    known_hash = f"sha256:{row.sha256}" if row.sha256 else None
    try:
        pooch.retrieve(
            row.url, known_hash, target.name, target.parent, progressbar=True
        )
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{row.name} could not be downloaded from {row.url} "
            f"({type(error).__name__}). On a machine with network, download it and put "
            f"it at {target}, or pass checkpoint= with its path (on the command line "
            "--checkpoint)."
        ) from error
    return target
