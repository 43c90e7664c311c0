"""What the studies of rewards share."""

import numpy as np
from scipy import stats

from autoloss_jax.proxy import ProxyConfig

RESAMPLES = 500


def setting_name(rate: float, blocks: int) -> str:
    """Proxy runs of a learning rate and a length, in words."""
    return f"learning rate {rate:g}, {blocks * ProxyConfig().rung_steps} steps"


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's (1904) of values f64[count], -inf among them; 0 where all of one are equal."""
    ranks = [stats.rankdata(values) for values in (a, b)]
    if min(np.ptp(r) for r in ranks) == 0:
        return 0.0
    return float(np.corrcoef(ranks)[0, 1])
