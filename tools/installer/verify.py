"""Checks an installation from inside: run as a script by the Python of the environment.

``verify.py operators`` tries mmcv's compiled operators, ``verify.py all`` every package.
"""

from __future__ import annotations

import importlib
import sys


def check_operators() -> str:
    """Run one of mmcv's compiled operators; an extension of another torch fails or crashes."""
    import torch
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.1], [8.0, 8.0, 9.0, 9.0]])
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)[1]
    if kept.tolist() != [0, 2]:
        raise RuntimeError(f"mmcv's nms keeps boxes {kept.tolist()} instead of [0, 2]")
    return 'operators work'


def check_faiss() -> str:
    """Search a tiny index."""
    import faiss
    import numpy as np

    vectors = np.eye(4, dtype=np.float32)
    index = faiss.IndexFlatIP(4)
    index.add(vectors)
    found = index.search(vectors, 1)[1].ravel().tolist()
    if found != [0, 1, 2, 3]:
        raise RuntimeError(f'faiss finds {found} instead of [0, 1, 2, 3]')
    gpus = faiss.get_num_gpus() if hasattr(faiss, 'get_num_gpus') else 0
    return f'search works, {gpus} GPUs'


def check_torch() -> str:
    """Say which devices torch can use."""
    import torch

    return f'{torch.cuda.device_count()} GPUs, {torch.get_num_threads()} CPU threads'


MODULES = (
    ('torch', check_torch),
    ('torchvision', None),
    ('mmengine', None),
    ('mmcv', check_operators),
    ('cv2', None),
    ('mmpretrain', None),
    ('mmdet', None),
    ('faiss', check_faiss),
    ('timm', None),
    ('pytorch_metric_learning', None),
    ('vitdown', None),
)


def main(what: str) -> None:
    """Check ``'operators'`` or ``'all'``; the first failure ends it with its traceback."""
    if what == 'operators':
        print(check_operators())
        return
    for name, check in MODULES:
        module = importlib.import_module(name)
        remark = check() if check else ''
        print(f'{name} {module.__version__}{": " if remark else ""}{remark}')


if __name__ == '__main__':
    main(sys.argv[1])
