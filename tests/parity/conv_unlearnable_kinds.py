"""Checks of the reference files of class-wise convolution: filters, images and attacks."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdown.datasets.unlearnable import (
    class_filters,
    convolve_batch,
    convolve_image,
    correlate,
    poison_draws,
    poison_mask,
)
from vitdown.models.attacks import deconvolution_attack, pgd_attack

from .golden import GoldenFile


def check_filters(golden: GoldenFile) -> None:
    for name, case in golden.cases.items():
        filters = class_filters(
            case['seed'],
            case['num_classes'],
            case['kernel_size'],
            case['blur_parameter'],
            golden.config['center'],
        )
        golden.compare(name, filters.astype(np.float32))


def check_images(golden: GoldenFile) -> None:
    config = golden.config
    seed, number, size = config['seed'], config['num_classes'], config['kernel_size']
    drawn = class_filters(seed, number, size, config['blur_parameter'], config['center'])
    golden.compare('center_yx', np.argwhere(drawn == config['center'])[:, 1:])
    filters = class_filters(
        seed, number, size, config['blur_parameter'], config['center'], config['same_filter']
    )
    weights = golden['weights']
    if weights.ndim == 4:
        golden.compare('weights', np.repeat(filters.astype(np.float32)[:, None], 3, axis=1))
    else:
        golden.compare('weights', filters.astype(np.float32))

    images, labels = golden['images'], golden['labels']
    draws = poison_draws(seed, number, size, len(images), config['center'])
    mask = poison_mask(seed, number, size, len(images), config['poison_fraction'], config['center'])
    golden.compare('poison_u', draws)
    golden.compare('poisoned', mask.astype(np.uint8))

    single = [convolve_image(x, filters[y], config['grayscale']) for x, y in zip(images, labels)]
    batch = convolve_batch(
        golden.tensor('images').permute(0, 3, 1, 2),
        torch.from_numpy(filters),
        golden.tensor('labels'),
        config['grayscale'],
    ).permute(0, 2, 3, 1)
    for filtered in (np.stack(single), batch.numpy()):
        golden.compare('out', np.where(mask[:, None, None, None], filtered, images))

    index = int(golden['raw_index'])
    raw = correlate(images[index], filters[labels[index]]).transpose(2, 0, 1) / 255
    golden.compare('raw_conv', raw)
    golden.compare('raw_max', raw.max())


class Classifier(nn.Module):
    """The network that a file describes under ``config.model.layers``."""

    def __init__(self, layers: list, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.steps: list[Callable[[Tensor], Tensor]] = []
        for layer in layers:
            if layer == 'tanh':
                self.steps.append(torch.tanh)
            elif layer == 'mean over height and width':
                self.steps.append(lambda x: x.mean(dim=(2, 3)))
            elif 'conv' in layer:
                sizes = {k: v for k, v in layer.items() if k != 'conv'}
                self._append(layer['conv'], nn.Conv2d(**sizes))
            else:
                sizes = {k: v for k, v in layer.items() if k != 'linear'}
                self._append(layer['linear'], nn.Linear(**sizes))
        self.load_state_dict(weights)

    def _append(self, name: str, module: nn.Module) -> None:
        self.add_module(name, module)
        self.steps.append(module)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


def problem(golden: GoldenFile) -> tuple[Classifier, Tensor, Tensor]:
    """Classifier, images in 0..1 and labels of a file."""
    model = golden.config['model']
    classifier = Classifier(model['layers'], golden.tensors(model['state_dict']['prefix']))
    return classifier, golden.tensor('x_u8').permute(0, 3, 1, 2).float() / 255, golden.tensor('y')


def check_pgd(golden: GoldenFile) -> None:
    classifier, images, labels = problem(golden)
    assert golden.config['clip'] == [0.0, 1.0]
    for name, case in golden.cases.items():
        adversarial = pgd_attack(
            lambda x: F.cross_entropy(classifier(x), labels),
            images,
            eps=case['eps'],
            norm=case['norm'],
            steps=case['steps'],
            alpha=case['alpha'],
            random_start=case['random_start'],
        )
        golden.compare(f'{name}/adv', adversarial)


def check_deconvolution(golden: GoldenFile) -> None:
    classifier, images, labels = problem(golden)
    present = labels.unique()
    limit = golden.config['clamp']
    final_weight = golden.tensor('init_weight').clamp(-limit, limit)
    final_bias = golden.tensor('init_bias').clamp(-limit, limit)
    out, kernels, biases = deconvolution_attack(
        lambda x, index: F.cross_entropy(classifier(x), labels[index]),
        images,
        labels,
        kernel_size=golden.config['kernel_size'],
        steps=golden.config['steps'],
        eta=golden.config['eta'],
        parameters=(golden.tensor('init_weight')[present], golden.tensor('init_bias')[present]),
    )
    final_weight[present], final_bias[present] = kernels, biases
    golden.compare('final_weight', final_weight)
    golden.compare('final_bias', final_bias)
    golden.compare('out_s2', out[:, :, ::2, ::2])
    golden.compare('out_mean', out.mean(dim=(1, 2, 3)))


KINDS = {
    'conv_unlearnable_filters': check_filters,
    'conv_unlearnable_images': check_images,
    'conv_unlearnable_pgd': check_pgd,
    'conv_unlearnable_dat': check_deconvolution,
}
