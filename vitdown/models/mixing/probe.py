from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..distillation import Recorder, Tap, evaluation_mode, get_logits

ATTENTIONS = ('patch_mean', 'cls')


def received_attention(
    attn: nn.Module, x: Tensor, num_extra_tokens: int = 1, mode: str = 'patch_mean'
) -> Tensor:
    """How much attention each patch gets, averaged over heads.

    Args:
        attn (nn.Module): Attention with ``project_qk`` and ``scale``, or mmpretrain's, which keeps
            neither.
        x (Tensor): Tokens ``(B, T, C)`` that enter it.
        num_extra_tokens (int): Leading tokens that are no patches. Defaults to 1.
        mode (str): ``'patch_mean'`` for the mean over the patches that look (SMMix), ``'cls'`` for
            what the first token looks at.

    Returns:
        Tensor: ``(B, N)`` float32, N patches. Sums to less than 1 where extra tokens get some.
    """
    query, key = _project_qk(attn, x)
    rows = slice(num_extra_tokens, None) if mode == 'patch_mean' else slice(0, 1)
    query = query[:, :, rows]
    if hasattr(attn, 'weights'):
        weights = attn.weights(query, key).float()
        return weights.mean(dim=(1, 2))[:, num_extra_tokens:]
    # Head by head: all weights together would be the largest tensor of the pass.
    total, scale = 0.0, getattr(attn, 'scale', query.shape[-1] ** -0.5)
    for q, k in zip((query * scale).unbind(1), key.unbind(1)):
        total = total + (q @ k.transpose(-2, -1)).float().softmax(dim=-1).mean(dim=1)
    return (total / query.shape[1])[:, num_extra_tokens:]


def _project_qk(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    if hasattr(attn, 'project_qk'):
        return attn.project_qk(x)
    heads = (3, attn.num_heads, attn.head_dims)
    return attn.qkv(x).unflatten(-1, heads).permute(2, 0, 3, 1, 4)[:2].unbind(0)


def _last_layer(backbone: nn.Module) -> nn.Module:
    layers = getattr(backbone, 'layers', None)
    layer = layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None
    attn = getattr(layer, 'attn', None)
    knows = hasattr(attn, 'project_qk') or all(
        hasattr(attn, name) for name in ('qkv', 'num_heads', 'head_dims')
    )
    if not knows or not all(hasattr(part, 'ln1') for part in (layer, backbone)):
        raise ValueError(
            f'SMMix needs the attention of a plain ViT, CaiT or PVT; {type(backbone).__name__} has '
            'no layers[-1].attn with queries and keys, or no norms ln1 before it and at the end'
        )
    return layer


class AttentionProbe:
    """Asks a classifier where it looks, and hands out its tokens.

    Args:
        model (nn.Module): Classifier of mmpretrain or ``ReIdentifier`` with a backbone whose last
            layer is ``backbone.layers[-1]``, with a norm ``ln1`` before its attention ``attn``, and
            whose final norm is ``backbone.ln1``.
        attention (str): See :func:`received_attention`.

    Raises:
        ValueError: If the model has no such backbone.
    """

    def __init__(self, model: nn.Module, attention: str = 'patch_mean') -> None:
        if attention not in ATTENTIONS:
            raise ValueError(f'attention must be one of {ATTENTIONS}, got {attention!r}')
        backbone = getattr(model, 'backbone', None)
        if backbone is None:
            raise ValueError(
                f'SMMix needs a model with a backbone, {type(model).__name__} has none'
            )
        self.model = model
        self.attention = attention
        self._attn = _last_layer(backbone).attn
        names = {id(module): name for name, module in model.named_modules()}
        if not getattr(backbone, 'final_norm', True):
            raise ValueError('SMMix needs a backbone with final_norm=True')
        if backbone.ln1.weight.shape != _last_layer(backbone).ln1.weight.shape:
            raise ValueError(
                f'SMMix needs the attention of a plain ViT, CaiT or PVT; the final norm of '
                f'{type(backbone).__name__} is wider than its layers'
            )
        self._input = Tap((names[id(_last_layer(backbone).ln1)],), pool=None)
        self.tokens = Tap(('backbone.ln1',), pool=None)
        self.num_extra_tokens = getattr(backbone, 'num_extra_tokens', 1)
        if attention == 'cls' and not self.num_extra_tokens:
            raise ValueError("attention='cls' needs a backbone with a class token")

    def __call__(
        self, inputs: Tensor, data_samples: list | None = None, amp: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Run the model in evaluation mode, without gradients and without token fusion.

        Args:
            inputs (Tensor): Images ``(B, 3, H, W)``.
            data_samples (list, optional): Cameras, for models that need them.
            amp (bool): False to leave mixed precision for this pass.

        Returns:
            tuple: Logits ``(B, K)`` and attention scores ``(B, N)``.
        """
        fusion = nullcontext()
        if getattr(self.model.backbone, 'token_fusion', None) is not None:
            fusion = self.model.backbone.override_fusion(0)
        taps = dict(input=self._input, tokens=self.tokens)
        with torch.inference_mode(), evaluation_mode(self.model), _autocast(inputs.device, amp):
            with fusion, Recorder(self.model, taps) as recorder:
                logits = get_logits(self.model, inputs, data_samples)
            x = recorder['input']
            num_patches = recorder['tokens'].shape[1] - self.num_extra_tokens
            scores = received_attention(self._attn, x, x.shape[1] - num_patches, self.attention)
        # Tensors of inference mode can't take part in a backward pass, their copies can.
        return logits.clone(), scores.clone()


class PatchRecorder(Recorder):
    """Records, besides other taps, the patch tokens after the final norm.

    Args:
        probe (AttentionProbe): Of the model to record.
        taps (dict[str, Tap]): What else to record.
        watch_head (bool): See :class:`Recorder`.
    """

    def __init__(
        self, probe: AttentionProbe, taps: dict[str, Tap], watch_head: bool = False
    ) -> None:
        super().__init__(probe.model, {**taps, 'tokens': probe.tokens}, watch_head)
        self._num_extra_tokens = probe.num_extra_tokens
        self._fusion = getattr(probe.model.backbone, 'token_fusion', None)
        self._states: list = []

    def __enter__(self) -> 'PatchRecorder':
        super().__enter__()
        if self._fusion is not None:
            self._handles.append(self._fusion.register_forward_hook(self._keep_state))
        return self

    def _keep_state(self, fusion: nn.Module, args: tuple, output: tuple) -> None:
        # Once a layer; a further pass within the same step is somebody else's.
        if len(self._states) < fusion.num_layers:
            self._states.append(output[1])

    def patches(self, batch: int) -> Tensor:
        """``(B, N, C)`` of the first ``batch`` rows; patches that were fused share a token."""
        tokens = self['tokens'][:batch]
        if self._states:
            tokens = self._states[-1].narrow(batch).spread(tokens)
        return tokens[:, self._num_extra_tokens :]


@contextmanager
def _autocast(device: torch.device, enabled: bool) -> Iterator[None]:
    """Autocast as it is, or off; without its cache, whose weights would come without gradients."""
    kind = device.type
    enabled = enabled and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
        yield
