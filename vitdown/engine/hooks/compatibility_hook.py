from mmengine.hooks import Hook
from mmengine.runner import Runner

from vitdown.registry import HOOKS


@HOOKS.register_module()
class CompatibilityHook(Hook):
    """Check before training that the model fits the dataset.

    Compares the identities and cameras of the training set with the classifier and the side
    information of the model, where both say how many they have.

    Raises:
        ValueError: If the dataset has more identities or cameras than the model.
    """

    def before_train(self, runner: Runner) -> None:
        model = getattr(runner.model, 'module', runner.model)
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
    def _compare(
        runner: Runner, what: str, in_data: int | None, module, attribute: str, field: str
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
