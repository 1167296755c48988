"""The table of arrays that recipes write: names, axes, meanings.

The only place where an array's name is put together and where streams, memory systems,
removal orders, kinds of tokens and interventions are listed with their words. Recipes
take their dimensions from it, the report its labels, the guide its table of rows, and
tests their fake runs.

A family stands for arrays of one meaning: `RANK("residual") == "rank_residual"`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

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

ENDS = {"whole": "of the whole image", "empty": "without any patch"}
"""Both ends of a removal curve."""

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
    "presence": "presence",
    "consensus": "consensus",
    "quick_consensus": "quick consensus",
    "lrp": "LRP of Chefer et al. 2021",
    "attnlrp": "AttnLRP",
    "input_x_gradient": "input x gradient",
    "libragrad": "LibraGrad",
    "half_libragrad": "half LibraGrad",
    "tokentm": "TokenTM",
    "inflow": "InFlow",
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

ABLATIONS = {
    "zero": "set to zero",
    "mean": "replaced by the mean over reference images",
}
"""What an ablated part of the model becomes."""

PARTS = {
    "head": "a head",
    "attention": "the attention update",
    "mlp": "the MLP update",
}
"""Parts of a block that are ablated and patched."""

MEMORY_EDITS = {
    "zero": "set to zero",
    "project": "freed of the class",
    "times_1_5": "1.5 times as strong",
    "times_2": "2 times as strong",
}
"""What the memories that promote a class become."""

MEMORY_SETS = {
    "promoting": "the memories that promote the class most",
    "random": "as many random ones of the same blocks",
}
ROLES = ("the class", "its confusions", "the rest")
"""What an image is to an edited class."""

TARGETS = {"residual": "the residual stream at a group of tokens"}
TARGETS |= {part: f"{words} at all tokens" for part, words in PARTS.items()}
"""What is patched: entries of it are restored."""

RUNS = {"clean": "the image", "corrupted": "its partner"}
"""The two forward passes of activation patching."""

LENSES = {"projection": "class projection", "lens": "tuned lens"}
"""What reads the pooled token after every block."""

CONTROLS = {
    "control": "a randomly initialized model",
    "shuffled": "value vectors with permuted components",
}

if TYPE_CHECKING:
    Stream = Intervention = Method = Ablation = MemoryEdit = str
else:  # choices of the command line
    Stream = Literal[tuple(STREAMS)]
    Intervention = Literal[tuple(INTERVENTIONS)]
    Method = Literal[tuple(METHODS)]
    Ablation = Literal[tuple(ABLATIONS)]
    MemoryEdit = Literal[tuple(MEMORY_EDITS)]


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a run; its first axis is `image` unless it is static."""

    name: str
    axes: tuple[str, ...]
    meaning: str
    needs_label: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """Arrays of one meaning, one for every combination of keys.

    `template` makes names of keys, and `meaning` one line of their words; `keys` holds
    a mapping from key to words for every `{}`. `axes`, those of all arrays or a mapping
    from their last key, follow `image`; a `static` array is written once for the run
    and has no such axis. One that `needs_label` means nothing for an image without a
    known class.
    """

    template: str
    axes: tuple[str, ...] | Mapping[str, tuple[str, ...]]
    meaning: str
    keys: tuple[Mapping[str, str], ...] = ()
    needs_label: bool = False
    static: bool = False

    def __call__(self, *keys: str) -> str:
        """The name of one array."""
        return self.template.format(*keys)

    def __iter__(self) -> Iterator[Array]:
        first = () if self.static else ("image",)
        for keys in itertools.product(*self.keys):
            axes = self.axes[keys[-1]] if isinstance(self.axes, Mapping) else self.axes
            words = (mapping[key] for mapping, key in zip(self.keys, keys))
            meaning = self.meaning.format(*words)
            yield Array(self(*keys), (*first, *axes), meaning, self.needs_label)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all its arrays."""
        return tuple(array.name for array in self)


labeled = functools.partial(Family, needs_label=True)
static = functools.partial(Family, static=True)

LAYER, TOKEN = ("layer",), ("layer", "token")
HEAD, CLASS = ("layer", "head"), ("layer", "class")
OF_PART = {"head": HEAD, "attention": LAYER, "mlp": LAYER}
OF_TARGET = {"residual": ("layer", "group"), **OF_PART}

# Every run.
LABEL = Family("label", (), "True class, -1 where unknown.")
VALID = Family("valid", (), "False for an image that could not be read.")
DIGEST = Family("digest", (), "Hash of the image's content, 0 if it was not read.")
DONE = Family("done", (), "Whether the rows of the image are written.")
PATCH_LABEL = Family("patch_label", ("patch",), "1 object, 0 context, -1 neither.")
PREVIEW = static(
    "preview_image",
    ("preview", "height", "width", "channel"),
    "The first images as the model saw them.",
)
PREVIEW_INDEX = static(
    "preview_index", ("preview",), "Image of each preview, -1: none."
)

# identifiability, and every recipe that contains its rows.
RANK = labeled(
    "rank_{}", TOKEN, "Rank of the true class in the {}, 0 first.", (STREAMS,)
)
LOGIT = labeled("logit_{}", TOKEN, "Logit of the true class in the {}.", (STREAMS,))
TOP_CLASSES = Family(
    "top_classes", ("layer", "top"), "Classes of the pooled token, best first."
)
TOP_LOGITS = Family("top_logits", ("layer", "top"), "Logits of `top_classes`.")
PREDICTION = Family("prediction", (), "Class with the largest logit.")
RANK_REFINED = labeled(
    "rank_refined", ("refined",), "Rank of the true class in a refinement module."
)
LOGIT_REFINED = labeled("logit_refined", ("refined",), "Logit of the true class there.")

# one_pass and paper.
FIRST = Family("first_{}", TOKEN, "Class with the largest logit in the {}.", (STREAMS,))
LOGIT_MIDDLE = labeled(
    "logit_middle", TOKEN, "Logit of the true class between attention and MLP."
)
LOGIT_EMBEDDING = labeled(
    "logit_embedding", ("token",), "Logit of the true class entering block 0."
)
FIRST_EMBEDDING = Family(
    "first_embedding", ("token",), "Class with the largest logit entering block 0."
)
AGREEMENT = labeled(
    "agreement_{}", TOKEN, "Key-value agreement of {}, section 6.", (SYSTEMS,)
)
AGREEMENT_VILAS2023 = labeled(
    "agreement_vilas2023_{}",
    TOKEN,
    "Key-value agreement of {} as the published code defines it.",
    (SYSTEMS,),
)
CHANCE = labeled(
    "chance_{}", LAYER, "Agreement of {} with permuted classes, token mean.", (SYSTEMS,)
)
CHANCE_VILAS2023 = labeled(
    "chance_vilas2023_{}",
    LAYER,
    "`agreement_vilas2023` of {} with permuted classes, token mean.",
    (SYSTEMS,),
)
SIMPLE = Family(
    "simple_{}",
    TOKEN,
    "Whether the top class of {} is that of a single memory: not composed.",
    (SYSTEMS,),
)
CHANCE_SIMPLE = labeled(
    "chance_simple_{}", LAYER, "`simple` of {} with permuted classes.", (SYSTEMS,)
)
AGREEMENT_HEAD = labeled(
    "agreement_head", HEAD, "`agreement_attention` within each head, mean over tokens."
)
CHANCE_HEAD = labeled("chance_head", HEAD, "`agreement_head` with permuted classes.")
SIMPLE_HEAD = Family("simple_head", HEAD, "`simple_attention` within each head.")
CHANCE_SIMPLE_HEAD = Family(
    "chance_simple_head", HEAD, "`simple_head` with permuted classes."
)
RANK_EDITED = labeled(
    "rank_{}",
    ("token",),
    "Rank of the true class in the last block: {}; -1 at removed tokens.",
    (INTERVENTIONS,),
)
PREDICTION_EDITED = Family(
    "prediction_{}", (), "Class with the largest logit: {}.", (INTERVENTIONS,)
)
CLASS_VALUE = static(
    "class_value_{}", CLASS, "Class-value agreement of {}, section 6.", (SYSTEMS,)
)
CLASS_VALUE_CONTROL = static(
    "class_value_{}_{}", CLASS, "Class-value agreement of {}: {}.", (SYSTEMS, CONTROLS)
)
CLASS_VALUE_HEAD = static(
    "class_value_head", (*HEAD, "class"), "Class-value agreement of each head."
)

# tokens.
TOKEN_CLASSES = Family(
    "token_classes", (*TOKEN, "top"), "Classes of every token, best first."
)
TOKEN_PROBABILITIES = Family(
    "token_probabilities", (*TOKEN, "top"), "Probabilities of `token_classes`, [0, 1]."
)
TOKEN_NORMALIZER = Family(
    "token_normalizer",
    TOKEN,
    "Log-sum-exp of all class logits of every token; NaN where probabilities are "
    "sigmoids.",
)
TOKEN_ATTENTION = Family(
    "token_attention",
    (*TOKEN, "patch"),
    "Attention weights of every token's row, mean over heads, in 255ths of the row's "
    "largest.",
)
TOKEN_ATTENTION_LARGEST = Family(
    "token_attention_largest", TOKEN, "Largest weight of each row of `token_attention`."
)
CHOSEN_CLASSES = Family(
    "chosen_classes",
    ("chosen",),
    "The label, the model's best, then the most probable of all tokens and blocks.",
)
CHOSEN_LOGITS = Family(
    "chosen_logits", (*TOKEN, "chosen"), "Class logits of `chosen_classes`."
)
CHOSEN_RANKS = Family(
    "chosen_ranks", (*TOKEN, "chosen"), "Ranks of `chosen_classes`, 0 first."
)
ATTENDED = Family(
    "attended", (*HEAD, "patch"), "Attention weights of the pooled token's row."
)
HELPFUL = Family(
    "helpful",
    (*HEAD, "patch"),
    "Relevancy for the label or, without one, for the prediction.",
)

# faithfulness.
MAP = labeled("map_{}", ("patch",), "Map of {}, signed.", (METHODS,))
REMOVAL = labeled(
    "removal_{}_{}",
    ("step",),
    "Whether the prediction is right with `kept` patches, {}, by {}.",
    (ORDERS, METHODS),
)
PROBABILITY = labeled(
    "probability_{}_{}",
    ("step",),
    "Probability of the explained class with `kept` patches, {}, by {}.",
    (ORDERS, METHODS),
)
PROBABILITY_ENDS = labeled(
    "probability_{}", (), "Probability of the explained class {}.", (ENDS,)
)
PIXELS = labeled(
    "pixels_{}_{}",
    ("level",),
    "Whether it is right, a tenth more of the pixels black each, {}, by {}.",
    (ORDERS, METHODS),
)
SEGMENTATION = labeled("{}_{}", (), "Segmentation, {}, by {}.", (MEASURES, METHODS))
SACO = labeled(
    "saco_{}", (), "Salience-guided faithfulness coefficient of {}.", (METHODS,)
)
PREDICTION_EMPTY = Family("prediction_empty", (), "The prediction without any patch.")
KEPT = static("kept", ("step",), "How many patches stay at each step of a curve.")

# probes.
RANK_PROBE = labeled(
    "rank_probe_{}", TOKEN, "Rank of the true class by a probe on the {}.", (STREAMS,)
)
CORRECT = labeled(
    "correct_{}_{}",
    ("step",),
    "Whether the prediction is right with `kept` patches, {}, by {}.",
    (ORDERS, RANKERS),
)
CORRECT_RANDOM = labeled(
    "correct_random", ("step",), "Whether the prediction is right, in random order."
)

# ablation. Effects are logits before minus after: positive where the part helps.
EFFECT = labeled(
    "effect_{}_{}",
    OF_PART,
    "Effect on the true class's logit: {1} {0}.",
    (ABLATIONS, PARTS),
)
EFFECT_PREDICTED = Family(
    "effect_predicted_{}_{}",
    OF_PART,
    "Effect on the predicted class's logit: {1} {0}.",
    (ABLATIONS, PARTS),
)
PREDICTION_ABLATED = Family(
    "prediction_{}_{}",
    OF_PART,
    "Class with the largest logit: {1} {0}.",
    (ABLATIONS, PARTS),
)
CORRECT_TOP_HEADS = labeled(
    "correct_top_{}",
    ("count",),
    "Whether the prediction is right: the `ablated` most important heads {}.",
    (ABLATIONS,),
)
CORRECT_RANDOM_HEADS = labeled(
    "correct_random_{}",
    ("draw", "count"),
    "Whether the prediction is right: as many random heads {}.",
    (ABLATIONS,),
)
ABLATED = static("ablated", ("count",), "How many heads are ablated together.")

# patching. Restored: 0 as in the corrupted run, 1 as in the clean one.
PARTNER = labeled("partner", (), "Image of another class that is the corrupted input.")
METRIC = labeled(
    "metric_{}",
    (),
    "Logit of the image's class minus that of its partner's, of {}.",
    (RUNS,),
)
RESTORED = labeled("restored_{}", OF_TARGET, "Restored by {}.", (TARGETS,))
TOKEN_GROUP = static(
    "token_group", ("token",), "Group that a token is patched with, -1: none."
)

# editing. Images that a class is not evaluated on are NaN.
EDITED_ROLE = labeled(
    "edited_role",
    ("edited",),
    "What the image is to each edited class: 0 its own, 1 of a class that it is "
    "confused with, 2 of the rest; -1 not evaluated.",
)
EDITED_CORRECT = labeled(
    "edited_correct_{}_{}",
    ("edited", "count"),
    "Whether the prediction is right, of random memories the mean: {} {}.",
    (MEMORY_SETS, MEMORY_EDITS),
)
EDITED_EFFECT = labeled(
    "edited_effect_{}_{}",
    ("edited", "count"),
    "Effect on the image's own class's logit, before minus after: {} {}.",
    (MEMORY_SETS, MEMORY_EDITS),
)
EDITED = static("edited_memories", ("count",), "How many memories are edited together.")

# lens. Of the pooled token after every block, unless tokens are named.
KL_BY = Family(
    "kl_by_{}", LAYER, "KL of the model's answer to that by {}, in nats.", (LENSES,)
)
BIAS_BY = Family(
    "bias_by_{}",
    LAYER,
    "The image's term of the KL of the mean answer to the mean of those by {}.",
    (LENSES,),
)
PREDICTION_BY = Family(
    "prediction_by_{}", LAYER, "Class with the largest logit by {}.", (LENSES,)
)
RANK_BY = labeled("rank_by_{}", LAYER, "Rank of the true class by {}.", (LENSES,))
RANK_TOKENS_BY = labeled(
    "rank_tokens_by_{}", TOKEN, "Rank of the true class at tokens by {}.", (LENSES,)
)

# errors. Class logits of the pooled token after every block, by the model's head.
RIVALS = Family("rivals", ("rival",), "The model's best classes, the prediction first.")
RIVAL_LOGITS = Family("rival_logits", ("layer", "rival"), "Class logits of `rivals`.")
ENTROPY = Family("entropy", LAYER, "Entropy of the softmax, in nats.")
ENERGY = Family("energy", LAYER, "Log-sum-exp of the class logits: minus the energy.")

FAMILIES = tuple(
    family for family in list(globals().values()) if isinstance(family, Family)
)
SCHEMA = {array.name: array for family in FAMILIES for array in family}
"""Every array by name."""


def between(first: Family, last: Family) -> tuple[Family, ...]:
    """The families from one to another, in the order of this table."""
    return FAMILIES[FAMILIES.index(first) : FAMILIES.index(last) + 1]


def dims(*families: Family) -> dict[str, tuple[str, ...]]:
    """Name -> axes after `image`, of every array of these families."""
    return {
        array.name: array.axes[not family.static :]
        for family in families
        for array in family
    }


def rows(*families: Family) -> dict[str, Any]:
    """Fields of the recipe that writes these families."""
    names = [name for family in families if family.needs_label for name in family.names]
    return {
        "dims": dims(*(family for family in families if not family.static)),
        "static": dims(*(family for family in families if family.static)),
        "needs_label": tuple(names),
    }
