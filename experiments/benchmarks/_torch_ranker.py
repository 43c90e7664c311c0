"""A ranker and its losses in PyTorch, as a practitioner would write them by hand."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu, softplus

LEARNING_RATE = 1e-3

# Scores and labels [queries, list], all documents real; losses are means over the queries.


def _mse(s: Tensor, y: Tensor) -> Tensor:
    return ((s - y) ** 2).mean()


def _pointwise_sigmoid(s: Tensor, y: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(s, (y > 0).to(s.dtype), reduction="none").sum(1).mean()


def _softmax(s: Tensor, y: Tensor) -> Tensor:
    return -(y * torch.log_softmax(s, 1)).sum(1).mean()


def _listnet(s: Tensor, y: Tensor) -> Tensor:
    return -(torch.softmax(y, 1) * torch.log_softmax(s, 1)).sum(1).mean()


def _differences(x: Tensor) -> Tensor:
    return x[:, :, None] - x[:, None, :]


def _ranknet(s: Tensor, y: Tensor) -> Tensor:
    better = _differences(y) > 0
    return (softplus(-_differences(s)) * better).sum((1, 2)).mean()


def _pairwise_hinge(s: Tensor, y: Tensor) -> Tensor:
    better = _differences(y) > 0
    return (relu(1 - _differences(s)) * better).sum((1, 2)).mean()


def _max_dcg(y: Tensor) -> Tensor:
    ideal = torch.sort(y, 1, descending=True).values
    discount = 1 / torch.log2(torch.arange(2, y.shape[1] + 2, device=y.device, dtype=y.dtype))
    return ((2**ideal - 1) * discount).sum(1)


def _approx_ndcg(s: Tensor, y: Tensor) -> Tensor:
    others = ~torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
    rank = 1 + (torch.sigmoid(-_differences(s)) * others).sum(2)
    return -(((2**y - 1) / torch.log2(1 + rank)).sum(1) / _max_dcg(y)).mean()


def _lambdarank(s: Tensor, y: Tensor) -> Tensor:
    rank = 1 + s.detach().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    weight = _differences(2**y - 1).abs() * _differences(1 / torch.log2(1.0 + rank)).abs()
    pairs = softplus(-_differences(s)) * weight * (_differences(y) > 0)
    return (pairs.sum((1, 2)) / _max_dcg(y)).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": _mse,
    "pointwise_sigmoid": _pointwise_sigmoid,
    "softmax": _softmax,
    "listnet": _listnet,
    "ranknet": _ranknet,
    "pairwise_hinge": _pairwise_hinge,
    "approx_ndcg": _approx_ndcg,
    "lambdarank": _lambdarank,
}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def versions() -> dict[str, str | int]:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "torch": torch.__version__,
        "torch_device": name,
        "torch_threads": torch.get_num_threads(),
    }


def check_equal(formulas: Mapping[str, Any], queries: Any) -> None:
    """Raises AssertionError unless a formula and the loss here agree up to a constant factor.

    A loss's scale means nothing to what is timed; its gradient's direction does.
    """
    import jax

    from autoloss_jax.execution.exact import compile_loss

    scores = np.random.default_rng(1).normal(size=queries.labels.shape).astype(np.float32)
    for name, formula in formulas.items():
        ours = np.asarray(jax.grad(compile_loss(formula))(scores, queries.labels))
        s = torch.tensor(scores, requires_grad=True)
        LOSSES[name](s, torch.tensor(np.array(queries.labels))).backward()
        theirs = s.grad.numpy()
        factor = float(np.vdot(ours, theirs) / np.vdot(ours, ours))
        np.testing.assert_allclose(theirs, factor * ours, rtol=1e-3, atol=1e-4 * abs(theirs).max(),
                                   err_msg=name)  # fmt: skip


def training(name: str, queries: Any, steps: int) -> Callable[[], None]:
    """A function that trains a fresh MLP under one loss."""
    on = device()
    features, labels = (torch.tensor(np.array(x), device=on) for x in queries[:2])
    loss = LOSSES[name]

    def run() -> None:
        torch.manual_seed(0)
        widths = (features.shape[-1], 64, 32)
        layers = [
            m
            for a, b in zip(widths, widths[1:], strict=False)
            for m in (nn.Linear(a, b), nn.ReLU())
        ]
        model = nn.Sequential(*layers, nn.Linear(widths[-1], 1)).to(on)
        adam = torch.optim.Adam(model.parameters(), LEARNING_RATE)
        for _ in range(steps):
            adam.zero_grad()
            loss(model(features)[..., 0], labels).backward()
            adam.step()
        if on.type == "cuda":
            torch.cuda.synchronize()

    return run
