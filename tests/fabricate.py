"""Data sets in the form in which their authors publish them, with content of ours."""

import io
import pickle
import tarfile

import numpy as np
from PIL import Image

from vitjax.data import labels


def segmentation(numbers):
    numbers = np.asarray(numbers)
    planes = [numbers % 256, numbers // 256, np.zeros_like(numbers)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def imagenet_s(root, counts, *, subset=919, part="validation"):
    """So many images of each class; of the validation part with a mask, the class in
    its upper half."""
    ids = labels.imagenet_s(subset)
    for wnid, count in counts.items():
        folder = root / f"ImageNetS{subset}" / part / wnid
        masks = folder.parent.with_name(f"{part}-segmentation") / wnid
        folder.mkdir(parents=True)
        masks.mkdir(parents=True)
        for number in range(count):
            name = f"ILSVRC2012_val_{wnid[-4:]}{number:04d}"
            Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / f"{name}.JPEG")
            if part == "test":
                continue
            numbers = np.zeros((6, 8), int)
            numbers[:3] = ids.index(wnid) + 1
            numbers[5] = 1000
            segmentation(numbers).save(masks / f"{name}.png")
    return root


def planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def as_binary(images, label):
    coarse = np.zeros((len(label), 1), np.uint8)
    fine = label[:, None].astype(np.uint8)
    return np.concatenate([coarse, fine, planes(images)], axis=1).tobytes()


def as_pickle(images, label):
    fields = {
        "data": planes(images),
        "fine_labels": label.tolist(),
        "coarse_labels": [0] * len(label),
        "filenames": ["a.png"] * len(label),
    }
    return pickle.dumps(fields, protocol=2)


def cifar100(folder, version, content):
    write, suffix = {"binary": (as_binary, ".bin"), "python": (as_pickle, "")}[version]
    path = folder / f"cifar-100-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for part in ("meta", "train", "test"):
            images, label = content
            size = 10 if part == "train" else len(label)
            data = b"?" if part == "meta" else write(images[:size], label[:size])
            info = tarfile.TarInfo(f"cifar-100-{version}/{part}{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
