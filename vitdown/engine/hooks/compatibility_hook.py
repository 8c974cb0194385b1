from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from vitdown.datasets import IdentitySampler
from vitdown.registry import HOOKS

from .attached_module import check_attached, is_training_run


@HOOKS.register_module()
class CompatibilityHook(Hook):
    """Check before training that model, dataset and data loader fit one another.

    Compares the identities and cameras of the training set with the classifier and the side
    information of the model, where both say how many they have, and the batch size with the
    identities and images that the sampler puts into a batch.

    A training that resumes needs the hooks that brought parameters along.

    Raises:
        ValueError: If the dataset has more identities or cameras than the model, or a batch is not
            what the sampler draws, or a hook with parameters is missing.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume and is_training_run(runner):
            check_attached(runner, checkpoint)

    def before_train(self, runner: Runner) -> None:
        model = getattr(runner.model, 'module', runner.model)
        self._check_batch_size(runner.train_dataloader)
        metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', {})
        head = getattr(model, 'head', None)
        sie = getattr(getattr(model, 'backbone', None), 'sie', None)
        self._compare(
            runner, 'identities', metainfo.get('num_identities'), head, 'num_classes', 'model.head'
        )
        if getattr(sie, 'num_cameras', 0):
            self._compare(
                runner,
                'cameras',
                metainfo.get('num_cameras'),
                sie,
                'num_cameras',
                'model.backbone.sie',
            )

    @staticmethod
    def _check_batch_size(loader: DataLoader) -> None:
        sampler = loader.sampler
        if not isinstance(sampler, IdentitySampler):
            return
        drawn = sampler.num_identities * sampler.num_instances
        if loader.batch_size != drawn:
            raise ValueError(
                f'train_dataloader.batch_size is {loader.batch_size}, but the sampler draws '
                f'{sampler.num_identities} identities x {sampler.num_instances} images = {drawn}; '
                'set train_dataloader.batch_size and train_dataloader.sampler.num_identities '
                'together'
            )

    @staticmethod
    def _compare(
        runner: Runner, what: str, in_data: int | None, module: object, attribute: str, field: str
    ) -> None:
        in_model = getattr(module, attribute, None)
        if in_data is None or in_model is None or in_data == in_model:
            return
        message = (
            f'The training set has {in_data} {what}, {field}.{attribute} is {in_model}; '
            f'set {field}.{attribute}={in_data}'
        )
        if in_data > in_model:
            raise ValueError(message)
        runner.logger.warning(message)
