import torch
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn

from .encoder_layer import TransformerEncoderLayer
from .take_tokens import take_tokens


class GLCABlock(TransformerEncoderLayer):
    """Global-local cross-attention block: some tokens ask all tokens.

    DCAL (arXiv 2205.02151, Sec. 3.2). An encoder layer whose queries, residuals and MLP belong to
    the class token and the selected patches, while keys and values come from all tokens. Queries
    do not meet, so the class token's row does not depend on which patches are selected.
    Parameters, names and arguments are those of :class:`TransformerEncoderLayer`.
    """

    def init_weights(self) -> None:
        """Truncated normal weights and zero biases: the block starts near the identity."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        idx: Tensor | None = None,
        need_weights: bool = False,
        attn_bias: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Encode the class token and some patches.

        Args:
            x (Tensor): Tokens ``(B, T, C)``, class token at index 0.
            idx (Tensor, optional): ``(B, R)`` selected patches, counted from 0 without the class
                token; None for the class token alone.
            need_weights (bool): Also return the softmax output ``(B, H, 1 + R, T)``.
            attn_bias (Tensor, optional): Added to the logits, broadcast to ``(B, H, 1 + R, T)``.

        Returns:
            Tensor: ``(B, 1 + R, C)``, the class token first, then the patches as in ``idx``.
        """
        rows = torch.zeros(x.shape[0], 1, dtype=torch.long, device=x.device)
        if idx is not None:
            rows = torch.cat((rows, idx + 1), dim=1)
        query, key, value = self.attn.project_local_qkv(self.ln1(x), rows)
        out, weights = self.attn.attend(query, key, value, attn_bias, need_weights)
        local = take_tokens(x, rows) + out
        local = self.ffn(self.ln2(local), identity=local)
        return (local, weights) if need_weights else local
