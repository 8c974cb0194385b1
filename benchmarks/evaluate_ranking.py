"""Time ``evaluate_ranking`` against the matrix product alone and against the usual evaluator.

The usual evaluator computes the whole distance matrix, sorts every row of it, and walks over the
queries in Python. Features are synthetic: clusters of identities with camera offsets, spread so
that retrieval is neither perfect nor hopeless. All three run in one process, in turns; medians are
printed, and how far each raises the peak of memory in a process of its own.

    python benchmarks/evaluate_ranking.py --scale market1501
    python benchmarks/evaluate_ranking.py --scale msmt17 --repeats 1 --skip usual
"""

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from vitdown.evaluation.functional import evaluate_ranking

# Queries, gallery images, identities, cameras.
SCALES = {
    'tiny': (200, 1000, 50, 6),
    'market1501': (3368, 15913, 750, 6),
    'msmt17': (11659, 82161, 3060, 15),
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


def usual(data):
    """Whole distance matrix, a sort of every row, a Python loop over the queries."""
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
        cumulated = hits.cumsum()
        precision = cumulated / np.arange(1, len(hits) + 1)
        precisions.append((precision * hits).sum() / hits.sum())
        firsts.append(hits[0])
    return float(np.mean(precisions)), float(np.mean(firsts))


CONTENDERS = {'product': product, 'ours': ours, 'usual': usual}


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


def peak_memory(name, arguments, queue):
    """Run one contender; put how far it raised the peak of memory, in MiB."""
    torch.set_num_threads(arguments.threads)
    data = synthetic(arguments.scale, arguments.dims, arguments.device)
    if arguments.device == 'cpu':
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


def main():
    """Parse arguments, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--scale', choices=SCALES, default='market1501')
    parser.add_argument('--dims', type=int, default=384)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--skip', nargs='*', choices=CONTENDERS, default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    names = [name for name in CONTENDERS if name not in arguments.skip]
    data = synthetic(arguments.scale, arguments.dims, arguments.device)
    synchronised(product, data)
    seconds = {name: [] for name in names}
    results = {}
    for _ in range(arguments.repeats):
        for name in names:
            elapsed, results[name] = synchronised(CONTENDERS[name], data)
            seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}

    context = multiprocessing.get_context('spawn')
    memory = {}
    for name in names:
        queue = context.Queue()
        process = context.Process(target=peak_memory, args=(name, arguments, queue))
        process.start()
        memory[name] = queue.get()
        process.join()

    print(
        f'{arguments.scale}: {len(data["query_ids"])} queries x {len(data["gallery_ids"])} gallery '
        f'images, {arguments.dims} dimensions, {arguments.device}, {arguments.threads} threads, '
        f'median of {arguments.repeats}'
    )
    print(f'{"":8} {"seconds":>9} {"ours takes":>11} {"peak MiB":>9}  mAP, CMC@1')
    for name in names:
        ratio = f'{medians["ours"] / medians[name]:.2f} x' if 'ours' in medians else ''
        values = '' if name == 'product' else ', '.join(f'{v:.6f}' for v in results[name])
        print(f'{name:8} {medians[name]:9.2f} {ratio:>11} {memory[name]:9.0f}  {values}')


if __name__ == '__main__':
    main()
