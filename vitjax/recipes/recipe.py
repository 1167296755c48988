"""What a recipe is: a step, the axes of what it returns, and what it prepares once."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array

from vitjax.models.model import Model
from vitjax.types import Batch


class Prepared(NamedTuple):
    """What depends on the model alone.

    Args:
        aux: a pytree that every step is handed.
        once: array name -> values that are written once, without an image axis.
    """

    aux: Any
    once: Mapping[str, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A question asked of every image.

    Args:
        name: what it is called on the command line.
        step: `step(model, batch, **options) -> {array name: rows}`; with `prepare`, it
            is `step(model, batch, aux, **options)`. Pure and traceable; every array it
            returns has a leading image axis.
        dims: for every array that the step may return, the names of its axes after
            `image`.
        labelled: arrays that mean nothing for an image without a known class; the
            stream leaves them unwritten there.
        options: keywords of the step, recorded in the manifest.
        prepare: None, or `prepare(model, seed=seed, **options) -> Prepared`.
        once: for every array that `prepare` may return, the names of its axes.
        measure: None, or `measure(model, batch, **options) -> JSON`, called once a run
            is through: what to put into the manifest as "measured", such as speeds.
        pictures: how many of the first images are kept as the model saw them.
    """

    name: str
    step: Callable[..., dict[str, Array]]
    dims: Mapping[str, tuple[str, ...]]
    labelled: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prepare: Callable[..., Prepared] | None = None
    once: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    measure: Callable[..., dict[str, Any]] | None = None
    pictures: int = 8

    def asked(self, options: Mapping[str, Any]) -> "Recipe":
        """The same question with other options.

        Args:
            options: keywords of the step, to replace those of the recipe.

        Raises:
            ValueError: the recipe has no such option.
        """
        unknown = [name for name in options if name not in self.options]
        if unknown:
            raise ValueError(
                f"The recipe {self.name!r} has no option {', '.join(unknown)}; it has "
                f"{', '.join(self.options) or 'none'}."
            )
        return dataclasses.replace(self, options={**self.options, **options})

    def make(self, model: Model, seed: int) -> Prepared:
        """What the steps need of a model beside itself.

        Args:
            model: the model.
            seed: of whatever is random.

        Returns:
            Nothing, where the recipe prepares nothing.
        """
        if self.prepare is None:
            return Prepared((), {})
        return self.prepare(model, seed=seed, **self.options)

    def rows(self, model: Model, batch: Batch, aux: Any) -> dict[str, Array]:
        """The rows of one batch.

        Args:
            model: the model.
            batch: images and labels.
            aux: of `make`.

        Returns:
            Array name to rows.
        """
        extra = () if self.prepare is None else (aux,)
        return self.step(model, batch, *extra, **self.options)
