"""Load, initialize and save models; fetch what is published."""

import dataclasses
import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitjax.checkpoints import files, huggingface
from vitjax.checkpoints.convert import adapt, convert, count_classes
from vitjax.checkpoints.registry import VARIANTS, Variant, anonymous, find
from vitjax.data.images import Preprocess, from_hugging_face
from vitjax.data.labels import imagenet1k
from vitjax.models.model import Model, Provenance, flatten, initialize
from vitjax.types import Config


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
        image_size: another input size; position embeddings are resized in the way of
            the library that the file comes from.

    Returns:
        The model, float32, on the default device. What only the file knows travels
        with it: from a Hugging Face file the norms' epsilon (1e-12, or what the
        config.json beside it says) and DeiT's distillation token, a register here.

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


def numbered(count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of classes that have none: their numbers."""
    names = tuple(map(str, range(count)))
    return names, names


def labels(classes, known) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(class names, class ids), where the caller may have given names or a number."""
    if classes is None:
        return known
    if isinstance(classes, int | np.integer):
        if classes < 1:
            raise ValueError(f"classes is {classes}; a model has at least one.")
        return known if classes == len(known[0]) else numbered(int(classes))
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
        config = adapt(arrays, config, beside=lambda: files.read_beside(path))
        known = row.labels()
        known = known if known[0] else numbered(count_classes(arrays))
        names, ids = labels(classes, known)
        params, position_resize = convert(
            arrays, config, classes=len(names), written=row.config
        )
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
    """A folder that describes itself: ours, or Hugging Face's."""
    written = files.read_config(folder)
    if huggingface.is_hugging_face(written):
        path = files.find_weights(folder)
        return load_file(path, row or described(folder, written), classes, image_size)
    if written.get("format") != "vitjax":
        raise files.CheckpointError(
            f"{folder} holds a {files.CONFIG} of neither vitjax nor a Hugging Face ViT "
            "or DeiT. Give the file itself as checkpoint=, with a vitjax.Config."
        )
    return load_own(folder, written, row, classes, image_size)


def described(folder, written: dict[str, Any]) -> Variant:
    """A row made of what a Hugging Face folder says of its model."""
    from etils import epath

    config = huggingface.architecture(written)
    preprocess = Preprocess(*config.shape)
    path = epath.Path(folder) / "preprocessor_config.json"
    if path.exists():
        preprocess = from_hugging_face(files.read_json(path))
    names = huggingface.class_names(written)
    known, ids = imagenet1k()
    return Variant(
        name="",
        config=config,
        preprocess=preprocess,
        labels=lambda: (names, ids if names == known else names),
    )


def load_own(folder, written, row: Variant | None, classes, image_size) -> Model:
    """Our own folder as a model; what it says of itself must fit the row."""
    if missing := OWN_KEYS - set(written):
        raise files.CheckpointError(
            f"{files.CONFIG} of {folder} lacks {', '.join(sorted(missing))}: it is "
            "damaged, or another version of vitjax wrote it."
        )
    config = stored = Config.from_dict(written["config"])
    if row is not None and not same_but_size(row.config, config):
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
    file = files.find_weights(folder)
    with files.open_arrays(file) as arrays:
        resize = written["position_resize"]
        params, _ = convert(
            arrays, config, classes=len(names), resize=resize, written=stored
        )
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


OWN_KEYS = {
    *("name", "config", "classes", "class_ids", "preprocess", "position_resize"),
}
"""What our own config.json holds, besides its format and source."""


def same_but_size(left: Config, right: Config) -> bool:
    """Whether two architectures differ in the image size at most."""
    return left == dataclasses.replace(right, image_size=left.image_size)


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
    if row.obtain:
        raise FileNotFoundError(f"{row.name} has no address to load from. {row.obtain}")
    if not row.url:
        raise ValueError(
            "An architecture has no weights of its own: pass checkpoint= with a file, "
            "or call vitjax.init for random ones."
        )
    return download(row)


def cache_folder() -> pathlib.Path:
    """Where downloads and compiled programs are kept."""
    import pooch

    return pathlib.Path(os.environ.get("VITJAX_CACHE") or pooch.os_cache("vitjax"))


@dataclasses.dataclass(frozen=True)
class Published:
    """A file that can be fetched.

    Args:
        url: where from.
        name: what it is called in the cache.
        sha256: all or the first of its digits, or "".
    """

    url: str
    name: str
    sha256: str = ""

    @property
    def cached(self) -> pathlib.Path:
        """Where it is, or would be, kept."""
        return cache_folder() / self.name


def published(row: Variant) -> tuple[Published, ...]:
    """A row's file, and the same weights as safetensors, which need no PyTorch."""
    if not row.url:
        return ()
    original = Published(row.url, row.url.rsplit("/", 1)[-1], row.sha256)
    if not row.tag:
        return (original,)
    url = f"https://huggingface.co/{row.tag}/resolve/main/{files.ARRAYS}"
    return original, Published(url, f"{row.tag.split('/')[-1]}.safetensors")


def cached(row: Variant) -> pathlib.Path | None:
    """The file of a row in the cache, or None."""
    found = [file.cached for file in published(row) if readable(file)]
    return next((path for path in found if path.exists()), None)


def readable(file: Published) -> bool:
    """Whether this installation can read it."""
    needs_torch = file.name.endswith((".pth", ".pt", ".bin"))
    return not needs_torch or importlib.util.find_spec("torch") is not None


def download(row: Variant) -> pathlib.Path:
    """Fetch a row's file into the cache, once."""
    kept = cached(row)
    if kept is not None:
        return kept
    files_ = published(row)
    file = next((one for one in files_ if readable(one)), files_[0])
    return fetch(file, name=row.name)


def fetch(file: Published, *, name: str) -> pathlib.Path:
    """Download a file; one whose digest is wrong is not kept."""
    import pooch

    target = file.cached
    bar = sys.stderr.isatty()
    try:
        pooch.retrieve(file.url, None, target.name, target.parent, progressbar=bar)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name} could not be downloaded from {file.url} "
            f"({type(error).__name__}). On a machine with network, download it and put "
            f"it at {target}, or pass checkpoint= with its path (on the command line "
            "--checkpoint)."
        ) from error
    found = files.sha256(target)
    if not found.startswith(file.sha256):
        target.unlink()
        raise files.CheckpointError(
            f"What {file.url} gave has sha256 {found}, not {file.sha256}...; it was "
            "removed. Try again, or pass checkpoint= with a file that you trust."
        )
    return target
