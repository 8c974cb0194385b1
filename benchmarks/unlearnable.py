"""Time class-wise convolution of a batch against a transcription, one image and channel at a time.

The transcription does what the definition says with scipy.signal.correlate2d in float32. "batch" is
``convolve_batch`` (grouped convolutions, float32), "exact" is ``convolve_image`` one by one (the
same bytes on every machine; what the transform and the tool use). All run in one process, in turns;
the best times are compared, which other work on the machine disturbs least.

    python benchmarks/unlearnable.py
"""

import argparse
import time

import numpy as np
import torch
from scipy.signal import correlate2d

from vitdown.datasets.unlearnable import class_filters, convolve_batch, convolve_image

# Side of the images, of the filters, blur, number of images
CASES = {'32 px, k=3': (32, 3, 0.3, 500), '224 px, k=9': (224, 9, 0.06, 32)}


def transcription(images: np.ndarray, filters: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Definition, one image and one channel at a time."""
    out = np.empty_like(images)
    for n, label in enumerate(labels):
        pixels = images[n].astype(np.float32) / 255
        filtered = np.stack(
            [correlate2d(channel, filters[label], mode='same') for channel in pixels]
        )
        out[n] = np.clip(filtered / filtered.max() * 255, 0, 255).astype(np.uint8)
    return out


def batch(images: np.ndarray, filters: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """All images at once."""
    tensors = (torch.from_numpy(array) for array in (images, filters, labels))
    return convolve_batch(*tensors).numpy()


def exact(images: np.ndarray, filters: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One image at a time, all channels."""
    return np.stack([convolve_image(x, filters[y]) for x, y in zip(images, labels)])


def measure(images: np.ndarray, filters: np.ndarray, labels: np.ndarray, repeats: int) -> str:
    """Cells of the table."""
    last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    calls = {
        transcription: (images, filters.astype(np.float32), labels),
        batch: (images, filters, labels),
        exact: (last, filters, labels),
    }
    seconds = {function: [] for function in calls}
    results = {}
    for _ in range(repeats):
        for function, arguments in calls.items():
            start = time.perf_counter()
            results[function] = function(*arguments)
            seconds[function].append(time.perf_counter() - start)
    cost = {f: 1000 * min(times) / len(images) for f, times in seconds.items()}
    differing = np.mean(results[batch] != results[transcription])
    cells = [f'{cost[transcription]:.4f}']
    for function in (batch, exact):
        cells += [f'{cost[function]:.4f}', f'{cost[transcription] / cost[function]:.1f} x']
    return ' | '.join([*cells, f'{differing:.1e}'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeats', type=int, default=20)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f'{args.threads} threads, best of {args.repeats}, milliseconds an image')
    print(
        '| images | transcription | batch | ratio | exact | ratio | batch differs by a level in |'
    )
    print('| --- | --- | --- | --- | --- | --- | --- |')
    for name, (side, kernel_size, blur, number) in CASES.items():
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (number, 3, side, side), dtype=np.uint8)
        labels = rng.integers(0, 10, number)
        filters = class_filters(0, 10, kernel_size, blur)
        print(f'| {name} | {measure(images, filters, labels, args.repeats)} |')


if __name__ == '__main__':
    main()
