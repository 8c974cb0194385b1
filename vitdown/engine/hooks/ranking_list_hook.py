from pathlib import Path

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from vitdown.datasets import ReIDDataset
from vitdown.datasets.transforms import LoadReIDImage
from vitdown.evaluation.metrics import Ranking, ReIDMetric
from vitdown.registry import HOOKS
from vitdown.visualization import draw_ranking_list, save_picture


@HOOKS.register_module()
class RankingListHook(Hook):
    """Write a picture of each query's first gallery images after a test.

    Junk (same identity and camera) is left out of the lists, as in the evaluation. With re-ranking,
    the re-ranked lists are shown.

    Args:
        out_dir (str): Folder for the pictures, named after the query images;
            those of an earlier test are replaced.
        k (int): Length of the lists. Defaults to 10.
        max_queries (int): At most so many pictures, spread evenly over the queries.
        size (tuple[int, int]): ``(H, W)`` of each image in the pictures.
    """

    def __init__(
        self,
        out_dir: str,
        k: int = 10,
        max_queries: int = 100,
        size: tuple[int, int] = (160, 80),
    ) -> None:
        if k < 1 or max_queries < 1:
            raise ValueError(f'k={k} and max_queries={max_queries} must be at least 1')
        self.out_dir = Path(out_dir)
        self.k = k
        self.max_queries = max_queries
        height, width = size
        self.size = (height, width)

    def before_test(self, runner: Runner) -> None:
        self._metric(runner).num_ranked = self.k

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if is_main_process():
            ranking = self._metric(runner).ranking
            count = self._write(ranking, runner.test_dataloader.dataset)
            print_log(f'{count} ranking lists written to {self.out_dir}', logger='current')

    def _write(self, ranking: Ranking, dataset: ReIDDataset) -> int:
        total = len(ranking.query['ids'])
        chosen = np.unique(np.linspace(0, total - 1, min(total, self.max_queries)).astype(int))
        load = LoadReIDImage()

        def image(position: int) -> np.ndarray:
            # The pipeline's images are BGR
            return load(dataset.annotation(int(position)))['img'][..., ::-1]

        for query in chosen:
            found = ranking.lists.indices[query].tolist()
            found = [index for index in found if index >= 0]
            scores = ranking.lists.scores[query].tolist()
            picture = draw_ranking_list(
                image(ranking.query['positions'][query]),
                [image(ranking.gallery['positions'][index]) for index in found],
                ranking.lists.matches[query].tolist()[: len(found)],
                ['query', _label(ranking.query, query), _average_precision(ranking, query)],
                [
                    [f'{rank + 1}: {scores[rank]:.3f}', _label(ranking.gallery, index)]
                    for rank, index in enumerate(found)
                ],
                self.size,
            )
            # Numbered: queries of different folders may share a name.
            name = Path(ranking.query['paths'][query]).name
            save_picture(picture, self.out_dir, f'{query:05d}_{name}')
        return len(chosen)

    @staticmethod
    def _metric(runner: Runner) -> ReIDMetric:
        for metric in runner.test_evaluator.metrics:
            if isinstance(metric, ReIDMetric):
                return metric
        raise ValueError('RankingListHook needs a ReIDMetric in test_evaluator')


def _label(labels: dict[str, np.ndarray], index: int) -> str:
    camera = labels['cameras'][index]
    return f'id {labels["ids"][index]}' + (f' cam {camera}' if camera >= 0 else '')


def _average_precision(ranking: Ranking, query: int) -> str:
    value = ranking.average_precision[query]
    return 'no match' if np.isnan(value) else f'AP {100 * value:.0f} %'
