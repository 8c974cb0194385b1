from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from vitdown.checkpoint import CheckpointError, check_fit, drop_unloadable, write_atomically
from vitdown.registry import HOOKS


class AtomicLocalBackend(LocalBackend):
    """Local files, written so that a kill leaves the old or the new file, never a torn one."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(obj, filepath)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        write_atomically(obj.encode(encoding), filepath)


class _DeferredRemoval:
    """A storage backend that keeps files marked for removal until ``flush``."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self._doomed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, filepath: str) -> None:
        self._doomed.append(filepath)

    def flush(self, keep: set[str]) -> None:
        for path in self._doomed:
            if path not in keep and self._backend.isfile(path):
                self._backend.remove(path)
        self._doomed.clear()


register_backend('atomic_local', AtomicLocalBackend, force=True)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` that survives a kill at any moment and checks what it loads.

    Files appear complete or not at all, and outdated ones are removed only after the new one is
    on disk, so a work dir that has held a checkpoint always holds a loadable one. A checkpoint
    that does not fit the model is an error instead of MMEngine's warning.

    Args:
        skip_mismatched (Sequence[str]): Regular expressions of weights to leave at their
            initial values where the checkpoint has another shape, e.g. ``['classifier']`` to use
            a model on a dataset with other identities.
        **kwargs: Arguments of MMEngine's hook, except ``backend_args``.
    """

    file_backend: Any

    def __init__(
        self, *args: Any, skip_mismatched: tuple[str, ...] | list[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, backend_args=dict(backend='atomic_local'), **kwargs)
        self.skip_mismatched = skip_mismatched

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if runner.rank == 0:
            # Left behind by a run that was killed while it saved
            for path in Path(self.out_dir).glob('.*.pth.*.tmp'):
                path.unlink()
        self.file_backend = _DeferredRemoval(self.file_backend)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        super().after_train_iter(runner, *args, **kwargs)
        self._remove_outdated()

    def after_train_epoch(self, runner: Runner) -> None:
        super().after_train_epoch(runner)
        self._remove_outdated()

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        super().after_val_epoch(runner, metrics)
        # Which there is in a training only.
        if isinstance(getattr(self, 'file_backend', None), _DeferredRemoval):
            self._remove_outdated()

    def _remove_outdated(self) -> None:
        best = [self.best_ckpt_path] if hasattr(self, 'best_ckpt_path') else []
        best += getattr(self, 'best_ckpt_path_dict', {}).values()
        self.file_backend.flush(keep={self.last_ckpt, *best})

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = getattr(runner.model, 'module', runner.model)
        state_dict = checkpoint.get('state_dict', checkpoint)
        dropped = drop_unloadable(model, state_dict, self.skip_mismatched)
        if dropped:
            runner.logger.warning(f'Not loaded, as skip_mismatched says: {", ".join(dropped)}')
        try:
            check_fit(
                model,
                {key.removeprefix('module.'): value for key, value in state_dict.items()},
                'The checkpoint',
                ignore=self.skip_mismatched,
            )
        except CheckpointError as error:
            raise CheckpointError(
                f'{error} If only the identities differ, leave the classifier out: --cfg-options '
                'default_hooks.checkpoint.skip_mismatched="[\'classifier\']".'
            ) from None
