"""Look inside Vision Transformers: every token's class, at every block."""

from vitjax.analysis.interventions import keep_tokens as keep_tokens
from vitjax.analysis.interventions import select_tokens as select_tokens
from vitjax.analysis.projection import identifiability as identifiability
from vitjax.analysis.projection import project as project
from vitjax.analysis.projection import rank as rank
from vitjax.analysis.projection import top_k as top_k
from vitjax.api import attention_gradients as attention_gradients
from vitjax.api import forward as forward
from vitjax.api import memory_values as memory_values
from vitjax.api import no_cls as no_cls
from vitjax.api import scan_blocks as scan_blocks
from vitjax.api import self_only as self_only
from vitjax.data.images import Preprocess as Preprocess
from vitjax.models.model import Model as Model
from vitjax.types import Batch as Batch
from vitjax.types import ClassSpace as ClassSpace
from vitjax.types import Config as Config
from vitjax.types import Edits as Edits
from vitjax.types import Trace as Trace
from vitjax.variants import init as init
from vitjax.variants import list_models as list_models
from vitjax.variants import load as load
from vitjax.variants import save as save

__version__ = "0.1.0.dev0"
