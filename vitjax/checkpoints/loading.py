"""Load, initialize and save models; what a model does to an image, and who says so."""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import numpy as np
from etils import epath

from vitjax import messages
from vitjax.checkpoints import configs, download, files
from vitjax.checkpoints.classes import Classes, labels, numbered, read_class_file
from vitjax.checkpoints.convert import Checkpoint, Weights, detect_layout
from vitjax.checkpoints.registry import VARIANTS, Variant, anonymous, find
from vitjax.data.images import Preprocess
from vitjax.data.labels import Labels
from vitjax.models.model import Model, Provenance, flatten, initialize
from vitjax.types import Config

LOG = logging.getLogger(__name__)

STORES = ("gs://", "s3://")


def load(
    model: str | os.PathLike | Config,
    *,
    checkpoint: str | os.PathLike | None = None,
    classes: Classes = None,
    image_size: int | tuple[int, int] | None = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    weights: str | None = None,
    head: str | os.PathLike | None = None,
    allow_nonfinite: bool = False,
) -> Model:
    """A model with its published, packaged or own weights.

    What lies beside the weights (a config.json and preprocessor_config.json of Hugging
    Face, timm's config.json, open_clip_config.json) says more of them than the table of
    models: its pipeline, class names, epsilon and GELU are taken, unless you give your
    own. `model.provenance` and `vitjax list NAME` say where each came from.

    Args:
        model: a name out of `list_models()`, an architecture, or a folder: one that
            `vitjax convert` wrote, a ViT, DeiT, CLIP, SigLIP or DINOv2 that
            transformers saved, a ViT that timm did, or a CLIP that open_clip did.
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
        head: a file with a linear head of its own, as DINOv2's are: it reads [CLS], or
            [CLS] of several blocks and the mean of the patches, as its width tells.
        allow_nonfinite: load arrays with NaN or infinite values.

    Returns:
        The model, float32, on the default device. The file also decides what it has
        beyond the architecture that is given: input channels, LayerScale, a norm
        before the blocks, normalization of queries and keys, SwiGLU, a projection,
        attention pooling, DeiT's distillation token (a register here) and its head.
        An encoder without a head has no classes.

    Raises:
        ValueError: no such name, or neither name nor checkpoint.
        FileNotFoundError: there is no such file, or it cannot be downloaded.
        CheckpointError: the file cannot be read or does not fit; what is missing and
            what is extra is listed.

    Example:
        >>> model = vitjax.load("vit_b16")
        >>> model = vitjax.load("vit_b16", checkpoint="B_16.npz")  # your own file
    """
    messages.check_one_of("weights", weights, (None, *get_args(Weights)))
    class_file = None
    if isinstance(classes, str | os.PathLike):
        class_file, classes = read_class_file(classes), None
    row, path = resolve(model, checkpoint, is_folder)
    path, folder = locate(path)
    descriptions = describe(path, folder)
    preprocessor = read_beside(folder, "preprocessor_config.json")
    if row is None and not descriptions:
        raise unknown_folder(path, folder)
    own = next((each for each in descriptions if isinstance(each, configs.Own)), None)
    name = row.name if row else ""
    if own is not None:
        path, name = folder, own.name
        if row is not None:
            resized = dataclasses.replace(row.config, image_size=own.image_size)
            if resized != own.config:
                raise files.CheckpointError(
                    f"{folder} holds {own.config}, but "
                    f"{row.name or 'the given architecture'} is {row.config}. Load it "
                    "by its own name or path."
                )
            image_size = row.config.image_size if image_size is None else image_size
            row = None
    file = files.find_weights(path)
    with contextlib.ExitStack() as stack:
        arrays = stack.enter_context(files.open_arrays(file))
        found = detect_layout(arrays, weights, allow_nonfinite=allow_nonfinite)
        if head is not None:
            found = found.with_head(stack.enter_context(files.open_arrays(head)))
        libraries = configs.Own.library, found.layout.library
        description = next((d for d in descriptions if d.library in libraries), None)
        if row is None and description is None:
            raise unknown_folder(path, folder, found.layout.name)
        config, source_config, sources = architecture(found, row, description)
        if image_size is not None:
            config = dataclasses.replace(config, image_size=image_size)
        pipeline, sources["preprocess"] = choose_preprocess(
            preprocess, config, row, description, preprocessor
        )
        count = sum(found.shape(config, "head/bias"))  # 0 of an encoder
        (names, ids), sources["classes"] = known_classes(
            count, row, own if classes is not None else description
        )
        if classes is not None:
            (names, ids), sources["classes"] = labels(classes, (names, ids)), "you"
        resize = (own and own.resize) or found.layout.resize
        params = found.params(
            config, classes=len(names), resize=resize, source_config=source_config
        )
    if found.weights and weights is None:
        LOG.warning(
            "%s holds several sets of weights: %s is taken; weights='ema' or 'plain' "
            "(on the command line --weights) chooses.",
            path,
            found.weights,
        )
    loaded = Model(
        params=params,
        config=config,
        classes=names,
        class_ids=ids,
        preprocess=pipeline,
        provenance=Provenance(
            name=name,
            path=os.fspath(path),
            sha256=files.sha256(file),
            position_resize=resize,
            weights=found.weights,
            ignored=found.describe_ignored(config),
            sources=sources,
        ),
    )
    return loaded if class_file is None else class_file.apply(loaded)


def resolve(
    model: Any, checkpoint: Any, holds_weights: Callable[[Any], bool]
) -> tuple[Variant | None, Any]:
    """The row of a name, and the path of weights: given, the row's, or the model."""
    if not isinstance(model, str | os.PathLike):
        if checkpoint is None:
            raise ValueError(
                "An architecture has no weights of its own: pass checkpoint= with a "
                "file, or call vitjax.init for random ones."
            )
        row = anonymous(model) if isinstance(model, Config) else None
        return row, checkpoint
    name = os.fspath(model)
    if name in VARIANTS or not holds_weights(model):
        row = find(name)
        return row, download.weights(row) if checkpoint is None else checkpoint
    if checkpoint is None or name == os.fspath(checkpoint):
        return None, model
    raise ValueError(
        f"model={name!r} has weights of its own: pass it without checkpoint=, or a "
        "name or an architecture with checkpoint=."
    )


def locate(path: str | os.PathLike) -> tuple[str, Any]:
    """A path on this machine, and the folder of what lies beside its weights."""
    path = os.path.expanduser(os.fspath(path))
    if is_address(path):
        path = os.fspath(download.fetch(path))
    return path, epath.Path(path) if is_folder(path) else epath.Path(path).parent


def read_beside(folder: Any, name: str) -> dict[str, Any]:
    """A JSON file; empty where there is none."""
    return files.read_json(folder / name) if (folder / name).exists() else {}


def describe(path: str, folder: Any) -> tuple[configs.Description, ...]:
    """What JSON files beside weights say of them; nothing of an npz."""
    if not is_folder(path) and path.endswith(".npz"):
        return ()
    config_json = read_beside(folder, files.CONFIG)
    if config_json.get("format") == "vitjax":
        # The file of arrays in a folder of ours stands for the folder.
        whole = is_folder(path) or epath.Path(path).name == files.ARRAYS
        return (configs.Own(config_json, folder),) if whole else ()
    both = config_json, read_beside(folder, configs.OpenClip.file)
    return tuple(filter(None, map(configs.describe, both)))


def unknown_folder(path, folder, layout: str = "") -> files.CheckpointError:
    """The error for a folder that does not say what it holds."""
    kind = str(read_beside(folder, files.CONFIG).get("model_type"))
    if reason := configs.NOT_READ.get(kind):
        return files.CheckpointError(
            f"{path} holds a {kind!r} of transformers, which is not read: {reason}"
        )
    weights = f" for these weights (read as {layout})" if layout else ""
    return files.CheckpointError(
        f"{path} holds a {files.CONFIG} of neither vitjax nor a Hugging Face ViT, "
        f"DeiT, CLIP, SigLIP or DINOv2 nor timm's ViT nor open_clip, or none at all"
        f"{weights}. Give the folder or the file as checkpoint=, with a name or a "
        "vitjax.Config."
    )


def architecture(
    found: Checkpoint, row: Variant | None, description: configs.Description | None
) -> tuple[Config, Config, dict[str, str]]:
    """(the model's architecture, the file's, where its numerics come from)."""
    stated: Mapping[str, Any] = found.layout.numerics
    source, given = "assumed", ""
    if description is not None:
        stated = description.stated
        source = given = f"file {description.file}"
    if row is not None:
        base, given = row.config, f"row {row.name}" if row.name else "you"
    else:
        base = description.architecture(found)  # pyright: ignore
    config = dataclasses.replace(found.adjust(base), **stated)
    sources = {
        field: source if field in stated else given for field in ("epsilon", "gelu")
    }
    if config.head == "cosine":
        in_file = isinstance(found.table(config)["head/temperature"], tuple)
        sources["temperature"] = "file" if in_file else "assumed: the file has none"
    source_config = config
    if row is None:
        found.check_positions(config)
    elif description is not None:
        size = description.image_size
        source_config = dataclasses.replace(config, image_size=size, truncate=True)
    return config, source_config, sources


def choose_preprocess(
    yours: Preprocess | Mapping[str, Any] | None,
    config: Config,
    row: Variant | None,
    description: configs.Description | None,
    preprocessor: Mapping[str, Any],
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
    if not isinstance(description, configs.HuggingFace | None):
        base, source = description.preprocess(), f"file {description.file}"
    elif preprocessor:
        kind = description.kind["processor"] if description else "ViT"
        base = configs.hugging_face_pipeline(preprocessor, kind)
        source = "file preprocessor_config.json"
    elif row is not None and row.name:
        base, source = row.preprocess, f"row {row.name}"
    else:
        base = description.assumed if description else Preprocess(*config.shape)
        source = "assumed"
    if yours is not None:
        base = configs.change_pipeline(base or Preprocess(*config.shape), yours)
        source = "you"
    return base and base.resized_to(*config.shape), source


def known_classes(
    count: int, row: Variant | None, description: configs.Description | None
) -> tuple[Labels, str]:
    """Class names and ids, and whose; names made up by transformers yield to a row."""
    known, source = ((), ()), ""
    if row is not None:
        known, source = row.labels(), f"row {row.name}" if row.name else ""
        if not known[0] and len(row.head_labels()[0]) == count:
            known = row.head_labels()
    if description is not None and count:
        described = description.labels()
        unnamed = tuple(f"LABEL_{number}" for number in range(len(described[0])))
        if described[0] and (described[0] != unnamed or not known[0]):
            known, source = described, f"file {description.file}"
    if not known[0] and count:
        known, source = numbered(count), "assumed: their numbers"
    return known, source


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
        classes: class names or their number; by default the row's, or 1000 of an
            architecture. Or a class file, as for `load`.

    Returns:
        The model, float32.

    Raises:
        ValueError: no such name.

    Example:
        >>> control = vitjax.init("vit_b16", seed=1)
    """
    if isinstance(classes, str | os.PathLike):
        return read_class_file(classes).apply(init(model, seed=seed))
    row = find(model) if isinstance(model, str) else anonymous(model)
    known = row.labels()
    names, ids = labels(classes, known if row.name else numbered(1000))
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

    Example:
        >>> vitjax.save(model, "my_model")
        >>> vitjax.load("my_model")
    """
    import safetensors.numpy

    arrays = {
        path: np.asarray(leaf).astype(dtype, order="C")
        for path, leaf in flatten(model.params).items()
    }
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
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files.ARRAYS).write_bytes(safetensors.numpy.save(arrays))
    (folder / files.CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a path, local or remote, is a folder."""
    return not is_address(path) and epath.Path(path).is_dir()


def is_address(path: str | os.PathLike) -> bool:
    """Whether a path is on the web, and not in a store that is read as folders are."""
    return "://" in os.fspath(path) and not os.fspath(path).startswith(STORES)


class Fact(NamedTuple):
    """A setting in force, its value, and where it comes from."""

    setting: str
    value: str | float | tuple[float, ...]
    source: str

    @property
    def text(self) -> str:
        """The value in words."""
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        return ", ".join(v if isinstance(v, str) else f"{v:.6g}" for v in values)


def describe_preprocessing(model: Model) -> tuple[Fact, ...]:
    """Pipeline, epsilon, GELU, weights taken and left out; each with its source."""
    pipeline, provenance = model.preprocess, model.provenance
    sources: Any = {"preprocess": "not known", "epsilon": "you", "gelu": "you"}
    sources |= provenance.sources
    settings: dict[str, Any] = {"preprocessing": "none"}
    if pipeline is not None:
        size, side = f"{pipeline.height}x{pipeline.width}", pipeline.side
        resize = {
            "squash": f"resized to {size}",
            "shorter": f"shorter side to {side}, center crop of {size}",
            "square": f"resized to {side}x{side}, center crop of {size}",
        }
        settings = {
            "mean": tuple(pipeline.mean),
            "deviation": tuple(pipeline.std),
            "geometry": f"{resize[pipeline.resize]}, {pipeline.interpolation}",
        }
    facts = [Fact(*setting, sources["preprocess"]) for setting in settings.items()]
    facts.append(Fact("epsilon", model.config.epsilon, sources["epsilon"]))
    facts.append(Fact("GELU", model.config.gelu, sources["gelu"]))
    if "temperature" in sources:
        temperature = float(model.params["head"]["temperature"])
        facts.append(Fact("temperature", f"{temperature:g}", sources["temperature"]))
    if provenance.weights:
        facts.append(Fact("weights", provenance.weights, provenance.path))
    facts += [Fact("left out", what, provenance.path) for what in provenance.ignored]
    return tuple(facts)


def weightless(row: Variant) -> Model:
    """A row's model without its parameters, to be described."""
    settings = "preprocess", "epsilon", "gelu"
    provenance = Provenance(
        name=row.name, sources=dict.fromkeys(settings, f"row {row.name}")
    )
    return Model(
        params={},
        config=row.config,
        preprocess=row.preprocess,
        provenance=provenance,
    )
