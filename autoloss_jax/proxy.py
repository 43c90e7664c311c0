"""Proxy runs: short trainings of a small ranker under candidate losses, and the reward they earn.

The training queries are cut into cross-validation folds; a replicate trains on all folds but one
and is evaluated on that one, so every training query is a reward query once. A candidate's reward
is its paired difference, over these queries, to a reference loss trained beside it: same weights
to start from, same batches, same number of steps. Training goes in rungs (successive halving,
Jamieson and Talwalkar 2016): all candidates train a little, the better share trains on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from autoloss_jax import canaries
from autoloss_jax.data import (
    BatchPlan,
    ListBatch,
    Queries,
    assign_folds,
    bucket_queries,
    draw_batches,
    held_out_rows,
    plan_labels,
)
from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.programs import encode
from autoloss_jax.feed import Feed
from autoloss_jax.language.expressions import Expression
        _, self._counted = plan_labels(self.buckets, self._held_out)
