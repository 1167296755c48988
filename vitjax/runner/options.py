"""Options that every run has, whatever its recipe."""

import dataclasses
from typing import Literal, get_args

from vitjax.data.masks import MaskConvention, MaskFormat, MaskRule
from vitjax.messages import check_one_of, check_range

BATCH_SIZE, SMALL_BATCH_SIZE = 32, 2
"""By default, and of a recipe of many passes on CPUs, which a batch keeps busy anyway:
its progress shows, and it stops, after every step.
"""

PRECISION = {"float32": "highest", "bfloat16": "default"}
"""Matmul precision by dtype. JAX's own default rounds float32 factors to TF32 on GPUs
and to bfloat16 on TPUs, which moves ranks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a recipe meets a data set.

    Args:
        batch_size: images per step over all devices of a process; rounded up to a
            multiple of them, and no larger than the data set. By default 32, and 2 on
            CPUs for recipes that take hundreds of forward passes for an image.
        limit: run only the first so many images.
        seed: of whatever a recipe draws at random.
        on_error: what to do with an image that cannot be read: stop with its name, or
            skip it, recorded in the manifest.
        dtype: what the model computes in: float32 with matrix products at the highest
            precision, or bfloat16, which is faster on accelerators and safe for rates,
            mean scores and most maps, not for ranks of single tokens.
        mask_convention: where a data set has masks, which tokens are on the object:
            area by the share of their pixels, through the model's own resize and crop;
            vilas2023_code by one pixel, as the published code does.
        mask_threshold: that share, in (0, 1].
        mask_format: how the mask files of a table are read. gray: the object is where
            it is at least half as bright as its brightest pixel; labels: 1 object, 0
            context, 255 neither; auto: labels where the values are 0, 1 and 255 and 1
            covers an area, else gray.
        workers: processes that decode and preprocess images; 0 for threads.

    Raises:
        ValueError: one is out of its range.
    """

    batch_size: int | None = None
    limit: int | None = None
    seed: int = 0
    on_error: Literal["stop", "skip"] = "stop"
    dtype: Literal["float32", "bfloat16"] = "float32"
    mask_convention: MaskConvention = "area"
    mask_threshold: float = 0.5
    mask_format: MaskFormat = "auto"
    workers: int = 0

    def __post_init__(self):
        if self.batch_size is not None:
            check_range("batch_size", self.batch_size, 1)
        check_range("workers", self.workers, 0)
        if self.limit is not None:
            check_range("limit", self.limit, 1)
        check_one_of("dtype", self.dtype, PRECISION)
        check_one_of("on_error", self.on_error, ("stop", "skip"))
        check_one_of("mask_format", self.mask_format, get_args(MaskFormat))
        _ = self.mask_rule

    @property
    def mask_rule(self) -> MaskRule:
        """How masks become labels of patches."""
        return MaskRule(self.mask_convention, self.mask_threshold)

    @property
    def precision(self) -> str:
        """JAX's matmul precision for the dtype."""
        return PRECISION[self.dtype]
