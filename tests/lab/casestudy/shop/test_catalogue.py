"""The packaged catalogue: what is in it, what uploads look like, and what nobody may learn from."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dlproxy.lab.casestudy.shop.catalogue import ATLAS, CATEGORIES, INDEX, SIDE, STYLES, Catalogue
from dlproxy.lab.casestudy.shop.photograph import LEAST_SIDE, MOST_SIDE

SHOP = Catalogue.packaged()


def test_every_category_has_goods_and_every_product_words() -> None:
    assert set(Counter(product.category for product in SHOP.products)) == set(CATEGORIES)
    assert all(product.words and product.words[0] in product.name.replace("-", " ").lower() for product in SHOP.products)
    assert ATLAS.stat().st_size + INDEX.stat().st_size < 1.5e6


def test_every_drawing_shows_something_on_nothing() -> None:
    for product in range(len(SHOP.products)):
        for style in range(len(STYLES)):
            cover = np.asarray(SHOP.drawing(product, style))[..., 3] / 255
            assert cover.shape == (SIDE, SIDE)
            assert 0.03 < cover.mean() < 1.0, SHOP.products[product].name


def test_an_upload_is_a_jpeg_and_the_same_each_time() -> None:
    first = SHOP.upload(3, shot=8)
    assert first == SHOP.upload(3, shot=8)
    assert len({first, SHOP.upload(3, shot=10), SHOP.upload(4, shot=8)}) == 3
    with Image.open(io.BytesIO(first)) as image:
        assert image.format == "JPEG"
        assert LEAST_SIDE <= image.width == image.height <= MOST_SIDE


@pytest.mark.parametrize("size", [96, 200])
def test_the_size_can_be_said(size: int) -> None:
    with Image.open(io.BytesIO(SHOP.upload(0, shot=1, size=size))) as image:
        assert image.size == (size, size)


def test_a_fifth_of_the_drawings_is_shown_by_held_out_shots_alone() -> None:
    hidden = [product for product in range(len(SHOP.products)) if SHOP.unseen(product) is not None]
    assert len(hidden) / (len(SHOP.products) * len(STYLES)) == pytest.approx(0.2, abs=0.002)
    for product in range(8):
        learnt = {SHOP.style(product, shot) for shot in range(0, 80, 2)}
        assert {SHOP.style(product, shot) for shot in range(1, 81, 2)} == set(range(len(STYLES)))
        assert learnt == set(range(len(STYLES))) - {SHOP.unseen(product)}


def test_uploads_to_learn_from_and_held_out_ones_differ() -> None:
    learnt, held = (SHOP.uploads(6, seed=1, held_out=held_out) for held_out in (False, True))
    assert learnt == SHOP.uploads(6, seed=1, held_out=False)
    assert not {upload.jpeg for upload in learnt} & {upload.jpeg for upload in held}
    for upload in learnt + held:
        assert CATEGORIES[upload.category] == SHOP.products[upload.product].category


def test_popularity_is_zipf_s() -> None:
    counts = sorted(Counter(SHOP.popularity(np.random.default_rng(1), 100_000).tolist()).values(), reverse=True)
    assert counts[0] / counts[1] == pytest.approx(2.0, rel=0.05)
    assert counts[0] / counts[9] == pytest.approx(10.0, rel=0.1)
