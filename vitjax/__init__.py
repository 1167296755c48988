"""Look inside Vision Transformers: every token's class, at every block.

- Models: `load`, `init`, `save`, `list_models`, `Model`, `Config`, `Preprocess`,
  `CheckpointError`.
- Forward passes: `forward`, `Trace`, `scan_blocks`, `attention_gradients`,
  `refinement_logits`.
- Class space: `ClassSpace`, `project`, `project_tokens`, `rank`, `identifiability`,
  `top_k`, `similarity_change`, `residual_composition`.
- Key-value memories: `memory_values`, `memory_coefficients`, `memory_classes`,
  `MemoryClasses`, `class_value_agreement`, `key_value_agreement`, `compositionality`.
- Interventions: `Edits`, `self_only`, `no_cls`, `keep_tokens`, `select_tokens`,
  `TapEdit`, `ablate`, `patch`, `steer`, `attribution_patching`, `logit_attribution`.
- Edits of weights: `with_memory_values`, `scale_memories`, `remove_class`,
  `rank_one_edit`.
- Explanation maps: `explain`, `relevancy`, `helpful_minus_attended`, `show`,
  `removal_curve`, `area_under_curve`, `localisation`.
- Probes and lenses: `Probe`, `fit_ridge_probe`, `fit_softmax_probe`, `fit_tuned_lens`,
  `TunedLens`, `apply_lens`, `with_head`.
- Images and texts: `encode_image`, `zero_shot`, `load_text`, `TextModel`, `TextConfig`,
  `encode_text`, `class_embeddings`.
- Data sets and runs: `open_data`, `Batch`, `run`, `Recipe`, `open_results`, `Results`,
  `figures`, `tables`, `explorer`, `write_report`.
"""

import importlib
import sys
import typing
from typing import TYPE_CHECKING, Any

if "pdoc" in sys.modules:  # jaxtyping then writes Float[Array, "batch class"]
    typing.GENERATING_DOCUMENTATION = "vitjax"  # pyright: ignore

from vitjax.analysis.class_space import (
    identifiability,
    project,
    project_tokens,
    rank,
    top_k,
)
from vitjax.analysis.faithfulness import area_under_curve, localisation
from vitjax.analysis.interventions import (
    ablate,
    keep_tokens,
    no_cls,
    patch,
    select_tokens,
    self_only,
    steer,
)
from vitjax.analysis.memory import (
    MemoryClasses,
    class_value_agreement,
    compositionality,
    key_value_agreement,
    memory_classes,
    memory_coefficients,
)
from vitjax.analysis.probes import Probe, fit_ridge_probe, fit_softmax_probe
from vitjax.analysis.residual_stream import residual_composition, similarity_change
from vitjax.analysis.tuned_lens import TunedLens, apply_lens
from vitjax.api import (
    encode_image,
    encode_text,
    explain,
    forward,
    helpful_minus_attended,
    logit_attribution,
    refinement_logits,
    relevancy,
    removal_curve,
)
from vitjax.checkpoints.files import CheckpointError
from vitjax.checkpoints.loading import init, load, save
from vitjax.checkpoints.registry import list_models
from vitjax.checkpoints.text import load_text
from vitjax.data.images import Preprocess
from vitjax.models.class_heads import with_head, zero_shot
from vitjax.models.forward import attention_gradients, scan_blocks
from vitjax.models.model import Model, memory_values
from vitjax.models.text import TextConfig, TextModel, class_embeddings
from vitjax.models.weight_edits import (
    rank_one_edit,
    remove_class,
    scale_memories,
    with_memory_values,
)
from vitjax.saliency.attribution import attribution_patching
from vitjax.types import Batch, ClassSpace, Config, Edits, TapEdit, Trace

if TYPE_CHECKING:
    from vitjax.data.datasets import open_data
    from vitjax.recipes.lens import fit_tuned_lens
    from vitjax.recipes.recipe import Recipe
    from vitjax.report.overlays import show
    from vitjax.report.page import explorer, figures, tables, write_report
    from vitjax.runner.loop import run
    from vitjax.runner.results import Results, open_results

__version__ = "0.1.0"

LAZY = {
    "explorer": "vitjax.report.page",
    "figures": "vitjax.report.page",
    "tables": "vitjax.report.page",
    "show": "vitjax.report.overlays",
    "write_report": "vitjax.report.page",
    "open_data": "vitjax.data.datasets",
    "fit_tuned_lens": "vitjax.recipes.lens",
    "Recipe": "vitjax.recipes.recipe",
    "run": "vitjax.runner.loop",
    "Results": "vitjax.runner.results",
    "open_results": "vitjax.runner.results",
}
"""Names whose modules import Zarr, xarray, pandas or PIL: loaded at their first use."""


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'vitjax' has no attribute {name!r}")
    return getattr(importlib.import_module(LAZY[name]), name)


if "pdoc" in sys.modules:  # which documents what a module holds
    globals().update({name: __getattr__(name) for name in LAZY})

__all__ = [
    "__version__",
    "load",
    "init",
    "save",
    "list_models",
    "Model",
    "Config",
    "Preprocess",
    "CheckpointError",
    "forward",
    "Trace",
    "scan_blocks",
    "attention_gradients",
    "refinement_logits",
    "ClassSpace",
    "project",
    "project_tokens",
    "rank",
    "identifiability",
    "top_k",
    "similarity_change",
    "residual_composition",
    "memory_values",
    "memory_coefficients",
    "memory_classes",
    "MemoryClasses",
    "class_value_agreement",
    "key_value_agreement",
    "compositionality",
    "Edits",
    "self_only",
    "no_cls",
    "keep_tokens",
    "select_tokens",
    "TapEdit",
    "ablate",
    "patch",
    "steer",
    "attribution_patching",
    "logit_attribution",
    "with_memory_values",
    "scale_memories",
    "remove_class",
    "rank_one_edit",
    "explain",
    "relevancy",
    "helpful_minus_attended",
    "show",
    "removal_curve",
    "area_under_curve",
    "localisation",
    "Probe",
    "fit_ridge_probe",
    "fit_softmax_probe",
    "fit_tuned_lens",
    "TunedLens",
    "apply_lens",
    "with_head",
    "encode_image",
    "zero_shot",
    "load_text",
    "TextModel",
    "TextConfig",
    "encode_text",
    "class_embeddings",
    "open_data",
    "Batch",
    "run",
    "Recipe",
    "open_results",
    "Results",
    "figures",
    "tables",
    "explorer",
    "write_report",
]
