import pytest
import torch

from vitdown.models.quantization import OscillationMonitor, quantizers_of

from .classification import build, classifier, make_runner, reidentifier, train, vit_backbone

W3A3 = dict(type='OFQ', w_bits=3, a_bits=3)


def quantized(**kwargs):
    config = classifier(vit_backbone(quant_cfg=W3A3))
    config['head'].update(type='vitdown.LinearClsHead', quant_cfg=W3A3)
    return config | kwargs


def scalars(runner, name):
    return runner.message_hub.get_scalar(f'train/{name}').data[0].tolist()


def test_training_from_full_precision_and_reloading(tmp_path):
    plain = build(classifier())
    torch.save({'state_dict': plain.state_dict()}, tmp_path / 'plain.pth')
    runner = train(
        quantized(),
        tmp_path / 'run',
        [
            dict(type='QuantCalibrationHook'),
            dict(
                type='DistillationHook',
                losses=dict(loss_soft=dict(type='SoftTargetLoss')),
                teacher=classifier(),
                teacher_checkpoint=str(tmp_path / 'plain.pth'),
                taps=dict(student_logits='head.fc', teacher_logits='head.fc'),
            ),
            dict(type='OscillationHook', log_interval=1, per_layer=True),
        ],
        load_from=str(tmp_path / 'plain.pth'),
    )
    assert scalars(runner, 'loss_soft')[-1] > 0
    assert len(scalars(runner, 'osc/frac')) == len(scalars(runner, 'osc/band')) == 4
    assert len(scalars(runner, 'osc/backbone.layers.0.attn.qkv.product/flips')) == 4
    weights = torch.load(tmp_path / 'run/epoch_2.pth', weights_only=False)['state_dict']
    again = build(quantized(), seed=5)
    again.load_state_dict(weights)
    assert all(quantizer.is_initialized for quantizer in quantizers_of(again))
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again.eval()(image), runner.model.eval()(image))


def test_calibration_is_that_of_the_first_batch(tmp_path):
    model = build(quantized())
    hook, runner = calibration(model, tmp_path)
    reference = build(quantized())
    batch = torch.stack([runner.train_dataloader.dataset[i]['inputs'] for i in range(6)])
    reference.eval()
    with torch.no_grad():
        reference(reference.data_preprocessor({'inputs': list(batch)})['inputs'])
    hook.before_train(runner)
    for own, expected in zip(quantizers_of(model), quantizers_of(reference)):
        torch.testing.assert_close(own.step, expected.step)


def calibration(model, work_dir, **kwargs):
    hook = dict(type='QuantCalibrationHook', **kwargs)
    runner = make_runner(model, work_dir, [hook], epochs=1)
    return next(h for h in runner.hooks if type(h).__name__ == hook['type']), runner


def test_calibration_leaves_steps_of_a_checkpoint_alone(tmp_path):
    model = build(quantized())
    hook, runner = calibration(model, tmp_path)
    hook.before_train(runner)
    with torch.no_grad():
        for quantizer in quantizers_of(model):
            quantizer.step.mul_(2)
    before = [quantizer.step.clone() for quantizer in quantizers_of(model)]
    hook.before_train(runner)
    assert all(torch.equal(a, q.step) for a, q in zip(before, quantizers_of(model)))


def test_calibration_by_several_batches_is_their_mean_without_dropout(tmp_path):
    config = quantized(backbone=vit_backbone(quant_cfg=W3A3, drop_rate=0.5))
    model = build(config)
    # More than the two that there are
    hook, runner = calibration(model, tmp_path, num_batches=5)
    hook.before_train(runner)
    assert model.training
    assert all(quantizer.is_initialized for quantizer in quantizers_of(model))
    steps = []
    for batch in runner.train_dataloader:
        reference = build(config).eval()
        with torch.no_grad():
            reference(reference.data_preprocessor(batch)['inputs'])
        steps.append([quantizer.step.detach() for quantizer in quantizers_of(reference)])
    assert len(steps) == 2
    for own, first, second in zip(quantizers_of(model), *steps):
        torch.testing.assert_close(own.step.detach(), (first + second) / 2)


def test_oscillation_is_that_of_the_weights_that_cga_puts_back(tmp_path):
    model = build(quantized())
    runner = train(
        model,
        tmp_path,
        [
            dict(type='QuantCalibrationHook'),
            dict(type='OscillationHook'),
            dict(type='CGAHook', boundary_range=0.02),
        ],
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=5e-2, weight_decay=0.1)),
    )
    monitor = next(h for h in runner.hooks if type(h).__name__ == 'OscillationHook').monitor
    reference = OscillationMonitor(model)
    reference.update()
    for name, tracker in monitor.trackers.items():
        assert torch.equal(tracker.codes, reference.trackers[name].codes), name


@pytest.mark.parametrize(('interval', 'updates'), [(1, 5), (2, 3), (3, 2)])
def test_oscillation_is_observed_every_so_many_steps(tmp_path, monkeypatch, interval, updates):
    seen = []
    update = OscillationMonitor.update
    monkeypatch.setattr(OscillationMonitor, 'update', lambda m: seen.append(m) or update(m))
    options = dict(momentum=0.3, threshold=0.2, boundary_range=0.1)
    train(
        quantized(),
        tmp_path,
        [dict(type='OscillationHook', interval=interval, **options)],
        batch_size=3,
        optim_wrapper=dict(accumulative_counts=2),
    )
    # The start, then some of the four steps in eight iterations
    assert len(seen) == updates
    monitor = seen[0]
    assert (monitor.threshold, monitor.boundary_range) == (0.2, 0.1)
    assert {tracker.momentum for tracker in monitor.trackers.values()} == {0.3}


@pytest.mark.parametrize('interval', [1, 3])
def test_oscillation_goes_on_where_a_killed_run_ended(tmp_path, interval):
    hooks = [dict(type='OscillationHook', interval=interval, log_interval=1, momentum=0.3)]

    def state(runner):
        return next(h for h in runner.hooks if type(h).__name__ == 'OscillationHook')

    whole = train(build(quantized()), tmp_path / 'whole', hooks, epochs=3)
    train(build(quantized()), tmp_path / 'parts', hooks, epochs=2)
    rest = train(build(quantized()), tmp_path / 'parts', hooks, epochs=3, resume=True)
    expected = state(whole).monitor.state_dict()
    found = state(rest).monitor.state_dict()
    for name, tracker in expected.items():
        for key, value in tracker.items():
            assert torch.equal(found[name][key], value), (name, key)
    assert any(tracker['total'].any() for tracker in expected.values())
    assert scalars(rest, 'osc/frac') == scalars(whole, 'osc/frac')
    # A run that takes the weights alone begins anew.
    fresh = train(
        quantized(),
        tmp_path / 'fresh',
        [dict(type='OscillationHook', interval=100)],
        epochs=1,
        load_from=str(tmp_path / 'whole/epoch_3.pth'),
    )
    assert not any(t['frequency'].any() for t in state(fresh).monitor.state_dict().values())


def test_oscillation_of_other_weights_is_not_taken_over():
    monitor = OscillationMonitor(build(quantized()))
    without_qkr = vit_backbone(quant_cfg={**W3A3, 'qkr': False})
    other = OscillationMonitor(build(quantized(backbone=without_qkr)))
    with pytest.raises(ValueError, match='of other weights: .*qkv.*resume with the quant_cfg'):
        monitor.load_state_dict(other.state_dict())


@pytest.mark.parametrize('cga_on_qk', ['none', 'grad'])
def test_cga_holds_the_layers_that_it_is_told(tmp_path, cga_on_qk):
    model = build(quantized())
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    hook = dict(type='CGAHook', targets=['*.ffn', 'backbone.layers.1.attn'], cga_on_qk=cga_on_qk)
    restricted = []
    qkv = [layer.attn.qkv for layer in model.backbone.layers]
    qkv[0].register_forward_pre_hook(
        lambda *_: restricted.append([layer.product_quant.boundary_range for layer in qkv])
    )
    train(model, tmp_path, [dict(type='QuantCalibrationHook'), hook])
    assert restricted[-1] == [None, 0.005 if cga_on_qk == 'grad' else None]
    moved = {
        name: (p.detach() != start[name]).float().mean() for name, p in model.named_parameters()
    }
    for name in ('layers.0.ffn.layers.1', 'layers.1.ffn.layers.1', 'layers.1.attn.proj'):
        assert moved[f'backbone.{name}.weight'] < 0.5
    assert moved['backbone.layers.0.attn.proj.weight'] > 0.95


@pytest.mark.parametrize('cga_on_qk', ['none', 'grad'])
def test_cga_with_accumulation_clipping_and_decay(tmp_path, cga_on_qk):
    model = build(quantized())
    annealed = 'backbone.layers.0.ffn.layers.0.0.weight'
    runner = make_runner(
        model,
        tmp_path,
        [
            dict(type='QuantCalibrationHook'),
            dict(type='CGAHook', boundary_range=0.02, cga_on_qk=cga_on_qk),
        ],
        batch_size=3,
        optim_wrapper=dict(accumulative_counts=2, clip_grad=dict(max_norm=0.1)),
    )
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    runner.train()
    moved = {name: p.detach() != start[name] for name, p in model.named_parameters()}
    # Four optimizer steps with weight decay: most weights have not changed by a bit
    assert 0 < moved[annealed].float().mean() < 0.5
    assert moved['backbone.layers.0.ln1.weight'].all()
    queries_and_keys, values = moved['backbone.layers.0.attn.qkv.weight'].split([48, 24])
    assert queries_and_keys.float().mean() > 0.95
    assert values.float().mean() < 0.5
    assert moved['head.fc.weight'].all()


def test_hooks_refuse_a_model_without_quantizers(tmp_path):
    for hook in ('CGAHook', 'OscillationHook'):
        runner = make_runner(classifier(), tmp_path / hook, [dict(type=hook)])
        with pytest.raises(ValueError, match='quant'):
            runner.train()


@pytest.mark.parametrize(
    ('hook', 'message'),
    [
        (dict(type='QuantCalibrationHook', num_batches=0), 'num_batches must be an integer of at'),
        (dict(type='QuantCalibrationHook', num_batches=1.5), 'num_batches must be an integer'),
        (dict(type='OscillationHook', interval=0), 'interval must be an integer of at least 1'),
        (dict(type='OscillationHook', log_interval=0.5), 'log_interval must be an integer'),
        (dict(type='CGAHook', boundary_range=0), 'boundary_range must be between'),
        (dict(type='CGAHook', cga_on_qk='all'), "must be one of .*'grad'.*got 'all'"),
        (dict(type='CGAHook', targets='*.ffn'), r"list of patterns, got '\*.ffn'"),
        (dict(type='CGAHook', targets=[]), r'list of patterns, got \[\]'),
        (dict(type='OscillationHook', threshold=-1), 'threshold must be a frequency'),
        (dict(type='OscillationHook', boundary_range=0.5), 'boundary_range must be between'),
        (
            dict(type='CGAHook', targets=['*.ffn', 'layers.0', 'head']),
            r"quantizes in \['layers.0', 'head'\]; they are called backbone.layers.0.attn",
        ),
    ],
)
def test_bad_settings(tmp_path, hook, message):
    with pytest.raises(ValueError, match=message):
        train(quantized(), tmp_path, [hook])


def test_re_id_training(tmp_path):
    config = reidentifier()
    config['backbone'] = vit_backbone(quant_cfg=W3A3)
    runner = train(config, tmp_path, [dict(type='QuantCalibrationHook', num_batches=2)])
    assert all(quantizer.is_initialized for quantizer in quantizers_of(runner.model))


def test_quantizers_work_in_float32_under_autocast():
    model = build(quantized())
    image = torch.randn(2, 3, 16, 16)
    model(image)
    products = []
    layer = model.backbone.layers[0].attn.qkv
    layer.product_quant.register_forward_pre_hook(lambda _, args: products.append(args[0]))
    with torch.autocast('cpu', torch.bfloat16):
        out = model(image)
        assert layer.input_quant(image.new_zeros(1, 17, 24)).dtype == torch.float32
    assert products[0].dtype == torch.float32
    assert torch.equal(products[0], layer.product())
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
