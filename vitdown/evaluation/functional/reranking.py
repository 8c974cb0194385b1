"""k-reciprocal re-ranking with sparse neighbour sets.

Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
The usual implementation holds several dense matrices over all pairs of images. Here the distances
are computed twice in blocks (once to find neighbours, once for the result), and everything between
is sparse: N images have O(N k1) neighbours and weights.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import sparse
from tqdm import tqdm

from .inputs import Features, as_feature_pair, check_count, check_metric, rows_per_block
from .sharing import Group, gather_rows, share_of
from .similarity import full_precision, parts_of

# Neighbours searched beyond those needed, so that float32 rounding can't push one out.
_SPARE_NEIGHBOURS = 16
_BLOCK_ROWS = 256
_BYTES_PER_DISTANCE = 16


class RerankedDistances:
    """Re-ranked distances of queries to the gallery, computed when they are asked for.

    Slicing gives the rows of some queries, ``distances[10:20]``, as a float32 tensor (n, G) on the
    device of the features; :meth:`dense` gives all. Made by :func:`k_reciprocal_rerank`;
    :func:`evaluate_distances` and :func:`topk_distances` take it as it is.

    Attributes:
        shape: (Q, G).
        device: Where rows are computed.
        weights: (Q + G, Q + G) sparse: the k-reciprocal encoding of each image, rows of sum 1.
    """

    def __init__(
        self,
        points: _Points,
        num_query: int,
        weights: sparse.csr_array,
        farthest: torch.Tensor,
        lambda_value: float,
    ) -> None:
        self.shape = (num_query, len(points) - num_query)
        self.device = points.device
        self.weights = weights
        self._points = points
        self._farthest = farthest
        self._lambda = lambda_value
        # Row l: the gallery images that have a weight for image l.
        self._gallery_by_image = weights[num_query:].T.tocsr()

    def __getitem__(self, rows: slice) -> torch.Tensor:
        if not isinstance(rows, slice):
            raise TypeError(f'rows must be a slice of queries, not {rows!r}')
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError(f'rows must be consecutive; the step is {step}')
        stop = max(start, stop)
        distances = self._points.rows(start, stop, self.shape[0])
        distances /= self._farthest[start:stop, None]
        jaccard = np.empty((stop - start, self.shape[1]), dtype=np.float32)
        for row in range(start, stop):
            shared = self._shared_weight(row)
            jaccard[row - start] = 1 - shared / (2 - shared)
        distances *= self._lambda
        distances += torch.from_numpy(jaccard).to(self.device) * (1 - self._lambda)
        return distances

    def dense(self) -> torch.Tensor:
        """All distances, (Q, G): for small sets."""
        return self[:]

    def _shared_weight(self, query: int) -> np.ndarray:
        """Sum of the smaller of the two weights over all images, for each gallery image."""
        own = slice(*self.weights.indptr[query : query + 2])
        images, weights = self.weights.indices[own], self.weights.data[own]
        table = self._gallery_by_image
        first, count = table.indptr[images], np.diff(table.indptr)[images]
        skipped = np.cumsum(count) - count
        entries = np.arange(count.sum()) + np.repeat(first - skipped, count)
        smaller = np.minimum(table.data[entries], np.repeat(weights, count))
        return np.bincount(table.indices[entries], smaller, minlength=self.shape[1])


def k_reciprocal_rerank(
    query_features: Features,
    gallery_features: Features,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    metric: str = 'cosine',
    max_memory_mb: float = 512,
    *,
    progress: bool = False,
    group: Group = None,
) -> RerankedDistances:
    """Distances that also tell how far two images share their neighbours.

    Two images are k-reciprocal neighbours if each is among the k nearest of the other. The set of
    an image's k1-reciprocal neighbours is expanded by the k1/2-reciprocal sets of its members that
    overlap it by more than two thirds; its members are weighted by ``exp(-distance)``; the weights
    of the k2 nearest images are averaged. The result is
    ``(1 - lambda_value) * jaccard + lambda_value * distance``, where the Jaccard distance compares
    these weights and the distance is squared Euclidean, each row divided by its largest value over
    queries and gallery together.

    Neighbours at equal distance come in the order query 0..Q-1, gallery 0..G-1. Numbers of
    neighbours larger than the set are cut to it.

    Args:
        query_features: (Q, D) tensor or array of any floating-point type, on any device.
        gallery_features: (G, D), on the same device.
        k1: Size of the neighbourhood.
        k2: Number of nearest images whose weights are averaged; 1 for none.
        lambda_value: Share of the original distance, 0 to 1.
        metric: ``'cosine'`` normalises the features first, ``'euclidean'`` takes them as they are.
        max_memory_mb: Bound, in MiB, of the memory for blocks of distances. Features and the
            O(N k1) neighbours and weights come on top.
        progress: Show a progress bar if it takes longer than a few seconds.
        group: A process group, all of whose processes make this call with the same arguments: each
            finds the neighbours of its share of the images. None for one process.

    Returns:
        An object that computes rows of the (Q, G) distances on demand.

    Raises:
        TypeError: If features are not floating-point.
        ValueError: If features are empty, not finite or don't fit each other, or an option is
            out of range.
    """
    query, gallery = as_feature_pair(query_features, gallery_features)
    check_metric(metric)
    check_count(k1, 'k1')
    check_count(k2, 'k2')
    if not 0 <= lambda_value <= 1:
        raise ValueError(f'lambda_value must be between 0 and 1, not {lambda_value!r}')
    points = _Points(torch.cat(_scaled([query, gallery], metric)), metric)
    half = round(k1 / 2)
    nearest, farthest = _nearest(points, max(k1 + 1, k2), max_memory_mb, progress, group)
    near = _reciprocal(nearest[:, : k1 + 1])
    nearer = _reciprocal(nearest[:, : half + 1])
    # Rows of the products below hold up to (k1 + 1)(k1/2 + 1) numbers.
    step = rows_per_block(max_memory_mb, 24 * (k1 + 1) * (half + 1), len(points))
    blocks = [slice(i, i + step) for i in range(0, len(points), step)]
    members = sparse.vstack([_expanded(near[block], nearer) for block in blocks], format='csr')
    weights = _weighted(points, members, farthest)
    if k2 > 1:
        averaging = _incidence(nearest[:, :k2], len(points)) / min(k2, len(points))
        weights = sparse.vstack([averaging[block] @ weights for block in blocks], format='csr')
    return RerankedDistances(points, len(query), weights, farthest, lambda_value)


def _scaled(sets: list[torch.Tensor], metric: str) -> list[torch.Tensor]:
    """Features in float32, of numbers up to 1, so that no square overflows or vanishes.

    Results depend on the ratios of distances alone. Powers of two change no digit.
    """
    largest = [x.abs().amax(dim=1, keepdim=True).double() for x in sets]
    if metric == 'euclidean':
        largest = [torch.cat(largest).max()] * len(sets)
    wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in sets]
    scaled = []
    for x, top in zip(wide, largest):
        scale = torch.exp2(-torch.frexp(top).exponent.double())
        scaled.append((x * scale.clamp(max=torch.finfo(x.dtype).max).to(x.dtype)).float())
    return scaled


class _Points:
    """Features of queries and gallery together, and the squared distances among them."""

    def __init__(self, features: torch.Tensor, metric: str) -> None:
        if metric == 'cosine':
            features = torch.nn.functional.normalize(features, dim=1)
        else:
            # The same distances, with less cancellation.
            features = features - features.mean(dim=0)
        self._features = features
        self._squares = features.square().sum(dim=1)
        self.device = features.device
        # Much more than the product form of a distance may be wrong by
        steps = 16 * (math.sqrt(features.shape[1]) + 4)
        self.rounding = steps * 2.0**-24 * float(self._squares.max())

    def __len__(self) -> int:
        return len(self._features)

    def rows(self, start: int, stop: int, first: int = 0) -> torch.Tensor:
        """Distances of the points ``start <= i < stop`` to those from ``first`` on."""
        others = self._features[first:]
        with full_precision(self.device):
            distances = torch.addmm(
                self._squares[first:], self._features[start:stop], others.t(), alpha=-2
            )
        distances += self._squares[start:stop, None]
        return distances.clamp_(min=0)

    def pairs(
        self, first: np.ndarray | torch.Tensor, second: np.ndarray | torch.Tensor
    ) -> torch.Tensor:
        """Distances of single pairs, without cancellation: equal points are at exactly 0."""
        distances = torch.empty(len(first), device=self.device)
        for part in parts_of(len(first), self._features):
            a = torch.as_tensor(first[part], device=self.device)
            b = torch.as_tensor(second[part], device=self.device)
            difference = self._features.index_select(0, a) - self._features.index_select(0, b)
            distances[part] = difference.square_().sum(dim=1)
        return distances


def _nearest(
    points: _Points, count: int, max_memory_mb: float, progress: bool, group: Group
) -> tuple[np.ndarray, torch.Tensor]:
    """The nearest points of each, itself among them, (N, count), and the distance of the farthest.

    Distances of the farthest are 1 where all points are one, so that they can be divided by.
    """
    total = len(points)
    count = min(count, total)
    candidates = min(count + _SPARE_NEIGHBOURS, total)
    step = rows_per_block(max_memory_mb, total * _BYTES_PER_DISTANCE, total)
    if points.device.type == 'cpu':
        step = min(step, _BLOCK_ROWS)
    first, last = share_of(total, group)
    nearest = np.empty((last - first, count), dtype=np.int64)
    farthest = np.empty(last - first, dtype=np.float32)
    with tqdm(
        total=last - first, desc='neighbours', unit='image', delay=3, disable=not progress
    ) as bar:
        for start in range(first, last, step):
            stop = min(start + step, last)
            block = slice(start - first, stop - first)
            distances = points.rows(start, stop)
            farthest[block] = distances.amax(dim=1).cpu().numpy()
            found = distances.topk(candidates, largest=False, sorted=False).indices
            found = found.sort(dim=1).values
            own = torch.arange(start, stop, device=points.device)[:, None].expand_as(found)
            exact = points.pairs(own.reshape(-1), found.reshape(-1)).view_as(found)
            exact, order = exact.sort(dim=1, stable=True)
            found = found.gather(1, order)
            # Where the last candidate is as near as the last neighbour, others may be, too.
            if candidates < total:
                for row in (exact[:, -1] <= exact[:, count - 1]).nonzero()[:, 0].tolist():
                    first_tied = int((exact[row] < exact[row, -1]).sum())
                    found[row, first_tied:count] = _first_at(
                        points, start + row, distances[row], exact[row, -1], count - first_tied
                    )
            nearest[block] = found[:, :count].cpu().numpy()
            bar.update(stop - start)
    nearest, farthest = gather_rows((nearest, farthest), group)
    farthest[farthest <= 0] = 1
    return nearest, torch.from_numpy(farthest).to(points.device)


def _first_at(
    points: _Points, own: int, rounded: torch.Tensor, distance: torch.Tensor, count: int
) -> torch.Tensor:
    """The first points at exactly this distance from a point, of which there are enough.

    Those far from it by the rounded distances are not looked at.
    """
    possible = (rounded <= distance + points.rounding).nonzero()[:, 0]
    tied = possible[:0]
    for part in possible.split(2 * count + _SPARE_NEIGHBOURS):
        exact = points.pairs(torch.full_like(part, own), part)
        tied = torch.cat([tied, part[exact == distance]])
        if len(tied) >= count:
            break
    return tied[:count]


def _incidence(neighbours: np.ndarray, total: int) -> sparse.csr_array:
    """Matrix with a 1 in row i at each neighbour of i."""
    num_rows, count = neighbours.shape
    ends = np.arange(0, num_rows * count + 1, count)
    ones = np.ones(neighbours.size, dtype=np.float32)
    return sparse.csr_array((ones, neighbours.reshape(-1), ends), shape=(num_rows, total))


def _reciprocal(neighbours: np.ndarray) -> sparse.csr_array:
    """Neighbours that count the point among their own."""
    forward = _incidence(neighbours, len(neighbours))
    return forward.multiply(forward.T).tocsr()


def _expanded(near: sparse.csr_array, nearer: sparse.csr_array) -> sparse.csr_array:
    """Reciprocal sets with the smaller sets of members that overlap by more than two thirds."""
    overlap = (near @ nearer.T).multiply(near).tocsr()
    sizes = np.diff(nearer.indptr)
    overlap.data = (3 * overlap.data > 2 * sizes[overlap.indices]).astype(np.float32)
    overlap.eliminate_zeros()
    members = (near + overlap @ nearer).tocsr()
    members.sort_indices()
    return members


def _weighted(
    points: _Points, members: sparse.csr_array, farthest: torch.Tensor
) -> sparse.csr_array:
    """Members weighted by their distance, rows of sum 1."""
    owners = np.repeat(np.arange(len(points)), np.diff(members.indptr))
    distances = points.pairs(owners, members.indices).cpu().numpy()
    weights = np.exp(-distances / farthest.cpu().numpy()[owners])
    sums = np.bincount(owners, weights, minlength=len(points))
    data = (weights / sums[owners]).astype(np.float32)
    return sparse.csr_array((data, members.indices, members.indptr), shape=members.shape)
