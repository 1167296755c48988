"""Image files with labels and masks: a folder, or a CSV table."""

import collections
import csv
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from PIL import Image

from vitjax.data.images import (
    content_digest,
    decode_image,
    image_errors,
    orientation,
    printable,
    read_file,
    transpose,
)
from vitjax.data.masks import MaskFormat, check_mask_size, class_mask, object_mask
from vitjax.data.records import Record, SourceError
from vitjax.messages import unknown

NO_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow only recognizes, or needs other programs for."""

LABEL = re.compile(r"([^/]+)/|(n\d{8})[_.]")
"""A label at the beginning of a path: the first folder's name or a WordNet id."""

COLUMNS = ("path", "label", "mask", "mask_format")
"""What a table's columns may be, in any case and order."""


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files with labels and mask files, paths relative to a root.

    `masks` is empty without masks. `numbers` is label -> its number in masks that show
    many classes; None where a mask shows one object, as `mask_formats` says.
    """

    id: str
    root: pathlib.Path
    paths: tuple[str, ...]
    label_names: tuple[str | None, ...]
    masks: tuple[str | None, ...] = ()
    numbers: Mapping[str | None, int] | None = None
    mask_formats: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The paths as they are shown and written."""
        return tuple(map(printable, self.paths))

    def contents(self, index: int) -> list[bytes]:
        """An image's file and, where there is one, its mask's."""
        paths = self.paths[index], self.masks[index] if self.masks else None
        return [
            read_file(self.root / path, name=printable(path)) for path in paths if path
        ]

    def digest(self, index: int) -> int:
        """The digest of a record without decoding it: the runner compares it."""
        return content_digest(*self.contents(index))

    def __getitem__(self, index: int) -> Record:
        name, label = self.names[index], self.label_names[index]
        mask_path, mask = self.masks[index] if self.masks else None, None
        contents = self.contents(index)
        image = decode_image(contents[0], name=name)
        if mask_path is not None:
            mask_image = decode_image(contents[1], name=printable(mask_path))
            with image_errors(name):
                if self.numbers is None:
                    mask_image = transpose(mask_image, orientation(mask_image))
                    check_mask_size(mask_image.size, image)
                    mask = object_mask(mask_image, self.mask_formats[index])
                else:
                    mask = class_mask(mask_image, self.numbers[label], image=image)
        digest = content_digest(*contents)
        return Record(image=image, label=label, name=name, mask=mask, digest=digest)


def digest_rows(rows: Iterable[tuple]) -> str:
    """Sixteen hexadecimal digits that tell whether a list of files has changed."""
    text = "\n".join(map(repr, rows))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def first_names(names: Sequence[str]) -> str:
    """The first three of some names, for a sentence."""
    return ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")


def note(names: Sequence[str], what: str) -> list[str]:
    """How many names there are, what is said of them, and the first; if there are."""
    return [f"{len(names)} {what}: {first_names(names)}."] if names else []


def note_unlabeled(
    names: Sequence[str], labels: Sequence[str | None], rule: str
) -> list[str]:
    """The note of images that have no label, where there are any."""
    without = [name for name, label in zip(names, labels) if label is None]
    return note(without, f"of the {len(names)} images have no label, since {rule}")


def open_folder(path: str | os.PathLike) -> ImageFiles:
    """A folder with one sub-folder per class, or one flat folder of images.

    In a flat folder the label is the WordNet id that a name begins with
    (`n01440764_tench.JPEG`); other names have none.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise SourceError(
            f"There is no folder {root}. folder:PATH takes a folder with one "
            "sub-folder of images per class, or a flat folder of images."
        )
    names, others, folders = find_images(root)
    if not names:
        rest = f", but {len(others)} other files: {first_names(others)}"
        raise SourceError(
            f"{root} holds no image that Pillow opens, such as .jpeg or .png"
            f"{rest if others else ''}."
        )
    labels = tuple(m and (m[1] or m[2]) for m in map(LABEL.match, names))
    rule = (
        "a label is the name of the folder in the data set's folder, or the WordNet id "
        "that a name begins with"
    )
    return ImageFiles(
        id=f"folder/1:{len(names)} files,{digest_rows(zip(names, labels, labels))}",
        root=root,
        paths=tuple(names),
        label_names=labels,
        notes=(
            *note_unlabeled(names, labels, rule),
            *note(
                others, "files are left out, being none that Pillow opens as an image"
            ),
            *note(sorted(folders - set(labels)), "folders hold no image"),
        ),
    )


def find_images(root: pathlib.Path) -> tuple[list[str], list[str], set[str]]:
    """(images, other files, folders of the root), names relative to the root, sorted.

    Hidden files are left out. Links to folders are followed, but none twice on one way
    down.
    """
    images, others, folders = [], [], set()
    top = pathlib.Path(os.path.realpath(root))
    pending = [("", frozenset(map(str, (top, *top.parents))))]
    while pending:
        folder, above = pending.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError:
            others.append(folder)
            continue
        for entry in entries:
            name = f"{folder}{entry.name}"
            if entry.name.startswith("."):
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if not is_folder:
                (images if is_file and is_image(entry.path) else others).append(name)
            elif (path := os.path.realpath(entry.path)) not in above:
                pending.append((f"{name}/", above | {path}))
                folders |= set() if folder else {name}
    return sorted(images), sorted(others), folders


def is_image(path: str) -> bool:
    """Whether a file is an image by its ending or, where that says nothing, by its
    first bytes.
    """
    endings, tested = image_formats()
    if path.lower().endswith(endings):
        return True
    try:
        with Image.open(path, formats=tested) as image:
            return image.format not in NO_PHOTOS
    except Exception:
        return False


@functools.cache
def image_formats() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Endings of images that Pillow opens, in lower case, and the formats that it tells
    by the first bytes of a file; the others accept almost anything.
    """
    endings = tuple(
        ending
        for ending, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in NO_PHOTOS
    )
    return endings, tuple(name for name, (_, accept) in Image.OPEN.items() if accept)


def open_csv(
    path: str | os.PathLike, *, mask_format: MaskFormat = "auto"
) -> ImageFiles:
    """A table with the columns `path`, `label` and, if there are masks, `mask`.

    Paths are relative to the table's folder; an empty label, or -1, is an unknown one.
    `mask_format` is how masks are read where the table's own column of this name, for
    some rows or all, is empty.
    """
    table = pathlib.Path(path).expanduser()
    columns, rows = read_csv(
        table, {"path"}, "path and label (mask if there are masks)"
    )

    def column(name):
        return tuple((row.get(name) or "").strip() or None for row in rows)

    names = tuple(name or "" for name in column("path"))
    labels = tuple(None if label == "-1" else label for label in column("label"))
    masks = column("mask") if "mask" in columns else ()
    formats = tuple(text or mask_format for text in column("mask_format"))
    for number, (name, text) in enumerate(zip(names, formats), 2):
        if not name:
            raise SourceError(f"Row {number} of {table} has no path.")
        if text not in get_args(MaskFormat):
            reason = unknown("mask_format", text, get_args(MaskFormat))
            raise SourceError(f"Row {number} of {table}: {reason}")
    lists = [names, labels, masks or labels]
    if masks and set(formats) != {"auto"}:
        lists.append(formats)
    files = dict.fromkeys([*names, *filter(None, masks)])
    missing = [name for name in files if not os.path.exists(table.parent / name)]
    for text in (*missing, *filter(None, labels)):
        if printable(text) != text:
            raise SourceError(
                f"{table} is not a table in UTF-8 ({printable(text)}); save it as CSV "
                "UTF-8."
            )
    others = [name for name in columns if name and name not in COLUMNS]
    again = [name for name, count in collections.Counter(names).items() if count > 1]
    rule = "their cells are empty or -1"
    if "label" not in columns:
        rule = f"{table} has no column label: its columns are {', '.join(columns)}"
    return ImageFiles(
        id=f"csv/1:{len(names)} files,{digest_rows(zip(*lists))}",
        root=table.parent,
        paths=names,
        label_names=labels,
        masks=masks,
        mask_formats=formats,
        notes=(
            *note_unlabeled(names, labels, rule),
            *note(others, f"columns of {table} are not among {', '.join(COLUMNS)}"),
            *note(missing, f"files of {table} do not exist"),
            *note(again, f"paths of {table} are in several rows"),
        ),
    )


def read_csv(
    table: pathlib.Path, required: set[str], layout: str
) -> tuple[list[str], list[dict]]:
    """(columns, rows) of a table of images; `layout` says which columns are required.

    Columns count in lower case; cells are separated as the header is, by commas,
    semicolons or tabs. Bytes that are no UTF-8 are kept, as in names of files.
    """
    if not table.is_file():
        raise SourceError(f"There is no file {table}: expected a CSV table of images.")
    text = table.read_bytes().decode("utf-8-sig", "surrogateescape").lstrip("\r\n")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        skipinitialspace=True,
        restval="",
    )
    try:
        columns = [name.strip().casefold() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = list(reader)
    except csv.Error as error:
        raise SourceError(
            f"{table} is not a CSV table ({error}); save it as CSV UTF-8."
        ) from error
    if not rows or not required <= set(columns):
        raise SourceError(
            f"{table} needs a header with the columns {layout} and a row per image; it "
            f"has {len(rows)} rows and the columns "
            f"{printable(', '.join(columns)) or 'none'}."
        )
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise SourceError(f"{table} has several columns {twice[0]}; keep one of them.")
    for number, row in enumerate(rows, 2):
        if any(more := row.pop(None, ())):
            raise SourceError(
                f"Row {number} of {table} has {len(columns) + len(more)} cells and the "
                f"header {len(columns)}: put what contains a {separator!r} in double "
                "quotes."
            )
    return columns, rows
