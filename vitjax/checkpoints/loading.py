"""Load, initialize and save models."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vitjax import messages
from vitjax.checkpoints import files, huggingface
from vitjax.checkpoints.convert import detect_layout
from vitjax.checkpoints.download import weights
from vitjax.checkpoints.registry import VARIANTS, Variant, anonymous, find
from vitjax.data.images import Preprocess
from vitjax.data.labels import imagenet1k
from vitjax.models.model import Model, Provenance, flatten, initialize
from vitjax.types import Config

OWN_KEYS = ("name", "config", "classes", "class_ids", "preprocess", "position_resize")
"""Keys of our own config.json, apart from its format and source."""


def load(
    model: str | os.PathLike | Config,
    *,
    checkpoint: str | os.PathLike | None = None,
    classes: int | np.integer | Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Model:
    """A model with its published, packaged or own weights.

    Args:
        model: a name out of `list_models()`, an architecture, or a folder: one that
            `vitjax convert` wrote, or a ViT or DeiT that transformers saved.
        checkpoint: your own file (`.npz`, `.safetensors`, `.pth`) or such a folder,
            local or remote. Without it a named model comes from the package, or is
            downloaded once into `VITJAX_CACHE` or the user's cache.
        classes: class names, or their number, where they are not the row's.
        image_size: another input size; position embeddings are resized as the library
            that wrote the file does.

    Returns:
        The model, float32, on the default device. A Hugging Face file also decides the
        norms' epsilon (1e-12, or that of the config.json in its folder) and DeiT's
        distillation token, a register here.

    Raises:
        ValueError: no such name, or neither name nor checkpoint.
        FileNotFoundError: there is no such file, or it cannot be downloaded.
        CheckpointError: the file cannot be read or does not fit; what is missing and
            what is extra is listed.
    """
    if not isinstance(model, Config):
        model = os.fspath(model)
        if model not in VARIANTS and is_folder(model):
            return load_folder(model, None, classes, image_size)
    row = anonymous(model) if isinstance(model, Config) else find(model)
    path = weights(row) if checkpoint is None else os.path.expanduser(checkpoint)
    if is_folder(path):
        return load_folder(path, row, classes, image_size)
    return load_file(path, row, classes, image_size)


def init(
    model: str | Config,
    *,
    seed: int = 0,
    classes: int | np.integer | Sequence[str] | None = None,
) -> Model:
    """A model with random weights: the paper's control.

    As timm 0.6.12, which the paper's control uses: weights of dense layers and position
    embeddings are normal with deviation 0.02, [CLS] and registers with 1e-6, the patch
    embedding is uniform in +-1/sqrt(fan-in), biases 0, norms 1 and 0. In
    residual-post-norm blocks the norms' scales start at 1e-5, which makes every block
    almost an identity: that control is degenerate, its class logits are constant over
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
    return initialize(
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


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a path, local or remote, is a folder."""
    return epath.Path(path).is_dir()


def numbered(count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and ids of classes that have none: their numbers."""
    names = tuple(map(str, range(count)))
    return names, names


def labels(classes, known) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(class names, class ids): those known, or of the caller's names or number."""
    if classes is None:
        return known
    if isinstance(classes, int | np.integer):
        messages.check_range("classes", int(classes), 1)
        return known if classes == len(known[0]) else numbered(int(classes))
    names = tuple(classes)
    if len(set(names)) < len(names) or isinstance(classes, str):
        raise ValueError(
            f"classes must be distinct names, or their number; got {classes!r}."
        )
    return names, names


def load_file(
    path, row: Variant, classes, image_size, *, resize: str = "", origin: Any = None
) -> Model:
    """A file of arrays as a model of a row's architecture.

    `resize` is how position embeddings are resized, by default as its layout does;
    `origin` is what the provenance names, by default the file.
    """
    config = row.config
    if image_size is not None:
        config = dataclasses.replace(config, image_size=image_size)
    with files.open_arrays(path) as arrays:
        checkpoint = detect_layout(arrays)
        config = checkpoint.layout.adjust_config(
            config, checkpoint.keys, lambda: files.read_config_json(path)
        )
        known = row.labels()
        known = known if known[0] else numbered(checkpoint.count_classes())
        names, ids = labels(classes, known)
        params, resize = checkpoint.params(
            config, classes=len(names), resize=resize, source_config=row.config
        )
    return Model(
        params=params,
        config=config,
        classes=names,
        class_ids=ids,
        preprocess=row.preprocess and row.preprocess.resized_to(*config.shape),
        provenance=Provenance(
            name=row.name,
            path=os.fspath(origin or path),
            sha256=files.sha256(path),
            position_resize=resize,
        ),
    )


def load_folder(folder, row: Variant | None, classes, image_size) -> Model:
    """A folder that describes itself: ours, or Hugging Face's."""
    config_json = files.read_config(folder)
    if config_json.get("format") == "vitjax":
        return load_own(folder, config_json, row, classes, image_size)
    if config_json.get("model_type") not in ("vit", "deit"):
        raise files.CheckpointError(
            f"{folder} holds a {files.CONFIG} of neither vitjax nor a Hugging Face ViT "
            "or DeiT. Give the file itself as checkpoint=, with a vitjax.Config."
        )
    row = row or huggingface_row(folder, config_json)
    return load_file(files.find_weights(folder), row, classes, image_size)


def huggingface_row(folder, config_json: Mapping[str, Any]) -> Variant:
    """The row that a Hugging Face folder describes."""
    config = huggingface.architecture(config_json)
    preprocess = Preprocess(*config.shape)
    path = epath.Path(folder) / "preprocessor_config.json"
    if path.exists():
        preprocess = huggingface.preprocessing(files.read_json(path))
    names = huggingface.class_names(config_json)
    known, ids = imagenet1k()
    return Variant(
        name="",
        config=config,
        preprocess=preprocess,
        labels=lambda: (names, ids if names == known else names),
    )


def load_own(
    folder, config_json: Mapping[str, Any], row: Variant | None, classes, image_size
) -> Model:
    """A folder that `save` wrote; its architecture must fit the row."""
    if missing := set(OWN_KEYS) - set(config_json):
        raise files.CheckpointError(
            f"{files.CONFIG} of {folder} lacks {', '.join(sorted(missing))}: it is "
            "damaged, or another version of vitjax wrote it."
        )
    config = Config.from_dict(config_json["config"])
    if row is not None:
        resized = dataclasses.replace(row.config, image_size=config.image_size)
        if resized != config:
            raise files.CheckpointError(
                f"{folder} holds {config}, but {row.name or 'the given architecture'} "
                f"is {row.config}. Load it by its own name or path."
            )
        image_size = row.config.image_size if image_size is None else image_size
    names, ids = tuple(config_json["classes"]), tuple(config_json["class_ids"])
    preprocess: Any = config_json["preprocess"]
    own = Variant(
        name=config_json["name"],
        config=config,
        preprocess=preprocess and Preprocess.from_dict(preprocess),
        labels=lambda: (names, ids),
    )
    resize, file = config_json["position_resize"], files.find_weights(folder)
    return load_file(file, own, classes, image_size, resize=resize, origin=folder)
