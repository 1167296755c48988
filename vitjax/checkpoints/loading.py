"""Load, initialize and save models."""

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args

import numpy as np
from etils import epath

from vitjax import messages
from vitjax.checkpoints import download, files, huggingface, json_fields, timm
from vitjax.checkpoints.class_files import read_class_file
from vitjax.checkpoints.convert import Checkpoint, Weights, detect_layout
from vitjax.checkpoints.positions import RESIZE
from vitjax.checkpoints.registry import VARIANTS, Variant, anonymous, find
from vitjax.data.images import Preprocess
from vitjax.data.labels import Labels, imagenet1k
from vitjax.models.model import Model, Provenance, flatten, initialize
from vitjax.types import Config

LOG = logging.getLogger(__name__)

OWN_KEYS = ("name", "config", "classes", "class_ids", "preprocess", "position_resize")
"""Keys of our own config.json, apart from its format and source."""

STORES = ("gs://", "s3://")

Classes = Any
"""Class names in any iterable or by number, their number, a class file, or None."""


def load(
    model: str | os.PathLike | Config,
    *,
    checkpoint: str | os.PathLike | None = None,
    classes: Classes = None,
    image_size: int | tuple[int, int] | None = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    weights: str | None = None,
    allow_nonfinite: bool = False,
) -> Model:
    """A model with its published, packaged or own weights.

    What lies beside the weights (a config.json and preprocessor_config.json of Hugging
    Face, or timm's config.json) says more of them than the table of models: its
    pipeline, class names, epsilon and GELU are taken, unless you give your own.
    `model.provenance` and `vitjax list NAME` say where each came from.

    Args:
        model: a name out of `list_models()`, an architecture, or a folder: one that
            `vitjax convert` wrote, a ViT or DeiT that transformers saved, or a ViT
            that timm did.
        checkpoint: your own file (`.npz`, `.safetensors`, `.pth` and other endings of
            PyTorch, the index of shards) or such a folder, local or remote, or an
            http(s) address, which is downloaded once. Without it a named model comes
            from the package, or is downloaded once into `VITJAX_CACHE` or the user's
            cache. Weights are found wherever they are nested in the file.
        classes: class names, or their number, where they are not the file's or the
            row's. Or a class file, which gives a model that compares embeddings (CLIP,
            SigLIP) its classes: an npz or safetensors with the arrays embeddings
            [class embed] and classes, the names.
        image_size: another input size; position embeddings are resized as the library
            that wrote the file does.
        preprocess: your own pipeline, or single fields of it, such as
            `{"mean": (0.5, 0.5, 0.5)}`.
        weights: of a file that also holds a moving average of its weights, take the
            average ("ema", the default, as timm does) or the others ("plain").
        allow_nonfinite: load arrays with NaN or infinite values.

    Returns:
        The model, float32, on the default device. The file also decides what it has
        beyond the architecture that is given: input channels, LayerScale,
        normalization of queries and keys, SwiGLU, DeiT's distillation token (a
        register here) and its head.

    Raises:
        ValueError: no such name, or neither name nor checkpoint.
        FileNotFoundError: there is no such file, or it cannot be downloaded.
        CheckpointError: the file cannot be read or does not fit; what is missing and
            what is extra is listed.
    """
    messages.check_one_of("weights", weights, (None, *get_args(Weights)))
    if isinstance(classes, str | os.PathLike):
        class_file = read_class_file(classes)
        encoder = load(
            model,
            checkpoint=checkpoint,
            image_size=image_size,
            preprocess=preprocess,
            weights=weights,
            allow_nonfinite=allow_nonfinite,
        )
        return class_file.apply(encoder)
    if isinstance(model, Config):
        row, path = anonymous(model), checkpoint
    elif os.fspath(model) in VARIANTS or not is_folder(model):
        row, path = find(os.fspath(model)), checkpoint
    elif checkpoint is None or os.fspath(model) == os.fspath(checkpoint):
        row, path = None, model
    else:
        raise ValueError(
            f"model={os.fspath(model)!r} is a folder of its own weights: pass it "
            "without checkpoint=, or a name or vitjax.Config with checkpoint=."
        )
    if row is not None and path is None:
        path = download.weights(row)
    path, beside = locate(path)
    if row is None and not beside.library:
        raise unknown_folder(path)
    file = files.find_weights(path) if is_folder(path) else path
    resize = ""
    if beside.library == "vitjax":
        row, resize, image_size = own_row(path, beside.description, row, image_size)
    with files.open_arrays(file) as arrays:
        found = detect_layout(arrays, weights)
        if found.layout.library != beside.library:
            if row is None:
                raise unknown_folder(path, found.layout.name)
            beside = beside._replace(library="", description={})
        config, source_config, sources = architecture(found, row, beside, path)
        if image_size is not None:
            config = dataclasses.replace(config, image_size=image_size)
        pipeline, sources["preprocess"] = choose_preprocess(
            preprocess, config, row, beside
        )
        (names, ids), sources["classes"] = choose_classes(classes, found, row, beside)
        params, resize = found.params(
            config,
            classes=len(names),
            resize=resize,
            source_config=source_config,
            allow_nonfinite=allow_nonfinite,
        )
    if found.weights and weights is None:
        LOG.warning(
            "%s holds several sets of weights: %s is taken; weights='ema' or 'plain' "
            "(on the command line --weights) chooses.",
            path,
            found.weights,
        )
    return Model(
        params=params,
        config=config,
        classes=names,
        class_ids=ids,
        preprocess=pipeline,
        provenance=Provenance(
            name=row.name if row else "",
            path=os.fspath(path),
            sha256=files.sha256(file),
            position_resize=resize,
            weights=found.weights,
            ignored=found.describe_ignored(),
            sources=sources,
        ),
    )


class Beside(NamedTuple):
    """What lies beside the weights: descriptions by the library that wrote them.

    `description` is the config.json, `preprocessor` Hugging Face's second file; empty
    where there is none.
    """

    library: str = ""
    description: Mapping[str, Any] = {}
    preprocessor: Mapping[str, Any] = {}


def locate(path: Any) -> tuple[str, Beside]:
    """The path of a file or folder on this machine, and what lies beside the weights.

    The file of arrays in a folder of ours stands for the folder.
    """
    path = os.path.expanduser(os.fspath(path))
    if is_address(path):
        path = os.fspath(download.fetch(path))
    folder = epath.Path(path) if is_folder(path) else epath.Path(path).parent
    preprocessor = folder / "preprocessor_config.json"
    preprocessor = files.read_json(preprocessor) if preprocessor.exists() else {}
    description = {}
    if is_folder(path) or epath.Path(path).suffix != ".npz":
        description = files.read_config_json(folder)
    library = ""
    if description.get("format") == "vitjax":
        if is_folder(path) or epath.Path(path).name == files.ARRAYS:
            path, library = os.fspath(folder), "vitjax"
    elif str(description.get("model_type")) in huggingface.MODEL_TYPES:
        library = "huggingface"
    elif timm.describes(description):
        library = "timm"
    return path, Beside(library, description, preprocessor)


def unknown_folder(folder, layout: str = "") -> files.CheckpointError:
    """The error for a folder that does not say what it holds."""
    weights = f" for these weights (read as {layout})" if layout else ""
    return files.CheckpointError(
        f"{folder} holds a {files.CONFIG} of neither vitjax nor a Hugging Face ViT or "
        f"DeiT nor timm's ViT, or none at all{weights}. Give the folder or the file "
        "as checkpoint=, with a name or a vitjax.Config."
    )


def architecture(
    found: Checkpoint, row: Variant | None, beside: Beside, path
) -> tuple[Config, Config, dict[str, str]]:
    """(the model's architecture, the file's, where epsilon and GELU come from)."""
    library, description = beside.library, beside.description
    of_file = f"file {files.CONFIG}"
    if row is None and library == "timm":
        config = timm.architecture(description, found)
    elif row is None:
        config = huggingface.architecture(description)
    else:
        config = row.config
    config = found.adjust(config)
    source = of_file
    if library != "vitjax" and row is not None:
        source = f"row {row.name}" if row.name else "you"
    sources = {"epsilon": source, "gelu": source}
    source_config = config
    if found.layout.library == "huggingface":
        config = huggingface.with_numerics(config, description)
        sources = dict.fromkeys(sources, of_file if description else "assumed")
    if library == "timm":
        config = dataclasses.replace(config, gelu=timm.gelu(description))
        sources["gelu"] = of_file
    if row is None or library == "vitjax":
        found.check_positions(config)
    elif library == "timm" or library == "huggingface":
        size = (
            timm.image_size(description)
            if library == "timm"
            else huggingface.image_size(description)
        )
        source_config = dataclasses.replace(config, image_size=size)
    return config, source_config, sources


def choose_preprocess(
    yours: Preprocess | Mapping[str, Any] | None,
    config: Config,
    row: Variant | None,
    beside: Beside,
) -> tuple[Preprocess | None, str]:
    """The pipeline in force, and where it comes from: you, the file, or the row."""
    if isinstance(yours, Preprocess):
        if (yours.height, yours.width) != config.shape:
            raise ValueError(
                f"preprocess makes images of {yours.height} x {yours.width} pixels, "
                f"but the model takes {config.shape[0]} x {config.shape[1]}."
            )
        return yours, "you"
    if config.channels != 3 and yours is None:
        return None, f"none: vitjax makes images of 3 channels, not {config.channels}"
    if row is not None and beside.library == "vitjax":
        base, source = row.preprocess, f"file {files.CONFIG}"
    elif beside.preprocessor:
        base = huggingface.preprocessing(beside.preprocessor, beside.description)
        source = "file preprocessor_config.json"
    elif beside.library == "timm":
        base, source = timm.preprocessing(beside.description), f"file {files.CONFIG}"
    elif row is not None and row.name:
        base, source = row.preprocess, f"row {row.name}"
    else:
        base, source = Preprocess(*config.shape), "assumed"
    if yours is not None:
        base, source = changed(base or Preprocess(*config.shape), yours), "you"
    return base and base.resized_to(*config.shape), source


def changed(base: Preprocess, fields: Mapping[str, Any]) -> Preprocess:
    """A pipeline with other fields, or Hugging Face's that they describe."""
    if {"image_processor_type", "image_mean", "image_std", "size"} & set(fields):
        return huggingface.preprocessing(fields)
    return own_pipeline({**base.to_dict(), **fields})


def own_pipeline(fields: Mapping[str, Any]) -> Preprocess:
    """A `Preprocess` of fields that people write, with what means nothing named."""
    values = dict(fields)
    for key in {"height", "width", "resize_size"} & set(values):
        if values[key] is not None or key != "resize_size":
            values[key] = json_fields.integer(key, values[key])
    for key in {"mean", "std"} & set(values):
        values[key] = json_fields.colors(key, values[key])
    if "orient" in values:
        values["orient"] = json_fields.boolean("orient", values["orient"])
    return Preprocess.from_dict(values)


def choose_classes(
    yours: Classes, found: Checkpoint, row: Variant | None, beside: Beside
) -> tuple[Labels, str]:
    """Class names and ids in force, and where they come from."""
    known, source = ((), ()), ""
    if row is not None:
        known = row.labels()
        source = f"row {row.name}" if row.name else ""
        source = f"file {files.CONFIG}" if beside.library == "vitjax" else source
    described = ((), ())
    if beside.library == "huggingface" and yours is None:
        names = huggingface.class_names(beside.description)
        imagenet, wordnet_ids = imagenet1k()
        ids = wordnet_ids if names == imagenet else json_fields.unique_ids(names)
        unnamed = tuple(f"LABEL_{number}" for number in range(len(names)))
        if names != unnamed or not known[0]:
            described = names, ids
    elif beside.library == "timm" and yours is None:
        described = timm.labels(beside.description)
    if described[0]:
        known, source = described, f"file {files.CONFIG}"
    if not known[0]:
        known, source = numbered(found.count_classes()), "assumed: their numbers"
    return labels(yours, known), source if yours is None else "you"


def init(
    model: str | Config,
    *,
    seed: int = 0,
    classes: Classes = None,
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
        classes: class names or their number; by default the row's, or 1000. Or a class
            file, as for `load`.

    Returns:
        The model, float32.

    Raises:
        ValueError: no such name.
    """
    if isinstance(classes, str | os.PathLike):
        return read_class_file(classes).apply(init(model, seed=seed))
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
    return not is_address(path) and epath.Path(path).is_dir()


def is_address(path: str | os.PathLike) -> bool:
    """Whether a path is on the web, and not in a store that is read as folders are."""
    return "://" in os.fspath(path) and not os.fspath(path).startswith(STORES)


def numbered(count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and ids of classes that have none: their numbers."""
    names = tuple(map(str, range(count)))
    return names, names


def labels(classes: Classes, known: Labels) -> Labels:
    """(class names, class ids): those known, or of the caller's names or number."""
    if hasattr(classes, "tolist"):  # numpy's and JAX's arrays and numbers
        classes = classes.tolist()  # pyright: ignore
    if classes is None:
        return known
    if isinstance(classes, int) and not isinstance(classes, bool):
        messages.check_range("classes", classes, 1)
        return known if classes == len(known[0]) else numbered(classes)
    if isinstance(classes, Mapping):
        names = json_fields.class_names("classes", classes)
    elif isinstance(classes, Iterable) and not isinstance(classes, str | bytes | set):
        names = tuple(map(json_fields.class_name, classes))
    else:
        names = ()
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"classes must be distinct names, or their number; got {classes!r}."
        )
    return names, names


def own_row(
    folder,
    description: Mapping[str, Any],
    row: Variant | None,
    image_size: int | tuple[int, int] | None,
) -> tuple[Variant, str, int | tuple[int, int] | None]:
    """The row that a folder of `save` describes, which must fit the one given; how its
    positions are resized; the image size.
    """
    damaged = (
        f"{files.CONFIG} of {folder} %s: it is damaged, or another version of vitjax "
        "wrote it."
    )
    if missing := set(OWN_KEYS) - set(description):
        raise files.CheckpointError(damaged % f"lacks {', '.join(sorted(missing))}")
    try:
        config = Config.from_dict(description["config"])
        pipeline: Any = description["preprocess"]
        pipeline = pipeline and own_pipeline(pipeline)
        names = tuple(map(str, description["classes"]))
        ids = tuple(map(str, description["class_ids"]))
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise files.CheckpointError(damaged % f"is not understood ({error})") from error
    resize = description["position_resize"]
    messages.check_one_of("position_resize", resize, RESIZE)
    if row is not None:
        resized = dataclasses.replace(row.config, image_size=config.image_size)
        if resized != config:
            raise files.CheckpointError(
                f"{folder} holds {config}, but {row.name or 'the given architecture'} "
                f"is {row.config}. Load it by its own name or path."
            )
        image_size = row.config.image_size if image_size is None else image_size
    own = Variant(
        name=str(description["name"]),
        config=config,
        preprocess=pipeline,
        labels=lambda: (names, ids),
    )
    return own, resize, image_size
