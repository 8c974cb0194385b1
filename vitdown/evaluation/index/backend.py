"""Searching any FAISS index among allowed rows, without losing results to the filter."""

from __future__ import annotations

import faiss
import numpy as np

# FAISS asks for so many training vectors per list and per entry of a code book.
POINTS_PER_CENTROID = 39
# Below this share of allowed rows a graph search wanders among rows it may not return.
_SCAN_BELOW = 0.1


def points_for_training(index: faiss.Index) -> int:
    """Vectors that FAISS wants to train the lists of an IVF; 0 for other indexes."""
    inner = _inner(index)
    return POINTS_PER_CENTROID * inner.nlist if isinstance(inner, faiss.IndexIVF) else 0


def set_effort(index: faiss.Index, effort: int | None) -> None:
    """Set how much an approximate index looks at: lists of an IVF, candidates of an HNSW.

    By default 1/32 of the lists, at least 8, or 64 candidates. Other indexes are exhaustive.
    """
    inner = _inner(index)
    if isinstance(inner, faiss.IndexIVF):
        inner.nprobe = min(inner.nlist, effort or max(8, inner.nlist // 32))
    elif isinstance(inner, faiss.IndexHNSW):
        inner.hnsw.efSearch = effort or 64


def build_index(dim: int, factory: str, kind: int) -> faiss.Index:
    """An empty index of a FAISS factory string.

    Product quantizers leave out the ordering of their codes for polysemous search: nothing here
    uses it, and it takes a hundred times as long as learning the codes.

    Raises:
        RuntimeError: If FAISS refuses the factory string.
    """
    index = faiss.index_factory(dim, factory, kind)
    inner = _inner(index)
    if isinstance(inner, (faiss.IndexPQ, faiss.IndexIVFPQ)):
        inner.do_polysemous_training = False
    return index


def search_rows(
    index: faiss.Index, queries: np.ndarray, k: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The best rows for each query, best first.

    Args:
        index (faiss.Index): Rows are numbered from 0 in the order of adding.
        queries (np.ndarray): Shape (Q, D), float32.
        k (int): At most the number of allowed rows.
        allowed (np.ndarray, optional): Boolean, shape (N,). Defaults to all rows.

    Returns:
        tuple: FAISS scores and row numbers, both of shape (Q, k).
    """
    share = 1.0 if allowed is None else allowed.mean()
    if isinstance(_inner(index), faiss.IndexHNSW) and share < _SCAN_BELOW:
        return scan_rows(index, queries, k, allowed)
    scores, rows = _search(index, queries, k, allowed, share)
    # Few lists or candidates can hold fewer than k allowed rows.
    short = (rows < 0).any(axis=1)
    if short.any():
        scores[short], rows[short] = scan_rows(index, queries[short], k, allowed)
    return scores, rows


def scan_rows(
    index: faiss.Index, queries: np.ndarray, k: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Like ``search_rows``, looking at every allowed row instead of a likely part."""
    return _search(index, queries, k, allowed, share=0.0)


def scans_exactly(index: faiss.Index) -> bool:
    """Whether ``scan_rows`` is an exact search: the index keeps the vectors themselves."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexHNSW):
        return scans_exactly(index.storage)
    if isinstance(index, faiss.IndexIVFFlat):
        return scans_exactly(index.quantizer)
    return isinstance(index, faiss.IndexFlat)


def _inner(index: faiss.Index) -> faiss.Index:
    index = faiss.downcast_index(index)
    return _inner(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def _search(
    index: faiss.Index, queries: np.ndarray, k: int, allowed: np.ndarray | None, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Search with the effort that finds as much among a share of the rows as among all of them."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        for step in range(index.chain.size()):
            queries = faiss.downcast_VectorTransform(index.chain.at(step)).apply(queries)
        return _search(index.index, queries, k, allowed, share)
    if isinstance(index, faiss.IndexHNSW) and share == 0:
        return _search(index.storage, queries, k, allowed, share)
    selector = None
    if allowed is not None:
        bits = np.packbits(allowed, bitorder='little')
        selector = faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(bits))
    if isinstance(index, faiss.IndexIVF):
        nprobe = index.nlist if share == 0 else min(index.nlist, int(index.nprobe / share) + 1)
        nprobe = index.nprobe if share == 1 else nprobe
        params = faiss.SearchParametersIVF(nprobe=nprobe)
    elif isinstance(index, faiss.IndexHNSW):
        params = faiss.SearchParametersHNSW(efSearch=max(int(index.hnsw.efSearch / share), k))
    elif isinstance(index, (faiss.IndexFlat, faiss.IndexScalarQuantizer)):
        params = faiss.SearchParameters()
    else:
        return _search_more(index, queries, k, allowed)
    if selector is not None:
        params.sel = selector
    return index.search(queries, k, params=params)


def _search_more(
    index: faiss.Index, queries: np.ndarray, k: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """For indexes that can't select: fetch more and more rows until k allowed ones are found."""
    if allowed is None:
        return index.search(queries, k)
    scores = np.full((len(queries), k), np.nan, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    pending = np.arange(len(queries))
    fetch = min(index.ntotal, 2 * k)
    while len(pending):
        found_scores, found_rows = index.search(queries[pending], fetch)
        good = (found_rows >= 0) & allowed[found_rows]
        # A stable sort by "is not allowed" moves the allowed rows to the front, in their order.
        order = np.argsort(~good, axis=1, kind='stable')[:, :k]
        done = good.sum(axis=1) >= k
        if fetch == index.ntotal:
            done[:] = True
        rows[pending[done]] = np.where(
            np.take_along_axis(good, order, 1), np.take_along_axis(found_rows, order, 1), -1
        )[done]
        scores[pending[done]] = np.take_along_axis(found_scores, order, 1)[done]
        pending = pending[~done]
        fetch = min(index.ntotal, 4 * fetch)
    return scores, rows
