import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

POOLS = ('auto', 'mean', 'patches', 'average', None)


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module of that name, e.g. ``'backbone.layers.5'``.

    Raises:
        ValueError: If there is none; names the nearest ones.
    """
    modules = dict(model.named_modules())
    if path and path in modules:
        return modules[path]
    near = difflib.get_close_matches(path, modules, n=3, cutoff=0.4)
    parent = path.rpartition('.')[0]
    while parent and parent not in modules:
        parent = parent.rpartition('.')[0]
    children = [name for name, _ in (modules[parent] if parent else model).named_children()]
    hint = f'near are {", ".join(near)}; ' if near else ''
    raise ValueError(
        f'{type(model).__name__} has no module {path!r}: {hint}'
        f'{parent or "the model"} has {", ".join(children) or "no parts"}'
    )


def find_classifier(model: nn.Module) -> str:
    """Path of the linear layer of ``model.head`` with one output a class.

    Of several the least deeply nested one, and of those the first: layers of a block inside the
    head may have as many outputs by chance.

    Raises:
        ValueError: If there is none.
    """
    head = getattr(model, 'head', None)
    if isinstance(head, nn.Module):
        classes = getattr(head, 'num_classes', None)
        fitting = [
            name
            for name, module in head.named_modules()
            if isinstance(module, nn.Linear) and classes in (None, module.out_features)
        ]
        if fitting:
            name = min(fitting, key=lambda name: name.count('.'))
            return f'head.{name}' if name else 'head'
    raise ValueError(
        f'{type(model).__name__} has no head with a linear classifier; name the module that gives '
        "the logits, e.g. 'head.fc'"
    )


def _find_logits(model: nn.Module) -> str | dict:
    """The classifier of the head, or both where it returns the mean of two (distilled DeiT ...)."""
    path = find_classifier(model)
    inner = path.removeprefix('head.')
    for twin in (re.sub(r'\bhead\b', name, inner) for name in ('head_dist', 'dist_head')):
        if twin != inner and twin in dict(model.head.named_modules()):
            return dict(module=[path, f'head.{twin}'], pool='average')
    return path


def _find_middle(model: nn.Module) -> str:
    backbone = getattr(model, 'backbone', model)
    layers = getattr(backbone, 'layers', None)
    if isinstance(layers, nn.ModuleList) and hasattr(layers[0], 'ffn'):
        # The output of the FFN is the layer's, and token fusion calls it too.
        path = f'backbone.layers.{max(len(layers) // 2 - 1, 0)}.ffn'
        if path in dict(model.named_modules()):
            return path
    if isinstance(getattr(backbone, 'layer3', None), nn.Module):
        return 'backbone.layer3'
    raise ValueError(
        f'No middle layer of {type(backbone).__name__} is known; name the module, e.g. '
        "'backbone.layer7'"
    )


def _find_first_layers(model: nn.Module) -> dict:
    return dict(module=['backbone.layers.0.ffn', 'backbone.layers.1.ffn'], pool='patches')


def _find_last_tokens(model: nn.Module) -> dict:
    return dict(module='backbone.ln1', pool='patches')


def _extra_tokens(model: nn.Module, path: str) -> int:
    """Leading tokens that are no patches, by the module or the nearest one around it that knows."""
    while path:
        module = model.get_submodule(path)
        path = path.rpartition('.')[0]
        for name in ('num_extra_tokens', 'num_prefix_tokens'):  # mmpretrain's, timm's
            if isinstance(number := getattr(module, name, None), int):
                return number
    return 0


#: What ``'auto'`` means for a tap named ``student_<key>`` or ``teacher_<key>``.
_AUTO: dict[str, Callable[[nn.Module], str | dict]] = {
    'logits': _find_logits,
    'mid': _find_middle,
    'low': _find_first_layers,
    'high': _find_last_tokens,
}


@dataclass(frozen=True)
class Tap:
    """Outputs of one or several modules, in the form that a loss wants.

    Attributes:
        paths (tuple[str, ...]): Names of modules; of outputs that are tuples the first entry
            counts. Outputs of several are stacked along dimension 1 unless ``pool`` averages them.
        pool (str, optional): ``'auto'`` averages feature maps ``(B, C, H, W)`` and takes the class
            token of ``(B, N, C)``, or the mean where there is none; ``'mean'`` averages both;
            ``'patches'`` drops tokens that are no patches; ``'average'`` is the mean over the
            modules, as of two classifiers; None for outputs as they are.
        num_extra_tokens (int): Leading tokens that are no patches; the first is the class token.
    """

    paths: tuple[str, ...]
    pool: str | None = 'auto'
    num_extra_tokens: int = 1

    @classmethod
    def parse(cls, spec: str | Mapping | Sequence[str], name: str, model: nn.Module) -> 'Tap':
        """From a config: a path, a list of paths, ``'auto'`` or a dict ``module=..., pool=...``.

        Args:
            spec: The config.
            name (str): Name of the tap, for ``'auto'`` and messages.
            model (nn.Module): The model to tap.

        Raises:
            ValueError: If the config is none of these, the model has no such module, or its patches
                are fused.
        """
        if spec == 'auto':
            key = name.partition('_')[2]
            if key not in _AUTO:
                raise ValueError(f"taps.{name} has no 'auto'; name a module")
            spec = _AUTO[key](model)
        options = spec if isinstance(spec, Mapping) else dict(module=spec)
        paths = options.get('module')
        paths = (paths,) if isinstance(paths, str) else paths
        if (
            not set(options) <= {'module', 'pool'}
            or not isinstance(paths, Sequence)
            or not paths
            or not all(isinstance(path, str) for path in paths)
        ):
            raise ValueError(
                f'taps.{name} must be a module path, a list of them or dict(module=..., '
                f'pool=...), got {spec!r}'
            )
        pool = options.get('pool', 'auto')
        if pool not in POOLS:
            raise ValueError(f'taps.{name}.pool must be one of {POOLS}, got {pool!r}')
        for path in paths:
            find_module(model, path)
        backbone = getattr(model, 'backbone', model)
        if pool == 'patches' and getattr(backbone, 'token_fusion', None) is not None:
            raise ValueError(
                f'taps.{name}: token fusion does not leave all patches in the order of their grid, '
                f'as ViTKD compares them; leave out token_fusion of this {type(backbone).__name__} '
                'or the loss'
            )
        return cls(tuple(paths), pool, _extra_tokens(model, paths[0]))

    def shape(self, outputs: Sequence[Tensor]) -> Tensor:
        """Outputs of the modules in the form that ``pool`` says."""
        if self.pool == 'average':
            return torch.stack(tuple(outputs)).mean(dim=0)
        pooled = [self._pool(output) for output in outputs]
        return pooled[0] if len(pooled) == 1 else torch.stack(pooled, dim=1)

    def _pool(self, output: Tensor) -> Tensor:
        if self.pool == 'patches':
            return output[:, self.num_extra_tokens :]
        if self.pool in ('auto', 'mean') and output.ndim == 4:
            return output.mean(dim=(2, 3))
        if self.pool in ('auto', 'mean') and output.ndim == 3:
            has_cls_token = self.pool == 'auto' and self.num_extra_tokens
            return output[:, 0] if has_cls_token else output.mean(dim=1)
        return output


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode; afterwards each in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class Recorder:
    """Records what modules of a model compute while it runs.

    Forward hooks are on the model within the ``with`` block only. If a module runs several times,
    the first time counts.

    Args:
        model (nn.Module): The model.
        taps (Mapping[str, Tap]): What to record under which name.
        watch_head (bool): Record what the head gets, too, for :meth:`check_prediction`. Defaults to
            False.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        >>> with Recorder(model, {'logits': Tap(('0',))}) as recorder:
        ...     out = model(torch.rand(4, 3))
        >>> recorder['logits'].shape
        torch.Size([4, 2])
    """

    def __init__(self, model: nn.Module, taps: Mapping[str, Tap], watch_head: bool = False) -> None:
        self.model = model
        self.taps = taps
        self._watch_head = watch_head
        self._feats: tuple = ()
        self._outputs: dict[str, tuple[Tensor, int]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> 'Recorder':
        for path in {path for tap in self.taps.values() for path in tap.paths}:
            module = find_module(self.model, path)
            self._handles.append(module.register_forward_hook(self._keep(path)))
        if self._watch_head:
            self._handles.append(self.model.head.register_forward_pre_hook(self._keep_feats))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _keep_feats(self, head: nn.Module, args: tuple) -> None:
        self._feats = args[:1]

    def check_prediction(self, name: str, remedy: str) -> None:
        """Check that a tap gives what the head predicts in evaluation mode.

        Needs ``watch_head``. Heads whose ``forward`` did not run are not checked: those of
        ``ReIdentifier``, and others that learn from parts of their prediction.

        Args:
            name (str): The tap.
            remedy (str): What to do otherwise.

        Raises:
            ValueError: If it does not.
        """
        if not self._feats:
            return
        head, tap = self.model.head, self.taps[name]
        with torch.no_grad(), evaluation_mode(head), Recorder(self.model, {name: tap}) as again:
            prediction = head(*self._feats)
        tapped = again[name]
        # As near as half precision gets: another layer's logits are far off.
        if (
            not isinstance(prediction, Tensor)
            or prediction.shape != tapped.shape
            or (prediction - tapped).abs().max() > 1e-2 * prediction.abs().max()
        ):
            raise ValueError(
                f'{type(head).__name__} of {type(self.model).__name__} does not predict what '
                f'{" and ".join(tap.paths)} gives; {remedy}'
            )

    def _keep(self, path: str) -> Callable[[nn.Module, tuple, Any], None]:
        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(output, (tuple, list)):
                output = output[0]
            version = 0 if output.is_inference() else output._version
            self._outputs.setdefault(path, (output, version))

        return keep

    def __getitem__(self, name: str) -> Tensor:
        """What a tap recorded.

        Raises:
            ValueError: If a module did not run, or what it returned was overwritten since.
        """
        outputs = []
        for path in self.taps[name].paths:
            if path not in self._outputs:
                raise ValueError(
                    f'taps.{name}: {path} did not run in this forward pass; name a module that does'
                )
            output, version = self._outputs[path]
            if not output.is_inference() and output._version != version:
                raise ValueError(
                    f'taps.{name}: what {path} returned was overwritten by an in-place operation; '
                    'name the module after it, or set inplace=False there'
                )
            outputs.append(output)
        return self.taps[name].shape(outputs)
