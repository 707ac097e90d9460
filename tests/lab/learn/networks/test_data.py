"""Parts of data that do not overlap, have their share of each class, and do not look at what they hold out."""

import numpy as np
import pytest
from msgspec import structs

from dlproxy.lab.learn.networks.data import DATA, HELD_OUT, Data, folds, held_out, load, scale, split

pytest.importorskip("sklearn")
pytestmark = pytest.mark.extras


@pytest.fixture(params=sorted(DATA), scope="module")
def data(request: pytest.FixtureRequest) -> Data:
    return load(request.param)


def test_it_is_what_it_says(data: Data) -> None:
    rank = {"image": 4, "series": 3, "table": 2}[data.kind]
    assert (data.inputs.dtype, data.inputs.ndim, len(data.inputs)) == (np.float32, rank, len(data))
    assert np.isfinite(data.inputs).all()
    if data.classes:
        assert data.targets.dtype == np.int64
        assert set(data.targets.tolist()) == set(range(data.classes))
    else:
        assert data.targets.dtype == np.float32


def test_the_fifth_that_is_held_out_is_always_the_same_and_has_its_share_of_each_class(data: Data) -> None:
    learnt, held = held_out(data)
    assert np.array_equal(np.sort(np.concatenate([learnt, held])), np.arange(len(data)))
    assert len(held) == pytest.approx(HELD_OUT * len(data), abs=1)
    assert np.array_equal(held, held_out(data)[1])
    if data.classes:
        shares = [np.bincount(data.targets[places]) / len(places) for places in (learnt, held)]
        np.testing.assert_allclose(*shares, atol=0.02)


def test_each_example_is_held_out_in_one_fold_and_other_seeds_have_other_folds(data: Data) -> None:
    parts = folds(data, 5, seed=1)
    assert np.array_equal(np.sort(np.concatenate([held for _, held in parts])), np.arange(len(data)))
    for learnt, held in parts:
        assert np.array_equal(np.sort(np.concatenate([learnt, held])), np.arange(len(data)))
    assert np.array_equal(parts[0][1], folds(data, 5, seed=1)[0][1])
    assert not np.array_equal(parts[0][1], folds(data, 5, seed=2)[0][1])


def test_a_split_is_of_the_places_that_it_is_given(data: Data) -> None:
    places = held_out(data)[0]
    kept, taken = split(data, places, 0.25, seed=3)
    assert np.array_equal(np.sort(np.concatenate([kept, taken])), places)
    assert len(taken) == pytest.approx(len(places) / 4, abs=1)


def test_the_scale_is_of_what_is_learnt_from_alone() -> None:
    table = load("wine")
    learnt, held = held_out(table)
    found = scale(table, learnt)
    seen = (table.inputs[learnt] - found.mean) / found.deviation
    np.testing.assert_allclose([seen.mean(0), seen.std(0)], [np.zeros(13), np.ones(13)], atol=1e-4)
    inputs = table.inputs.copy()
    inputs[held] *= 100.0
    again = scale(structs.replace(table, inputs=inputs), learnt)
    assert np.array_equal(found.mean, again.mean)
    assert np.array_equal(found.deviation, again.deviation)


def test_an_images_paper_stays_at_0_and_what_does_not_vary_stays_as_it_is() -> None:
    found = scale(load("digits"), np.arange(100))
    assert (found.mean.tolist(), found.deviation.tolist()) == ([0.0], [16.0])
    flat = Data(name="flat", kind="table", inputs=np.ones((9, 2), np.float32), targets=np.zeros(9, np.float32), classes=0)
    assert scale(flat, np.arange(9)).deviation.tolist() == [1.0, 1.0]
