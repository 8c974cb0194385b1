"""What stands between the network and the page: hosts, origins, token, sizes, headers."""

from __future__ import annotations

import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    # Nothing but the page's own style, script and pictures: what an index or a file name holds
    # can't load or run anything.
    'Content-Security-Policy': (
        "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'same-origin',
    'Cache-Control': 'no-store',
}
_COOKIE = 'vitdown_session'
TOO_MANY = 'too many wrong tokens: try again in a minute'
_OPEN_PATHS = ('/login', '/static/')
# Wrong tokens that an address may give in so many seconds, and addresses remembered
_MAX_WRONG, _PERIOD, _MAX_CLIENTS = 10, 60.0, 1000


class SecurityHeaders:
    """Tells browsers to keep to what the page itself brings, and not to store answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message['type'] == 'http.response.start':
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class SameOrigin:
    """Refuses forms that another site's page sends in the user's name."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] == 'http' and scope['method'] not in ('GET', 'HEAD'):
            headers = Headers(scope=scope)
            origin = headers.get('origin')
            foreign = origin is not None and origin.partition('://')[2] != headers.get('host')
            if foreign or headers.get('sec-fetch-site') == 'cross-site':
                response = PlainTextResponse('the form was sent by another site', 403)
                return await response(scope, receive, send)
        return await self.app(scope, receive, send)


class TokenGuard:
    """Lets in who has the token, as ``Authorization: Bearer`` or by the login form's cookie.

    Who gives ten wrong ones in a minute has to wait; sessions that are open go on.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token
        # The cookie isn't the token, and ends with the process.
        self.session = secrets.token_urlsafe(32)
        # By client address: when its last wrong tokens came
        self._wrong: dict[str, list[float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http' or scope['path'].startswith(_OPEN_PATHS):
            scope['token_guard'] = self
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        # Other servers of this host send cookies of any shape.
        session = cookie_parser(headers.get('cookie', '')).get(_COOKIE, '')
        # Headers are bytes that Starlette reads as Latin-1.
        bearer = headers.get('authorization', '').removeprefix('Bearer ').encode('latin-1')
        status = 200 if _equal(session, self.session) else self.answer_to(bearer, scope)
        if status == 200:
            return await self.app(scope, receive, send)
        if status == 429:
            return await PlainTextResponse(TOO_MANY, status)(scope, receive, send)
        if scope['method'] == 'GET' and scope['path'] == '/':
            return await RedirectResponse('/login', 303)(scope, receive, send)
        return await PlainTextResponse('a token is needed', 401)(scope, receive, send)

    def answer_to(self, token: str | bytes, scope: Scope) -> int:
        """HTTP status for a token: 200 if it is right, 401 if not, 429 after too many wrong ones.

        The time it takes doesn't tell how much of the token is right.
        """
        address, now = (scope.get('client') or ('',))[0], time.monotonic()
        wrong = [when for when in self._wrong.pop(address, ()) if now - when < _PERIOD]
        status = 429 if len(wrong) >= _MAX_WRONG else 200 if _equal(token, self.token) else 401
        if status == 401 and token:
            wrong.append(now)
        if wrong:
            self._wrong[address] = wrong
            if len(self._wrong) > _MAX_CLIENTS:
                del self._wrong[next(iter(self._wrong))]
        return status

    def admitted(self) -> RedirectResponse:
        """To the page, with the session's cookie."""
        response = RedirectResponse('/', 303)
        response.set_cookie(_COOKIE, self.session, httponly=True, samesite='strict')
        return response


class BodyLimit:
    """Ends requests whose body is larger than allowed, before it is all here."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get('body', b''))
            if received > self.max_bytes:
                raise HTTPException(413, f'more than {self.max_bytes / 1e6:g} MB were sent')
            return message

        await self.app(scope, limited, send)


def _equal(given: str | bytes, expected: str) -> bool:
    return secrets.compare_digest(_encoded(given), _encoded(expected))


def _encoded(text: str | bytes) -> bytes:
    # Environment variables may hold bytes that are no UTF-8.
    return text if isinstance(text, bytes) else text.encode('utf-8', 'surrogateescape')
