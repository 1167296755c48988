"""CIFAR-100 from the archive that its authors publish, binary or Python.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

import dataclasses
import hashlib
import io
import itertools
import os
import pathlib
import pickle
import tarfile
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from vitjax.data.labels import CIFAR100
from vitjax.data.records import Record, SourceError

Part = Literal["train", "test"]

SIDE = 32
FORMS = ("cifar-100-binary", "cifar-100-python")
PER_CLASS = 5
"""Images per class in the paper's experiments: the first of the test part."""

PARSE_ERRORS = tarfile.TarError, pickle.UnpicklingError, EOFError, ValueError, KeyError

STEPS = (
    "To get CIFAR-100: (1) download cifar-100-binary.tar.gz (161 MB) from "
    "www.cs.toronto.edu/~kriz/cifar.html; (2) give cifar100:PATH, where PATH is the "
    "archive or its folder; there is no need to unpack it."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Cifar100:
    """Images of one part, held in memory; the names of their fine labels."""

    id: str
    names: tuple[str, ...]
    label_names: tuple[str, ...]
    images: UInt8[np.ndarray, "image 32 32 3"]

    masks = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index], self.label_names[index], self.names[index])


def open_cifar100(
    path: str | os.PathLike,
    *,
    part: Part = "test",
    per_class: int | None = None,
) -> Cifar100:
    """A part of CIFAR-100, with the names of the fine labels.

    `path` is the archive `cifar-100-binary.tar.gz` or `cifar-100-python.tar.gz`, its
    folder, or the unpacked folder. `per_class` takes only the first so many images of
    each class; the paper's experiments take 5 of the test part.
    """
    if per_class is not None and per_class < 1:
        raise SourceError(f"per_class={per_class} must be at least 1.")
    images, label = read(pathlib.Path(path).expanduser(), part)
    position = np.arange(len(label))
    if per_class is not None:
        of_class = (np.flatnonzero(label == number) for number in set(label))
        position = np.sort(np.concatenate([p[:per_class] for p in of_class]))
    images, label = images[position], label[position]
    digest = hashlib.sha256(images.tobytes() + label.tobytes()).hexdigest()
    return Cifar100(
        id=f"cifar100/{part}:{len(label)} images,{digest[:16]}",
        names=tuple(f"{part}/{number:05d}" for number in position),
        label_names=tuple(CIFAR100[number] for number in label),
        images=images,
    )


def read(path: pathlib.Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """(images, fine labels) of a part, in whatever form it is there."""
    try:
        for name, content in find_contents(path, part):
            return parse(name, content)
    except (*PARSE_ERRORS, OSError) as error:
        raise SourceError(f"{path} cannot be read ({error}). {STEPS}") from error
    raise SourceError(f"{path} holds no CIFAR-100 ({part} part). {STEPS}")


def find_contents(path: pathlib.Path, part: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a part: unpacked, in an archive, or in a folder's archive."""
    names = (f"{part}.bin", part)
    for folder, name in itertools.product((*FORMS, "."), names):
        if (path / folder / name).is_file():
            yield name, (path / folder / name).read_bytes()
    archives = (path, *(path / f"{form}.tar.gz" for form in FORMS))
    for archive in filter(pathlib.Path.is_file, archives):
        with tarfile.open(archive) as tar:
            for member in tar:
                name = pathlib.PurePath(member.name).name
                if name in names and (content := tar.extractfile(member)):
                    yield name, content.read()


def parse(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(images, fine labels) of rows of bytes, or of a pickled dict."""
    if name.endswith(".bin"):  # coarse label, fine label, red, green and blue plane
        rows = np.frombuffer(content, np.uint8).reshape(-1, 2 + 3 * SIDE * SIDE)
        planes, label = rows[:, 2:], rows[:, 1].astype(np.int64)
    else:
        fields = Unpickler(io.BytesIO(content), encoding="latin1").load()
        planes = np.asarray(fields["data"], np.uint8)
        label = np.asarray(fields["fine_labels"], np.int64)
    if len(label) and not 0 <= label.min() <= label.max() < len(CIFAR100):
        raise ValueError("a label is not in [0, 100)")
    images = planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1).copy()
    return images, label


class Unpickler(pickle.Unpickler):
    """Loads arrays and nothing else: a pickle may otherwise run any code."""

    ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        """The few names that an array needs."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        module = module.replace("numpy.core", "numpy._core")
        return super().find_class(module, name)
