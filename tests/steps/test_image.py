"""Images: decoded upright and within limits, resized so that places can be found again, as numbers in a model's order."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.steps.running import made, run, texts

GRADIENT = np.stack(np.broadcast_arrays(np.arange(0, 240, 10)[:, None], np.arange(0, 160, 10), 77), axis=-1).astype(np.uint8)


def _file(pixels: NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def _decoded(data: bytes, **options: Any) -> Any:
    return run(made("image.decode", **options), image=texts(data))["image"]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "GIF", "AVIF"])
def test_pixels_of_every_format(kind: str) -> None:
    exact = kind in ("PNG", "BMP", "TIFF", "WEBP")
    data = _file(GRADIENT, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.abs(_decoded(data).astype(int) - GRADIENT).max() <= (0 if exact else 20)


def test_channels() -> None:
    data = _file(GRADIENT)
    assert (_decoded(data, colours="BGR") == GRADIENT[..., ::-1]).all()
    gray = _decoded(data, colours="gray")
    assert gray.shape == (24, 16, 1)
    assert np.abs(gray[..., 0] - GRADIENT @ np.array([0.299, 0.587, 0.114])).max() <= 1


def test_deep_transparent_and_indexed_pixels() -> None:
    deep = GRADIENT[..., 0].astype(np.uint16) * 257
    assert (_decoded(_file(deep)) == GRADIENT[..., :1]).all()
    clear = np.dstack([GRADIENT, np.zeros((24, 16), np.uint8)])
    assert (_decoded(_file(clear)) == GRADIENT).all()
    out = io.BytesIO()
    Image.fromarray(GRADIENT[..., 0]).convert("P").save(out, "PNG")
    assert (_decoded(out.getvalue()) == GRADIENT[..., :1]).all()


def test_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the left: to be shown, to be turned clockwise
    assert (_decoded(_file(GRADIENT, exif=exif)) == np.rot90(GRADIENT, -1)).all()


@pytest.mark.parametrize(
    ("kind", "least", "size"),
    [
        ("JPEG", 15, (30, 20)),
        ("JPEG", 20, (30, 20)),
        ("JPEG", 21, (60, 40)),
        ("JPEG", 500, (240, 160)),
        ("PNG", 15, (240, 160)),
    ],
)
def test_photos_are_read_as_small_as_they_may_be(kind: str, least: int, size: tuple[int, int]) -> None:
    photo = GRADIENT.repeat(10, axis=0).repeat(10, axis=1)
    image = _decoded(_file(photo, kind), least_side=least)
    assert image.shape == (*size, 3)
    mean = photo.reshape(size[0], 240 // size[0], size[1], 160 // size[1], 3).mean(axis=(1, 3))
    assert np.abs(image - mean).max() < 15


def test_bytes_in_every_form() -> None:
    step, data = made("image.decode"), _file(GRADIENT)
    for form in (data, np.frombuffer(data, np.uint8), texts(data)[0], texts(data).reshape(1, 1)):
        assert (step(image=form)["image"] == GRADIENT).all()


def _bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 4096)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes that are no image of a known format"),
        (b"GIF89a", "no image|not readable"),
        (b"no image at all", "15 bytes that are no image of a known format"),
        (_file(GRADIENT, "PPM"), "no image of a known format"),
        (_file(GRADIENT)[:-40], "not readable"),
        (_file(GRADIENT, "JPEG")[:-40], "not readable: image file is truncated"),
        (_bomb(8000, 8000), "the image has 8000 x 8000 pixels, and max_pixels is 33554432"),
        (_bomb(10_000, 10_000), "pixels"),  # where Pillow warns
        (_bomb(60_000, 60_000), "pixels"),  # which Pillow refuses
    ],
)
def test_what_is_no_image(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made("image.decode")(image=texts(data))


@given(st.data())
@settings(max_examples=40)
def test_mutated_files_are_refused_or_decoded(data: st.DataObject) -> None:
    file = bytearray(data.draw(st.sampled_from([_file(GRADIENT, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")])))
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(file) - 1), st.integers(0, 255)), max_size=8)):
        file[place] = byte
    try:
        assert _decoded(bytes(file)).ndim == 3
    except ValueError as error:
        refused = str(error)
        assert refused.startswith(("image: ", "the image has"))


@pytest.mark.parametrize(
    ("size", "options", "of", "becomes"),
    [
        ([8, 4], {}, (24, 16), (8, 4)),
        (12, {"fit": "inside"}, (24, 16), (12, 8)),
        (12, {"fit": "outside"}, (24, 16), (18, 12)),
        (960, {"fit": "inside", "only": "shrink", "multiple_of": 32}, (70, 50), (64, 64)),
        (64, {"fit": "outside", "only": "grow", "multiple_of": 32}, (200, 90), (192, 96)),
        (64, {"fit": "outside", "only": "grow"}, (80, 32), (160, 64)),
        ([48, 0], {}, (24, 100), (48, 200)),
        ([0, 50], {"multiple_of": 8}, (24, 100), (16, 50)),
        (10, {"fit": "pad"}, (20, 4000), (10, 10)),
        (10, {"fit": "crop"}, (1, 4000), (10, 10)),
    ],
)
def test_sizes(size: Any, options: dict[str, Any], of: tuple[int, int], becomes: tuple[int, int]) -> None:
    step = made("image.resize", size=size, **options)
    assert run(step, image=np.zeros((*of, 3), np.uint8))["image"].shape == (*becomes, 3)


def test_sizes_that_are_known_are_declared() -> None:
    declared = [
        made("image.resize", size=size, fit=fit).outputs["image"]
        for size, fit in ((8, "pad"), ([8, 9], "stretch"), ([48, 0], "inside"), (8, "outside"))
    ]
    assert declared == ["UINT8[8,8,-1]", "UINT8[8,9,-1]", "UINT8[48,-1,-1]", "UINT8[-1,-1,-1]"]


@given(
    st.tuples(st.integers(20, 90), st.integers(20, 90)),
    st.tuples(st.integers(20, 90), st.integers(20, 90)),
    st.sampled_from(["stretch", "pad", "crop", "inside", "outside"]),
    st.sampled_from(["centre", "corner"]),
)
@settings(max_examples=60, deadline=None)
def test_places_are_found_again(of: tuple[int, int], size: tuple[int, int], fit: str, place: str) -> None:
    """The coordinates themselves as pixels: what is seen at x, y after resizing came from where scale and offset say."""
    rows, columns = np.mgrid[: of[0], : of[1]] + 0.5
    pixels = np.stack([columns * 255 / of[1], rows * 255 / of[0], np.full(of, 255)], axis=-1).round().astype(np.uint8)
    found = run(made("image.resize", size=list(size), fit=fit, place=place), image=pixels)
    image, scale, offset = found["image"].astype(float), found["scale"], found["offset"]
    y, x = np.nonzero(image[..., 2] == 255)
    assert len(x)
    there = (np.stack([x, y], axis=-1) + 0.5 - offset) / scale
    inside = ((there > 2) & (there < np.array(of[::-1]) - 2)).all(axis=1)  # at the edge, pixels are made of fewer
    seen = image[y, x, :2] * np.array(of[::-1]) / 255
    assert np.abs(there - seen)[inside].max(initial=0) < 0.75 / min(1.0, *scale)


def test_the_rest_is_filled() -> None:
    image = made("image.resize", size=8, fit="pad", fill=114)(image=np.zeros((4, 8, 1), np.uint8))["image"]
    assert image[:, 0, 0].tolist() == [114, 114, 0, 0, 0, 0, 114, 114]


def test_the_middle_is_kept() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[10:90, 60:140] = 255
    assert (made("image.resize", size=20, fit="crop", crop_share=0.8, filter="box")(image=pixels)["image"] == 255).all()


@given(st.integers(1, 3), st.sampled_from([1, 3]), st.sampled_from(["NCHW", "NHWC"]), st.sampled_from(["FP32", "FP16"]))
def test_normalised(count: int, channels: int, layout: str, kind: str) -> None:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 5, 4, channels), dtype=np.uint8)
    mean, std = np.array([0.5, 0.4, 0.3])[:channels], np.array([0.1, 0.2, 0.3])[:channels]
    step = made("image.normalise", mean=mean.tolist(), std=std.tolist(), layout=layout, type=kind)
    expected = (pixels / 255 - mean) / std
    expected = expected.transpose(0, 3, 1, 2) if layout == "NCHW" else expected
    np.testing.assert_allclose(run(step, image=pixels)["image"], expected, atol=1e-5 if kind == "FP32" else 0.01)
    np.testing.assert_array_equal(run(step, image=pixels[0])["image"], step(image=pixels)["image"][:1])


def test_normalised_without_rows() -> None:
    step = made("image.normalise", mean=[127.5], std=[127.5], scale=1.0, layout="CHW")
    assert run(step, image=np.array([[[0, 255]]], np.uint8))["image"].tolist() == [[[-1]], [[1]]]


@pytest.mark.parametrize(
    ("name", "options", "image", "message"),
    [
        ("image.decode", {}, texts(b"a", b"b"), "image has 2 elements, .* say each = true"),
        ("image.decode", {}, np.zeros(1), "image holds float, and the step takes BYTES"),
        (
            "image.resize",
            {"size": 4},
            np.zeros((2, 2, 3)),
            r"image is float64\[2, 2, 3\], and the step takes UINT8 of 1 or 3 channels",
        ),
        ("image.resize", {"size": 4}, np.zeros((0, 2, 3), np.uint8), r"image is uint8\[0, 2, 3\], and an image is"),
        ("image.resize", {"size": [48, 0]}, np.zeros((1, 20_000, 1), np.uint8), "20000 x 1 would become 960000 x 48"),
        ("image.resize", {"size": 640}, np.zeros((60_000, 2, 1), np.uint8), "2 x 60000 would become 640 x 640, and max_pixels"),
        ("image.normalise", {}, np.zeros((2, 2)), r"image is float64\[2, 2\], and an image is \[height, width, channels\]"),
        ("image.normalise", {"mean": [0, 0, 0]}, np.zeros((2, 2, 1)), "image has 1 channels, and mean and std are for 3"),
        ("image.normalise", {"layout": "CHW"}, np.zeros((2, 2, 2, 3)), "and an image is"),
    ],
)
def test_what_does_not_fit_is_named(name: str, options: dict[str, Any], image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, **options)(image=image)
