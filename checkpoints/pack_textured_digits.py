"""Packing of the raw material of the embedded data set `textured_digits`.

    python checkpoints/pack_textured_digits.py [--out FILE]

Digits: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak (1998),
UCI Machine Learning Repository, doi 10.24432/C50P49, CC BY 4.0, as scikit-learn
carries them (1,797 digits of 8x8 pixels with 17 gray levels; here two to a byte).
Textures: `brick` and `gravel` (CC0 Textures) and `grass` (linolafett, DeviantArt), all
CC0, as scikit-image carries them; here reduced from 512 to 384 pixels a side.
"""

import pathlib
from typing import Any

import numpy as np
import tyro
from PIL import Image

from vitjax.data.textured_digits import MATERIAL, TEXTURE_SIDE, TEXTURES


def pack_digits(digits: np.ndarray) -> np.ndarray:
    """Two pixels to a byte, the first in the low half; 16 becomes 15."""
    flat = np.minimum(digits.reshape(len(digits), -1), 15).astype(np.uint8)
    return flat[:, 0::2] | flat[:, 1::2] << 4


def main(*, out: pathlib.Path = MATERIAL) -> None:
    """Pack the raw material of the embedded data set.

    Args:
        out: the .npz file; by default the one that the package reads.
    """
    import skimage.data
    import sklearn.datasets

    digits: Any = sklearn.datasets.load_digits()
    side = (TEXTURE_SIDE, TEXTURE_SIDE)
    textures = [
        np.asarray(Image.fromarray(getattr(skimage.data, name)()).resize(side, 1))
        for name in TEXTURES
    ]
    np.savez_compressed(
        out,
        digits=pack_digits(digits.images),
        labels=digits.target.astype(np.uint8),
        textures=np.stack(textures),
    )
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    tyro.cli(main)
