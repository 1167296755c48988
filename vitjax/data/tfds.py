"""TensorFlow Datasets, read without TensorFlow from prepared array_record files.

Records are random access; Pillow decodes their stored bytes, as everywhere else here.
"""

import dataclasses
import os
import re
from typing import Any

from vitjax.data.imagenet_s import NO_MASK
from vitjax.data.images import content_digest, decode_image, image_errors
from vitjax.data.masks import class_mask
from vitjax.data.records import Record, SourceError

ENCODED = ("image", "segmentation")
SPEC = re.compile(r"(?P<name>[^:]+(:\d+\.\d+\.\d+)?)(:(?P<split>.+))?")


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A split of a prepared data set; `records` hold images as bytes.

    `classes` are the meanings of label numbers, empty without labels.
    """

    id: str
    records: Any
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        name = record.get("file_name", index)
        name = name.decode() if isinstance(name, bytes) else str(name)
        contents = [record[key] for key in ENCODED if key in record]
        image, *segmentations = [decode_image(c, name=name) for c in contents]
        number = int(record.get("label", -1))
        known = 0 <= number < len(self.classes)
        mask = None
        if known and segmentations and segmentations[0].size != NO_MASK:
            # The classes of such a set are in the order of its masks' numbers.
            with image_errors(name):
                mask = class_mask(segmentations[0], number + 1, image=image)
        return Record(
            image=image,
            label=self.classes[number] if known else None,
            name=name,
            mask=mask,
            digest=content_digest(*contents),
        )


def open_prepared(spec: str, *, data_dir: str | os.PathLike | None = None) -> Prepared:
    """A split of a data set that was prepared as array_record.

    `spec` is NAME[/CONFIG][:VERSION]:SPLIT, such as `imagenet2012:validation` or
    `cifar100:test[:500]`; without a split, `test`, `validation` or the only one.
    `data_dir` is by default `TFDS_DATA_DIR` or ~/tensorflow_datasets. Labels are the
    names of the set's classes.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    match = SPEC.fullmatch(spec)
    if match is None:
        raise SourceError(f"tfds:{spec} is not of the form tfds:NAME/CONFIG:SPLIT.")
    name = match["name"]
    try:
        builder: Any = read_only_builder.builder_from_files(
            name, data_dir=None if data_dir is None else os.fspath(data_dir)
        )
    except (tfds.core.DatasetNotFoundError, ValueError, OSError) as error:
        raise SourceError(how_to_prepare(name, data_dir)) from error
    info: Any = builder.info
    features = dict(info.features)
    if "image" not in features:
        raise SourceError(
            f"{info.full_name} has no feature `image` but {', '.join(features)}; only "
            "sets of images with one label are read."
        )
    split = match["split"] or default_split(info)
    if split.partition("[")[0] not in info.splits:
        raise SourceError(
            f"{info.full_name} has no split {split!r} but {', '.join(info.splits)}."
        )
    encoded = {key: tfds.decode.SkipDecoding() for key in ENCODED if key in features}
    try:
        records = builder.as_data_source(split, decoders=encoded)
    except (RuntimeError, ValueError) as error:  # the format has no random access
        raise SourceError(
            f"{info.full_name} has no random access ({error}). "
            + how_to_prepare(name, data_dir)
        ) from error
    id = f"tfds/{info.full_name}:{split},{len(records)} records"
    return Prepared(id, records, tuple(getattr(features.get("label"), "names", ())))


def default_split(info: Any) -> str:
    """The split that a spec without one means."""
    splits = list(info.splits)
    for name in ("test", "validation", *splits[: len(splits) == 1]):
        if name in splits:
            return name
    raise SourceError(
        f"{info.full_name} has the splits {', '.join(splits)}: give one, as "
        f"tfds:{info.name}:{splits[0]}."
    )


def how_to_prepare(name: str, data_dir: str | os.PathLike | None) -> str:
    """The command that prepares a data set that is missing."""
    from tensorflow_datasets.core import constants

    folder = os.fspath(data_dir or constants.DATA_DIR)
    own = {"imagenet_s": name, "vitjax_cifar100": "cifar100"}.get(name.split("/")[0])
    if own:
        return (
            f"{name} is not prepared in {folder}. Prepare it once from its files, in a "
            f"clone of vitjax: python checkpoints/prepare_tfds.py {own} PATH "
            f"--data-dir {folder}"
        )
    return (
        f"{name} is not prepared as array_record in {folder}. Where TensorFlow is "
        f"installed (pip install tensorflow tensorflow-datasets), prepare it once: "
        f"tfds build {name} --file_format=array_record --data_dir={folder}; reading it "
        "then needs no TensorFlow. If it is elsewhere, set TFDS_DATA_DIR."
    )
