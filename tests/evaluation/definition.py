"""The retrieval metrics by their definition, in float64, one query and one pair at a time."""

import numpy as np


def pair_scores(query, gallery, metric):
    """(Q, G) float64; the same arithmetic for every pair: equal features have equal scores."""
    query, gallery = np.asarray(query, np.float64), np.asarray(gallery, np.float64)
    scores = np.empty((len(query), len(gallery)))
    for i, q in enumerate(query):
        for j, g in enumerate(gallery):
            if metric == 'euclidean':
                scores[i, j] = -sum((q - g) ** 2)
            else:
                lengths = np.sqrt(sum(q * q)) * np.sqrt(sum(g * g))
                scores[i, j] = sum(q * g) / lengths if lengths else 0.0
    return scores


def ranked_list(scores, match, usable):
    """Whether each usable gallery image matches, best first; of equal ones, negatives first."""
    entries = [(-s, bool(m)) for s, m, u in zip(scores, match, usable) if u]
    return [m for _, m in sorted(entries)]


def metrics(scores, query_ids, gallery_ids, query_cameras=None, gallery_cameras=None, topk=(1,)):
    """mAP, mINP and CMC@k of a full score matrix, and the arrays they come from."""
    per_query = []
    for i, identity in enumerate(query_ids):
        match = gallery_ids == identity
        usable = np.ones(len(gallery_ids), bool)
        if query_cameras is not None:
            usable = ~(match & (gallery_cameras == query_cameras[i]))
        hits = ranked_list(scores[i], match, usable)
        ranks = [position for position, hit in enumerate(hits, start=1) if hit]
        if not ranks:
            per_query.append((np.nan, np.nan, 0))
            continue
        precisions = [sum(hits[:rank]) / rank for rank in ranks]
        per_query.append((np.mean(precisions), len(ranks) / ranks[-1], ranks[0]))
    ap, inp, first = (np.array(values) for values in zip(*per_query))
    valid = first > 0
    result = {'mAP': ap[valid].mean(), 'mINP': inp[valid].mean()}
    result.update({f'CMC@{k}': (first[valid] <= k).mean() for k in topk})
    result.update(AP=ap, INP=inp, first_hit_rank=first, num_valid_queries=valid.sum())
    return result
