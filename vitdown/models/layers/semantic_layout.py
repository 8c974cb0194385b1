from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

PAD_MASKS = ('exact', 'official', False)


@dataclass(frozen=True)
class SemanticLayout:
    """Where the windows and semantic tokens of a token map lie, and who sees whom.

    A map of H x W image tokens is cut into windows of ``window`` x ``window``; maps that no whole
    number of windows covers are padded at the bottom and the right. Each window has
    ``num_semantic`` x ``num_semantic`` semantic tokens; those of all windows form the semantic map.
    Attention of a window reaches beyond it, so keys are padding at times.

    Attributes:
        height (int): H.
        width (int): W.
        window (int): Side of a window in image tokens.
        num_semantic (int): Side of a window in semantic tokens.
        pad_mask (str | bool): What padding does. ``'exact'``: keys that are padding are hidden and
            pooling ignores it; semantic tokens that pool nothing but padding are hidden too.
            False: padding takes part as zeros. ``'official'``: hidden as in the released detector,
            i.e. all of the margin around the padded map, but of the padding inside only rows if
            just rows are padded, columns if just columns are, and the corner if both are; the
            same number of rows and columns are hidden from the recovery on the *semantic* map.
            Where that would hide all keys of a window, none is.

    Raises:
        ValueError: For an unknown ``pad_mask``.
    """

    height: int
    width: int
    window: int = 7
    num_semantic: int = 3
    pad_mask: str | bool = 'exact'

    def __post_init__(self) -> None:
        # 0 equals False and is none
        if not isinstance(self.pad_mask, (str, bool)) or self.pad_mask not in PAD_MASKS:
            raise ValueError(f'pad_mask must be one of {PAD_MASKS}, got {self.pad_mask!r}')

    @property
    def grid(self) -> tuple[int, int]:
        """Number of windows ``(rows, columns)``."""
        return -(-self.height // self.window), -(-self.width // self.window)

    @property
    def padding(self) -> tuple[int, int]:
        """Number of padded ``(rows, columns)`` of image tokens."""
        rows, columns = self.grid
        return rows * self.window - self.height, columns * self.window - self.width

    @property
    def semantic_size(self) -> tuple[int, int]:
        """Size of the semantic map."""
        rows, columns = self.grid
        return rows * self.num_semantic, columns * self.num_semantic

    def key_index(self, reach: int, device: torch.device) -> Tensor:
        """Image tokens around each window.

        Args:
            reach (int): Side of the key windows, which exceed their window by half of the rest on
                each side (at the end by one more if it is odd).
            device (torch.device): Where to build it.

        Returns:
            Tensor: ``(num_windows, reach ** 2)`` indices in raster order; H * W for padding.
        """
        before = (reach - self.window) // 2
        steps = torch.arange(reach, device=device) - before
        places = [
            torch.arange(count, device=device)[:, None] * self.window + steps for count in self.grid
        ]
        inside = [(x >= 0) & (x < size) for x, size in zip(places, (self.height, self.width))]
        index = places[0][:, None, :, None] * self.width + places[1][:, None]
        inside = inside[0][:, None, :, None] & inside[1][:, None]
        return index.masked_fill(~inside, self.height * self.width).flatten(2).flatten(0, 1)

    def key_windows(self, x: Tensor, reach: int, fill: Tensor | None = None) -> Tensor:
        """Gather image tokens around each window.

        Args:
            x (Tensor): Image tokens ``(B, N, C)``.
            reach (int): Side of the key windows.
            fill (Tensor, optional): ``(C,)``, what padding holds. Defaults to zeros.

        Returns:
            Tensor: ``(B * num_windows, reach ** 2, C)``.
        """
        batch, num_tokens, channels = x.shape
        fill = x.new_zeros(channels) if fill is None else fill
        table = torch.cat((x, fill.expand(batch, 1, channels)), dim=1).flatten(0, 1)
        starts = torch.arange(batch, device=x.device)[:, None, None] * (num_tokens + 1)
        # Backward is several times as fast as that of unfold.
        return F.embedding((self.key_index(reach, x.device) + starts).flatten(0, 1), table)

    def split(self, semantic: Tensor) -> Tensor:
        """Semantic tokens ``(B, S, C)``, raster order, to ``(B * num_windows, s * s, C)``."""
        (rows, columns), side = self.grid, self.num_semantic
        x = semantic.unflatten(1, (rows, side, columns, side)).transpose(2, 3)
        return x.reshape(-1, side**2, semantic.shape[-1])

    def join(self, windows: Tensor) -> Tensor:
        """Inverse of :meth:`split`."""
        (rows, columns), side = self.grid, self.num_semantic
        x = windows.unflatten(1, (side, side)).unflatten(0, (-1, rows, columns))
        return x.transpose(2, 3).flatten(1, 4)

    def pool(self, x: Tensor) -> Tensor:
        """Maximum of image tokens ``(B, H * W, C)`` over the bins of each window.

        With ``pad_mask='exact'`` padding is ignored, and bins of nothing else are zero.

        Returns:
            Tensor: Semantic tokens ``(B, S, C)`` in raster order.
        """
        (rows, columns), side = self.grid, self.num_semantic
        exact = self.pad_mask == 'exact'
        bottom, right = self.padding
        x = x.unflatten(1, (self.height, self.width))
        x = F.pad(x, (0, 0, 0, right, 0, bottom), value=float('-inf') if exact else 0.0)
        x = x.unflatten(2, (columns, self.window)).unflatten(1, (rows, self.window))
        x = x.permute(0, 1, 3, 5, 2, 4).flatten(0, 2)
        x = F.adaptive_max_pool2d(x, side)
        if exact and any(self.padding):
            x = x.masked_fill(x == float('-inf'), 0.0)
        x = x.unflatten(0, (-1, rows, columns)).permute(0, 1, 4, 2, 5, 3)
        return x.flatten(1, 4)

    def image_mask(self, reach: int, device: torch.device) -> Tensor | None:
        """Which of :meth:`key_windows` are visible, ``(num_windows, reach ** 2)``; None if all."""
        if self.pad_mask is False or (self.pad_mask == 'official' and not any(self.padding)):
            return None
        index = self.key_index(reach, device)
        if self.pad_mask == 'exact':
            return index < self.height * self.width
        bottom, right = self.padding
        whole = replace(self, height=self.height + bottom, width=self.width + right)
        visible = torch.ones(whole.height, whole.width, dtype=torch.bool, device=device)
        visible[-bottom:, -right:] = False
        visible = torch.cat((visible.flatten(), visible.new_zeros(1)))
        return visible[whole.key_index(reach, device)]

    def semantic_mask(self, device: torch.device) -> Tensor | None:
        """Which semantic tokens stand for image tokens, ``(S,)``; None if all do."""
        if self.pad_mask != 'exact' or not any(self.padding):
            return None
        rows, columns = (
            self._first_tokens(count, device) < size
            for count, size in zip(self.grid, (self.height, self.width))
        )
        return (rows[:, None] & columns).flatten()

    def _first_tokens(self, num_windows: int, device: torch.device) -> Tensor:
        """Where the pooling bins of a row of windows begin, as ``adaptive_max_pool2d`` has it."""
        starts = torch.arange(self.num_semantic, device=device) * self.window // self.num_semantic
        return (torch.arange(num_windows, device=device)[:, None] * self.window + starts).flatten()

    def recovery_bias(self, reach: int | None, device: torch.device) -> Tensor | None:
        """Attention of image tokens to the semantic map, as a bias of the logits.

        Each window sees the semantic tokens of the ``reach`` x ``reach`` around its own. Those of
        them that lie outside of the map are all alike, so one key stands for the n of them with a
        bias of log n.

        Args:
            reach (int, optional): Side of the neighbourhood in semantic tokens; None for the map.
            device (torch.device): Where to build it.

        Returns:
            Tensor | None: ``(H * W, S)``, 0 for what is visible and -inf for what is not; unless
            ``pad_mask='exact'`` with one more column, for the key outside. None if every token
            sees all of the map and nothing else.
        """
        mask = self.semantic_mask(device)
        if reach is None:
            return None if mask is None else _as_bias(mask)[None]
        before = (reach - self.num_semantic) // 2
        near = [
            self._near(count, before, reach, device) for count in self.grid
        ]  # (rows, S_h), (columns, S_w)
        visible = (near[0][:, None, :, None] & near[1][None, :, None, :]).flatten(2).flatten(0, 1)
        if self.pad_mask == 'exact':
            bias = _as_bias(visible if mask is None else visible & mask)
        else:
            outside = reach**2 - visible.sum(dim=1)
            outside = outside.float().log()
            if self.pad_mask == 'official':
                bottom, right = self.padding
                hidden = torch.zeros(self.semantic_size, dtype=torch.bool, device=device)
                hidden[-bottom:, -right:] = True
                shown = visible & ~hidden.flatten()
                nothing = ~shown.any(dim=1)
                visible = torch.where(nothing[:, None], visible, shown)
                outside = outside.masked_fill(~nothing, float('-inf'))
            bias = torch.cat((_as_bias(visible), outside[:, None]), dim=1)
        rows = torch.arange(self.height, device=device) // self.window
        columns = torch.arange(self.width, device=device) // self.window
        return bias[(rows[:, None] * self.grid[1] + columns).flatten()]

    def _near(self, num_windows: int, before: int, reach: int, device: torch.device) -> Tensor:
        """Which of a row of semantic tokens lie within reach of each window: ``(n, n * s)``."""
        tokens = torch.arange(num_windows * self.num_semantic, device=device)
        first = torch.arange(num_windows, device=device)[:, None] * self.num_semantic - before
        return (tokens >= first) & (tokens < first + reach)


def _as_bias(visible: Tensor) -> Tensor:
    return torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, float('-inf'))
