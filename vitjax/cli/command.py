"""What commands share: base classes, how flags become values, tables on stdout."""

import dataclasses
import errno
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, get_args

import jax
import tyro
from etils import epath
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from vitjax.checkpoints import loading
from vitjax.checkpoints.classes import SUFFIXES as CLASS_FILES
from vitjax.checkpoints.convert import Weights
from vitjax.checkpoints.registry import VARIANTS
from vitjax.messages import unknown
from vitjax.models.model import Model

FLAG_TYPES = ConstructorRegistry()
"""How tyro reads flags of vitjax; a context manager."""


def metavar(text: str) -> Any:
    """What stands for a value in the help."""
    return tyro.conf.arg(metavar=text)


BLOCKS: Any = tyro.conf.arg(name="blocks", aliases=("--layers",))
"""The flag of blocks; functions call them layers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command of the command line: its fields are the flags, and calling it prints
    the result and returns it.

    Args:
        json: print JSON instead of text.
        traceback: show the Python traceback of an error.
    """

    json: bool = False
    traceback: bool = False
    needs_device: ClassVar[bool] = True
    group: ClassVar[str] = "output"
    """The heading of this class's own flags in the help of its commands."""

    def show(self, facts: Any, text: str) -> None:
        """Print facts as JSON where --json is given, else the text."""
        print(json.dumps(facts) if self.json else text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsCommand(Command):
    """A command that may load weights.

    Args:
        weights: of a file that also holds a moving average of its weights, take the
            average (the default) or the others.
        preprocess: your own pipeline: a JSON file, or JSON, with fields of
            `vitjax.Preprocess` that replace the model's, such as '{"mean": 0.5}', or
            a preprocessor_config.json.
        class_names: your own class names: a file with one on each line or a JSON list,
            or their number. For CLIP and SigLIP a class file, .npz or .safetensors:
            the embeddings of the classes, with their names.
        head: a file with the linear head of a backbone, as DINOv2's are published.
        allow_nonfinite: load weights with NaN or infinite values.
    """

    weights: Weights | None = None
    preprocess: Annotated[str | None, metavar("JSON")] = None
    class_names: Annotated[
        str | None, tyro.conf.arg(name="classes", metavar="FILE|N")
    ] = None
    head: Annotated[str | None, metavar("FILE")] = None
    allow_nonfinite: bool = False
    group: ClassVar[str] = "weights"

    @property
    def own_settings(self) -> dict[str, Any]:
        """The keywords of `vitjax.load` that these flags are."""
        return {
            "weights": self.weights,
            "preprocess": read_object("--preprocess", self.preprocess),
            "classes": read_classes(self.class_names),
            "head": self.head,
            "allow_nonfinite": self.allow_nonfinite,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCommand(WeightsCommand):
    """A command about a model.

    Args:
        model: a name that `vitjax list` shows, or a folder of vitjax, Hugging Face or
            timm.
        checkpoint: your own file with the model's weights (.npz, .safetensors, .pth),
            its http(s) address, or such a folder.
    """

    model: Annotated[str, metavar("NAME")]
    checkpoint: Annotated[str | None, metavar("FILE")] = None
    group: ClassVar[str] = "model"

    @property
    def weightless(self) -> bool:
        """Whether the model is but a name; then random weights are as fast."""
        own = (
            self.checkpoint,
            self.weights,
            self.preprocess,
            self.class_names,
            self.head,
        )
        return own == (None,) * 5 and self.model in VARIANTS

    def load(self) -> Model:
        """The model with its weights."""
        return loading.load(self.model, checkpoint=self.checkpoint, **self.own_settings)


def read_object(flag: str, text: str | None) -> dict[str, Any] | None:
    """The JSON object in a file, or in the flag itself."""
    if text is None:
        return None
    content = text if text.lstrip().startswith("{") else read_text(flag, text)
    value = parse_json(f"{flag} {text}", content)
    if not isinstance(value, dict):
        raise ValueError(f"{flag} {text} holds no JSON object.")
    return value


def read_classes(text: str | None) -> Any:
    """Names in a file (JSON or one a line), their number, or a class file's path."""
    if text is None or text.endswith(CLASS_FILES):
        return text
    if text.isdecimal():
        return int(text)
    content = read_text("--classes", text)
    if content.lstrip()[:1] in ("[", "{"):
        return parse_json(f"--classes {text}", content)
    return [line.strip() for line in content.splitlines() if line.strip()]


def parse_json(what: str, content: str) -> Any:
    """The value of a JSON text."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {error}.") from error


def read_text(flag: str, path: str) -> str:
    """The text of a file, local or remote."""
    try:
        return epath.Path(os.path.expanduser(path)).read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"{flag} {path} cannot be read: {error}.") from error


@FLAG_TYPES.primitive_rule
def comma_separated(info: Any) -> PrimitiveConstructorSpec | None:
    """Read `tuple[X, ...]` from `a b c` and from `a,b,c`; not the paths that a command
    takes without a flag, which may contain commas.
    """
    positional = get_args(tyro.conf.Positional[int])[-1]
    element, *rest = get_args(info.type) or (None,)
    if info.type_origin is not tuple or rest != [...] or positional in info.markers:
        return None
    info = type(info).make(element, info.markers)
    inner: Any = ConstructorRegistry.get_primitive_spec(info)

    def read(words: list[str]) -> tuple[Any, ...]:
        words = [part for part in ",".join(words).split(",") if part]
        for word in words:
            if inner.choices and word not in inner.choices:
                raise ValueError(unknown("value", word, inner.choices))
        return tuple(inner.instance_from_str([word]) for word in words)

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{inner.metavar}...",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [str(item) for item in value] or ["none"],
    )


@FLAG_TYPES.primitive_rule
def optional(info: Any) -> PrimitiveConstructorSpec | None:
    """Show `X | None` as X: for None, the flag is left out, or None."""
    kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
    if len(kinds) != 1 or len(get_args(info.type)) != 2:
        return None
    spec = ConstructorRegistry.get_primitive_spec(type(info).make(*kinds, info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    read = spec.instance_from_str
    return dataclasses.replace(  # the default, as help shows it
        spec, instance_from_str=lambda words: None if words == ["None"] else read(words)
    )


def check_platform() -> None:
    """Refuse a JAX_PLATFORMS of which JAX has no device; it only asserts."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"JAX has no device of JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}: "
            "unset it, or install vitjax with the extra for it: cuda or tpu."
        ) from error


def make_folder(folder: str | os.PathLike) -> None:
    """Make a folder for results, before anything is computed for it."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", os.fspath(folder)):
        raise ValueError(f"--out {folder} is a URL: only `vitjax run` writes to those.")
    os.makedirs(folder, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def format_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[int],
    separator: str = "  ",
) -> str:
    """A table; the columns in `right` are flush right. With " | " it is Markdown's."""
    lines = [columns, *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    forms = [f"{'>' if i in right else '<'}{width}" for i, width in enumerate(widths)]
    texts = (separator.join(map(format, line, forms)) for line in lines)
    edge = separator.strip()
    return "\n".join(f"{edge} {t} {edge}".strip() for t in texts)
