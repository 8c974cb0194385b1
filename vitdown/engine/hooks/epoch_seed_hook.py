from mmengine.hooks import Hook
from mmengine.runner import Runner

from vitdown.registry import HOOKS

from ..seeding import epoch_seed, seed_everything


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Make every epoch's random numbers a function of (seed, epoch, rank).

    A run that resumes at an epoch then draws the augmentations, dropout masks and worker seeds
    that the uninterrupted run would have drawn, whatever happened in between, and no generator
    state has to be saved. The data loaders need ``worker_init_fn=dict(type='vitdown.seed_worker')``
    and no persistent workers, whose generators would live on from epoch to epoch.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        if loader.num_workers and loader.persistent_workers:
            runner.logger.warning(
                'train_dataloader.persistent_workers=True: the random state of the workers is not '
                'restored when this run is resumed'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        seed_everything(epoch_seed(runner.seed, runner.epoch, runner.rank))
