"""Evaluation, re-ranking and search at the sizes of re-ID benchmarks, against the usual ways.

Features are synthetic: clusters of identities with camera offsets, spread so that retrieval is
neither perfect nor hopeless. Contenders of a part run in one process, in turns; medians are
printed, and how far each raises the peak of memory in a process of its own.

Parts:

* ranking: ``evaluate_ranking`` against the matrix product alone (the floor), against loops
  that sort the gallery for one query after the other (with precisions in Python lists, as widely
  used evaluators have them, and in NumPy), and against one sort of the whole matrix;
* memory: ``evaluate_ranking`` at the size of MSMT17 and of Market-1501 with 500,000 distractors;
* rerank: ``k_reciprocal_rerank`` and its evaluation at the sizes of Market-1501, against the
  dense form, and of MSMT17;
* search: index kinds at a million vectors (``gallery_index.py``).

    python benchmarks/reid_evaluation.py
    python benchmarks/reid_evaluation.py --parts ranking rerank --scale tiny
"""

import argparse
import multiprocessing
import statistics
import time
from functools import partial
from pathlib import Path

import gallery_index
import numpy as np
import torch

from vitdown.evaluation.functional import (
    evaluate_distances,
    evaluate_ranking,
    k_reciprocal_rerank,
)

# Queries, gallery images, identities, cameras.
SCALES = {
    'tiny': (200, 1000, 50, 6),
    'market1501': (3368, 15913, 750, 6),
    'msmt17': (11659, 82161, 3060, 15),
    'market1501+500k': (3368, 515913, 25000, 6),
}


def synthetic(scale, dims, device, seed=0):
    """Features of identities seen by several cameras, and their labels."""
    num_query, num_gallery, num_ids, num_cameras = SCALES[scale]
    generator = torch.Generator().manual_seed(seed)
    total = num_query + num_gallery
    ids = torch.randint(num_ids, (total,), generator=generator)
    cameras = torch.randint(num_cameras, (total,), generator=generator)
    centres = torch.randn(num_ids, dims, generator=generator)
    offsets = torch.randn(num_cameras, dims, generator=generator)
    noise = torch.randn(total, dims, generator=generator)
    features = (centres[ids] + 0.5 * offsets[cameras] + 2.2 * noise).to(device)
    return {
        'query_features': features[:num_query],
        'gallery_features': features[num_query:],
        'query_ids': ids[:num_query].numpy(),
        'gallery_ids': ids[num_query:].numpy(),
        'query_cameras': cameras[:num_query].numpy(),
        'gallery_cameras': cameras[num_query:].numpy(),
    }


def ours(data):
    """The function under test."""
    result = evaluate_ranking(**data, topk=(1,))
    return result['mAP'], result['CMC@1']


def product(data, block=512):
    """The matrix product alone, in blocks of queries: no exact evaluator is faster."""
    query = torch.nn.functional.normalize(data['query_features'], dim=1)
    gallery = torch.nn.functional.normalize(data['gallery_features'], dim=1)
    out = torch.empty(block, len(gallery), device=gallery.device)
    for part in query.split(block):
        torch.mm(part, gallery.t(), out=out[: len(part)])
    return (out.sum().item(),)


def one_by_one(data, precisions_of):
    """One query after the other: its distances, a sort of the gallery, its precisions."""
    query = torch.nn.functional.normalize(data['query_features'], dim=1)
    gallery = torch.nn.functional.normalize(data['gallery_features'], dim=1)
    averages, firsts = [], []
    for i, feature in enumerate(query):
        order = np.argsort((1 - gallery @ feature).cpu().numpy())
        match = data['gallery_ids'][order] == data['query_ids'][i]
        junk = match & (data['gallery_cameras'][order] == data['query_cameras'][i])
        hits = match[~junk]
        if not hits.any():
            continue
        averages.append((precisions_of(hits) * hits).sum() / hits.sum())
        firsts.append(hits[0])
    return float(np.mean(averages)), float(np.mean(firsts))


def listed(hits):
    """Precision at each rank, as widely used evaluators compute it: a Python list."""
    return np.asarray([found / (i + 1.0) for i, found in enumerate(hits.cumsum())])


def vectorised(hits):
    """Precision at each rank in NumPy."""
    return hits.cumsum() / np.arange(1, len(hits) + 1)


def whole_matrix(data):
    """All distances at once, one sort of the whole matrix, then a loop over the queries."""
    query = torch.nn.functional.normalize(data['query_features'], dim=1)
    gallery = torch.nn.functional.normalize(data['gallery_features'], dim=1)
    squares = query.square().sum(1)[:, None] + gallery.square().sum(1)[None]
    distances = (squares - 2 * query @ gallery.t()).cpu().numpy()
    order = np.argsort(distances, axis=1)
    matches = data['gallery_ids'][order] == data['query_ids'][:, None]
    precisions, firsts = [], []
    for i, camera in enumerate(data['query_cameras']):
        junk = matches[i] & (data['gallery_cameras'][order[i]] == camera)
        hits = matches[i][~junk]
        if not hits.any():
            continue
        precisions.append((vectorised(hits) * hits).sum() / hits.sum())
        firsts.append(hits[0])
    return float(np.mean(precisions)), float(np.mean(firsts))


def rerank(data):
    """Sparse re-ranking and the evaluation of its lists."""
    labels = {name: value for name, value in data.items() if not name.endswith('features')}
    distances = k_reciprocal_rerank(data['query_features'], data['gallery_features'])
    result = evaluate_distances(distances, **labels, topk=(1,))
    return result['mAP'], result['CMC@1']


def dense_rerank(data, k1=20, k2=6, lambda_value=0.3):
    """The usual re-ranking: three dense matrices over all images, loops in Python."""
    features = torch.cat([data['query_features'], data['gallery_features']])
    features = torch.nn.functional.normalize(features, dim=1)
    distances = (2 - 2 * features @ features.t()).clamp(min=0).cpu().numpy()
    distances /= distances.max(axis=1, keepdims=True)
    total, num_query = len(distances), len(data['query_ids'])
    nearest = np.argpartition(distances, range(1, k1 + 1), axis=1)[:, : k1 + 1]

    def reciprocal(image, k):
        forward = nearest[image, : k + 1]
        return forward[(nearest[forward, : k + 1] == image).any(axis=1)]

    weights = np.zeros((total, total), dtype=np.float16)
    for image in range(total):
        members = near = reciprocal(image, k1)
        for candidate in near:
            more = reciprocal(candidate, round(k1 / 2))
            if 3 * len(np.intersect1d(more, near)) > 2 * len(more):
                members = np.append(members, more)
        members = np.unique(members)
        weight = np.exp(-distances[image, members])
        weights[image, members] = weight / weight.sum()
    averaged = np.zeros_like(weights)
    for image in range(total):
        averaged[image] = weights[nearest[image, :k2]].mean(axis=0)
    owners = [np.flatnonzero(averaged[:, image]) for image in range(total)]
    for query in range(num_query):
        shared = np.zeros(total, dtype=np.float32)
        for image in np.flatnonzero(averaged[query]):
            others = owners[image]
            shared[others] += np.minimum(averaged[query, image], averaged[others, image])
        jaccard = 1 - shared / (2 - shared)
        distances[query] = (1 - lambda_value) * jaccard + lambda_value * distances[query]
    labels = {name: value for name, value in data.items() if not name.endswith('features')}
    result = evaluate_distances(distances[:num_query, num_query:], **labels, topk=(1,))
    return result['mAP'], result['CMC@1']


CONTENDERS = {
    'product': product,
    'ours': ours,
    'loop, lists': partial(one_by_one, precisions_of=listed),
    'loop, NumPy': partial(one_by_one, precisions_of=vectorised),
    'whole matrix': whole_matrix,
    'rerank': rerank,
    'dense rerank': dense_rerank,
}


def synchronised(function, data):
    """Seconds and result of a call."""
    start = time.perf_counter()
    result = function(data)
    if data['query_features'].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def high_water_mark():
    """Peak of this process' resident memory so far, in MiB (Linux)."""
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024


def peak_memory(name, scale, options, queue):
    """Run one contender; put how far it raised the peak of memory, in MiB."""
    torch.set_num_threads(options.threads)
    data = synthetic(scale, options.dims, options.device)
    if options.device == 'cpu':
        # Making the features took more than they hold: start again from what is held now.
        Path('/proc/self/clear_refs').write_text('5')
        before = high_water_mark()
        CONTENDERS[name](data)
        queue.put(high_water_mark() - before)
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        CONTENDERS[name](data)
        queue.put((torch.cuda.max_memory_allocated() - before) / 2**20)


def compare(names, scale, options, repeats):
    """Print a table; the first but ``product`` is ours, which the others are compared with."""
    data = synthetic(scale, options.dims, options.device)
    synchronised(product, data)
    seconds, results = {name: [] for name in names}, {}
    for _ in range(repeats):
        for name in names:
            elapsed, results[name] = synchronised(CONTENDERS[name], data)
            seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f'\n{scale}: {len(data["query_ids"])} queries x {len(data["gallery_ids"])} gallery '
        f'images, {options.dims} dimensions, {options.device}, {options.threads} threads, '
        f'median of {repeats}'
    )
    del data
    own = next(name for name in names if name != 'product')
    context = multiprocessing.get_context('spawn')
    print(f'{"":12} {"seconds":>9} {own + " takes":>15} {"peak MiB":>9}  mAP, CMC@1')
    for name in names:
        queue = context.Queue()
        process = context.Process(target=peak_memory, args=(name, scale, options, queue))
        process.start()
        memory = queue.get()
        process.join()
        ratio = f'1 / {medians[name] / medians[own]:.2f}'
        values = '' if name == 'product' else ', '.join(f'{v:.6f}' for v in results[name])
        print(f'{name:12} {medians[name]:9.2f} {ratio:>15} {memory:9.0f}  {values}', flush=True)


def main():
    """Parse arguments, measure, print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ('ranking', 'memory', 'rerank', 'search')
    parser.add_argument('--parts', nargs='+', choices=parts, default=parts)
    parser.add_argument('--scale', choices=SCALES, help='one size for all parts but search')
    parser.add_argument('--dims', type=int, default=768)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--search-size', type=int, default=1_000_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    small = options.scale or 'market1501'
    if 'ranking' in options.parts:
        names = ['product', 'ours', 'loop, lists', 'loop, NumPy', 'whole matrix']
        compare(names, small, options, options.repeats)
    if 'memory' in options.parts:
        for scale in [options.scale] if options.scale else ['msmt17', 'market1501+500k']:
            compare(['product', 'ours'], scale, options, repeats=1)
    if 'rerank' in options.parts:
        compare(['rerank', 'dense rerank'], small, options, repeats=1)
        if not options.scale:
            compare(['rerank'], 'msmt17', options, repeats=1)
    if 'search' in options.parts:
        print()
        gallery_index.compare(options.search_size, 256, options.threads)


if __name__ == '__main__':
    main()
