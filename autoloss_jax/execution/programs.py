"""Losses as data: expressions encoded as arrays, so that one compiled program runs any of them.

A program is a short chain of stages, each an elementwise segment and, but for the last, a
reduction:

    pair stages      over ordered pairs of documents, reduced over j to a number per document
    document stages  over documents and the pair stages' results, reduced over i to one per query
    query stage      over the document stages' results

A segment is a list of instructions on a register file: the first registers hold the leaves, the
rest is work space. Encoding fails, with a message that names the part, on what does not fit the
limits below; `compile_loss` has no such limits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from autoloss_jax.errors import AutolossError
from autoloss_jax.language.expressions import (
    LITERAL,
    Expression,
    apply,
    leaf,
    literal,
    swap_indices,
)
from autoloss_jax.language.grammar import MAX_DOCUMENT_STAGES, MAX_PAIR_STAGES, parse_condition
from autoloss_jax.language.operators import LARGE, OPERATORS, REDUCTIONS
from autoloss_jax.language.parsing import as_loss, parse_expression
from autoloss_jax.language.simplification import simplify

CONSTANT = "constant"
PAIR_LEAVES: tuple[str, ...] = (
    "s_i - s_j", "s_j - s_i", "y_i", "y_j", "gain_i", "gain_j", "rank_i", "rank_j", "discount_i",
    "discount_j", "n", "max_dcg",
)  # fmt: skip
"""What a pair segment loads, each by an instruction: pairs are too many to lay out all of these."""
OPCODES: tuple[str, ...] = (*OPERATORS, CONSTANT, *PAIR_LEAVES)
"""What an instruction does; a constant's number stands beside its code."""

DOCUMENT_LEAVES: tuple[str, ...] = (
    "s_i", "y_i", "gain_i", "rank_i", "discount_i", "n", "max_dcg",
    *(f"pair stage {k}" for k in range(MAX_PAIR_STAGES)),
    *(f"document stage {k}" for k in range(MAX_DOCUMENT_STAGES)),
)  # fmt: skip
"""What lies ready in the registers of document segments and of the query segment."""
QUERY_LEAVES: tuple[str, ...] = (
    "n", "max_dcg", *(f"document stage {k}" for k in range(MAX_DOCUMENT_STAGES)),
)  # fmt: skip

WORK_REGISTERS = 6
PAIR_WORK_REGISTERS = WORK_REGISTERS + MAX_PAIR_STAGES - 1
"""Pair stage k leaves its result in work register k, where later stages do not write."""

NOTHING = "none"
PAIR_REDUCTIONS: tuple[str, ...] = (NOTHING, "sum_j", "mean_j", "max_j", "logsumexp_j")
# A mean over pairs is the sum of a pair stage's sums over j, divided by how many pairs it selected.
DOCUMENT_REDUCTIONS: tuple[str, ...] = (
    NOTHING, "sum_i", "mean_i", "max_i", "logsumexp_i",
    *(f"mean_ij of pair stage {k}" for k in range(MAX_PAIR_STAGES)),
)  # fmt: skip
FIRST_MEAN_OF_PAIRS = len(DOCUMENT_REDUCTIONS) - MAX_PAIR_STAGES
PAIR_CONDITIONS: tuple[str | None, ...] = (
    None, "i != j", "y_i > y_j", "y_j > y_i", "y_i >= y_j", "y_j >= y_i", "y_i != y_j",
    "y_i == y_j", "y_i > y_j or y_j == y_i and j >= i",
)  # fmt: skip
DOCUMENT_CONDITIONS: tuple[str | None, ...] = (None, "y_i > 0", "y_i == 0")

MAX_PAIR_INSTRUCTIONS = 40
MAX_DOCUMENT_INSTRUCTIONS = 48


class Segments(NamedTuple):
    """The segments of one level; without the leading axis, those of one candidate."""

    code: Array  # i32[candidates, stages, instructions, 4]: opcode, two arguments, result
    constant: Array  # f32[candidates, stages, instructions]
    length: Array  # i32[candidates, stages]: instructions in use
    result: Array  # i32[candidates, stages]: the register that is reduced
    reduction: Array  # i32[candidates, stages]: 0 where the stage is absent
    where: Array  # i32[candidates, stages]


class Programs(NamedTuple):
    """Encoded losses, a pytree of arrays whose first axis is the candidate."""

    pair: Segments
    document: Segments  # behind the stages in use, the query's, which computes the loss
    uses_ranks: Array  # bool[candidates]

    @property
    def count(self) -> int:  # type: ignore[override]  # of candidates, not a tuple's
        return self.uses_ranks.shape[0]

    def only(self, active: np.ndarray) -> "Programs":
        """These losses where bool[candidates] is true; elsewhere 0, which costs little."""

        def chosen(x: Array, of_zero: Array) -> Array:
            return jnp.where(active.reshape(-1, *[1] * (x.ndim - 1)), x, of_zero)

        return jax.tree.map(chosen, self, encode([literal(0.0)]))


def _codes(conditions: tuple[str | None, ...]) -> dict[Expression | None, int]:
    """By canonical form, so that `y_j != y_i` finds `y_i != y_j`."""
    parsed = (None if text is None else parse_condition(text) for text in conditions)
    return {where and simplify(where): code for code, where in enumerate(parsed)}


_PAIR_CODES = _codes(PAIR_CONDITIONS)
_DOCUMENT_CODES = _codes(DOCUMENT_CONDITIONS)
_PAIR_LOADS = {parse_expression(text): text for text in PAIR_LEAVES}
_QUERY_REGISTERS = {leaf(name): DOCUMENT_LEAVES.index(name) for name in QUERY_LEAVES}
_DOCUMENT_REGISTERS = {
    leaf(name): k for k, name in enumerate(DOCUMENT_LEAVES[:-MAX_DOCUMENT_STAGES])
}


@dataclass
class _Segment:
    """One segment being written."""

    level: str
    leaves: dict[Expression, int]  # the registers of those that lie ready
    loads: dict[Expression, str]  # the instructions that load the others
    capacity: int
    first_register: int  # of its work space
    reduction: int = 0
    where: int = 0
    result: int = 0
    code: list[tuple[int, int, int, int]] = field(default_factory=list)
    constant: list[float] = field(default_factory=list)

    def write(self, body: Expression) -> None:
        """Writes the instructions of `body`, the argument that needs more registers first."""
        first = self.first_register
        self.result = self._write(body, tuple(range(first, first + WORK_REGISTERS)))

    def _write(self, node: Expression, free: tuple[int, ...]) -> int:
        if node in self.leaves:
            return self.leaves[node]
        if not free:
            raise AutolossError(
                f"'{node}' needs more than {WORK_REGISTERS} registers; "
                "nest fewer operators on both sides of one"
            )
        if node in self.loads:
            return self._emit(self.loads[node], free[0])
        if node.op == LITERAL:
            return self._emit(CONSTANT, free[0], value=node.value)
        if node.op not in OPERATORS:
            raise AutolossError(
                f"'{node}' cannot stand in the {self.level} stage of a batched program; "
                f"expected operators over {', '.join(map(str, (*self.leaves, *self.loads)))}"
            )
        if len(node.args) == 1:
            argument = self._write(node.args[0], free)
            return self._emit(node.op, free[0], argument, argument)
        left, right = node.args
        if self._need(right) > self._need(left):
            b = self._write(right, free)
            a = self._write(left, free[1:] if b == free[0] else free)
        else:
            a = self._write(left, free)
            b = self._write(right, free[1:] if a == free[0] else free)
        return self._emit(node.op, free[0], a, b)

    def _need(self, node: Expression) -> int:
        """How many work registers a subtree needs (Sethi and Ullman, 1970)."""
        if node in self.leaves:
            return 0
        if node in self.loads:
            return 1
        needs = sorted((self._need(arg) for arg in node.args), reverse=True)
        return max((need + k for k, need in enumerate(needs)), default=1) or 1

    def _emit(self, op: str, target: int, a: int = 0, b: int = 0, value: float = 0.0) -> int:
        self._append((OPCODES.index(op), a, b, target), value)
        return target

    def _append(self, instruction: tuple[int, int, int, int], value: float) -> None:
        if len(self.code) == self.capacity:
            raise AutolossError(
                f"a {self.level} stage of a batched program holds at most {self.capacity} "
                "instructions: one an operator, a number or, in a pair stage, a leaf"
            )
        self.code.append(instruction)
        self.constant.append(value)


def _encode_one(loss: Expression) -> tuple[list[_Segment], list[_Segment]]:
    """The pair segments of one loss, and the document segments with the query's behind them."""
    pairs: list[_Segment] = []
    documents: list[_Segment] = []

    def pair_stage(node: Expression, reduction: str) -> Expression:
        if len(pairs) == MAX_PAIR_STAGES:
            raise AutolossError(f"more than {MAX_PAIR_STAGES} reductions over pairs; at '{node}'")
        segment = _Segment("pair", {}, _PAIR_LOADS, MAX_PAIR_INSTRUCTIONS, len(pairs))
        segment.reduction = PAIR_REDUCTIONS.index(reduction)
        segment.where = _condition(node, _PAIR_CODES, PAIR_CONDITIONS)
        segment.write(node.args[0])
        pairs.append(segment)
        return leaf(f"pair stage {len(pairs) - 1}")

    def lift_pairs(node: Expression) -> Expression:
        """A document expression with its reductions over j moved into pair stages."""
        if node.op in PAIR_REDUCTIONS:
            return pair_stage(node, node.op)
        return node.map_args(lift_pairs) if node.op in OPERATORS else node

    def lift_documents(node: Expression) -> Expression:
        """A query expression with its reductions moved into document stages."""
        if node.op not in REDUCTIONS:
            return node.map_args(lift_documents) if node.op in OPERATORS else node
        if len(documents) == MAX_DOCUMENT_STAGES:
            raise AutolossError(
                f"more than {MAX_DOCUMENT_STAGES} reductions over documents; at '{node}'"
            )
        segment = _document_segment("document", _DOCUMENT_REGISTERS)
        if node.op in ("sum_ij", "mean_ij"):
            swapped = swap_indices(node)  # Both indices are bound: either may be called i.
            if _holds(swapped.where) and not _holds(node.where):
                node = swapped
            body, reduction = pair_stage(node, "sum_j"), "sum_i"
            if node.op == "mean_ij":
                reduction = f"mean_ij of {body}"
        else:
            segment.where = _condition(node, _DOCUMENT_CODES, DOCUMENT_CONDITIONS)
            body, reduction = lift_pairs(node.args[0]), node.op
        if reduction not in DOCUMENT_REDUCTIONS:
            raise AutolossError(f"'{node}' cannot reduce documents; expected a reduction over i")
        segment.reduction = DOCUMENT_REDUCTIONS.index(reduction)
        segment.write(body)
        documents.append(segment)
        return leaf(f"document stage {len(documents) - 1}")

    query = _document_segment("query", _QUERY_REGISTERS)
    query.write(lift_documents(loss))
    return pairs, [*documents, query]


def _document_segment(level: str, leaves: dict[Expression, int]) -> _Segment:
    return _Segment(level, leaves, {}, MAX_DOCUMENT_INSTRUCTIONS, len(DOCUMENT_LEAVES))


def _holds(where: Expression | None) -> bool:
    """Whether a pair stage may have this condition."""
    return (where and simplify(where)) in _PAIR_CODES


def _condition(
    node: Expression, codes: dict[Expression | None, int], known: tuple[str | None, ...]
) -> int:
    where = node.where and simplify(node.where)
    if where not in codes:
        expected = ", ".join(str(text) for text in known[1:])
        raise AutolossError(
            f"'where={node.where}' of {node.op} is not one a batched program holds; "
            f"expected one of {expected}"
        )
    return codes[where]


def _stack(candidates: Sequence[Sequence[_Segment]], stages: int, capacity: int) -> Segments:
    shape = (len(candidates), stages)
    code = np.zeros((*shape, capacity, 4), np.int32)
    constant = np.zeros((*shape, capacity), np.float32)
    numbers = np.zeros((4, *shape), np.int32)
    for c, segments in enumerate(candidates):
        for k, segment in enumerate(segments):
            length = len(segment.code)
            code[c, k, :length] = np.reshape(segment.code, (length, 4))
            constant[c, k, :length] = np.clip(segment.constant, -LARGE, LARGE)
            numbers[:, c, k] = (length, segment.result, segment.reduction, segment.where)
    return Segments(jnp.asarray(code), jnp.asarray(constant), *map(jnp.asarray, numbers))


def encode(expressions: Sequence[Expression | str]) -> Programs:
    """Encodes losses for the batched path.

    Args:
      expressions: losses of at most 2 reductions over pairs and 3 over documents, the limits of
        this module; pair formulas see the scores as `s_i - s_j` or `s_j - s_i` only.

    Returns:
      Programs of as many candidates, in order. Numbers are rounded to float32 and saturate at 1e30.

    Raises:
      AutolossError: a loss does not fit, naming it and the part that does not.
    """
    if isinstance(expressions, str | Expression):
        raise AutolossError(f"expected a sequence of losses, got the one loss '{expressions}'")
    losses = [as_loss(expression) for expression in expressions]
    encoded = []
    for loss in losses:
        try:
            encoded.append(_encode_one(loss))
        except AutolossError as error:
            raise AutolossError(f"'{loss}' does not fit a batched program: {error}") from None
    ranks = ("rank_i", "rank_j", "discount_i", "discount_j")
    return Programs(
        pair=_stack([e[0] for e in encoded], MAX_PAIR_STAGES, MAX_PAIR_INSTRUCTIONS),
        document=_stack(
            [e[1] for e in encoded], MAX_DOCUMENT_STAGES + 1, MAX_DOCUMENT_INSTRUCTIONS
        ),
        uses_ranks=jnp.asarray([loss.uses(*ranks) for loss in losses], bool),
    )


def unfit(loss: Expression) -> str:
    """Why `encode` refuses a loss, "" if it accepts it."""
    try:
        _encode_one(loss)
    except AutolossError as error:
        return f"'{loss}' does not fit a batched program: {error}"
    return ""


def decode(programs: Programs) -> list[Expression]:
    """The losses of programs, the inverse of `encode` (numbers as float32 prints them)."""
    host = jax.tree.map(np.asarray, programs)
    return [_decode_one(jax.tree.map(lambda x, c=c: x[c], host)) for c in range(programs.count)]


def _decode_one(program: Programs) -> Expression:
    def body(segments: Segments, k: int, leaves: dict[Expression, int]) -> Expression:
        registers = {register: node for node, register in leaves.items()}
        for step in range(int(segments.length[k])):
            op, a, b, target = map(int, segments.code[k, step])
            name = OPCODES[op]
            if name == CONSTANT:
                # The shortest text that float32 reads back: 0.1, not 0.10000000149.
                registers[target] = literal(float(str(np.float32(segments.constant[k, step]))))
            elif name in PAIR_LEAVES:
                registers[target] = parse_expression(name)
            else:
                args = (registers[a], registers[b])[: OPERATORS[name].arity]
                registers[target] = apply(name, *args)
        return registers.get(int(segments.result[k]), literal(0.0))

    def where(conditions: tuple[str | None, ...], code: int) -> Expression | None:
        text = conditions[code]
        return None if text is None else parse_condition(text)

    leaves: dict[str, Expression] = {}

    def lower(node: Expression) -> Expression:
        return leaves[node.op] if node.op in leaves else node.map_args(lower)

    pairs = {}
    for k in range(MAX_PAIR_STAGES):
        reduction = PAIR_REDUCTIONS[int(program.pair.reduction[k])]
        condition = where(PAIR_CONDITIONS, int(program.pair.where[k]))
        pairs[k] = (body(program.pair, k, {}), condition)
        if reduction != NOTHING:
            leaves[f"pair stage {k}"] = apply(reduction, pairs[k][0], where=condition)
    pair_stages = len(leaves)
    for k in range(MAX_DOCUMENT_STAGES):
        reduction = DOCUMENT_REDUCTIONS[int(program.document.reduction[k])]
        if reduction == NOTHING:
            continue
        node = body(program.document, k, _DOCUMENT_REGISTERS)
        if node.op.startswith("pair stage") and not reduction.startswith(("max", "log")):
            pair, condition = pairs[int(node.op[-1])]
            over = leaves[node.op].op
            if over == "sum_j" and "mean_ij" in reduction:
                leaves[f"document stage {k}"] = apply("mean_ij", pair, where=condition)
                continue
            # sum_ij(...) and sum_i(sum_j(...)) are one program, which reads back as the shorter.
            if over == "sum_j" and reduction == "sum_i" and not int(program.document.where[k]):
                leaves[f"document stage {k}"] = apply("sum_ij", pair, where=condition)
                continue
        condition = where(DOCUMENT_CONDITIONS, int(program.document.where[k]))
        leaves[f"document stage {k}"] = apply(reduction, lower(node), where=condition)
    return lower(body(program.document, len(leaves) - pair_stages, _QUERY_REGISTERS))
