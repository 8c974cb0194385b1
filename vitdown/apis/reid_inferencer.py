"""Re-identification with a trained model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.infer import BaseInferencer
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from vitdown.checkpoint import check_fit, load_checkpoint_file, unwrap_state_dict
from vitdown.datasets.transforms.decoding import SKIP_HINT, CorruptImageError
from vitdown.engine.launch import ConfigError, load_config
from vitdown.evaluation.index import GalleryIndex
from vitdown.evaluation.index.inputs import check_k
from vitdown.evaluation.index.metadata import Columns, Where, as_columns
from vitdown.registry import MODELS
from vitdown.visualization.attention_map import AttentionMap, attention_maps

from .embeddings import Embeddings
from .fingerprint import fingerprint
from .inputs import ImageInput, Sample, list_images
from .rankings import Rankings

if TYPE_CHECKING:
    from .galleries import Gallery

Inputs: TypeAlias = ImageInput | Sequence[ImageInput]
_SAMPLE_KEYS = {'camera': 'camera_id', 'view': 'view_id'}


@dataclass
class Verification:
    """Whether pairs of images show the same identity.

    Attributes:
        scores (np.ndarray): (N,) cosine similarities.
        same (np.ndarray): (N,) booleans, scores of at least the threshold.
    """

    scores: np.ndarray
    same: np.ndarray


class ReIDInferencer(BaseInferencer):
    """Embed images with a re-ID model; index, search, rank and verify them.

    Args:
        model (str | Config): Config of the model, whose test pipeline prepares the images.
        weights (str, optional): Checkpoint, ``.pth`` or ``.safetensors``; read without running code
            from it, and refused unless it fits. None leaves the model as it is initialised.
        device (str, optional): Defaults to the GPU if there is one.
        batch_size (int): Images at a time. Defaults to 32.
        num_workers (int): Processes that read images; 0 for none beside this one.
        show_progress (bool): Show a progress bar. Defaults to False.

    Raises:
        FileNotFoundError: If config or checkpoint don't exist.
        ConfigError: If the config is none of a re-ID model with a test pipeline.
        CheckpointError: If the checkpoint is damaged or of another model.

    Example:
        >>> reid = ReIDInferencer('config.py', 'epoch_120.pth')
        >>> reid('photos/').save('photos.npz')
        >>> gallery = reid.build_index('photos/')
        >>> for match in reid.search('query.jpg', gallery, k=5)[0]:
        ...     print(match.rank, match.score, match.metadata['path'])
    """

    def __init__(
        self,
        model: str | Config,
        weights: str | os.PathLike | None = None,
        device: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        show_progress: bool = False,
    ) -> None:
        cfg = load_config(os.fspath(model)) if isinstance(model, (str, os.PathLike)) else model
        init_default_scope(cfg.get('default_scope', 'vitdown'))
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f'batch_size must be positive and num_workers not negative, not {batch_size} and '
                f'{num_workers}'
            )
        self.batch_size, self.num_workers = batch_size, num_workers
        super().__init__(cfg, weights, device, show_progress=show_progress)
        self.fingerprint = fingerprint(self.model, cfg, pipeline_of(cfg))

    def __call__(
        self,
        inputs: Inputs,
        metadata: Mapping[str, Sequence | np.ndarray] | None = None,
        on_error: str = 'stop',
    ) -> Embeddings:
        """Embed images.

        Args:
            inputs: See :func:`list_images`.
            metadata (dict, optional): Columns of a value for each image. Models that embed cameras
                or views need the columns ``camera`` and ``view``, see :attr:`side_information`.
            on_error (str): What to do about images that can't be read: ``'stop'``, or ``'skip'``
                to leave them out and name them in ``skipped``.

        Raises:
            CorruptImageError: If an image is missing, damaged or none.
            ValueError: If no image could be read, or metadata don't fit.
        """
        return self._embed(list_images(inputs), metadata, on_error)

    def build_index(
        self,
        inputs: Inputs,
        factory: str = 'Flat',
        metric: str = 'cosine',
        metadata: Mapping[str, Sequence | np.ndarray] | None = None,
        on_error: str = 'stop',
    ) -> GalleryIndex:
        """A gallery of images, each with its ``path`` and the metadata given.

        Args:
            inputs: See :func:`list_images`.
            factory (str): See :class:`GalleryIndex`.
            metric (str): ``'cosine'`` or ``'euclidean'``.
            metadata (dict, optional): See :meth:`__call__`.
            on_error (str): See :meth:`__call__`.
        """
        embeddings = self(inputs, metadata, on_error)
        dim = embeddings.features.shape[1]
        gallery = GalleryIndex(dim, factory, metric, model=self.fingerprint)
        gallery.add(embeddings.features, metadata=embeddings.columns())
        return gallery

    def search(
        self,
        inputs: Inputs,
        gallery: Gallery,
        k: int = 10,
        where: Where | None = None,
        metadata: Mapping[str, Sequence | np.ndarray] | None = None,
        on_error: str = 'stop',
    ) -> Rankings:
        """The k best matches of each query in a gallery.

        Args:
            inputs: The queries, see :func:`list_images`.
            gallery (GalleryIndex | QdrantGallery): Of this model's features.
            k (int): Length of the lists.
            where (dict, optional): Which images may be found, see :meth:`GalleryIndex.search`.
            metadata (dict, optional): See :meth:`__call__`; with ``identity``, pictures show which
                matches are right.
            on_error (str): See :meth:`__call__`.

        Raises:
            ValueError: If the gallery holds features of another model, or k is not positive.
        """
        check_k(k)
        self.check_gallery(gallery)
        samples = list_images(inputs)
        embeddings = self._embed(samples, metadata, on_error)
        result = gallery.search(embeddings.features, k, where)
        return Rankings(_queries(samples, embeddings), result, skipped=embeddings.skipped)

    def rank(
        self,
        query: ImageInput,
        images: Inputs,
        k: int | None = None,
        metadata: Mapping[str, Sequence | np.ndarray] | None = None,
        query_metadata: Mapping[str, Sequence | np.ndarray] | None = None,
    ) -> Rankings:
        """Order images by their likeness to a query, without an index.

        Args:
            query: One image.
            images: See :func:`list_images`.
            k (int, optional): Length of the list. Defaults to all.
            metadata (dict, optional): Of the images, see :meth:`__call__`.
            query_metadata (dict, optional): Of the query: columns of one value.
        """
        samples = list_images(images)
        k = len(samples) if k is None else k
        check_k(k)
        embeddings = self._embed(samples, metadata)
        gallery = GalleryIndex(embeddings.features.shape[1], model=self.fingerprint)
        gallery.add(embeddings.features, metadata=embeddings.columns())
        rankings = self.search(query, gallery, k, metadata=query_metadata)
        rankings.images = {s['img_path']: s['img'] for s in samples if 'img' in s}
        return rankings

    def verify(
        self,
        pairs: Iterable[tuple[ImageInput, ImageInput]],
        threshold: float,
        metadata: Mapping[str, Sequence[tuple]] | None = None,
    ) -> Verification:
        """Whether both images of each pair show the same identity.

        Args:
            pairs: Pairs of single images, see :func:`list_images`.
            threshold (float): Least cosine similarity of a right pair. It depends on the model:
                ``roc_curve`` of a validation set tells which one accepts how many wrong pairs.
            metadata (dict, optional): Columns of a pair of values for each pair, see
                :meth:`__call__`.

        Raises:
            ValueError: If a pair is none of two single images, or the threshold no number.
        """
        if not np.isfinite(threshold):
            raise ValueError(f'threshold must be a number, got {threshold}')
        pairs = list(pairs)
        if not pairs:
            return Verification(np.zeros(0, np.float32), np.zeros(0, bool))
        if odd := next((pair for pair in pairs if len(pair) != 2), None):
            raise ValueError(f'a pair takes two images, got {len(odd)}')
        features = []
        for side in (0, 1):
            columns = {n: [pair[side] for pair in pairs] for n, pairs in (metadata or {}).items()}
            features.append(self([pair[side] for pair in pairs], columns).features)
        firsts, seconds = features
        if not len(firsts) == len(seconds) == len(pairs):
            raise ValueError('a pair takes two single images, no folders or patterns')
        scores = torch.nn.functional.cosine_similarity(
            torch.from_numpy(firsts), torch.from_numpy(seconds)
        ).numpy()
        return Verification(scores, scores >= threshold)

    def attend(
        self,
        inputs: Inputs,
        ratio: float | None = None,
        metadata: Mapping[str, Sequence | np.ndarray] | None = None,
    ) -> Iterator[tuple[np.ndarray, AttentionMap]]:
        """Where the model looks: for each image, what it saw of it (RGB) and its attention.

        Args:
            inputs: See :func:`list_images`.
            ratio (float, optional): Share of the patches that are selected, see
                :func:`attention_maps`.
            metadata (dict, optional): See :meth:`__call__`.

        Raises:
            CorruptImageError: If an image is missing, damaged or none.
            TypeError: If the backbone does not offer its attention.
        """
        samples = list_images(inputs)
        columns = as_columns(metadata, len(samples))
        for _, batch, errors in self.preprocess(self._with_side_information(samples, columns)):
            if errors:
                raise CorruptImageError(errors[0][1])
            data = self.model.data_preprocessor(batch, training=False)
            maps = attention_maps(self.model, data['inputs'], data['data_samples'], ratio)
            for image, attention in zip(batch['inputs'], maps):
                # Pipelines work in BGR, as MMCV does.
                yield image.flip(0).permute(1, 2, 0).numpy(), attention

    def check_gallery(self, gallery: Gallery) -> None:
        """Raise ValueError if a gallery is known to hold features of another model."""
        if gallery.model and gallery.model != self.fingerprint:
            raise ValueError(
                f'the gallery holds features of the model {gallery.model}, this is '
                f'{self.fingerprint}: features of different models, weights or test pipelines '
                'can not be compared; use that model, or embed the gallery with this one'
            )

    @property
    def side_information(self) -> dict[str, int]:
        """Columns of metadata that the model embeds, and how many values it knows of each.

        ``{'camera': 6}`` says that every image needs a ``camera`` from 0 to 5; most models need
        nothing.
        """
        sie = getattr(self.model.backbone, 'sie', None)
        known = {name: getattr(sie, f'num_{name}s', 0) for name in _SAMPLE_KEYS}
        return {name: count for name, count in known.items() if count}

    def _with_side_information(self, samples: list[Sample], columns: Columns) -> list[Sample]:
        """Samples with the keys that the model looks for."""
        known = self.side_information
        for name, count in known.items():
            if name not in columns:
                raise ValueError(
                    f'the model embeds {name}s: give the {name} of each image, 0 to {count - 1}, '
                    f"as metadata={{'{name}': [...]}}, by --{name}, or in a column {name!r} of "
                    '--metadata'
                )
            for sample, value in zip(samples, columns[name].tolist()):
                if value not in range(count):
                    raise ValueError(
                        f'{sample["img_path"]}: the model embeds the {name}s 0 to {count - 1}, '
                        f'not {value!r}; images of other {name}s need a model without sie'
                    )
        return [
            {**sample, **{_SAMPLE_KEYS[name]: int(columns[name][row]) for name in known}}
            for row, sample in enumerate(samples)
        ]

    def _embed(
        self,
        samples: list[Sample],
        metadata: Mapping[str, Sequence | np.ndarray] | None = None,
        on_error: str = 'stop',
    ) -> Embeddings:
        if on_error not in ('stop', 'skip'):
            raise ValueError(f"on_error must be 'stop' or 'skip', not {on_error!r}")
        columns = as_columns(metadata, len(samples))
        features, kept, skipped = [], [], {}
        samples = self._with_side_information(samples, columns)
        for numbers, batch, errors in self.preprocess(samples):
            for number, reason in errors:
                name = str(samples[number]['img_path'])
                if on_error == 'stop':
                    raise CorruptImageError(
                        f"{reason} Leave such images out with on_error='skip' (--on-error skip)."
                    )
                skipped[name] = reason
            if numbers:
                predicted = self.forward(batch)
                features.append(torch.stack([sample.feature for sample in predicted]).cpu())
                kept += numbers
        if not kept:
            reason = next(iter(skipped.values()))
            raise ValueError(f'none of the {len(samples)} images can be read, the first: {reason}')
        return Embeddings(
            features=torch.cat(features).float().numpy(),
            paths=np.array([str(samples[number]['img_path']) for number in kept]),
            metadata={name: column[kept] for name, column in columns.items()},
            model=self.fingerprint,
            skipped=skipped,
        )

    def preprocess(
        self, inputs: list[Sample], **kwargs: Any
    ) -> Iterator[tuple[list[int], Any, list[tuple[int, str]]]]:
        """Batches: numbers of the images in it, the batch, numbers and reasons of bad images."""
        loader = DataLoader(
            _Images(inputs, self.pipeline),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=partial(_collate, self.collate_fn),
        )
        return iter(tqdm(loader, 'Embedding', disable=not self.show_progress, unit='batch'))

    def visualize(
        self, inputs: list, preds: list[DataSample], show: bool = False, **kwargs: Any
    ) -> None:
        """Features have no picture of their own; see :class:`Rankings`."""

    def postprocess(self, preds: list[DataSample], visualization: None, **kwargs: Any) -> Any:
        """Nothing is left to do: :meth:`__call__` returns :class:`Embeddings`."""
        return preds

    def _init_model(self, cfg: Config, weights: str | None, device: str) -> nn.Module:
        if cfg.get('model') is None:
            raise ConfigError('the config has no model')
        checkpoint = None if weights is None else load_checkpoint_file(weights)
        model = MODELS.build(cfg.model)
        if checkpoint is None:
            _init_weights(model)
        else:
            state_dict = unwrap_state_dict(checkpoint)
            check_fit(model, state_dict, str(weights))
            model.load_state_dict(state_dict, strict=False)
        return model.to(device).eval()

    def _init_pipeline(self, cfg: Config) -> Compose:
        return Compose(pipeline_of(cfg))

    def _init_collate(self, cfg: Config) -> Callable:
        return default_collate

    def _init_visualizer(self, cfg: Config) -> None:
        return None


def _init_weights(model: nn.Module) -> None:
    """Initialise a model without a line in the log for each of its parameters."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)


def pipeline_of(cfg: Config) -> list[dict]:
    """Test pipeline of a config.

    Raises:
        ConfigError: If there is none, or it doesn't start with ``LoadReIDImage``.
    """
    pipeline = (cfg.get('test_dataloader') or {}).get('dataset', {}).get('pipeline')
    if not pipeline:
        raise ConfigError('the config has no test_dataloader.dataset.pipeline to prepare images by')
    if pipeline[0]['type'] not in ('LoadReIDImage', 'vitdown.LoadReIDImage'):
        raise ConfigError(
            f'the test pipeline starts with {pipeline[0]["type"]}; let it start with '
            "dict(type='LoadReIDImage'), which reads arrays too and names damaged files"
        )
    return pipeline


class _Images(torch.utils.data.Dataset):
    """Images that went through a pipeline, or the reason why one could not be read."""

    def __init__(self, samples: list[Sample], pipeline: Compose) -> None:
        self.samples, self.pipeline = samples, pipeline

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[int, dict | None, str]:
        try:
            return number, self.pipeline(dict(self.samples[number])), ''
        except CorruptImageError as error:
            return number, None, str(error).removesuffix(SKIP_HINT).strip()


def _collate(
    collate_fn: Callable, items: list[tuple[int, dict | None, str]]
) -> tuple[list[int], Any, list[tuple[int, str]]]:
    good = [(number, packed) for number, packed, _ in items if packed is not None]
    errors = [(number, reason) for number, packed, reason in items if packed is None]
    numbers = [number for number, _ in good]
    return numbers, collate_fn([packed for _, packed in good]) if good else None, errors


def _queries(samples: list[Sample], embeddings: Embeddings) -> list[Sample]:
    """The samples that were embedded, with their identity if it is known."""
    read = [sample for sample in samples if str(sample['img_path']) not in embeddings.skipped]
    identities = embeddings.metadata.get('identity')
    if identities is None:
        return read
    return [{**sample, 'identity': value} for sample, value in zip(read, identities.tolist())]
