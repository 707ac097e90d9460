"""Steps on images: encoded bytes to pixels, pixels in another size, pixels as the numbers that models take.

Named in the table of steps; needs Pillow. An image is [height, width, channels]. Not aware of: models.
"""

import io
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.config.traits import knob
from dlproxy.config.values import ConfigError
from dlproxy.steps.boxes import mapped_back
from dlproxy.steps.options import checked
from dlproxy.steps.values import Floats, array_of, element_of, image_of, numbers_of, shape

try:
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError:
    raise ConfigError("steps on images need Pillow: pip install 'dlproxy[steps]'", "steps") from None

Image.init()  # else the first request would load its readers
MOST_PIXELS = 1 << 25  # 96 MiB of RGB
MARGIN = 0.25  # of its sides, around an image: no corner of a crop is farther out
_NO_WARNING = 89_000_000  # from here on Pillow warns of decompression bombs by itself
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # of Pillow's many, those that clients send
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Arrays = dict[str, NDArray[Any]]
Pixels = NDArray[np.uint8]
Doubles = NDArray[np.float64]


class Decode:
    """An image of a JPEG, PNG, WebP, AVIF, GIF (its first picture), BMP or TIFF file, turned upright as its EXIF data say.

    Transparency is left out, 16 bits a channel become 8.
    """

    class Options(Struct, frozen=True):
        colours: Annotated[Literal["RGB", "BGR", "gray"], knob("the channels and their order")] = "RGB"
        least_side: Annotated[
            int,
            knob(
                "JPEGs are read 2, 4 or 8 times smaller, as long as no side gets shorter than this, which is several times "
                "quicker; twice of what they are resized to changes hardly a pixel. 0: as they are",
                ge=0,
            ),
        ] = 0
        max_pixels: Annotated[int, knob("larger images are refused before they take memory", ge=1, le=_NO_WARNING)] = (
            MOST_PIXELS
        )

    outputs = {"image": "UINT8[-1,-1,-1]"}

    def __init__(self, **options: Any) -> None:
        self._options = checked(self.Options, options)
        self.outputs = {"image": f"UINT8[-1,-1,{1 if self._options.colours == 'gray' else 3}]"}

    def __call__(self, image: Any) -> Arrays:
        """image: BYTES of one element, or the file's bytes as UINT8."""
        data = element_of("image", image)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as file:
                self._check_size(*file.size)
                if self._options.least_side:
                    file.draft(None, (self._options.least_side, self._options.least_side))
                pixels = self._pixels(ImageOps.exif_transpose(file))
        except _TooLargeError as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # of the many that Pillow's readers raise for bytes that are no image
            what = "no image of a known format" if isinstance(error, UnidentifiedImageError) else f"not readable: {error}"
            raise ValueError(f"image: {len(data)} bytes that are {what}") from error
        return {"image": pixels[..., ::-1].copy() if self._options.colours == "BGR" else pixels}

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._options.max_pixels:
            raise _TooLargeError(f"the image has {width} x {height} pixels, and max_pixels is {self._options.max_pixels}")

    def _pixels(self, image: Image.Image) -> Pixels:
        if image.mode.startswith("I"):  # which Pillow would cut off at 255
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        if self._options.colours == "gray":
            return np.asarray(image.convert("L"))[..., None]
        return np.asarray(image.convert("RGB"))


class _TooLargeError(ValueError):
    pass


class Place(NamedTuple):
    """Where an image goes. `size`: of what is given, (height, width); `scaled`: of the image in it, at `at` from the top left;
    `part`: of the image that is used, (left, top, right, bottom).
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    at: tuple[int, int]
    part: tuple[float, float, float, float]


class Resize:
    """An image in another size, with antialiasing. What was at x, y is afterwards at x * scale[0] + offset[0],
    y * scale[1] + offset[1]; image.crop and boxes.nms take both to map boxes back.
    """

    class Options(Struct, frozen=True):
        size: Annotated[
            int | tuple[int, int],
            knob("of both sides, or [height, width]; 0 for a side: as the other one and the proportions have it"),
        ]
        fit: Annotated[
            Literal["stretch", "pad", "crop", "inside", "outside"],
            knob(
                "stretch: exactly this size; pad: the whole image in it, with its proportions, the rest filled; crop: filled "
                "by the middle of the image; inside, outside: in its proportions, neither side longer, or neither shorter"
            ),
        ] = "stretch"
        only: Annotated[
            Literal["", "shrink", "grow"], knob("with inside and outside: leave images as they are that would grow, or shrink")
        ] = ""
        multiple_of: Annotated[
            int, knob("what sides are rounded to which the size leaves open, as detectors need it", ge=1, le=1024)
        ] = 1
        filter: Annotated[Literal["nearest", "box", "bilinear", "bicubic", "lanczos"], knob("how pixels are made")] = "bilinear"
        fill: Annotated[int, knob("with pad: the colour around the image", ge=0, le=255)] = 0
        place: Annotated[Literal["centre", "corner"], knob("with pad: where the image is; the corner is the top left one")] = (
            "centre"
        )
        crop_share: Annotated[
            float, knob("with crop: the share of the shorter side that is kept, such as 0.875 for many classifiers", gt=0, le=1)
        ] = 1.0
        max_pixels: Annotated[int, knob("of the result, and of the image in its new width; more are refused", ge=1)] = (
            MOST_PIXELS
        )

    outputs = {"image": "UINT8[-1,-1,-1]", "scale": "FP32[2]", "offset": "FP32[2]"}

    def __init__(self, **options: Any) -> None:
        self._options = given = checked(self.Options, options)
        self._size = size = given.size if isinstance(given.size, tuple) else (given.size, given.size)
        if min(size) < 0 or max(size) == 0:
            raise ConfigError(
                "options.size: it is the length of both sides, or [height, width], of which one may be 0", "steps"
            )
        if given.only and given.fit not in ("inside", "outside"):
            raise ConfigError("options.only: it has an effect only with fit = inside or outside", "steps")
        if given.multiple_of > 1 and min(size) > 0 and given.fit not in ("inside", "outside"):
            raise ConfigError("options.multiple_of: the size leaves no side open; see fit = inside and outside", "steps")
        open_sides = min(size) > 0 and given.fit in ("inside", "outside")
        sizes = [-1 if open_sides or not side else side for side in size]
        self.outputs = {**Resize.outputs, "image": f"UINT8[{sizes[0]},{sizes[1]},-1]"}

    def __call__(self, image: Any) -> Arrays:
        """image: UINT8 [height, width, 1 or 3]."""
        pixels = image_of("image", image)
        height, width, channels = pixels.shape
        _check_plain(pixels)
        place = self._place(height, width)
        between = height * place.scaled[1]  # Pillow changes the width first
        if max(place.size[0] * place.size[1], between) > self._options.max_pixels:
            raise ValueError(
                f"an image of {width} x {height} would become {place.size[1]} x {place.size[0]}, and max_pixels is "
                f"{self._options.max_pixels}"
            )
        source = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        scaled = np.asarray(source.resize(place.scaled[::-1], FILTERS[self._options.filter], place.part))
        scaled = scaled.reshape(*place.scaled, channels)
        if place.scaled != place.size:
            canvas = np.full((*place.size, channels), self._options.fill, np.uint8)
            canvas[place.at[0] : place.at[0] + place.scaled[0], place.at[1] : place.at[1] + place.scaled[1]] = scaled
            scaled = canvas
        left, top, right, bottom = place.part
        scale = np.array([place.scaled[1] / (right - left), place.scaled[0] / (bottom - top)], np.float32)
        offset = np.array([place.at[1] - left * scale[0], place.at[0] - top * scale[1]], np.float32)
        return {"image": scaled, "scale": scale, "offset": offset}

    def _place(self, height: int, width: int) -> Place:
        options, (rows, columns) = self._options, self._size
        factors = [wanted / side for wanted, side in ((rows, height), (columns, width)) if wanted]
        whole = (0.0, 0.0, float(width), float(height))
        if len(factors) == 1 or options.fit in ("inside", "outside"):
            factor = max(factors) if options.fit == "outside" else min(factors)
            if options.only:
                factor = min(factor, 1.0) if options.only == "shrink" else max(factor, 1.0)
            fixed = self._size if len(factors) == 1 else (0, 0)
            size = fixed[0] or self._rounded(height * factor), fixed[1] or self._rounded(width * factor)
            return Place(size, size, (0, 0), whole)
        if options.fit == "pad":
            factor = min(factors)
            scaled = max(round(height * factor), 1), max(round(width * factor), 1)
            rest = rows - scaled[0], columns - scaled[1]
            return Place(self._size, scaled, (rest[0] // 2, rest[1] // 2) if options.place == "centre" else (0, 0), whole)
        if options.fit == "crop":
            factor = max(factors) / options.crop_share
            left, top = (width - columns / factor) / 2, (height - rows / factor) / 2
            part = (max(left, 0.0), max(top, 0.0), min(width - left, width), min(height - top, height))
            return Place(self._size, self._size, (0, 0), part)
        return Place(self._size, self._size, (0, 0), whole)

    def _rounded(self, side: float) -> int:
        step = self._options.multiple_of
        return max(round(side / step), 1) * step


def _check_plain(image: NDArray[Any]) -> None:
    if image.dtype != np.uint8 or image.shape[2] not in (1, 3):
        raise ValueError(f"image is {image.dtype}{shape(image)}, and the step takes UINT8 of 1 or 3 channels")


class Normalise:
    """Pixels as the numbers that a model takes: (pixel * scale - mean) / std, channels first unless said otherwise."""

    class Options(Struct, frozen=True):
        mean: Annotated[tuple[float, ...], knob("of each channel, or one for all; after scaling")] = (0.0,)
        std: Annotated[tuple[float, ...], knob("of each channel, or one for all; after scaling")] = (1.0,)
        scale: Annotated[float, knob("pixels are multiplied by it first")] = 1 / 255
        layout: Annotated[Literal["NCHW", "NHWC", "CHW", "HWC"], knob("order of the axes; N is a row of one image")] = "NCHW"
        type: Annotated[Literal["FP32", "FP16"], knob("of the numbers")] = "FP32"

    outputs = {"image": "FP32[-1,-1,-1,-1]"}

    def __init__(self, **options: Any) -> None:
        given = checked(self.Options, options)
        if not given.mean or not given.std or 0.0 in given.std:
            raise ConfigError("options.mean and options.std: a number for each channel, or one for all; std is not 0", "steps")
        if len({len(given.mean), len(given.std)} - {1}) > 1:
            raise ConfigError(f"options.mean is for {len(given.mean)} channels, options.std for {len(given.std)}", "steps")
        std = np.array(given.std, np.float64)
        both = np.broadcast_arrays(given.scale / std, -np.array(given.mean) / std)
        self._factor, self._shift = (part.astype(np.float32) for part in both)
        self._layout, self._dtype = given.layout, np.float16 if given.type == "FP16" else np.float32
        channels = len(self._factor) if len(self._factor) > 1 else -1
        sizes = ",".join({"N": "-1", "C": str(channels)}.get(axis, "-1") for axis in given.layout)
        self.outputs = {"image": f"{given.type}[{sizes}]"}

    def __call__(self, image: Any) -> Arrays:
        """image: numbers [height, width, channels], or several of one size [n, height, width, channels]."""
        pixels = array_of("image", image)
        many = pixels.ndim == 4 and "N" in self._layout
        if not many:
            pixels = image_of("image", pixels)[None]
        channels = pixels.shape[3]
        if len(self._factor) not in (1, channels):
            raise ValueError(f"image has {channels} channels, and mean and std are for {len(self._factor)}")
        axes = (0, 3, 1, 2) if "CHW" in self._layout else (0, 1, 2, 3)
        per_channel = (-1, 1, 1) if "CHW" in self._layout else (-1,)
        numbers = self._scaled(pixels.transpose(axes), self._factor.reshape(per_channel), self._shift.reshape(per_channel))
        return {"image": numbers if "N" in self._layout else numbers[0]}

    def _scaled(self, pixels: NDArray[Any], factor: Floats, shift: Floats) -> NDArray[Any]:
        numbers = np.empty(pixels.shape, np.float32)
        np.multiply(pixels, factor, out=numbers, casting="unsafe")
        numbers += shift
        return numbers.astype(self._dtype, copy=False)


class Crop:
    """The parts of an image that boxes frame, as a list, in the order of the boxes. Those of four corners are made upright.

    What lies outside of the image is left out, or, with corners, shown as the pixels at its edge. No crop is empty.
    """

    class Options(Struct, frozen=True):
        grow: Annotated[float, knob("boxes are made larger by this share of their sides", ge=0, le=10)] = 0.0
        turn: Annotated[
            float,
            knob(
                "crops at least so many times as high as wide are turned to the left, as lines of text need it; 0: none", ge=0
            ),
        ] = 0.0
        max_pixels: Annotated[int, knob("of all crops of one image; more are refused", ge=1)] = MOST_PIXELS

    outputs = {"crops": "UINT8[-1,-1,-1]"}

    def __init__(self, **options: Any) -> None:
        self._options = checked(self.Options, options)

    def __call__(self, image: Any, boxes: Any, scale: Any = None, offset: Any = None) -> dict[str, list[Pixels]]:
        """image: UINT8 [height, width, 1 or 3]. boxes: left, top, right, bottom [n, 4]; or corners, clockwise from the top
        left one, [n, 4, 2] or [n, 8]; a first axis of 1 is left out. scale, offset: of image.resize, if boxes are in its image.
        """
        pixels = image_of("image", image)
        _check_plain(pixels)
        with np.errstate(over="ignore", invalid="ignore"):
            corners = mapped_back(_corners("boxes", boxes), scale, offset).astype(np.float64)
        if not np.isfinite(corners).all():
            raise ValueError("boxes holds numbers that are not finite")
        middle = corners.mean(axis=1, keepdims=True)
        corners = middle + (corners - middle) * (1.0 + self._options.grow)
        sizes = _sizes(corners, pixels.shape[1], pixels.shape[0])
        total = int(sizes.prod(axis=1).sum())
        if total > self._options.max_pixels:
            raise ValueError(
                f"the {len(corners)} crops would have {total} pixels, and max_pixels is {self._options.max_pixels}"
            )
        places = zip(corners, sizes.astype(int).tolist(), strict=True)
        if corners.shape[1] == 2:
            crops = [cropped(pixels, *place) for place in places]
        else:
            sheet = Sheet(pixels, corners)
            crops = [sheet.warped(*place) for place in places]
        return {"crops": [self._turned(crop) for crop in crops]}

    def _turned(self, crop: Pixels) -> Pixels:
        if self._options.turn and crop.shape[0] >= self._options.turn * crop.shape[1]:
            return np.ascontiguousarray(np.rot90(crop))
        return crop


def _corners(name: str, value: Any) -> Floats:
    """[n, 2 or 4, 2]."""
    boxes = numbers_of(name, value)
    if not boxes.size:
        return np.zeros((0, 2, 2), np.float32)
    found = boxes[0] if boxes.shape[0] == 1 and (boxes.ndim == 4 or (boxes.ndim == 3 and boxes.shape[2] in (4, 8))) else boxes
    if found.shape[1:] not in ((4,), (8,), (4, 2)):
        raise ValueError(f"{name} is {shape(boxes)}, and boxes are [n, 4], or corners [n, 4, 2] or [n, 8]")
    return found.reshape(len(found), -1, 2)


def _sizes(corners: Doubles, width: int, height: int) -> Doubles:
    """Of the crops, (height, width): at least 1."""
    if corners.shape[1] == 2:
        edges = np.array([width, height])
        found = np.diff(np.clip(np.rint(corners), 0, edges), axis=1)[:, 0]
    else:
        sides = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2)  # top, right, bottom, left
        found = np.rint(np.stack([np.maximum(sides[:, 0], sides[:, 2]), np.maximum(sides[:, 1], sides[:, 3])], axis=1))
    return np.maximum(found, 1)[:, ::-1]


def cropped(image: Pixels, corners: Doubles, size: tuple[int, int]) -> Pixels:
    """The part between two corners; `size`: (height, width), as it is inside the image."""
    left = int(np.clip(np.rint(corners[0, 0]), 0, image.shape[1] - size[1]))
    top = int(np.clip(np.rint(corners[0, 1]), 0, image.shape[0] - size[0]))
    return image[top : top + size[0], left : left + size[1]].copy()


class Sheet:
    """An image, with as much around it as these corners need."""

    def __init__(self, image: Pixels, corners: Doubles) -> None:
        self._edges = np.array(image.shape[1::-1])
        farthest = np.maximum(-corners, corners - self._edges).max(axis=(0, 1))
        self._around = np.ceil(np.clip(farthest, 0, self._edges * MARGIN)).astype(int)
        self._channels = image.shape[2]
        if self._around.any():
            image = np.pad(image, [(size, size) for size in (*self._around[::-1].tolist(), 0)], mode="edge")
        self._image = Image.fromarray(image[..., 0] if self._channels == 1 else image)

    def warped(self, corners: Doubles, size: tuple[int, int]) -> Pixels:
        """What four corners frame, as an upright image of this size (height, width), by bilinear interpolation.

        The projection of the unit square on a quadrilateral: Heckbert, Fundamentals of Texture Mapping, 1989, 2.2.3.
        """
        a, b, c, d = np.clip(corners, -self._around, self._edges + self._around) + self._around
        one, other, bend = b - c, d - c, a - b + c - d
        area = one[0] * other[1] - other[0] * one[1]
        area = area if abs(area) > 1e-6 else 0.0  # of a pixel: the corners are in a line
        g = (bend[0] * other[1] - other[0] * bend[1]) / area if area else 0.0
        h = (one[0] * bend[1] - bend[0] * one[1]) / area if area else 0.0
        across, down = (b - a + g * b) / size[1], (d - a + h * d) / size[0]
        projection = (across[0], down[0], a[0], across[1], down[1], a[1], g / size[1], h / size[0])
        seen = self._image.transform(size[::-1], Image.Transform.PERSPECTIVE, projection, Image.Resampling.BILINEAR)
        return np.asarray(seen).reshape(*size, self._channels)
