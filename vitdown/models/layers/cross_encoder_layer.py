from torch import Tensor

from .encoder_layer import TransformerEncoderLayer


class CrossEncoderLayer(TransformerEncoderLayer):
    """Pre-norm block whose keys may come from other tokens than its queries.

    ``x + attn(ln1(x), ln1(y))``, then ``x + ffn(ln2(x))``: queries and keys share ``ln1``, and
    ``attn.qkv`` projects the queries of ``x`` and the keys and values of ``y``. Parameters are
    those of :class:`TransformerEncoderLayer`.
    """

    def forward(
        self, x: Tensor, y: Tensor | None = None, attn_bias: Tensor | None = None
    ) -> Tensor:
        """Encode tokens.

        Args:
            x (Tensor): Tokens that ask, ``(B, N, C)``.
            y (Tensor, optional): Tokens that are asked, ``(B, M, C)``; None for ``x`` itself.
            attn_bias (Tensor, optional): Added to the logits (or, if boolean, False for pairs that
                do not see each other), broadcast to ``(B, H, N, M)``.

        Returns:
            Tensor: ``(B, N, C)``.
        """
        normed = self.ln1(x)
        query = self.attn.project_q(normed)
        key, value = self.attn.project_kv(normed if y is None else self.ln1(y))
        out, _ = self.attn.attend(query, key, value, attn_bias)
        x = x + out
        return self.ffn(self.ln2(x), identity=x)
