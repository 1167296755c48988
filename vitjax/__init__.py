"""Look inside Vision Transformers: every token's class, at every block."""

from vitjax.analysis.interventions import keep_tokens, select_tokens
from vitjax.analysis.projection import identifiability, project, rank, top_k
from vitjax.api import (
    attention_gradients,
    forward,
    memory_values,
    no_cls,
    refinement_logits,
    scan_blocks,
    self_only,
)
from vitjax.data.images import Preprocess
from vitjax.loading import init, load, save
from vitjax.models.files import CheckpointError
from vitjax.models.model import Model
from vitjax.results import Results, open_results
from vitjax.runner.stream import run
from vitjax.types import Batch, ClassSpace, Config, Edits, Trace
from vitjax.variants import list_models

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "CheckpointError",
    "ClassSpace",
    "Config",
    "Edits",
    "Model",
    "Preprocess",
    "Results",
    "Trace",
    "__version__",
    "attention_gradients",
    "forward",
    "identifiability",
    "init",
    "keep_tokens",
    "list_models",
    "load",
    "memory_values",
    "no_cls",
    "open_results",
    "project",
    "rank",
    "refinement_logits",
    "run",
    "save",
    "scan_blocks",
    "select_tokens",
    "self_only",
    "top_k",
]
