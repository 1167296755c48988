"""The table of arrays that recipes write: names, axes, meanings.

The only place where an array's name is put together and where streams, memory systems,
removal orders, kinds of tokens and interventions are listed with their words. Recipes
take their dimensions from it, the report its labels, the guide its table of rows, and
tests their fake runs.

A family stands for arrays of one meaning: `RANK("residual") == "rank_residual"`.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

STREAMS = {
    "residual": "block output",
    "attention_update": "attention update",
    "mlp_update": "MLP update",
}
"""What is projected onto the class space after every block."""

SYSTEMS = {"attention": "attention", "mlp": "MLP"}
"""Key-value memory systems of a block; `SYSTEM_update` is what each adds."""

KINDS = {
    "cls": "[CLS]",
    "register": "registers",
    "image": "image tokens",
    "object": "object tokens",
    "context": "context tokens",
}
"""Kinds of tokens; object and context tokens are the image tokens that a mask names."""

ORDERS = {"negative": "least important first", "positive": "most important first"}
"""In which order patches or pixels are removed."""

INTERVENTIONS = {
    "self_only": "image tokens see only themselves and [CLS]",
    "self_only_renormalized": "the same, the rest of each row summing to one",
    "self_only_vilas2023": "image tokens see only themselves (published code)",
    "no_cls": "image tokens do not see [CLS]",
    "no_cls_renormalized": "the same, the rest of each row summing to one",
    "without_context": "only object tokens (context removed)",
    "without_class": "only context tokens (object removed)",
    "random_as_class": "control: as many tokens as the object's, at random",
    "random_as_context": "control: as many tokens as the context's, at random",
}

METHODS = {
    "relevancy": "relevancy (Vilas et al. 2023)",
    "raw_attention": "attention weights",
    "legrad": "LeGrad",
    "class_projection": "class projection",
    "chefer": "Chefer et al. 2021",
    "rollout": "attention rollout",
    "gradcam": "Grad-CAM",
    "integrated_gradients": "integrated gradients",
    "integrated_presence": "integrated presence",
    "consensus": "consensus",
    "lrp": "LRP of Chefer et al. 2021",
    "attnlrp": "AttnLRP",
    "occlusion": "occlusion",
    "random": "random",
}
"""Explanation methods whose maps say how important a patch is."""

MEASURES = {
    "pixel_accuracy": "pixel accuracy",
    "mean_iou": "mean IoU",
    "average_precision": "average precision of the object",
    "average_precision_both": "average precision, mean of object and context",
    "true_positives": "object patches in the map's foreground",
    "false_positives": "context patches in the map's foreground",
    "false_negatives": "object patches in the map's background",
    "true_negatives": "context patches in the map's background",
}
"""A map as a segmentation of the object."""

RANKERS = {"probe": "ranks of the linear probes", "gradient": "gradients"}
"""What orders tokens for removal in the recipe `probes`."""

CONTROLS = {
    "control": "a randomly initialized model",
    "shuffled": "value vectors with permuted components",
}

if TYPE_CHECKING:
    Stream = Intervention = Method = str
else:  # choices of the command line
    Stream = Literal[tuple(STREAMS)]
    Intervention = Literal[tuple(INTERVENTIONS)]
    Method = Literal[tuple(METHODS)]


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a run.

    Args:
        name: in the run and in CSV files.
        axes: names of its axes, `image` first unless it is static.
        meaning: one line, with unit or range.
        needs_label: means nothing for an image without a known class.
    """

    name: str
    axes: tuple[str, ...]
    meaning: str
    needs_label: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """Arrays of one meaning, one for every combination of keys.

    Args:
        template: of the name, a `{}` for every key.
        axes: after `image`, or all of them where `static`.
        meaning: of the array, with a `{}` for the words of every key.
        keys: key -> words, a mapping for every `{}`.
        needs_label: means nothing for an image without a known class.
        static: written once for the run, without an image axis.
    """

    template: str
    axes: tuple[str, ...]
    meaning: str
    keys: tuple[Mapping[str, str], ...] = ()
    needs_label: bool = False
    static: bool = False

    def __call__(self, *keys: str) -> str:
        """The name of one array."""
        return self.template.format(*keys)

    def __iter__(self) -> Iterator[Array]:
        axes = self.axes if self.static else ("image", *self.axes)
        for pairs in itertools.product(*(mapping.items() for mapping in self.keys)):
            name = self.template.format(*(key for key, _ in pairs))
            meaning = self.meaning.format(*(words for _, words in pairs))
            yield Array(name, axes, meaning, self.needs_label)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all its arrays."""
        return tuple(array.name for array in self)


TOKEN, LAYER = ("layer", "token"), ("layer",)

# Every run.
LABEL = Family("label", (), "True class, -1 where unknown.")
VALID = Family("valid", (), "False for an image that could not be read.")
DIGEST = Family("digest", (), "Hash of the image's content, 0 if it was not read.")
PATCH_LABEL = Family("patch_label", ("patch",), "1 object, 0 context, -1 neither.")
PREVIEW = Family(
    "preview_image",
    ("preview", "height", "width", "channel"),
    "The first images as the model saw them.",
    static=True,
)
PREVIEW_INDEX = Family(
    "preview_index", ("preview",), "Image of each preview, -1: none.", static=True
)

# identifiability, and every recipe that contains its rows.
RANK = Family(
    "rank_{}", TOKEN, "Rank of the true class in the {}, 0 first.", (STREAMS,), True
)
LOGIT = Family(
    "logit_{}", TOKEN, "Logit of the true class in the {}.", (STREAMS,), True
)
TOP_CLASSES = Family(
    "top_classes", ("layer", "top"), "Classes of the pooled token, best first."
)
TOP_LOGITS = Family("top_logits", ("layer", "top"), "Logits of `top_classes`.")
PREDICTION = Family("prediction", (), "Class with the largest logit.")
RANK_REFINED = Family(
    "rank_refined",
    ("refined",),
    "Rank of the true class in a refinement module.",
    (),
    True,
)
LOGIT_REFINED = Family(
    "logit_refined", ("refined",), "Logit of the true class there.", (), True
)

# one_pass and paper.
FIRST = Family("first_{}", TOKEN, "Class with the largest logit in the {}.", (STREAMS,))
LOGIT_MIDDLE = Family(
    "logit_middle",
    TOKEN,
    "Logit of the true class between attention and MLP.",
    (),
    True,
)
LOGIT_EMBEDDING = Family(
    "logit_embedding", ("token",), "Logit of the true class entering block 0.", (), True
)
FIRST_EMBEDDING = Family(
    "first_embedding", ("token",), "Class with the largest logit entering block 0."
)
AGREEMENT = Family(
    "agreement_{}",
    TOKEN,
    "Key-value agreement of {} with the true class, section 6.2.",
    (SYSTEMS,),
    True,
)
AGREEMENT_VILAS2023 = Family(
    "agreement_vilas2023_{}",
    TOKEN,
    "Key-value agreement of {} as the published code defines it.",
    (SYSTEMS,),
    True,
)
CHANCE = Family(
    "chance_{}",
    LAYER,
    "`agreement` of {} with permuted classes, mean over tokens.",
    (SYSTEMS,),
    True,
)
CHANCE_VILAS2023 = Family(
    "chance_vilas2023_{}",
    LAYER,
    "`agreement_vilas2023` of {} with permuted classes.",
    (SYSTEMS,),
    True,
)
SIMPLE = Family(
    "simple_{}",
    TOKEN,
    "Whether the top class of {} is that of a single memory: not composed.",
    (SYSTEMS,),
)
CHANCE_SIMPLE = Family(
    "chance_simple_{}",
    LAYER,
    "`simple` of {} with permuted classes, mean over tokens.",
    (SYSTEMS,),
    True,
)
AGREEMENT_HEAD = Family(
    "agreement_head",
    ("layer", "head"),
    "`agreement_attention` within each head, mean over tokens.",
    (),
    True,
)
CHANCE_HEAD = Family(
    "chance_head",
    ("layer", "head"),
    "`agreement_head` with permuted classes.",
    (),
    True,
)
SIMPLE_HEAD = Family(
    "simple_head", ("layer", "head"), "`simple_attention` within each head."
)
CHANCE_SIMPLE_HEAD = Family(
    "chance_simple_head", ("layer", "head"), "`simple_head` with permuted classes."
)
RANK_EDITED = Family(
    "rank_{}",
    ("token",),
    "Rank of the true class in the last block: {}; -1 at removed tokens.",
    (INTERVENTIONS,),
    True,
)
PREDICTION_EDITED = Family(
    "prediction_{}", (), "Class with the largest logit: {}.", (INTERVENTIONS,)
)
CLASS_VALUE = Family(
    "class_value_{}",
    ("layer", "class"),
    "Class-value agreement of {}, section 6.2.",
    (SYSTEMS,),
    static=True,
)
CLASS_VALUE_CONTROL = Family(
    "class_value_{}_{}",
    ("layer", "class"),
    "Class-value agreement of {} in {}.",
    (SYSTEMS, CONTROLS),
    static=True,
)
CLASS_VALUE_HEAD = Family(
    "class_value_head",
    ("layer", "head", "class"),
    "Class-value agreement of each attention head.",
    static=True,
)

# tokens.
TOKEN_CLASSES = Family(
    "token_classes", ("layer", "token", "top"), "Classes of every token, best first."
)
TOKEN_PROBABILITIES = Family(
    "token_probabilities",
    ("layer", "token", "top"),
    "Softmax of `token_classes`, [0, 1].",
)
ATTENDED = Family(
    "attended",
    ("layer", "head", "patch"),
    "Attention weights of the pooled token's row.",
)
HELPFUL = Family(
    "helpful",
    ("layer", "head", "patch"),
    "Relevancy for the label or, without one, for the prediction.",
)

# faithfulness.
MAP = Family("map_{}", ("patch",), "Map of {}, signed.", (METHODS,), True)
REMOVAL = Family(
    "removal_{}_{}",
    ("step",),
    "Whether the model is right with `kept` patches, {}, by {}.",
    (ORDERS, METHODS),
    True,
)
PIXELS = Family(
    "pixels_{}_{}",
    ("level",),
    "Whether the model is right, a tenth more of the pixels black each, {}, by {}.",
    (ORDERS, METHODS),
    True,
)
SEGMENTATION = Family(
    "{}_{}", (), "Segmentation, {}, by {}.", (MEASURES, METHODS), True
)
PREDICTION_EMPTY = Family("prediction_empty", (), "The answer without any patch.")
KEPT = Family(
    "kept", ("step",), "How many patches stay at each step of a curve.", static=True
)

# probes.
RANK_PROBE = Family(
    "rank_probe_{}",
    TOKEN,
    "Rank of the true class by a linear probe on the {}.",
    (STREAMS,),
    True,
)
CORRECT = Family(
    "correct_{}_{}",
    ("step",),
    "Whether the model is right, {} by {}.",
    (ORDERS, RANKERS),
    True,
)
CORRECT_RANDOM = Family(
    "correct_random", ("step",), "Whether the model is right, random order.", (), True
)

FAMILIES: tuple[Family, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Family)
)
SCHEMA: dict[str, Array] = {array.name: array for f in FAMILIES for array in f}
"""Every array by name."""


def dims(*families: Family) -> dict[str, tuple[str, ...]]:
    """The axes after `image`, of every array of some families, by name."""
    return {
        array.name: array.axes[not family.static :]
        for family in families
        for array in family
    }


def needs_label(names: Iterable[str]) -> tuple[str, ...]:
    """Those of some arrays that mean nothing without a known class."""
    return tuple(name for name in names if name in SCHEMA and SCHEMA[name].needs_label)
