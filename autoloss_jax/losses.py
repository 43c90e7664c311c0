"""The hand-designed losses of the literature, one line each in the loss language.

Every formula stays inside what the batched path holds: pairs see the scores only as differences.
"""

import difflib
from typing import NamedTuple

from autoloss_jax.errors import AutolossError
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.operators import LEAVES
from autoloss_jax.language.parsing import parse


class HandDesigned(NamedTuple):
    """A loss from the literature.

    Attributes:
      formula: its text in the loss language.
      source: the paper it is from.
      note: where it differs from other implementations of that name.
    """

    formula: str
    source: str
    note: str = ""


_PER_QUERY = "Summed over the pairs of each query; Rax averages over the pairs of the whole batch."
_PER_LIST = "A mean over each query, then over queries; Rax averages the documents of all queries."
_LAMBDA = "Rax's weights are larger by the constant factor of the padded list size."

HAND_DESIGNED: dict[str, HandDesigned] = {
    "mse": HandDesigned(
        "mean_i(square(s_i - y_i))",
        "Cossock and Zhang, Subset Ranking Using Regression, COLT 2006",
        _PER_LIST,
    ),
    "pointwise_sigmoid": HandDesigned(
        "mean_i(softplus(s_i) - min(y_i, 1) * s_i)",
        "Nallapati, Discriminative Models for Information Retrieval, SIGIR 2004",
        f"{_PER_LIST} At a score of exactly 0 Rax's gradient is 1 lower, by the kinks it is of.",
    ),
    "ordinal": HandDesigned(
        "mean_i(softplus(sign(0.5 - y_i) * (s_i - 0.5)) + softplus(sign(1.5 - y_i) * (s_i - 1.5))"
        " + softplus(sign(2.5 - y_i) * (s_i - 2.5)) + softplus(sign(3.5 - y_i) * (s_i - 3.5)))",
        "Rennie and Srebro, Loss Functions for Preference Levels, IJCAI-MP 2005",
        "All thresholds, logistic; the thresholds are fixed between labels 0 to 4, not learned.",
    ),
    "ranknet": HandDesigned(
        "sum_ij(softplus(s_j - s_i), where=y_i > y_j)",
        "Burges et al., Learning to Rank Using Gradient Descent, ICML 2005",
        _PER_QUERY,
    ),
    "pairwise_hinge": HandDesigned(
        "sum_ij(relu(1 - (s_i - s_j)), where=y_i > y_j)",
        "Joachims, Optimizing Search Engines Using Clickthrough Data, KDD 2002",
        _PER_QUERY,
    ),
    "pairwise_mse": HandDesigned(
        "sum_ij(square(s_i - s_j - (y_i - y_j)))",
        "Jagerman et al., Rax: Composable Learning-to-Rank Using JAX, KDD 2022",
        _PER_QUERY,
    ),
    "pairwise_soft_zero_one": HandDesigned(
        "sum_ij(sigmoid(s_j - s_i), where=y_i > y_j)",
        "Jagerman et al., Rax: Composable Learning-to-Rank Using JAX, KDD 2022",
        _PER_QUERY,
    ),
    "lambdarank": HandDesigned(
        "sum_ij(softplus(s_j - s_i) * abs(gain_i - gain_j) * abs(discount_i - discount_j),"
        " where=y_i > y_j) / max_dcg",
        "Burges, Ragno and Le, Learning to Rank with Nonsmooth Cost Functions, NIPS 2006",
        f"{_PER_QUERY} {_LAMBDA}",
    ),
    "ndcg_loss2": HandDesigned(
        "sum_ij(softplus(s_j - s_i) * abs(gain_i - gain_j)"
        " * (1 / log2(1 + abs(rank_i - rank_j)) - 1 / log2(2 + abs(rank_i - rank_j))),"
        " where=y_i > y_j) / max_dcg",
        "Wang et al., The LambdaLoss Framework for Ranking Metric Optimization, CIKM 2018",
        f"Natural logarithm, the paper's is to base 2. {_PER_QUERY} {_LAMBDA}",
    ),
    "ndcg_loss2pp": HandDesigned(
        "sum_ij(softplus(s_j - s_i) * abs(gain_i - gain_j) * (abs(discount_i - discount_j)"
        " + 10 * (1 / log2(1 + abs(rank_i - rank_j)) - 1 / log2(2 + abs(rank_i - rank_j)))),"
        " where=y_i > y_j) / max_dcg",
        "Wang et al., The LambdaLoss Framework for Ranking Metric Optimization, CIKM 2018",
        "NDCG-Loss2++ with mu = 10. Natural logarithm, the paper's is to base 2.",
    ),
    "listnet": HandDesigned(
        "sum_i(logsumexp_j(s_j - s_i) / sum_j(exp(y_j - y_i)))",
        "Cao et al., Learning to Rank: From Pairwise to Listwise Approach, ICML 2007",
        "Top-one probabilities: cross entropy between the softmax of labels and that of scores.",
    ),
    "softmax": HandDesigned(
        "sum_i(y_i * logsumexp_j(s_j - s_i))",
        "Bruch et al., An Analysis of the Softmax Cross Entropy Loss for Learning-to-Rank with "
        "Binary Relevance, ICTIR 2019",
    ),
    "unique_softmax": HandDesigned(
        "sum_i(gain_i * log(1 + sum_j(exp(s_j - s_i), where=y_i > y_j)))",
        "Zhu and Klabjan, Listwise Learning to Rank by Exploring Unique Ratings, WSDM 2020",
        "Saturates where a score trails another by more than 69.",
    ),
    "poly1_softmax": HandDesigned(
        "sum_i(y_i * logsumexp_j(s_j - s_i))"
        " + 1 - sum_i(y_i * exp(-logsumexp_j(s_j - s_i))) / sum_i(y_i)",
        "Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss "
        "Functions, ICLR 2022",
        "Epsilon 1. Without a relevant document the loss is 1, in Rax 1 - 1 / n: no gradient.",
    ),
    "listmle": HandDesigned(
        "sum_i(logsumexp_j(s_j - s_i, where=y_i > y_j or y_j == y_i and j >= i))",
        "Xia et al., Listwise Approach to Learning to Rank: Theory and Algorithm, ICML 2008",
        "Equal labels stand in the order of their positions. Rax's gradient is off at tied scores.",
    ),
    "rank_cosine": HandDesigned(
        "0.5 - 0.5 * sum_i(s_i * y_i) / sqrt(sum_i(square(s_i)) * sum_i(square(y_i)))",
        "Qin et al., Query-level Loss Functions for Information Retrieval, IP&M 2008",
        "0.5, without gradient, where all scores or all labels of a query are 0.",
    ),
    "approx_ndcg": HandDesigned(
        "-sum_i(gain_i / log2(2 + sum_j(sigmoid(s_j - s_i), where=i != j))) / max_dcg",
        "Qin, Liu and Li, A General Approximation Framework for Direct Optimization of Information "
        "Retrieval Measures, 2010; Bruch et al., SIGIR 2019",
        "Temperature 1, as in Rax; TF-Ranking's is 0.1.",
    ),
    "approx_mrr": HandDesigned(
        "-sum_i(y_i / (1 + sum_j(sigmoid(s_j - s_i), where=i != j))) / sum_i(y_i)",
        "Qin, Liu and Li, A General Approximation Framework for Direct Optimization of Information "
        "Retrieval Measures, 2010",
        "The labels' mean of 1 / rank, as in TF-Ranking but of temperature 1; Rax takes the "
        "largest 1 / rank of a relevant document.",
    ),
    "bound_ndcg": HandDesigned(
        "-sum_i(gain_i / log2(2 + sum_j(relu(1 + (s_j - s_i)), where=i != j))) / max_dcg",
        "Jagerman et al., Rax: Composable Learning-to-Rank Using JAX, KDD 2022",
        "A lower bound of NDCG: the hinge bounds every rank from above.",
    ),
}
"""The losses by their usual name, each once."""

ALIASES: dict[str, str] = {"pairwise_logistic": "ranknet", "pointwise_mse": "mse"}
"""Further names of losses in HAND_DESIGNED."""

LOSSES: dict[str, Expression] = {name: parse(loss.formula) for name, loss in HAND_DESIGNED.items()}
"""The expression of every name, aliases included; the names of HAND_DESIGNED are the distinct ones.

>>> str(LOSSES["pairwise_logistic"])
'sum_ij(softplus(s_j - s_i), where=y_i > y_j)'
"""
LOSSES |= {alias: LOSSES[name] for alias, name in ALIASES.items()}

_LONGEST_NAME = 100  # a longer word is a formula, and refused as one


def resolve_loss(name_or_formula: str) -> Expression:
    """The loss of that name, or else the loss that the text is the formula of.

    Args:
      name_or_formula: a name of LOSSES or a text of the loss language.

    Raises:
      AutolossError: a single word that is no loss; names the nearest and all known ones.
      FormulaError: the text is not a loss.

    >>> resolve_loss("ranknet") == resolve_loss("sum_ij(softplus(s_j - s_i), where=y_i > y_j)")
    True
    """
    if isinstance(name_or_formula, str):
        word = name_or_formula.strip()
        if word in LOSSES:
            return LOSSES[word]
        if word.isidentifier() and word not in LEAVES and len(word) <= _LONGEST_NAME:
            near = difflib.get_close_matches(word.lower(), LOSSES, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise AutolossError(
                f"unknown loss '{word}'.{hint} Expected a formula or one of {', '.join(LOSSES)}"
            )
    return parse(name_or_formula)
