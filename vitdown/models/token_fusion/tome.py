from collections.abc import Sequence
from numbers import Real

from torch import Tensor, nn

from vitdown.registry import MODELS

from .assignment import Assignment, fuse_tokens
from .base import TokenFusion, Weights, check_r, resolve_count
from .matching import cosine_scores, match_bipartite
from .state import FusionState
from .streams import Streams


@MODELS.register_module()
class ToMe(TokenFusion):
    """Token merging, "Your ViT But Faster" (arXiv 2210.09461).

    Every block merges the ``r`` tokens whose keys are most similar to another token's, between
    attention and MLP; merged tokens are averages weighted by size.

    Args:
        r (int | Sequence[int] | tuple[int, float]): Tokens to remove in each block; one number a
            block, where missing ones at the end are 0 (a list); or ``(r, inflect)`` for a number
            that changes linearly over the blocks with mean ``r``, from ``2r`` to 0 with
            ``inflect=-1`` and the other way round with ``inflect=1``. A block whose number is 0 in
            one of the last two stays off when another ``r`` is set for a pass.
        prop_attn (bool): Whether tokens attract attention in proportion to their size. Defaults
            to True; False suits MAE weights that were not trained with merging.
        num_layers (int): Given by the backbone.
        num_protected (int): Given by the backbone.

    Examples:
        >>> ToMe(r=16, num_layers=12).schedule(197)[-3:]
        [37, 21, 11]
    """

    def __init__(
        self,
        r: int | Sequence[int] | tuple[int, float],
        num_layers: int,
        num_protected: int = 1,
        prop_attn: bool = True,
    ) -> None:
        super().__init__(num_layers, num_protected, prop_attn)
        self.r = r
        self.r_per_layer = parse_r(num_layers, r)
        every = isinstance(r, Real)
        self.layers = frozenset(i for i, own in enumerate(self.r_per_layer) if own or every)

    def extra_repr(self) -> str:
        return f'r={self.r}, prop_attn={self.prop_attn}'

    def resolve_r(self, num_tokens: int, layer: int, r: int | float | None = None) -> int:
        if layer not in self.layers:
            return 0
        r = self.r_per_layer[layer] if r is None else r
        return resolve_count(num_tokens, r, self.num_protected)

    def fuse(
        self,
        block: nn.Module,
        x: Tensor,
        state: FusionState,
        r: int,
        streams: Streams,
        need_weights: bool | str,
    ) -> tuple[Tensor, FusionState, Weights]:
        query, key, value = block.attn.project_qkv(block.ln1(x))
        out, weights = streams.attend(
            block.attn, query, key, value, self.bias(x, state), need_weights is True
        )
        x = x + block.attn.project_out(out)
        attention = self.report(block.attn, need_weights, query, key, weights, state, streams)

        assignment = self.match(key, r)
        sizes = state.sizes(x)
        x = fuse_tokens(x, assignment, assignment.shares(sizes))
        return block.ffn(block.ln2(x), identity=x), state.fused(assignment, sizes), attention

    def match(self, key: Tensor, r: int) -> Assignment:
        """Choose ``r`` tokens to be merged, by their keys ``(B, H, N, d)``."""
        scores = cosine_scores(key.mean(dim=1), self.num_protected)
        # Without a protected token the official code leaves the even tokens sorted by score.
        return match_bipartite(scores, r, self.num_protected, sort_kept=self.num_protected > 0)


def parse_r(num_layers: int, r: int | Sequence[int] | tuple[int, float]) -> list[int]:
    """One number a block from ToMe's notations of ``r``, see :class:`ToMe`.

    Raises:
        ValueError: If it is in none of them.
    """
    if isinstance(r, tuple):
        if len(r) != 2 or not isinstance(r[1], Real) or not -1 <= r[1] <= 1:
            raise ValueError(
                f'A tuple for r is (r, inflect) with a number inflect in [-1, 1], got {r}; for one '
                'number a block give a list'
            )
        r, inflect = r
        check_r(r)
        if 0 < r < 1:
            raise ValueError(
                f'(r, inflect) takes a number of tokens, not the fraction {r}; for fractions give '
                'r alone or a list'
            )
        low = int(r * (1 - inflect))
        step = (2 * r - 2 * low) / max(1, num_layers - 1)
        return [int(low + step * layer) for layer in range(num_layers)]
    if isinstance(r, str) or not isinstance(r, Sequence):
        check_r(r)
        return [r] * num_layers
    if len(r) > num_layers:
        raise ValueError(f'r has {len(r)} entries, the backbone {num_layers} layers')
    if len(r) == 2 and isinstance(r[0], int) and isinstance(r[1], float):
        raise ValueError(
            f'r={r!r} mixes a number and a fraction; (r, inflect) is a tuple: r={tuple(r)!r}'
        )
    for block, entry in enumerate(r):
        check_r(entry, f'r[{block}]')
    return [*r, *[0] * (num_layers - len(r))]
