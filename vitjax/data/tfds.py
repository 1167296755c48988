"""Any image-classification set that TensorFlow Datasets has prepared as array_record.

Reading needs no TensorFlow: records are random access, their pictures are decoded by
Pillow from the stored bytes, as everywhere else here.
"""

import dataclasses
import io
import os
import re
from typing import Any

from PIL import Image

from vitjax.data.imagenet_s import NO_MASK, class_mask
from vitjax.data.images import DECODING_ERRORS, ImageError, describe
from vitjax.data.records import Record, SourceError

SPEC = re.compile(r"(?P<name>[^:]+(:\d+\.\d+\.\d+)?)(:(?P<split>.+))?")


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A split of a prepared data set.

    Args:
        name: with config and version.
        split: as TensorFlow Datasets reads it; slices too.
        records: random access; pictures are bytes.
        classes: what `label` numbers mean; empty without labels.
    """

    name: str
    split: str
    records: Any
    classes: tuple[str, ...]

    @property
    def id(self) -> str:
        """Name, version, split and number of records."""
        return f"tfds/{self.name}:{self.split},{len(self)} records"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        name = text(record.get("file_name", index))
        image = decode(record["image"], name)
        number = int(record.get("label", -1))
        if not 0 <= number < len(self.classes):
            return Record(image=image, label=None, name=name)
        mask = None
        if "segmentation" in record:
            segmentation = decode(record["segmentation"], name)
            if segmentation.size != NO_MASK:
                # The classes of such a set stand in the order of its masks' numbers.
                mask = class_mask(segmentation, number + 1, size=image.size)
        return Record(image=image, label=self.classes[number], name=name, mask=mask)


def decode(content: bytes, name: str) -> Image.Image:
    """A picture from its bytes."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except DECODING_ERRORS as error:
        raise ImageError(name, describe(error)) from error
    return image


def text(value: Any) -> str:
    """A stored string or number, for people."""
    return value.decode() if isinstance(value, bytes) else str(value)


def open_prepared(spec: str, *, data_dir: str | os.PathLike | None = None) -> Prepared:
    """A split of a data set that was prepared as array_record.

    Args:
        spec: NAME[/CONFIG][:VERSION]:SPLIT, such as `imagenet2012:validation` or
            `cifar100:test[:500]`; without a split, the only one, `test` or
            `validation`.
        data_dir: where data sets are kept; by default `TFDS_DATA_DIR` or
            ~/tensorflow_datasets.

    Returns:
        The source; its labels are the names of the set's classes.

    Raises:
        SourceError: it is not prepared, not as array_record, or holds no pictures; the
            message gives the command that prepares it.
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
        raise SourceError(steps(name, data_dir)) from error
    info: Any = builder.info
    features = dict(info.features)
    if "image" not in features:
        raise SourceError(
            f"{info.full_name} has no feature `image` but {', '.join(features)}; only "
            "sets of pictures with one label are read."
        )
    split = match["split"] or only_split(info)
    if split.partition("[")[0] not in info.splits:
        raise SourceError(
            f"{info.full_name} has no split {split!r} but {', '.join(info.splits)}."
        )
    raw = {n: tfds.decode.SkipDecoding() for n in PICTURES if n in features}
    try:
        records = builder.as_data_source(split, decoders=raw)
    except (RuntimeError, ValueError) as error:  # the format has no random access
        raise SourceError(
            f"{info.full_name} cannot be read at random ({error}). "
            + steps(name, data_dir)
        ) from error
    label = features.get("label")
    return Prepared(info.full_name, split, records, tuple(getattr(label, "names", ())))


PICTURES = ("image", "segmentation")


def only_split(info: Any) -> str:
    """The split that a spec without one means."""
    splits = list(info.splits)
    for name in ("test", "validation", *splits[: len(splits) == 1]):
        if name in splits:
            return name
    raise SourceError(
        f"{info.full_name} has the splits {', '.join(splits)}: give one, as "
        f"tfds:{info.name}:{splits[0]}."
    )


def steps(name: str, data_dir: str | os.PathLike | None) -> str:
    """How to get a data set that is not there."""
    from tensorflow_datasets.core import constants

    where = os.fspath(data_dir or constants.DATA_DIR)
    ours = {"imagenet_s": name, "vitjax_cifar100": "cifar100"}.get(name.split("/")[0])
    if ours:
        return (
            f"{name} is not prepared in {where}. Prepare it once from its files by: "
            f"python -m vitjax.data.tfds_builders {ours} PATH --data-dir {where}"
        )
    return (
        f"{name} is not prepared as array_record in {where}. Where TensorFlow is "
        f"installed (pip install tensorflow tensorflow-datasets), prepare it once by: "
        f"tfds build {name} --file_format=array_record --data_dir={where}; reading it "
        "then needs no TensorFlow. A set that lies elsewhere: set TFDS_DATA_DIR."
    )
