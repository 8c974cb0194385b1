"""Cameras, and what they see: a figure before a background, badly lit and partly hidden."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from PIL import Image, ImageFilter

from . import person, vehicle
from .canvas import Canvas, Colour, shade
from .identity import Identity

KINDS: dict[str, ModuleType] = {'person': person, 'vehicle': vehicle}

_SUPERSAMPLING = 4
_PLACES = ('street', 'park', 'hall', 'yard')


@dataclass(frozen=True)
class Camera:
    """Where a camera hangs and how it distorts what it sees.

    Attributes:
        place: Kind of background.
        wall: Colour of the upper background.
        floor: Colour of the lower background.
        horizon: Height of the border between them, as a fraction of the picture.
        gain: Factor for each of red, green and blue.
        gamma: Exponent of the tone curve.
        contrast: Factor around mid-grey.
        light: Direction (radians) from which the picture is lit.
        falloff: Relative loss of light over the picture.
        tilt: Slant of upright things.
        blur: Standard deviation of the blur, as a fraction of the picture's height.
        noise: Standard deviation of the noise, in grey levels of 255.
        quality: JPEG quality.
    """

    place: str
    wall: Colour
    floor: Colour
    horizon: float
    gain: tuple[float, float, float]
    gamma: float
    contrast: float
    light: float
    falloff: float
    tilt: float
    blur: float
    noise: float
    quality: int


def invent_cameras(rng: np.random.Generator, count: int) -> list[Camera]:
    """Invent cameras whose places and colour casts differ."""
    cameras = []
    phase = rng.uniform(0, 2 * math.pi)
    for index in range(count):
        hue = phase + 2 * math.pi * index / count
        cast = rng.uniform(0.08, 0.15)
        red, green, blue = (1 + cast * math.cos(hue + k * 2 * math.pi / 3) for k in range(3))
        cameras.append(
            Camera(
                place=_PLACES[index % len(_PLACES)],
                wall=_muted(rng, 90, 200),
                floor=_muted(rng, 80, 170),
                horizon=float(rng.uniform(0.45, 0.7)),
                gain=(red, green, blue),
                gamma=float(math.exp(rng.uniform(-0.3, 0.3))),
                contrast=float(rng.uniform(0.72, 1.15)),
                light=float(rng.uniform(0, 2 * math.pi)),
                falloff=float(rng.uniform(0.1, 0.45)),
                tilt=float(rng.uniform(-0.1, 0.1)),
                blur=float(rng.uniform(0.0, 0.006)),
                noise=float(rng.uniform(2, 8)),
                quality=int(rng.integers(78, 93)),
            )
        )
    return cameras


def render_view(
    rng: np.random.Generator,
    kind: str,
    identity: Identity,
    camera: Camera,
    image_size: tuple[int, int],
    cropped: bool = False,
) -> bytes:
    """Render one detection of an identity.

    Args:
        rng: Source of pose, placement, occlusion and noise.
        kind: Key of :data:`KINDS`.
        identity: Who or what is seen.
        camera: The camera that sees it.
        image_size: (H, W) in pixels.
        cropped: Make it a bad detection that shows a fragment only.

    Returns:
        An encoded JPEG.
    """
    picture = _background(rng, camera, image_size)
    scale = _figure_scale(kind, image_size)
    figure = _lit(rng, KINDS[kind].draw(rng, identity, scale).image)
    _place(rng, picture, figure, camera, cropped)
    if rng.random() < 0.4:
        _occlude(rng, picture)
    return _expose(rng, picture.image, camera, image_size)


def render_distractor(
    rng: np.random.Generator, camera: Camera, image_size: tuple[int, int]
) -> bytes:
    """Render a false detection: background and stray objects. Returns an encoded JPEG."""
    picture = _background(rng, camera, image_size)
    for _ in range(rng.integers(1, 4)):
        _occlude(rng, picture)
    return _expose(rng, picture.image, camera, image_size)


def _muted(rng: np.random.Generator, low: float, high: float) -> Colour:
    grey = rng.uniform(low, high)
    red, green, blue = np.clip(grey + rng.uniform(-28, 28, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _figure_scale(kind: str, image_size: tuple[int, int]) -> float:
    height, width = image_size
    module = KINDS[kind]
    return _SUPERSAMPLING * min(height / module.HEIGHT, width / module.WIDTH)


def _background(rng: np.random.Generator, camera: Camera, image_size: tuple[int, int]) -> Canvas:
    """Draw the camera's place, seen a little differently each time; 100 units high."""
    height, width = image_size
    wide = 100.0 * width / height
    canvas = Canvas(wide, 100.0, _SUPERSAMPLING * height / 100.0, background=camera.wall)
    horizon = 100 * camera.horizon + rng.uniform(-6, 6)
    shift = rng.uniform(0, 40)
    dark, light = shade(camera.wall, 0.75), shade(camera.wall, 1.4)
    canvas.rectangle(0, horizon, wide, 100, camera.floor)
    if camera.place == 'street':
        for x in np.arange(-shift, wide, 40).tolist():
            canvas.rectangle(x, 8, x + 14, horizon - 18, dark)
            canvas.rectangle(x + 20, 8, x + 34, horizon - 18, light)
        canvas.rectangle(0, horizon - 2, wide, horizon + 2, shade(camera.floor, 1.6))
    elif camera.place == 'park':
        for x in np.arange(-shift, wide + 20, 26).tolist():
            canvas.line([(x, horizon), (x, horizon - 26)], 4, (92, 72, 54))
            canvas.ellipse(x, horizon - 34, 13, 17, (72, 112 + int(shift), 62))
    elif camera.place == 'hall':
        for x in np.arange(-shift, wide + 20, 20).tolist():
            canvas.line([(x, 0), (x, horizon)], 1.2, dark)
            canvas.line([(x, horizon), (x * 2 - wide / 2, 100)], 1.0, shade(camera.floor, 0.7))
        for y in np.arange(shift / 2 - 20, horizon, 20).tolist():
            canvas.line([(0, y), (wide, y)], 1.2, dark)
    else:
        for x in np.arange(-shift, wide, 9).tolist():
            canvas.rectangle(x, 12, x + 4.5, horizon, light)
        canvas.rectangle(0, 24, wide, 28, dark)
        canvas.rectangle(0, horizon - 14, wide, horizon - 10, dark)
    return canvas


def _lit(rng: np.random.Generator, figure: Image.Image) -> Image.Image:
    """Shade a figure from one side and change its exposure a little."""
    pixels = np.asarray(figure, dtype=np.float32).copy()
    ramp = np.linspace(-1, 1, pixels.shape[1], dtype=np.float32) * rng.uniform(-0.22, 0.22)
    pixels[..., :3] *= (rng.uniform(0.88, 1.1) + ramp)[None, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _place(
    rng: np.random.Generator, picture: Canvas, figure: Image.Image, camera: Camera, cropped: bool
) -> None:
    """Paste a figure with a random position, size, slant and perspective."""
    width, height = picture.image.size
    zoom = rng.uniform(1.6, 2.4) if cropped else rng.uniform(0.84, 1.04)
    span_x, span_y = zoom * figure.width / 2, zoom * figure.height / 2
    slack = 0.45 if cropped else 0.05
    middle_x = width / 2 + rng.uniform(-slack, slack) * width
    middle_y = height / 2 + rng.uniform(-slack, slack) * height
    slant = (camera.tilt + rng.uniform(-0.05, 0.05)) * span_y
    taper = rng.uniform(-0.08, 0.08)
    aspect = rng.uniform(0.93, 1.07)
    corners = [
        (
            middle_x + sx * aspect * span_x * (1 + sy * taper) - sy * slant,
            middle_y + sy * span_y * (1 + sx * taper * 0.5),
        )
        for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    source = [(0, 0), (figure.width, 0), (figure.width, figure.height), (0, figure.height)]
    warped = figure.transform(
        (width, height),
        Image.Transform.PERSPECTIVE,
        _homography(corners, source),
        Image.Resampling.BILINEAR,
    )
    picture.image.alpha_composite(warped)


def _homography(target: list, source: list) -> list[float]:
    """The 8 coefficients that map target corners to source corners, as PIL wants them."""
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows), np.array(values)).tolist()


def _occlude(rng: np.random.Generator, picture: Canvas) -> None:
    """Put something before the figure: a pole, a barrier, a bush, a bystander or a crate."""
    wide = picture.width
    colour = _muted(rng, 50, 190)
    what = rng.integers(5)
    if what == 0:
        x = rng.uniform(0.05, 0.95) * wide
        picture.rectangle(x, 0, x + 0.1 * wide, 100, colour)
        picture.rectangle(x, 0, x + 0.03 * wide, 100, shade(colour, 1.4))
    elif what == 1:
        y = rng.uniform(45, 92)
        picture.rectangle(0, y, wide, y + 5, colour)
        for x in np.arange(0, wide, wide / 5).tolist():
            picture.rectangle(x, y, x + wide / 10, y + 5, shade(colour, 1.8))
    elif what == 2:
        x, radius = rng.uniform(0, 1) * wide, 0.13 * wide
        for _ in range(9):
            dx, dy = rng.uniform(-1, 1, 2)
            green = shade((58, 112, 52), rng.uniform(0.7, 1.2))
            picture.ellipse(x + dx * 0.2 * wide, 94 + dy * 8, radius, radius, green)
    elif what == 3:
        x = wide * (rng.uniform(-0.1, 0.06) if rng.random() < 0.5 else rng.uniform(0.94, 1.1))
        picture.ellipse(x, 22, 7, 8, _muted(rng, 60, 200))
        picture.line([(x, 40), (x, 60)], 22, colour)
        picture.rectangle(x - 10, 60, x + 10, 100, shade(colour, 0.6))
    else:
        x, y = rng.uniform(-0.1, 0.8) * wide, rng.uniform(70, 88)
        picture.rectangle(x, y, x + 0.32 * wide, 100, colour)
        picture.line([(x, y), (x + 0.32 * wide, 100)], 1.5, shade(colour, 0.6))


def _expose(
    rng: np.random.Generator, image: Image.Image, camera: Camera, image_size: tuple[int, int]
) -> bytes:
    """Apply the camera's optics, sensor and encoder."""
    height, width = image_size
    image = image.convert('RGB').resize((width, height), Image.Resampling.BOX)
    blur = (camera.blur + rng.uniform(0, 0.003)) * height
    if blur > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image, dtype=np.float64) / 255
    rows, columns = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    slope = columns * math.cos(camera.light) + rows * math.sin(camera.light)
    pixels *= (1 + 2 * camera.falloff * slope * rng.uniform(0.5, 1.0))[..., None]
    pixels = pixels.clip(0, 1) ** (camera.gamma * rng.uniform(0.9, 1.1))
    pixels = (pixels - 0.5) * camera.contrast + 0.5 + rng.uniform(-0.06, 0.06)
    pixels *= np.array(camera.gain) * rng.uniform(0.95, 1.05, 3)
    pixels += rng.normal(0, camera.noise / 255, pixels.shape)
    levels = (pixels * 255).round().clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, format='JPEG', quality=camera.quality)
    return stream.getvalue()
