from argparse import Namespace

import torch
from mmengine.config import Config

from tools.train import apply_args


def test_resume_keeps_the_weights_to_start_from(tmp_path):
    """A first call with --resume fine-tunes from load_from, a second one goes on."""
    args = Namespace(
        launcher='none', no_validate=False, amp=False, auto_scale_lr=False, resume='auto'
    )
    cfg = Config(dict(work_dir=str(tmp_path), load_from='pretrained.pth', resume=False))
    apply_args(cfg, args)
    assert (cfg.load_from, cfg.resume) == ('pretrained.pth', False)
    torch.save({'state_dict': {}}, tmp_path / 'epoch_1.pth')
    apply_args(cfg, args)
    assert (cfg.load_from, cfg.resume) == (str(tmp_path / 'epoch_1.pth'), True)
