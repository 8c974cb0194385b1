"""The page: a form, the ranking it leads to, and the gallery's pictures by number."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, QueryParams, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from vitdown.apis.conditions import parse_conditions
from vitdown.apis.rankings import Rankings
from vitdown.apis.reid_inferencer import ReIDInferencer
from vitdown.apis.values import parse_value
from vitdown.datasets.transforms import LoadReIDImage
from vitdown.datasets.transforms.decoding import CorruptImageError
from vitdown.evaluation.index import GalleryIndex
from vitdown.evaluation.index.metadata import Columns
from vitdown.files import write_atomically
from vitdown.visualization.attention_map import draw_rollout

from .guard import TOO_MANY, BodyLimit, SameOrigin, SecurityHeaders, TokenGuard
from .images import (
    RecentUploads,
    UploadError,
    data_uri,
    decode_upload,
    resolve_image,
    thumbnail,
)

if TYPE_CHECKING:
    from vitdown.apis.galleries import Gallery

_HERE = Path(__file__).parent
_MAX_MATCHES = 100
_DEFAULT_MATCHES = 12
_MAX_NAME = 100
# Uploads kept to be searched again, in sizes of the largest
_KEPT_UPLOADS = 10


@dataclass(frozen=True)
class PageSettings:
    """What the page allows.

    Attributes:
        hosts (tuple[str, ...]): Names by which browsers may address the page.
        token (str): Needed to see anything; ``''`` for none.
        max_upload_bytes (int): Size of a request.
        max_pixels (int): Width times height of an uploaded picture.
        image_root (Path): Where relative paths of the gallery begin.
        samples (int): Gallery pictures to pick a query from.
        upload_dir (Path, optional): Where added pictures are kept; None if none may be added.
        gallery_dir (Path, optional): Where a changed gallery is saved; None if it saves itself.
    """

    hosts: tuple[str, ...] = ('localhost', '127.0.0.1')
    token: str = ''
    max_upload_bytes: int = 10_000_000
    max_pixels: int = 40_000_000
    image_root: Path = Path()
    samples: int = 24
    upload_dir: Path | None = None
    gallery_dir: Path | None = None


def create_app(inferencer: ReIDInferencer, gallery: Gallery, settings: PageSettings) -> Starlette:
    """The page as an ASGI application.

    Args:
        inferencer (ReIDInferencer): The model.
        gallery (GalleryIndex | QdrantGallery): Of this model's features, with a column ``path``.
        settings (PageSettings): What is allowed.

    Raises:
        ValueError: If the gallery holds features of another model, is empty, or lacks paths or what
            the model needs to know of each picture.
    """
    inferencer.check_gallery(gallery)
    if 'path' not in gallery.column_types or not len(gallery):
        raise ValueError("the gallery is empty or has no column 'path': there is nothing to show")
    if missing := sorted(inferencer.side_information.keys() - gallery.column_types.keys()):
        raise ValueError(
            f'the model embeds {missing[0]}s, but the gallery has no column {missing[0]!r}: embed '
            f'its images again with --metadata or --{missing[0]}'
        )
    page = _Page(inferencer, gallery, settings)
    routes = [
        Route('/', page.home),
        Route('/search', page.search, methods=['GET']),
        Route('/search', page.upload, methods=['POST']),
        Route('/image/{id:int}', page.image),
        Mount('/static', StaticFiles(directory=_HERE / 'static')),
    ]
    middleware = [
        Middleware(SecurityHeaders),
        Middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts)),
        Middleware(SameOrigin),
        Middleware(BodyLimit, max_bytes=settings.max_upload_bytes),
    ]
    if settings.token:
        routes.append(Route('/login', page.login, methods=['GET', 'POST']))
        middleware.insert(3, Middleware(TokenGuard, token=settings.token))
    if settings.upload_dir is not None:
        routes.append(Route('/add', partial(page.add, settings.upload_dir), methods=['POST']))
    handlers = {HTTPException: page.error, UploadError: page.error}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


class _Page:
    """Handlers of the page's addresses."""

    def __init__(
        self, inferencer: ReIDInferencer, gallery: Gallery, settings: PageSettings
    ) -> None:
        self.inferencer, self.gallery, self.settings = inferencer, gallery, settings
        self.templates = Jinja2Templates(_HERE / 'templates')
        self.load = LoadReIDImage()
        self.uploads = RecentUploads(_KEPT_UPLOADS * settings.max_upload_bytes)
        self.side_information = inferencer.side_information
        self.shows_attention = hasattr(inferencer.model.backbone, 'forward_tokens')
        # Model and gallery serve one request at a time.
        self.lock = threading.Lock()

    async def home(self, request: Request) -> Response:
        samples = await run_in_threadpool(self.gallery.sample_ids, self.settings.samples)
        return self._render(request, samples=samples.tolist())

    async def upload(self, request: Request) -> Response:
        """Take a picture in; the address of its matches holds all else that the form says."""
        async with request.form(max_files=1, max_fields=100) as form:
            request.state.form = {n: text for n, text in form.items() if isinstance(text, str)}
            data = await _file(form, 'image')
        await run_in_threadpool(decode_upload, data, self.settings.max_pixels)
        fields = {name: text for name, text in request.state.form.items() if text.strip()}
        address = urlencode({**fields, 'upload': self.uploads.keep(data)})
        return RedirectResponse(f'/search?{address}', 303)

    async def search(self, request: Request) -> Response:
        params = request.query_params
        if 'upload' in params:
            data = self.uploads.get(params['upload'])
            if data is None:
                raise HTTPException(404, 'the picture is not kept any more: upload it again')
            pixels, _ = await run_in_threadpool(decode_upload, data, self.settings.max_pixels)
            side = self._side_information(params)
        else:
            try:
                number = int(params.get('id', ''))
            except ValueError:
                raise HTTPException(404, 'no picture was chosen') from None
            pixels, side = await run_in_threadpool(self._gallery_picture, number)
        return await self._search(request, pixels, side)

    async def image(self, request: Request) -> Response:
        number = request.path_params['id']
        pixels, side = await run_in_threadpool(self._gallery_picture, number)
        if self._wants_attention(request.query_params):
            pixels = await run_in_threadpool(self._with_attention, pixels, side)
        return Response(thumbnail(pixels[..., ::-1]), media_type='image/jpeg')

    async def login(self, request: Request) -> Response:
        if request.method == 'GET':
            return self.templates.TemplateResponse(request, 'login.html')
        async with request.form(max_files=0, max_fields=1) as form:
            guard = request.scope['token_guard']
            status = guard.answer_to(str(form.get('token', '')), request.scope)
        if status == 200:
            return guard.admitted()
        context = {'message': 'This is not the token.' if status == 401 else f'{TOO_MANY}.'}
        return self.templates.TemplateResponse(request, 'login.html', context, status_code=status)

    async def add(self, folder: Path, request: Request) -> Response:
        async with request.form(max_files=1, max_fields=100) as form:
            data = await _file(form, 'image')
            pixels, suffix = await run_in_threadpool(decode_upload, data, self.settings.max_pixels)
            metadata = {}
            for name, dtype in self._columns().items():
                text = str(form.get(f'column {name}', '')).strip()
                try:
                    value = parse_value(text, name, dtype)
                    # Text may be longer than what is there.
                    metadata[name] = np.array([value], str if dtype.kind == 'U' else dtype)
                except ValueError as error:
                    empty = f'column {name!r} is empty: every column needs a value'
                    raise HTTPException(400, str(error) if text else empty) from None
            try:
                number = await run_in_threadpool(self._add, folder, data, pixels, suffix, metadata)
            except ValueError as error:
                raise HTTPException(400, str(error)) from None
            except OSError as error:
                reason = error.strerror or error
                raise HTTPException(500, f'the picture could not be kept: {reason}') from error
        return RedirectResponse(f'/search?id={number}', 303)

    async def error(self, request: Request, error: Exception) -> Response:
        """One message instead of a page."""
        status, detail = getattr(error, 'status_code', 400), getattr(error, 'detail', str(error))
        return self._render(request, status=status, message=detail)

    async def _search(self, request: Request, query: np.ndarray, side: Columns) -> Response:
        """Matches of BGR pixels, as the address asks for them."""
        params = request.query_params
        text = params.get('k') or str(_DEFAULT_MATCHES)
        if text not in map(str, range(1, _MAX_MATCHES + 1)):
            raise HTTPException(400, f'the number of matches must be 1 to {_MAX_MATCHES}')
        k = int(text)
        conditions = {
            name.removeprefix('where '): text.strip()
            for name, text in params.items()
            if name.startswith('where ') and text.strip()
        }
        try:
            where = parse_conditions(conditions, self._columns()) or None
            rankings = await run_in_threadpool(self._ranked, query, k, where, side)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        if self._wants_attention(params):
            query = await run_in_threadpool(self._with_attention, query, side)
        return self._render(
            request,
            picture=data_uri(thumbnail(query[..., ::-1])),
            matches=[
                {
                    'rank': match.rank,
                    'score': f'{match.score:.3f}',
                    'id': match.id,
                    'name': match.metadata['path']
                    .replace('\\', '/')
                    .rsplit('/', 1)[-1][-_MAX_NAME:],
                    'columns': {n: v for n, v in match.metadata.items() if n != 'path'},
                }
                for match in rankings[0]
            ],
        )

    def _wants_attention(self, form: Mapping[str, str]) -> bool:
        return self.shows_attention and form.get('attention') == '1'

    def _with_attention(self, pixels: np.ndarray, side: Columns) -> np.ndarray:
        """Attention rollout over a BGR picture, in the size that the model sees."""
        with self.lock:
            ((image, attention),) = self.inferencer.attend(pixels, metadata=side)
        return draw_rollout(image, attention)[..., ::-1]

    def _ranked(self, query: np.ndarray, k: int, where: dict | None, side: Columns) -> Rankings:
        with self.lock:
            return self.inferencer.search(query, self.gallery, k, where, side)

    def _side_information(self, params: QueryParams) -> Columns:
        """What the model needs to know of an uploaded picture."""
        columns = {}
        for name, count in self.side_information.items():
            text = params.get(f'query {name}', '').strip()
            if text not in map(str, range(count)):
                raise HTTPException(
                    400,
                    f'the model embeds {name}s: give the {name} of the picture, 0 to {count - 1}',
                )
            columns[name] = np.array([int(text)])
        return columns

    def _add(
        self,
        folder: Path,
        data: bytes,
        pixels: np.ndarray,
        suffix: str,
        metadata: dict[str, np.ndarray],
    ) -> int:
        # A name of our own: the uploaded one could point anywhere.
        file = folder.resolve() / f'{uuid.uuid4().hex}{suffix}'
        with self.lock:
            feature = self.inferencer(pixels, metadata).features
            columns = {'path': np.array([str(file)]), **metadata}
            with ExitStack() as undo:
                write_atomically(data, file)
                undo.callback(file.unlink)
                number = int(self.gallery.add(feature, metadata=columns)[0])
                undo.callback(self.gallery.remove, [number])
                if isinstance(self.gallery, GalleryIndex) and self.settings.gallery_dir is not None:
                    self.gallery.save(self.settings.gallery_dir)
                undo.pop_all()
        return number

    def _gallery_picture(self, number: int) -> tuple[np.ndarray, Columns]:
        """BGR pixels and side information of an image; only files the gallery names are read."""
        try:
            with self.lock:
                row = self.gallery.lookup([number])
        except (KeyError, OverflowError):
            raise HTTPException(404, f'the gallery has no picture {number}') from None
        file = resolve_image(str(row['path'][0]), self.settings.image_root)
        if file is None:
            raise HTTPException(404, f'the file of picture {number} is not on this machine')
        try:
            pixels = self.load({'img_path': os.fspath(file)})['img']
        except CorruptImageError:
            raise HTTPException(404, f'the file of picture {number} can not be read') from None
        return pixels, {name: row[name] for name in self.side_information}

    def _columns(self) -> dict[str, np.dtype]:
        return {name: t for name, t in self.gallery.column_types.items() if name != 'path'}

    def _render(
        self, request: Request, status: int = 200, message: str = '', **context: Any
    ) -> Response:
        """The page, with its forms as they were sent."""
        form = getattr(request.state, 'form', request.query_params)
        columns = self._columns()
        kept = {f'where {name}' for name in columns} | {'k', 'attention'}
        context = {
            'message': message,
            'form': form,
            'filters': urlencode(
                {name: text for name, text in form.items() if text and name in kept}
            ),
            # Which picture can be searched again: none that is not there.
            'query': next((n for n in ('upload', 'id') if n in form and status != 404), None),
            'columns': {name: _HINTS[dtype.kind] for name, dtype in columns.items()},
            'side_information': self.side_information,
            'count': len(self.gallery),
            'shows_attention': self.shows_attention,
            'attention': self._wants_attention(form),
            'may_add': self.settings.upload_dir is not None,
            'max_bytes': self.settings.max_upload_bytes,
            'default_matches': _DEFAULT_MATCHES,
            **context,
        }
        return self.templates.TemplateResponse(request, 'page.html', context, status_code=status)


_HINTS = {
    'b': 'yes or no',
    'i': '1, 2 or 3..7',
    'u': '1, 2 or 3..7',
    'f': '0.5..2',
    'U': 'this, that',
    'M': '2024-05-01..2024-05-03',
}


async def _file(form: FormData, name: str) -> bytes:
    upload = form.get(name)
    if not isinstance(upload, UploadFile) or not upload.filename:
        raise HTTPException(400, 'no picture was sent')
    return await upload.read()
