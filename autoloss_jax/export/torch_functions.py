"""The functions of an exported module in PyTorch, as text, since the package does not need torch.

Each is the exact path's function of that name; tests compare values and gradients with it.
"""

TORCH_FUNCTIONS = '''
LARGE = 1e30
TINY = 1e-30
CUBE_ROOT_LARGE = 1e10
LOG_LARGE = 69.07755


def multiply(a: Tensor, b: Tensor) -> Tensor:
    return torch.clamp(a * b, -LARGE, LARGE)


def divide(a: Tensor, b: Tensor) -> Tensor:
    defined = torch.abs(b) > TINY
    # The derivative takes the divisor's square, which must not vanish.
    small = defined & (torch.abs(b) < 2.0**-60)
    scale = torch.where(small, 2.0**80, 1.0).to(b.dtype)
    divisor = torch.where(defined, b * scale, 1.0)
    return torch.where(defined, torch.clamp(a / divisor * scale, -LARGE, LARGE), 0.0)


def exp(x: Tensor) -> Tensor:
    return torch.exp(torch.clamp(x, max=LOG_LARGE))


def log(x: Tensor) -> Tensor:
    return torch.log(torch.clamp(x, min=TINY))


def log2(x: Tensor) -> Tensor:
    return torch.log(torch.clamp(x, min=TINY)) / math.log(2.0)


def sqrt(x: Tensor) -> Tensor:
    defined = x > TINY
    return torch.where(defined, torch.sqrt(torch.where(defined, x, 1.0)), 0.0)


def square(x: Tensor) -> Tensor:
    return torch.clamp(x * x, max=LARGE)


def cube(x: Tensor) -> Tensor:
    x = torch.clamp(x, -CUBE_ROOT_LARGE, CUBE_ROOT_LARGE)  # x * x alone would overflow
    return x * x * x


def absolute(x: Tensor) -> Tensor:
    return torch.abs(x)


def sign(x: Tensor) -> Tensor:
    return torch.sign(x)


def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def softplus(x: Tensor) -> Tensor:
    return torch.maximum(x, torch.zeros_like(x)) + torch.log1p(torch.exp(-torch.abs(x)))


def tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0.0, x, 0.0)


def minimum(a: Tensor, b: Tensor) -> Tensor:
    return torch.minimum(a, b)


def maximum(a: Tensor, b: Tensor) -> Tensor:
    return torch.maximum(a, b)


def stop_gradient(x: Tensor) -> Tensor:
    return x.detach()


def gains(labels: Tensor) -> Tensor:
    """`2**y - 1` of labels [..., list]."""
    return torch.clamp(torch.exp2(labels) - 1.0, max=LARGE)


def discounts(ranks: Tensor) -> Tensor:
    """`1 / log2(1 + rank)` of 1-based ranks [..., list]."""
    return 1.0 / torch.log2(1.0 + ranks)


def ranks(values: Tensor, mask: Tensor) -> Tensor:
    """1-based ranks by descending `values` among the real documents; ties by position."""
    values = values.detach()
    mine, other = values[..., :, None], values[..., None, :]
    position = torch.arange(values.shape[-1], device=values.device)
    earlier = position[None, :] < position[:, None]
    ahead = (other > mine) | ((other == mine) & earlier)
    return 1.0 + torch.sum(ahead & mask[..., None, :], dim=-1, dtype=values.dtype)


def max_dcg(labels: Tensor, mask: Tensor) -> Tensor:
    """The DCG of the documents in descending order of their labels."""
    ideal = gains(labels) * discounts(ranks(labels, mask))
    return torch.sum(torch.where(mask, ideal, 0.0), dim=-1)


def _sum(values: Tensor, selected: Tensor, axes: tuple[int, ...]) -> Tensor:
    return torch.sum(torch.where(selected, values, 0.0), dim=axes, keepdim=True)


def _mean(values: Tensor, selected: Tensor, axes: tuple[int, ...]) -> Tensor:
    count = torch.sum(selected, dim=axes, keepdim=True, dtype=values.dtype)
    return _sum(values, selected, axes) / torch.clamp(count, min=1.0)


def _max(values: Tensor, selected: Tensor, axes: tuple[int, ...]) -> Tensor:
    top = torch.amax(torch.where(selected, values, -math.inf), dim=axes, keepdim=True)
    return torch.where(torch.sum(selected, dim=axes, keepdim=True) > 0, top, 0.0)


def _logsumexp(values: Tensor, selected: Tensor, axes: tuple[int, ...]) -> Tensor:
    top = _max(values, selected, axes).detach()
    # Unselected values are replaced before exp, so that they cannot overflow into the gradient.
    terms = torch.exp(torch.where(selected, values - top, 0.0))
    total = _sum(terms, selected, axes)
    return torch.where(total > 0.0, top + torch.log(torch.clamp(total, min=TINY)), 0.0)


def _finite(values: Tensor) -> Tensor:
    """Overflow saturates; what has no value (a sum of both infinities) is 0."""
    return torch.nan_to_num(torch.clamp(values, -LARGE, LARGE))


def _finite_gradient(scores: Tensor) -> Tensor:
    """The scores; a gradient through them that overflowed saturates or, without value, is 0."""
    scores = scores.view_as(scores)
    if scores.requires_grad:
        scores.register_hook(_finite)
    return scores


def prepare(
    scores: Tensor, labels: Tensor, where: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and labels, 0 at padding, and the mask; all of one shape."""
    scores = torch.as_tensor(scores)
    scores = scores if scores.is_floating_point() else scores.to(torch.get_default_dtype())
    labels = torch.as_tensor(labels, dtype=scores.dtype, device=scores.device)
    where = torch.ones_like(scores) if where is None else where
    mask = torch.as_tensor(where, device=scores.device).to(torch.bool)
    if not scores.ndim or not scores.shape == labels.shape == mask.shape:
        raise ValueError(
            "scores, labels and where must have one shape, [..., list]: "
            f"got {tuple(scores.shape)}, {tuple(labels.shape)} and {tuple(mask.shape)}"
        )
    scores = _finite_gradient(scores)
    return torch.where(mask, scores, 0.0), torch.where(mask, labels, 0.0), mask


def number(value: float, like: Tensor) -> Tensor:
    """A constant that broadcasts with everything."""
    return torch.full((1, 1), value, dtype=like.dtype, device=like.device)


def positions(mask: Tensor) -> Tensor:
    """The documents' positions in the list."""
    return torch.arange(mask.shape[-1], device=mask.device)


def count_documents(mask: Tensor, like: Tensor) -> Tensor:
    """The number of real documents of each query."""
    return torch.sum(mask, dim=-1, dtype=like.dtype)


def mean_over_queries(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the queries that have a document; 0 without any."""
    values = _finite(values)[..., 0, 0].broadcast_to(mask.shape[:-1])
    defined = torch.any(mask, dim=-1)
    count = torch.clamp(torch.sum(defined, dtype=values.dtype), min=1.0)
    return torch.sum(torch.where(defined, values, 0.0)) / count
'''
