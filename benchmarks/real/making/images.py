"""Images as models take them: parts of scikit-learn's two photographs in several sizes, and lines of text drawn on them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn import datasets

from benchmarks.real.making.places import Places
from benchmarks.real.making.texts import Request, english

Pixels = NDArray[np.float32]

PAGES = ((192, 320), (256, 256), (320, 192), (256, 384), (320, 320), (160, 480))  # height and width: multiples of 32
LINES, LINE_HEIGHT = 24, 48
NARROWEST, WIDEST = 96, 480
PHOTOS = ((320, 320), (256, 320), (320, 256))
SQUARES, CAPTCHAS, NARROW_LINES = 12, 24, 16
NSFW_SIDE, NSFW_MEAN = 224, (104.0, 117.0, 123.0)  # BGR
CAPTCHA_SIZE, LETTERS = (160, 60), "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"


def _photo(random: np.random.Generator, height: int, width: int) -> Image.Image:
    """A random part of one of the two photographs, scaled."""
    image = Image.fromarray(datasets.load_sample_images().images[int(random.integers(2))])
    share = float(random.uniform(0.5, 1.0))
    size = int(image.width * share), int(image.height * share)
    left, top = (int(random.integers(0, whole - part + 1)) for whole, part in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1])).resize((width, height), Image.Resampling.BILINEAR)


def _write(image: Image.Image, text: str, size: int, at: tuple[int, int], colour: tuple[int, int, int]) -> Image.Image:
    ImageDraw.Draw(image).text(at, text, fill=colour, font=ImageFont.load_default(size))
    return image


def _line(random: np.random.Generator, width: int) -> Image.Image:
    """A line of a page: black on nearly white."""
    words = english().split()
    start = int(random.integers(0, len(words) - 20))
    page = Image.new("RGB", (width, LINE_HEIGHT), (246, 244, 238))
    return _write(page, " ".join(words[start : start + 12]), 30, (4, 6), (20, 20, 24))


def _channels_first(image: Image.Image, mean: float = 0.0, scale: float = 1.0) -> Pixels:
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None]
    return np.ascontiguousarray((pixels / scale - mean) / (mean or 1.0), np.float32)


def pages(places: Places, model: Path) -> Iterator[Request]:
    random = np.random.default_rng(736)
    words = english().split()
    for number, (height, width) in enumerate(PAGES * 2):
        page = _photo(random, height, width)
        for row in range(20, height - 30, 60):
            page = _write(page, " ".join(words[number * 40 + row : number * 40 + row + 6]), 22, (10, row), (255, 255, 255))
        yield {"x": _channels_first(page, 0.5, 255.0)}


def lines(places: Places, model: Path) -> Iterator[Request]:
    random = np.random.default_rng(LINE_HEIGHT)
    for width in random.integers(NARROWEST // 16, WIDEST // 16 + 1, LINES) * 16:
        yield {"x": _channels_first(_line(random, int(width)), 0.5, 255.0)}


def line_strips(places: Places, model: Path) -> Iterator[Request]:
    random = np.random.default_rng(192)
    for number in range(LINES):
        line = _line(random, 192).rotate(180 * (number % 2))
        yield {"x": _channels_first(line, 0.5, 255.0)}


def narrow_lines(places: Places, model: Path) -> Iterator[Request]:
    random = np.random.default_rng(64)
    for width in random.integers(100, 241, NARROW_LINES):
        grey = _line(random, int(width)).convert("L").resize((int(width), 64), Image.Resampling.BILINEAR)
        yield {"input1": np.asarray(grey, np.float32)[None, None] / np.float32(255.0)}


def photos(places: Places, model: Path) -> Iterator[Request]:
    random = np.random.default_rng(320)
    for height, width in PHOTOS * 4:
        yield {"images": _channels_first(_photo(random, height, width), scale=255.0)}


def squares(places: Places, model: Path) -> Iterator[Request]:
    random = np.random.default_rng(NSFW_SIDE)
    for _ in range(SQUARES):
        pixels = np.asarray(_photo(random, NSFW_SIDE, NSFW_SIDE), np.float32)
        yield {"input_0": np.ascontiguousarray(pixels[None, :, :, ::-1] - np.array(NSFW_MEAN, np.float32))}


def captchas(places: Places, model: Path) -> Iterator[Request]:
    random = np.random.default_rng(CAPTCHA_SIZE[1])
    for _ in range(CAPTCHAS):
        text = " ".join(LETTERS[int(letter)] for letter in random.integers(0, len(LETTERS), 5))
        image = _write(_photo(random, CAPTCHA_SIZE[1], CAPTCHA_SIZE[0]), text, 34, (8, 8), (250, 250, 250))
        yield {"image": np.ascontiguousarray(_channels_first(image)[:, ::-1])}
