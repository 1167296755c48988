"""Data sets by name: labels become numbers of a model's classes.

If a data set is missing or its labels fit no class, the `SourceError` says what to do.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

from vitjax.data.cifar100 import PER_CLASS, open_cifar100
from vitjax.data.image_files import open_csv, open_folder
from vitjax.data.imagenet_s import open_imagenet_s
from vitjax.data.labels import match_label
from vitjax.data.masks import MaskFormat
from vitjax.data.records import Label, Record, Source, SourceError
from vitjax.data.textured_digits import open_split
from vitjax.data.tfds import open_prepared
from vitjax.messages import check_one_of, did_you_mean


@dataclasses.dataclass(frozen=True)
class LabeledDataset:
    """A source whose labels are numbers of a model's classes, -1 where unknown.

    A label that is none of the classes raises `SourceError`: at once where the source
    lists its labels (`label_names`), else when the record is read. Where `classes` is
    None, labels have to be numbers and remain what they are.
    """

    source: Any
    classes: tuple[str, ...] | None
    class_ids: tuple[str, ...]

    def __post_init__(self):
        errors = {}
        for label in dict.fromkeys(getattr(self.source, "label_names", ())):
            try:
                self.number(label)
            except SourceError as error:
                errors[label] = str(error)
        if errors:
            first, *others = errors
            more = f" The same holds for {len(others)} more labels, such as "
            more = f"{more}{', '.join(map(repr, others[:3]))}." if others else ""
            raise SourceError(errors[first] + more)

    def __repr__(self) -> str:
        return f"{self.id} ({len(self)} images)"

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Record]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        return dataclasses.replace(record, label=self.number(record.label))

    @property
    def id(self) -> str:
        """Identifies the content of the data set."""
        return self.source.id

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should read before a run, a sentence each: files that are left
        out or missing, images without a label.
        """
        return tuple(getattr(self.source, "notes", ()))

    def name(self, index: int) -> str:
        """The name of an image; its number, where the source lists no names."""
        names = getattr(self.source, "names", None)
        return str(index) if names is None else names[index]

    def number(self, label: Label | None) -> int:
        """A label as a class number, -1 for None and -1."""
        if label is None or str(label) == "-1":
            return -1
        if self.classes is None and str(label).isdecimal():
            return int(label)
        try:
            return match_label(label, self.classes or (), self.class_ids)
        except SourceError as error:
            raise SourceError(f"{self.source.id}: {error}") from None


def open_data(
    spec: str | os.PathLike | Source,
    model: Any = None,
    *,
    classes: Sequence[str] | None = None,
    class_ids: Sequence[str] = (),
    mask_format: MaskFormat = "auto",
) -> LabeledDataset:
    """Open a data set, with its labels as numbers of a model's classes.

    Args:
        spec: one of `SPECS`, a folder's path, or an object with `id`, `len` and
            `getitem` that makes `Record`s.
        model: whose classes and class ids labels are matched against. Without one and
            without `classes`, labels that are numbers remain so, and others are
            numbered in sorted order.
        classes: class names, in place of a model's.
        class_ids: class ids, by default the names.
        mask_format: how the mask files of a table are read: auto, gray or labels; see
            `MaskFormat`.

    Returns:
        The records: `len`, `getitem`; `record.label` is an int, -1 where unknown.
        `notes` says which files are left out and which images have no label.

    Raises:
        SourceError: it cannot be opened, or a label is none of the classes.
        ValueError: the data set has no masks that `mask_format` is about.

    Example:
        >>> records = vitjax.open_data("folder:photos", model)
        >>> records[0].name, records[0].label
    """
    check_one_of("mask_format", mask_format, get_args(MaskFormat))
    named = isinstance(spec, str | os.PathLike)
    source: Any = open_spec(os.fspath(spec), mask_format) if named else spec
    if mask_format != "auto" and not (named and getattr(source, "mask_formats", ())):
        raise ValueError("mask_format is an option of tables (csv:FILE) only.")
    if model is not None:
        if not hasattr(model, "classes"):
            raise ValueError(
                f"model={model!r} is not a Model: give what load returned."
            )
        classes, class_ids = classes or model.classes, class_ids or model.class_ids
    if classes is None:
        labels = sorted(map(str, {*getattr(source, "label_names", ())} - {None, "-1"}))
        classes = None if all(map(str.isdecimal, labels)) else labels
    classes = None if classes is None else tuple(classes)
    return LabeledDataset(source, classes, tuple(class_ids) or classes or ())


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


def open_spec(spec: str, mask_format: MaskFormat = "auto") -> Any:
    """The source that a spec names, labels as they are."""
    kind, _, rest = spec.partition(":")
    if kind not in OPENERS or not (rest or kind == "textured_digits"):
        if os.path.isdir(spec):
            kind, rest = "folder", spec
        elif os.path.isfile(spec) and spec.lower().endswith(".csv"):
            kind, rest = "csv", spec
        else:
            hint = did_you_mean(kind, set(OPENERS) - {kind})
            raise SourceError(
                f"{spec!r} names no data set.{hint} Known: {', '.join(SPECS)}."
            )
    opener, flags, values = OPENERS[kind]
    path, options = split_options(rest, flags, values) if flags else (rest, {})
    if kind == "csv":
        options["mask_format"] = mask_format
    return opener(path or "test", **options)


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
