"""Data sets by name: labels become numbers of a model's classes.

If a data set is missing or its labels fit no class, the `SourceError` says what to do.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitjax.data.cifar100 import PER_CLASS, open_cifar100
from vitjax.data.image_files import open_csv, open_folder
from vitjax.data.imagenet_s import open_imagenet_s
from vitjax.data.labels import match_label
from vitjax.data.records import Label, Record, Source, SourceError
from vitjax.data.textured_digits import open_split
from vitjax.data.tfds import open_prepared
from vitjax.messages import did_you_mean


@dataclasses.dataclass(frozen=True)
class LabeledDataset:
    """A source whose labels are numbers of a model's classes, -1 where unknown.

    A label that is none of the classes raises `SourceError`: at once where the source
    lists its labels (`label_names`), else when the record is read.
    """

    source: Any
    classes: tuple[str, ...]
    class_ids: tuple[str, ...]

    def __post_init__(self):
        for label in dict.fromkeys(getattr(self.source, "label_names", ())):
            self.number(label)

    def __repr__(self) -> str:
        return f"{self.id} ({len(self)} images)"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        return dataclasses.replace(record, label=self.number(record.label))

    @property
    def id(self) -> str:
        """Identifies the content of the data set."""
        return self.source.id

    def name(self, index: int) -> str:
        """The name of an image; its number, where the source lists no names."""
        names = getattr(self.source, "names", None)
        return str(index) if names is None else names[index]

    def number(self, label: Label | None) -> int:
        """A label as a class number, -1 for None."""
        if label is None:
            return -1
        try:
            return match_label(label, self.classes, self.class_ids)
        except SourceError as error:
            raise SourceError(f"{self.source.id}: {error}") from None


def open_data(
    spec: str | os.PathLike | Source,
    model: Any = None,
    *,
    classes: Sequence[str] = (),
    class_ids: Sequence[str] = (),
) -> LabeledDataset:
    """Open a data set, with its labels as numbers of a model's classes.

    Args:
        spec: one of `SPECS`, a folder's path, or an object with `id`, `len` and
            `getitem` that makes `Record`s.
        model: whose classes and class ids labels are matched against.
        classes: class names, in place of a model's.
        class_ids: class ids, by default the names.

    Returns:
        The records: `len`, `getitem`; `record.label` is an int, -1 where unknown.

    Raises:
        SourceError: it cannot be opened, or a label is none of the classes.
    """
    source: Any = spec
    if isinstance(spec, str | os.PathLike):
        source = open_spec(os.fspath(spec))
    if model is not None:
        classes, class_ids = classes or model.classes, class_ids or model.class_ids
    classes = tuple(classes)
    return LabeledDataset(source, classes, tuple(class_ids) or classes)


SPECS = (
    "textured_digits[:SPLIT]",
    "folder:PATH",
    "csv:FILE",
    "imagenet_s:PATH[:OPTIONS]",
    "cifar100:PATH[:OPTIONS]",
    "tfds:NAME/CONFIG:SPLIT",
)
"""What names a data set on the command line."""

OPENERS: dict[str, tuple[Callable[..., Any], dict, dict]] = {
    "textured_digits": (open_split, {}, {}),
    "folder": (open_folder, {}, {}),
    "csv": (open_csv, {}, {}),
    "imagenet_s": (
        open_imagenet_s,
        {
            "validation": {"part": "validation"},
            "test": {"part": "test"},
            "paper": {"select": "paper"},
            "probe": {"select": "paper", "part": "test"},
        },
        {"classes": int, "per_class": int, "seed": int, "csv_file": str},
    ),
    "cifar100": (
        open_cifar100,
        {
            "test": {"part": "test"},
            "train": {"part": "train"},
            "paper": {"per_class": PER_CLASS},
        },
        {"per_class": int},
    ),
    "tfds": (open_prepared, {}, {}),
}
"""Kind -> what opens PATH[:flag,key=value,...], keywords of flags, types of values."""


def open_spec(spec: str) -> Any:
    """The source that a spec names, labels as they are."""
    kind, _, rest = spec.partition(":")
    if kind in OPENERS and (rest or kind == "textured_digits"):
        opener, flags, values = OPENERS[kind]
        path, options = split_options(rest, flags, values) if flags else (rest, {})
        return opener(path or "test", **options)
    if os.path.isdir(spec):
        return open_folder(spec)
    if os.path.isfile(spec) and spec.lower().endswith(".csv"):
        return open_csv(spec)
    hint = did_you_mean(kind, set(OPENERS) - {kind})
    raise SourceError(f"{spec!r} names no data set.{hint} Known: {', '.join(SPECS)}.")


def split_options(
    rest: str,
    flags: Mapping[str, dict[str, Any]],
    values: Mapping[str, Callable[[str], Any]],
) -> tuple[str, dict[str, Any]]:
    """PATH[:flag,key=value,...] as the path, which may hold colons, and keywords."""
    path, colon, tail = rest.rpartition(":")
    if not colon or os.path.exists(rest) or os.sep in tail.partition("=")[0]:
        return rest, {}
    options: dict[str, Any] = {}
    for option in tail.split(","):
        key, _, value = option.partition("=")
        try:
            options |= {key: values[key](value)} if value else flags[key]
        except (KeyError, ValueError) as error:
            known = [*flags, *(f"{key}=..." for key in values)]
            raise SourceError(
                f"{option!r} in {rest!r} is not one of {', '.join(known)}."
            ) from error
    return path, options
