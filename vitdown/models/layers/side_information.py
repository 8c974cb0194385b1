from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn


class SideInformationEmbedding(BaseModule):
    """Side information embedding (SIE) of TransReID, Sec. 3.3 (arXiv 2102.04378).

    One learned vector for each camera, view or (camera, view) pair, added to every token of the
    image, the class token included.

    Args:
        embed_dims (int): Width C of the tokens.
        num_cameras (int): Number of training cameras, 0 to ignore cameras.
        num_views (int): Number of viewpoints, 0 to ignore views.
        coefficient (float): Weight of the embedding. Defaults to 3.0.
    """

    def __init__(
        self,
        embed_dims: int,
        num_cameras: int = 0,
        num_views: int = 0,
        coefficient: float = 3.0,
    ) -> None:
        super().__init__()
        if num_cameras <= 0 and num_views <= 0:
            raise ValueError('SIE needs num_cameras > 0 or num_views > 0; leave sie=None otherwise')
        self.num_cameras = num_cameras
        self.num_views = num_views
        self.coefficient = coefficient
        self.embed = nn.Parameter(
            torch.zeros(max(num_cameras, 1) * max(num_views, 1), 1, embed_dims)
        )

    def init_weights(self) -> None:
        trunc_normal_(self.embed, std=0.02)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of ids of each argument that :meth:`index` needs, by the argument's name."""
        sizes = dict(camera_ids=self.num_cameras, view_ids=self.num_views)
        return {name: size for name, size in sizes.items() if size > 0}

    def index(
        self,
        camera_ids: Sequence[int] | Tensor | None = None,
        view_ids: Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """Row of the embedding for each image: ``camera * num_views + view``.

        Args:
            camera_ids (Sequence[int] | Tensor, optional): 0-based cameras, one an image. A
                sequence is checked; a tensor is trusted, so that it costs no host
                synchronisation.
            view_ids (Sequence[int] | Tensor, optional): 0-based views, likewise.

        Returns:
            Tensor: ``(B,)`` int64, on the embedding's device.

        Raises:
            ValueError: If ids are missing or not among those of training.
        """
        cameras = self._checked(camera_ids, self.num_cameras, 'camera')
        views = self._checked(view_ids, self.num_views, 'view')
        if cameras is None:
            return views
        return cameras if views is None else cameras * self.num_views + views

    def _checked(self, ids: Sequence[int] | Tensor | None, limit: int, name: str) -> Tensor | None:
        if limit <= 0:
            return None
        if ids is None:
            raise ValueError(f'The backbone embeds {name}s (SIE), but the input has no {name} ids')
        if isinstance(ids, Tensor):
            return ids.to(self.embed.device)
        unknown = sorted({i for i in ids if not 0 <= i < limit})
        if unknown:
            raise ValueError(
                f'SIE knows the {name}s 0..{limit - 1}, the input has {unknown}. Use a model '
                f'without SIE for unseen {name}s, or train with sie=dict(num_{name}s=...) as large.'
            )
        return torch.as_tensor(ids, device=self.embed.device)

    def forward(self, index: Tensor) -> Tensor:
        """Embedding ``(B, 1, C)`` for the rows ``index`` ``(B,)``, to be added to the tokens."""
        return self.coefficient * self.embed[index]
