"""autoloss_jax: searches for the loss a learning-to-rank model should be trained with.

>>> import autoloss_jax as al
>>> str(al.parse("mean_i((s_i - y_i) ** 2)"))
'mean_i(square(s_i - y_i))'
"""

from importlib import metadata

from autoloss_jax.ablation import ablation_test
from autoloss_jax.data import (
    Dataset,
    Fold,
    Queries,
    dataset_from_arrays,
    load_dataset,
    load_letor,
    make_dataset,
    queries_from_arrays,
    read_letor,
    summarize,
    synthetic,
)
from autoloss_jax.effectiveness import EffectivenessConfig, clean_folds, effectiveness_test
from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.batched import batched_loss
from autoloss_jax.execution.exact import compile_loss
from autoloss_jax.execution.programs import Programs, encode
from autoloss_jax.explain import Explanation, explain
from autoloss_jax.export import export_source
from autoloss_jax.language.ablations import Ablation, ablations
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.grammar import random_expressions
from autoloss_jax.language.parsing import FormulaError, parse
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from autoloss_jax.metrics import average_precision, err, mrr, ndcg, ndcg_per_query
from autoloss_jax.proxy import ProxyConfig
from autoloss_jax.report import write_report
from autoloss_jax.search import search
from autoloss_jax.search_rounds import SearchConfig, SearchResult

try:
    __version__ = metadata.version("autoloss_jax")
except metadata.PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+source"

__all__ = [
    "HAND_DESIGNED",
    "LOSSES",
    "Ablation",
    "AutolossError",
    "Dataset",
    "EffectivenessConfig",
    "Explanation",
    "Expression",
    "Fold",
    "FormulaError",
    "Programs",
    "ProxyConfig",
    "Queries",
    "SearchConfig",
    "SearchResult",
    "ablation_test",
    "ablations",
    "average_precision",
    "batched_loss",
    "clean_folds",
    "compile_loss",
    "dataset_from_arrays",
    "effectiveness_test",
    "encode",
    "err",
    "explain",
    "export_source",
    "load_dataset",
    "load_letor",
    "make_dataset",
    "mrr",
    "ndcg",
    "ndcg_per_query",
    "parse",
    "queries_from_arrays",
    "random_expressions",
    "read_letor",
    "search",
    "simplify",
    "summarize",
    "synthetic",
    "write_report",
]
