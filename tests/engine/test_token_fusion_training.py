"""Training with token fusion by the runner: two iterations, a checkpoint, the same features."""

import torch
from mmengine.runner import Runner

from vitdown.checkpoint import load_checkpoint_file
from vitdown.engine.launch import build_runner, load_config
from vitdown.registry import MODELS


def run(tiny_config, work_dir, load_from=None) -> Runner:
    options = {
        'model.backbone.token_fusion': dict(type='MCTF', r=2, min_tokens=2, layers=[0, 1]),
        'custom_hooks': [dict(type='TokenConsistencyHook', r_max=2, conf_thr=0.0)],
        'train_cfg.max_epochs': 2,
        'load_from': load_from,
        'resume': load_from is not None,
        'log_level': 'ERROR',
        'randomness.seed': 3,
    }
    cfg = load_config(str(tiny_config), options, str(work_dir))
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    runner = build_runner(cfg)
    runner.train()
    return runner


def test_trains_reloads_and_resumes(tiny_config, tmp_path):
    whole = run(tiny_config, tmp_path / 'whole')
    assert whole.message_hub.get_scalar('train/loss_consistency').current() > 0
    assert whole.message_hub.get_scalar('train/teacher_loss_id').current() > 0
    checkpoint = load_checkpoint_file(tmp_path / 'whole' / 'epoch_2.pth')
    model = MODELS.build(whole.cfg.model)
    model.load_state_dict(checkpoint['state_dict'])
    images = torch.randn(2, 3, 32, 16)
    torch.testing.assert_close(model.eval()(images), whole.model.eval()(images))
    assert not any('fusion' in key for key in checkpoint['state_dict'])

    resumed = run(tiny_config, tmp_path / 'rest', str(tmp_path / 'whole' / 'epoch_1.pth'))
    assert (resumed.epoch, resumed.iter) == (whole.epoch, whole.iter)
    for (name, one), other in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values()
    ):
        assert torch.equal(one, other), name
