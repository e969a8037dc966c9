"""kanmeta turns a Kolmogorov-Arnold Network somebody else wrote into a MetaKAN.

>>> import kanmeta
>>> model = kanmeta.convert(KAN([64, 32, 10]), clusters=1, dim_z=1)  # any supported library's KAN
"""

from kanmeta import errors
from kanmeta.access import coefficients, meta_learners, param_groups, prompts
from kanmeta.adapter import Adapter, Container, Slot
from kanmeta.api import convert, materialize, plan
from kanmeta.checkpoint import load, save
from kanmeta.distill import distill
from kanmeta.distill_report import DistillReport
from kanmeta.meta import MetaLearner
from kanmeta.optimizer import CarriedOptimizer, carry_optimizer
from kanmeta.plan import Plan
from kanmeta.prompt_bits import few_bit_prompts
from kanmeta.registry import adapter_for, register_adapter
from kanmeta.report import summary
from kanmeta.sharding import fully_shard
from kanmeta.switch import set_execution

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "CarriedOptimizer",
    "Container",
    "DistillReport",
    "MetaLearner",
    "Plan",
    "Slot",
    "__version__",
    "adapter_for",
    "carry_optimizer",
    "coefficients",
    "convert",
    "distill",
    "errors",
    "few_bit_prompts",
    "fully_shard",
    "load",
    "materialize",
    "meta_learners",
    "param_groups",
    "plan",
    "prompts",
    "register_adapter",
    "save",
    "set_execution",
    "summary",
]
