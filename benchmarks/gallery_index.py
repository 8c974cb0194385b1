"""Time ``GalleryIndex`` against a plain matrix product with top-k, on one set of features.

Adds, searches (1000 queries, k = 10), appends 1000 vectors, saves, loads and maps a gallery of each
kind; recall@10 is against the exact ranking. Features are synthetic: identities of about 20
images, spread around centres that share 32 directions, as features of a network do. Each index
runs in a process of its own, so that the peaks of memory don't mix.

    python benchmarks/gallery_index.py --size 100000
    python benchmarks/gallery_index.py --size 1000000 --factories Flat IVF1024,Flat
"""

import argparse
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch

from vitdown.evaluation.index import GalleryIndex

K = 10
QUERIES = 1000


def synthetic(size, dim, seed=0):
    """Gallery and query features, float32."""
    generator = torch.Generator().manual_seed(seed)
    count = max(size // 20, 1)
    basis = torch.randn(32, dim, generator=generator)
    centres = torch.randn(count, 32, generator=generator) @ basis
    features = centres[torch.randint(count, (size + QUERIES,), generator=generator)]
    for block in features.split(65536):
        block += 3 * torch.randn(block.shape, generator=generator)
    return features[:size], features[size:]


def baseline(gallery, queries):
    """Normalize, multiply, take the best: in blocks of queries that need 400 MB at a million."""
    gallery = torch.nn.functional.normalize(gallery, dim=1)
    queries = torch.nn.functional.normalize(queries, dim=1)
    start = time.perf_counter()
    best = [(block @ gallery.T).topk(K).indices for block in queries.split(100)]
    return time.perf_counter() - start, torch.cat(best).numpy()


def peak_mb():
    """Peak of this process's memory since the last ``forget_peak`` (Linux)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith('VmHWM')).split()[1]) / 1024


def forget_peak():
    """Let the peak start from the memory in use now."""
    Path('/proc/self/clear_refs').write_text('5')


def measure(results, factory, size, dim, truth, threads):
    """All figures of one index, in seconds unless named otherwise."""
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    features, queries = synthetic(size, dim)
    forget_peak()
    before = peak_mb()
    row, folder = {}, tempfile.mkdtemp()

    def timed(name, function, *args, **kwargs):
        start = time.perf_counter()
        value = function(*args, **kwargs)
        row[name] = time.perf_counter() - start
        return value

    try:
        gallery = GalleryIndex(dim, factory)
        cameras = np.arange(size) % 8
        timed('build', gallery.add, features, metadata={'camera': cameras})
        result = timed('search', gallery.search, queries, K)
        row['recall@10'] = np.mean([np.isin(a, b).mean() for a, b in zip(truth, result.ids)])
        timed('camera', gallery.search, queries, K, where={'camera': [1, 2]})
        timed('save', gallery.save, folder)
        row['MB on disk'] = sum(f.stat().st_size for f in _files(folder)) / 2**20
        timed('append', gallery.add, queries, metadata={'camera': np.zeros(QUERIES, int)})
        row['MB above features'] = peak_mb() - before
        del gallery
        gallery = timed('load', GalleryIndex.load, folder)
        del gallery
        gallery = timed('mmap', GalleryIndex.load, folder, mmap=True)
        mapped = timed('mmap search', gallery.search, queries, K)
        assert (mapped.ids == result.ids).mean() > 0.99
    finally:
        shutil.rmtree(folder)
    results.put(row)


def _files(folder):
    return list(Path(folder).iterdir())


def compare(size, dim, threads, factories=None):
    """Print the figures of each index beside those of the baseline."""
    nlist = 1024 if size >= 100_000 else 64
    factories = factories or ['Flat', f'IVF{nlist},Flat', f'IVF{nlist},PQ{dim // 4}', 'HNSW16']
    torch.set_num_threads(threads)
    seconds, truth = baseline(*synthetic(size, dim))
    print(f'{size} x {dim}, {threads} threads, {QUERIES} queries, k = {K}')
    print(f'torch matmul + topk: search {seconds:.2f} s')
    spawn = multiprocessing.get_context('spawn')
    for factory in factories:
        results = spawn.Queue()
        process = spawn.Process(target=measure, args=(results, factory, size, dim, truth, threads))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f'{factory} failed')
        row = results.get()
        speed = seconds / row['search']
        figures = ', '.join(f'{name} {value:.3g}' for name, value in row.items())
        print(f'{factory}: {figures}, search {speed:.1f}x the speed of torch', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', type=int, default=100_000)
    parser.add_argument('--dim', type=int, default=256)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--factories', nargs='+')
    compare(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()
