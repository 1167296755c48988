"""The command `estimate`: memory, disk and time of a run before it."""

import dataclasses
from typing import Annotated, Any

from vitjax.checkpoints import loading
from vitjax.cli.command import metavar
from vitjax.cli.run import RecipeCommand


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate(RecipeCommand):
    """Estimate what a run will take: memory of a device, disk, time.

    Compiles the recipe's step and runs the first batches, some ten seconds; writes
    nothing and skips images that cannot be read. `vitjax run` prints the same before it
    goes on. Without --checkpoint, weights are random, which are as fast.

    Example: vitjax estimate paper --model vit_b16 --data folder:photos

    Args:
        data: the data set, as of run.
        topology: gone; it compiled for TPUs that are not here.
    """

    data: Annotated[str | None, metavar("SOURCE")] = None
    topology: Annotated[str | None, metavar("KIND:SHAPE")] = None

    def __call__(self) -> Any:
        from vitjax.runner.estimate import estimate

        if self.topology is not None:
            raise ValueError(
                "--topology is gone: run `vitjax estimate` on the TPUs themselves, or "
                "compile a recipe's step by jax.experimental.topologies."
            )
        if self.data is None:
            raise ValueError("Give --data, whose first images are run.")
        result = estimate(
            self.recipe,
            loading.init(self.model) if self.weightless else self.load(),
            self.data,
            options=self.recipe_options,
            **dataclasses.asdict(self.options) | {"on_error": "skip"},
        )
        self.show(dataclasses.asdict(result), str(result))
        return result
