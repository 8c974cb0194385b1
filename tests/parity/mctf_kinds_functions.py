"""Checks of the reference files of MCTF and ToMe that concern matching and pooling."""

from collections.abc import Callable

import torch

from benchmarks.plain_mctf import Decisions, decide, full_scores
from vitdown.models.token_fusion import (
    MCTF,
    Assignment,
    cosine_scores,
    fuse_attention,
    fuse_tokens,
    match_bipartite,
    multi_criteria_scores,
    resolve_count,
)
from vitdown.models.token_fusion.mctf import attention_received

from .golden import GoldenFile


def one_hot(assignment: Assignment) -> torch.Tensor:
    """The official form of a source map, ``(B, N', N)``."""
    slots = torch.arange(assignment.num_slots)
    return (slots[None, :, None] == assignment.slots[:, None]).float()


def compare_decisions(golden: GoldenFile, case: str, decisions: Decisions) -> None:
    names = {
        'unm_idx': decisions.kept_even,
        'src_idx': decisions.moved_even,
        'dst_idx': decisions.partner_odd,
        'unm_idx2': decisions.kept_odd,
        'src_idx2': decisions.moved_odd,
        'dst_idx2': decisions.partner_even,
    }
    for name, value in names.items():
        if value is not None:
            golden.compare(f'{case}/{name}', value)


def check_matching(golden: GoldenFile) -> None:
    protected = golden.config['num_protected']
    x, attn = golden.tensor('x'), golden.tensor('attn')
    for case, settings in golden.cases.items():
        size = golden.tensor('size')[..., 0] if settings['use_size'] else None
        taus = (settings['tau_sim'], settings['tau_info'], settings['tau_size'])
        scores = multi_criteria_scores(x, attention_received(attn), size, *taus, protected)
        golden.compare(f'{case}/scores', full_scores(scores, protected))
        r, bidirectional = settings['r'], settings['bidirectional']
        decisions = decide(full_scores(scores, protected), r, bidirectional)
        compare_decisions(golden, case, decisions)
        assignment = match_bipartite(scores, r, protected, bidirectional)
        golden.compare(f'{case}/merge_sum', assignment.sum(x))
        golden.compare(f'{case}/merge_amax', assignment.max(x))
        assert torch.equal(decisions.merge(x, 'amax'), assignment.max(x))
        if settings['record_source']:
            golden.compare(f'{case}/source', one_hot(assignment))


def check_pooling(golden: GoldenFile) -> None:
    config = golden.config
    for case, settings in golden.cases.items():
        x = golden.tensor('x').requires_grad_()
        attn = golden.tensor('attn').requires_grad_()
        size = golden.tensor('size')[..., 0]
        policy = MCTF(
            num_layers=1,
            layers=[0],
            r=config['r'],
            tau_sim=config['tau_sim'],
            tau_info=config['tau_info'],
            tau_size=config['tau_size'],
            num_protected=config['num_protected'],
            pooling=settings['pooling'],
            bidirectional=settings['bidirectional'],
        )
        known_size = size if settings['use_size'] else None
        sizes = size if settings['use_size'] else torch.ones_like(size)
        received = attention_received(attn.detach())
        assignment = policy.match(x, received, known_size, config['r'])
        shares = policy.shares(assignment, received, sizes)
        x_out = fuse_tokens(x, assignment, shares)
        attn_out = fuse_attention(attn, assignment, shares)
        golden.compare(f'{case}/x_out', x_out)
        golden.compare(f'{case}/size_out', assignment.sum(sizes)[..., None])
        golden.compare(f'{case}/attn_out', attn_out)
        loss = (x_out * golden.tensor('cot_x')).sum() + (attn_out * golden.tensor('cot_attn')).sum()
        loss.backward()
        golden.compare(f'{case}/grad_x', x.grad)
        golden.compare(f'{case}/grad_attn', attn.grad)


def check_token_counts(golden: GoldenFile) -> None:
    config = golden.config
    counts = []
    for tokens, rounded in zip(golden['t'].tolist(), golden['r'].tolist()):
        r = min(config['r_values'], key=lambda value: abs(value - rounded))
        removed = resolve_count(tokens, r, config['num_protected'], config['min_tokens'])
        counts.append(tokens - removed)
    golden.compare('t_out', torch.tensor(counts))


def check_tome_matching(golden: GoldenFile) -> None:
    x, metric, size = (golden.tensor(name) for name in ('x', 'metric', 'size'))
    for case, settings in golden.cases.items():
        protected = settings['class_token'] + settings['distill_token']
        r = resolve_count(x.shape[1], settings['r'], protected)
        scores = cosine_scores(metric, protected)
        sort_kept = settings['class_token']
        decisions = decide(full_scores(scores, protected), r, False, sort_kept)
        compare_decisions(golden, case, decisions)
        assignment = match_bipartite(scores, r, protected, sort_kept=sort_kept)
        shares = assignment.shares(size[..., 0])
        golden.compare(f'{case}/x_out', fuse_tokens(x, assignment, shares))
        golden.compare(f'{case}/size_out', assignment.sum(size))
        golden.compare(f'{case}/source', one_hot(assignment))


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'mctf_matching': check_matching,
    'mctf_pooling': check_pooling,
    'mctf_token_counts': check_token_counts,
    'tome_matching': check_tome_matching,
}
