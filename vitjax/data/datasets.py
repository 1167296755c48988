"""Random-access data sets: len, getitem, and labels resolved to a model's classes."""

import csv
import dataclasses
import difflib
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vitjax.data.images import open_image
from vitjax.data.matching import match_label
from vitjax.data.records import Label, Record, Source, SourceError

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""Endings of the files that a folder source takes, in either case."""

WNID = re.compile(r"(n\d{8})[_.]")
"""The beginning of a flat folder's `wnid_name.JPEG`."""


@dataclasses.dataclass(frozen=True)
class Files:
    """Picture files with labels.

    Args:
        kind: "folder" or "csv".
        root: what names are relative to.
        names: of the files.
        label_names: one per file; None where unknown.
        masks: one per file, None where there is none.
    """

    kind: str
    root: pathlib.Path
    names: tuple[str, ...]
    label_names: tuple[str | None, ...]
    masks: tuple[str | None, ...] = ()

    @functools.cached_property
    def id(self) -> str:
        """Number of files, and a digest of their names and labels."""
        rows = zip(self.names, self.label_names, self.masks or self.label_names)
        text = "\n".join(map(repr, rows)).encode()
        digest = hashlib.sha256(text).hexdigest()[:16]
        return f"{self.kind}/1:{len(self)} files,{digest}"

    def __len__(self) -> int:
        return len(self.names)

    def paths(self, index: int) -> tuple[pathlib.Path, ...]:
        """What a picture is read from: its file and its mask's."""
        names = (self.names[index], self.masks[index] if self.masks else None)
        return tuple(self.root / name for name in names if name is not None)

    def __getitem__(self, index: int) -> Record:
        name = self.names[index]
        mask = self.masks[index] if self.masks else None
        return Record(
            image=open_image(self.root / name, name=name),
            label=self.label_names[index],
            name=name,
            mask=None if mask is None else read_mask(self.root / mask, name=mask),
        )


def read_mask(path: pathlib.Path, *, name: str) -> UInt8[np.ndarray, "height width"]:
    """A mask file: 0 is context, 255 in a grey picture with ones is neither.

    Args:
        path: a one-channel picture. Black and white (0 and 255) also does: where no
            pixel is 1, every pixel that is not 0 is of the class.
        name: what an error calls it.

    Returns:
        0 context, 1 class, 255 neither.
    """
    image = open_image(path, name=name)
    mask = np.asarray(image if image.mode in ("P", "L") else image.convert("L"))
    return mask if (mask == 1).any() else (mask > 0).astype(np.uint8)


def open_folder(path: str | os.PathLike) -> Files:
    """A folder with one sub-folder per class, or one flat folder of pictures.

    In a flat folder the label is the WordNet id that a name begins with
    (`n01440764_tench.JPEG`); other names have none.

    Args:
        path: the folder.

    Raises:
        SourceError: there is no such folder, or no picture in it.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise SourceError(
            f"There is no folder {root}. folder:PATH takes a folder with one "
            "sub-folder of pictures per class, or a flat folder of pictures."
        )
    names = sorted(find_pictures(root))
    if not names:
        raise SourceError(
            f"{root} holds no picture; files end in one of {', '.join(SUFFIXES)}."
        )
    return Files("folder", root, tuple(names), tuple(map(folder_label, names)))


def find_pictures(root: pathlib.Path) -> Iterable[str]:
    """Names relative to the root, with forward slashes; hidden files are left out.

    Links to folders are followed, but none twice on one way down.
    """
    for parent, folders, files in os.walk(root, followlinks=True):
        above = {os.path.realpath(p) for p in (parent, *pathlib.Path(parent).parents)}
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and os.path.realpath(os.path.join(parent, name)) not in above
        ]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield pathlib.Path(parent, name).relative_to(root).as_posix()


def folder_label(name: str) -> str | None:
    """The first folder of a relative name, else the id that the name begins with."""
    first, slash, _ = name.partition("/")
    if slash:
        return first
    match = WNID.match(name)
    return match.group(1) if match else None


def open_csv(path: str | os.PathLike) -> Files:
    """A table with the columns `path`, `label` and, if there are masks, `mask`.

    Args:
        path: the CSV file; the paths in it are relative to its folder. An empty label
            is an unknown one.

    Raises:
        SourceError: there is no such file, no column `path`, or no row.
    """
    table = pathlib.Path(path).expanduser()
    if not table.is_file():
        raise SourceError(
            f"There is no file {table}. csv:FILE takes a table of pictures."
        )
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(
            f"{table} is no table in UTF-8 ({error}); save it as CSV UTF-8."
        ) from error
    if "path" not in columns or not rows:
        raise SourceError(
            f"{table} needs a first row with the columns path and label (mask if there "
            f"are masks) and a row per picture; it has {len(rows)} rows and the "
            f"columns {', '.join(columns) or 'none'}."
        )

    def column(name):
        return tuple((row.get(name) or "").strip() or None for row in rows)

    masks = column("mask") if "mask" in columns else ()
    names = tuple((row["path"] or "").strip() for row in rows)
    if "" in names:
        raise SourceError(f"Row {names.index('') + 2} of {table} has no path.")
    return Files("csv", table.parent, names, column("label"), masks)


@dataclasses.dataclass(frozen=True)
class LabeledDataset:
    """A source whose labels are numbers of a model's classes.

    Args:
        source: whose pictures these are.
        classes: their names.
        class_ids: their ids.

    Raises:
        SourceError: a label is none of the classes, where the source says its labels
            beforehand; else `getitem` raises it.
    """

    source: Any
    classes: tuple[str, ...]
    class_ids: tuple[str, ...]

    def __post_init__(self):
        for label in dict.fromkeys(getattr(self.source, "label_names", ())):
            self.number(label)

    def __repr__(self) -> str:
        return f"{self.id} ({len(self)} pictures)"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        return dataclasses.replace(record, label=self.number(record.label))

    @property
    def id(self) -> str:
        """What the pictures depend on."""
        return self.source.id

    def name(self, index: int) -> str:
        """What the data set calls a picture; its number, where only decoding tells."""
        names = getattr(self.source, "names", None)
        return str(index) if names is None else names[index]

    def number(self, label: Label | None) -> int:
        """A raw label as a class's number, -1 for None."""
        if label is None:
            return -1
        try:
            return match_label(label, self.classes, self.class_ids)
        except SourceError as error:
            raise SourceError(f"{self.source.id}: {error}") from None


def open_source(
    spec: str | os.PathLike | Source,
    *,
    classes: Sequence[str] = (),
    class_ids: Sequence[str] = (),
) -> LabeledDataset:
    """Open a data set, with its labels as numbers of a model's classes.

    Args:
        spec: one of `SPECS`, a folder's path, or an object with `id`, `len` and
            `getitem` that makes `Record`s.
        classes: the model's class names.
        class_ids: the model's class ids, by default its names.

    Returns:
        The source; `record.label` is an int, -1 where unknown.

    Raises:
        SourceError: it cannot be opened, or a label is none of the classes.
    """
    is_path = isinstance(spec, str | os.PathLike)
    source = open_spec(os.fspath(spec)) if is_path else spec
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


def open_spec(spec: str) -> Any:
    """The source that a SOURCE of the command line names, labels as they are."""
    kind, _, rest = spec.partition(":")
    if kind in OPENERS and (rest or kind == "textured_digits"):
        return OPENERS[kind](rest)
    if os.path.isdir(spec):
        return open_folder(spec)
    if os.path.isfile(spec) and spec.lower().endswith(".csv"):
        return open_csv(spec)
    near = difflib.get_close_matches(kind, set(OPENERS) - {kind}, n=1)
    hint = f" Did you mean {near[0]}{':' * bool(rest)}{rest}?" if near else ""
    raise SourceError(f"{spec!r} names no data set.{hint} Known: {', '.join(SPECS)}.")


def open_digits(rest: str) -> Any:
    """`textured_digits[:SPLIT]`."""
    from vitjax.data.textured_digits import open_demo

    return open_demo(rest or "test")


def open_segmented(rest: str) -> Any:
    """`imagenet_s:PATH[:OPTIONS]`."""
    from vitjax.data.imagenet_s import open_imagenet_s

    words = {
        "validation": {"part": "validation"},
        "test": {"part": "test"},
        "paper": {"select": "paper"},
        "probe": {"select": "paper", "part": "test"},
    }
    values = {"classes": int, "per_class": int, "seed": int, "csv_file": str}
    path, options = split_options(rest, words, values)
    return open_imagenet_s(path, **options)


def open_cifar(rest: str) -> Any:
    """`cifar100:PATH[:OPTIONS]`."""
    from vitjax.data.cifar100 import PER_CLASS, open_cifar100

    words = {
        "test": {"part": "test"},
        "train": {"part": "train"},
        "paper": {"per_class": PER_CLASS},
    }
    path, options = split_options(rest, words, {"per_class": int})
    return open_cifar100(path, **options)


def open_tfds(rest: str) -> Any:
    """`tfds:NAME/CONFIG:SPLIT`."""
    from vitjax.data.tfds import open_prepared

    return open_prepared(rest)


OPENERS: dict[str, Callable[[str], Any]] = {
    "textured_digits": open_digits,
    "folder": open_folder,
    "csv": open_csv,
    "imagenet_s": open_segmented,
    "cifar100": open_cifar,
    "tfds": open_tfds,
}


def split_options(
    rest: str,
    words: Mapping[str, dict[str, Any]],
    values: Mapping[str, Callable[[str], Any]],
) -> tuple[str, dict[str, Any]]:
    """PATH[:word,key=value,...] as the path and keywords.

    Args:
        rest: what stands after the data set's kind; a path may hold colons itself.
        words: option -> the keywords that it stands for.
        values: name of an option with a value -> what reads it.

    Raises:
        SourceError: an option is unknown or its value cannot be read.
    """
    path, colon, tail = rest.rpartition(":")
    if not colon or os.path.exists(rest) or os.sep in tail.partition("=")[0]:
        return rest, {}
    found: dict[str, Any] = {}
    for option in tail.split(","):
        key, _, value = option.partition("=")
        try:
            found |= {key: values[key](value)} if value else words[key]
        except (KeyError, ValueError) as error:
            known = [*words, *(f"{key}=..." for key in values)]
            raise SourceError(
                f"{option!r} in {rest!r} is none of {', '.join(known)}."
            ) from error
    return path, found
