"""A photograph of a drawn thing as sellers take them: on some ground, turned, cut off, in some light, out of focus, as a JPEG.

Called by catalogue.py. Needs Pillow. Not aware of: what is drawn.
"""

import io
import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

LEAST_SIDE, MOST_SIDE = 96, 256  # pixels
SHARES = (0.7, 1.05)  # of the picture's side that the thing takes
TURN, SHIFT, LEAN = 12.0, 0.06, 0.1  # degrees; of the side; of a pixel across for each one down
CLUTTER, STICKER = 0.15, 0.15  # how often something else is in the picture, and something in front of the thing
NOISE, BLUR = 12.0, 1 / 70  # at most, of 255 and of the side
QUALITY = (30, 93)

Floats = NDArray[np.float32]


def photograph(drawing: Image.Image, other: Image.Image, random: Generator, side: int = 0) -> bytes:
    """A JPEG of `side` x `side`, drawn from LEAST_SIDE to MOST_SIDE if 0. `drawing`, `other` (what may lie behind): RGBA."""
    side = side or int(random.integers(LEAST_SIDE, MOST_SIDE + 1))
    scene = _ground(random, side)
    if random.random() < CLUTTER:
        angle, share = random.uniform(0, 2 * math.pi), random.uniform(0.3, 0.6)
        _put(scene, _seen(other, random, side, share, (0.55 * math.cos(angle), 0.55 * math.sin(angle))))
    shift = random.uniform(-SHIFT, SHIFT), random.uniform(-SHIFT, SHIFT)
    thing = _seen(drawing, random, side, random.uniform(*SHARES), shift)
    _shade(scene, thing, random)
    _put(scene, thing)
    if random.random() < STICKER:
        _stick(scene, random)
    pixels = _lit(np.asarray(scene, np.float32), random)
    taken = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(random.uniform(0, BLUR * side))
    )
    grain = random.uniform(0, NOISE) * random.standard_normal((side, side, 1), np.float32)
    noisy = (np.asarray(taken, np.float32) + grain).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=int(random.integers(*QUALITY)))
    return file.getvalue()


def _ground(random: Generator, side: int) -> Image.Image:
    """White as shops like it, of one colour, or of several."""
    kind = random.random()
    if kind < 0.3:
        cells = np.full((1, 1, 3), random.uniform(215, 255)) + random.uniform(-8, 8, 3)
    elif kind < 0.55:
        cells = random.uniform(20, 245, 3) + random.uniform(-40, 40, (2, 2, 1))
    elif kind < 0.8:
        cells = random.uniform(40, 220, 3) + random.uniform(
            -45, 45, (int(random.integers(3, 9)), int(random.integers(3, 9)), 3)
        )
    else:  # boards, and cloth with stripes
        cells = random.uniform(40, 220, 3) + random.uniform(-45, 45, (1, int(random.integers(4, 14)), 1))
    small = Image.fromarray(cells.clip(0, 255).astype(np.uint8))
    turned = small.transpose(Image.Transpose.ROTATE_90) if random.random() < 0.5 else small
    return turned.resize((side, side), Image.Resampling.NEAREST if kind >= 0.8 else Image.Resampling.BICUBIC)


def _seen(drawing: Image.Image, random: Generator, side: int, share: float, shift: tuple[float, float]) -> Image.Image:
    """In a picture of this side, its middle `shift` (of the side) beside the picture's; turned, leaning, perhaps mirrored."""
    angle = math.radians(random.uniform(-TURN, TURN))
    zoom = drawing.width / (share * side)
    mirror = 1.0 if random.random() < 0.5 else -1.0
    lean = random.uniform(-LEAN, LEAN)
    across = mirror * zoom * math.cos(angle), mirror * zoom * (math.sin(angle) + lean * math.cos(angle))
    down = -zoom * math.sin(angle), zoom * (math.cos(angle) - lean * math.sin(angle))
    x, y = side * (0.5 + shift[0]), side * (0.5 + shift[1])
    middle = drawing.width / 2
    places = (*across, middle - across[0] * x - across[1] * y, *down, middle - down[0] * x - down[1] * y)
    return drawing.transform((side, side), Image.Transform.AFFINE, places, Image.Resampling.BILINEAR)


def _put(scene: Image.Image, thing: Image.Image) -> None:
    scene.paste(thing, (0, 0), thing)


def _shade(scene: Image.Image, thing: Image.Image, random: Generator) -> None:
    side = scene.width
    depth = random.uniform(0.0, 0.5)
    shadow = thing.getchannel("A").point(lambda cover: int(cover * depth)).filter(ImageFilter.GaussianBlur(side / 30))
    at = tuple(int(side * part) for part in random.uniform(-0.05, 0.05, 2))
    scene.paste((0, 0, 0), (at[0], at[1], at[0] + side, at[1] + side), shadow)


def _stick(scene: Image.Image, random: Generator) -> None:
    """A price tag, or a finger: something plain that hides a part."""
    side = scene.width
    width, height = (random.uniform(0.12, 0.32, 2) * side).astype(int).tolist()
    left, top = (int(random.uniform(-0.1, 0.9) * side) for _ in range(2))
    colour = tuple(random.integers(0, 256, 3).tolist())
    scene.paste(colour, (left, top, left + width, top + height))


def _lit(pixels: Floats, random: Generator) -> Floats:
    """From one side, in light of some colour, and as the camera's curve has it."""
    side = len(pixels)
    angle, depth = random.uniform(0, 2 * math.pi), random.uniform(0, 0.35)
    along = np.linspace(-1, 1, side, dtype=np.float32)
    light = 1 + depth * (math.cos(angle) * along[None, :] + math.sin(angle) * along[:, None])
    tint = (random.uniform(0.65, 1.2) * random.uniform(0.88, 1.12, 3)).astype(np.float32)
    lit = (pixels * (light[..., None] * tint) / 255).clip(0, 1)
    curved: Floats = 255 * lit ** np.float32(random.uniform(0.75, 1.35))
    return curved
