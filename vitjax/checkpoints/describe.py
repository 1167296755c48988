"""What a model does to an image, and who says so: the row, the file, or you."""

from typing import Any, NamedTuple

from vitjax.checkpoints.registry import Variant
from vitjax.models.model import Model, Provenance


class Fact(NamedTuple):
    """A setting in force, its value, a number or three where it is one, and where it
    comes from.
    """

    setting: str
    value: str | float | tuple[float, ...]
    source: str

    @property
    def text(self) -> str:
        """The value in words."""
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        return ", ".join(v if isinstance(v, str) else f"{v:.6g}" for v in values)


def describe_preprocessing(model: Model) -> tuple[Fact, ...]:
    """Mean, deviation, geometry, epsilon and GELU in force, with their sources.

    Also the set of weights, where the file held several, and what was left out of it.
    """
    pipeline, provenance = model.preprocess, model.provenance
    sources: Any = {"preprocess": "not known", "epsilon": "you", "gelu": "you"}
    sources |= provenance.sources
    facts = []
    if pipeline is not None:
        colors = {"mean": pipeline.mean, "deviation": pipeline.std}
        facts += [Fact(name, tuple(values), "") for name, values in colors.items()]
        facts.append(Fact("geometry", describe_geometry(pipeline), ""))
    else:
        facts.append(Fact("preprocessing", "none", ""))
    facts = [fact._replace(source=sources["preprocess"]) for fact in facts]
    facts.append(Fact("epsilon", model.config.epsilon, sources["epsilon"]))
    facts.append(Fact("GELU", model.config.gelu, sources["gelu"]))
    if "temperature" in sources:
        temperature = float(model.params["head"]["temperature"])
        facts.append(Fact("temperature", f"{temperature:g}", sources["temperature"]))
    if provenance.weights:
        facts.append(Fact("weights", provenance.weights, provenance.path))
    facts += [Fact("left out", what, provenance.path) for what in provenance.ignored]
    return tuple(facts)


def describe_geometry(pipeline: Any) -> str:
    """A pipeline's resizing and cropping in words."""
    size = f"{pipeline.height}x{pipeline.width}"
    resize = {
        "squash": f"resized to {size}",
        "shorter": f"shorter side to {pipeline.side}, center crop of {size}",
        "square": f"resized to {pipeline.side}x{pipeline.side}, center crop of {size}",
    }
    return f"{resize[pipeline.resize]}, {pipeline.interpolation}"


def weightless(row: Variant) -> Model:
    """A row's model without its parameters, to be described."""
    names, ids = row.labels()
    settings = "preprocess", "epsilon", "gelu", "classes"
    sources = {setting: f"row {row.name}" for setting in settings}
    return Model(
        params={},
        config=row.config,
        classes=names,
        class_ids=ids,
        preprocess=row.preprocess,
        provenance=Provenance(name=row.name, sources=sources),
    )
