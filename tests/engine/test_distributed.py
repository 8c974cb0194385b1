"""Two gloo processes against one."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.model import MMDistributedDataParallel
from mmpretrain.structures import DataSample

from vitdown.registry import MODELS


def build_model():
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='ReIdentifier',
            backbone=dict(
                type='VisionTransformer',
                arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48),
                img_size=(32, 16),
                patch_size=8,
            ),
            head=dict(type='BNNeckHead', num_classes=4, in_channels=24, loss_metric=None),
        )
    )
    model.init_weights()
    # Batch statistics and triplets belong to one process' batch; the rest must not notice.
    model.head.bnneck.bn.eval()
    return model


def make_batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 3, 32, 16, generator=generator)
    return images, [DataSample().set_gt_label(i // 2) for i in range(8)]


def gradients(model, images, samples):
    loss, _ = model.parse_losses(model(images, samples, mode='loss'))
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run_rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    model = build_model()
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    images, samples = make_batch()
    half = slice(4 * rank, 4 * rank + 4)
    loss, _ = model.parse_losses(wrapped(images[half], samples[half], mode='loss'))
    loss.backward()
    torch.save(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        f'{folder}/{rank}.pth',
    )
    dist.destroy_process_group()


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def test_two_halves_give_the_gradient_of_the_whole_batch(tmp_path):
    mp.spawn(run_rank, args=(free_port(), str(tmp_path)), nprocs=2)
    expected = gradients(build_model(), *make_batch())
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        assert found.keys() == expected.keys()
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)


def test_sampler_plan_does_not_depend_on_the_number_of_processes(monkeypatch):
    import numpy as np

    from vitdown.datasets import samplers

    class Labels:
        def get_gt_labels(self):
            return np.repeat(np.arange(8), 8)

    def plan(rank, world_size):
        monkeypatch.setattr(samplers, 'get_dist_info', lambda: (rank, world_size))
        sampler = samplers.IdentitySampler(Labels(), num_identities=4, num_instances=2, seed=3)
        return np.array(list(sampler)).reshape(-1, 8)

    whole, first, second = plan(0, 1), plan(0, 2), plan(1, 2)
    np.testing.assert_array_equal(first, whole[0 : 2 * len(first) : 2])
    np.testing.assert_array_equal(second, whole[1 : 2 * len(first) : 2])
