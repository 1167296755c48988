"""Image files with labels and masks: a folder, or a CSV table."""

import csv
import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Mapping

from vitjax.data.images import content_digest, decode_image, read_file
from vitjax.data.masks import class_mask, object_mask
from vitjax.data.records import Record, SourceError

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""Endings of the files that a folder source takes, in either case."""

WNID = re.compile(r"(n\d{8})[_.]")
"""The beginning of a flat folder's `wnid_name.JPEG`."""


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files with labels, and the names of mask files, relative to a root.

    `masks` is empty without masks. `numbers` is label -> its number in masks that show
    many classes; None where a mask shows one object.
    """

    id: str
    root: pathlib.Path
    names: tuple[str, ...]
    label_names: tuple[str | None, ...]
    masks: tuple[str | None, ...] = ()
    numbers: Mapping[str | None, int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def contents(self, index: int) -> list[bytes]:
        """An image's file and, where there is one, its mask's."""
        names = self.names[index], self.masks[index] if self.masks else None
        return [read_file(self.root / name, name=name) for name in names if name]

    def digest(self, index: int) -> int:
        """The digest of a record without decoding it: the runner compares it."""
        return content_digest(*self.contents(index))

    def __getitem__(self, index: int) -> Record:
        name, label = self.names[index], self.label_names[index]
        mask_name, mask = self.masks[index] if self.masks else None, None
        contents = self.contents(index)
        image = decode_image(contents[0], name=name)
        if mask_name is not None:
            mask_image = decode_image(contents[1], name=mask_name)
            if self.numbers is None:
                mask = object_mask(mask_image)
            else:
                mask = class_mask(mask_image, self.numbers[label], size=image.size)
        digest = content_digest(*contents)
        return Record(image=image, label=label, name=name, mask=mask, digest=digest)


def digest_rows(rows: Iterable[tuple]) -> str:
    """Sixteen hexadecimal digits that tell whether a list of files has changed."""
    text = "\n".join(map(repr, rows))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    names = sorted(find_images(root))
    if not names:
        raise SourceError(
            f"{root} holds no image; files end in one of {', '.join(SUFFIXES)}."
        )
    labels = tuple(map(folder_label, names))
    digest = digest_rows(zip(names, labels, labels))
    return ImageFiles(
        f"folder/1:{len(names)} files,{digest}", root, tuple(names), labels
    )


def find_images(root: pathlib.Path) -> Iterable[str]:
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


def open_csv(path: str | os.PathLike) -> ImageFiles:
    """A table with the columns `path`, `label` and, if there are masks, `mask`.

    Paths are relative to the table's folder; an empty label is an unknown one.
    """
    table = pathlib.Path(path).expanduser()
    rows = read_csv(table, {"path"}, "path and label (mask if there are masks)")

    def column(name):
        return tuple((row.get(name) or "").strip() or None for row in rows)

    names = tuple(name or "" for name in column("path"))
    labels, masks = column("label"), column("mask") if "mask" in rows[0] else ()
    if "" in names:
        raise SourceError(f"Row {names.index('') + 2} of {table} has no path.")
    digest = digest_rows(zip(names, labels, masks or labels))
    id = f"csv/1:{len(names)} files,{digest}"
    return ImageFiles(id, table.parent, names, labels, masks)


def read_csv(table: pathlib.Path, required: set[str], layout: str) -> list[dict]:
    """The rows of a table of images; `layout` describes its columns in an error."""
    if not table.is_file():
        raise SourceError(f"There is no file {table}: expected a CSV table of images.")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(
            f"{table} is not a table in UTF-8 ({error}); save it as CSV UTF-8."
        ) from error
    if not rows or not required <= set(columns):
        raise SourceError(
            f"{table} needs a header with the columns {layout} and a row per image; it "
            f"has {len(rows)} rows and the columns {', '.join(columns) or 'none'}."
        )
    return rows
