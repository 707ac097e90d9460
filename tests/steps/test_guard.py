"""What is usual passes as it came; what is not is refused with its score, or told of; the threshold keeps its promise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy.config import ConfigError
from dlproxy.message import InferenceError
from dlproxy.steps.guard import Profile, fit
from tests.steps.running import made, run

CENTRES = np.array([[0.0, 0.0, 5.0, 5.0], [9.0, 0.0, 5.0, 5.0]])


def _rows(seed: int, count: int = 400) -> tuple[Any, Any]:
    """Two classes of [2, 2]; the first two features vary much, the third a little, the fourth not at all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    rows = CENTRES[labels] + rng.normal(0, [2.0, 1.0, 0.1, 0.0], (count, 4))
    return rows.reshape(-1, 2, 2).astype(np.float32), labels


@pytest.fixture(scope="module")
def profile() -> Profile:
    return fit(*_rows(0), held_out=_rows(1)[0], share=0.99)


def _made(profile: Profile, folder: Path, **options: Any) -> Any:
    profile.save(folder / "guard.npz")
    return made("guard", file=str(folder / "guard.npz"), **options)


def test_a_score_is_the_distance_by_hand(profile: Profile) -> None:
    rows, labels = _rows(0)
    flat = rows.reshape(-1, 4).astype(float)
    means = np.stack([flat[labels == label].mean(axis=0) for label in (0, 1)])
    centred = flat - means[labels]
    covariance = centred.T @ centred / (len(flat) - 2)
    inner = profile.axes.T @ covariance @ profile.axes
    noise = (np.trace(covariance) - np.trace(inner)) / 2
    model = profile.axes @ inner @ profile.axes.T + noise * (np.eye(4) - profile.axes @ profile.axes.T)
    others = _rows(2)[0].reshape(-1, 4)
    squares = [np.einsum("ij,jk,ik->i", others - mean, np.linalg.inv(model), others - mean) for mean in means]
    np.testing.assert_allclose(profile.scores(others), np.sqrt(np.min(squares, axis=0) / 4), rtol=1e-5)
    assert profile.axes.shape == (4, 2)


def test_the_threshold_keeps_its_promise() -> None:
    """Of usual rows, the mean share that is refused is at most the rate, and not much less."""
    refused = []
    for seed in range(40):
        found = fit(*_rows(3 * seed), held_out=_rows(3 * seed + 1, 99)[0], rate=0.05)
        refused.append((found.scores(_rows(3 * seed + 2)[0]) > found.threshold).mean())
    assert 0.03 < np.mean(refused) < 0.06


def test_what_is_usual_passes_as_it_came(profile: Profile, tmp_path: Path) -> None:
    step = _made(profile, tmp_path, threshold=3.0)
    rows = _rows(4)[0]
    found = run(step, x=rows)
    np.testing.assert_array_equal(found["x"], rows)
    assert step.outputs["x"] == "FP32[-1,2,2]"
    assert not found["unusual"].any()
    assert run(step, x=rows[:0])["score"].shape == (0,)


@pytest.mark.parametrize("value", [100.0, 5.5, np.nan, np.inf, -np.inf, 3e38])
def test_one_unusual_row_has_the_request_refused(value: float, profile: Profile, tmp_path: Path) -> None:
    rows = _rows(5, 8)[0]
    rows[3, 1, 1] = value  # a feature that never varied
    step = _made(profile, tmp_path, threshold=3.0)
    with pytest.raises(
        InferenceError, match=r"row 3 is unlike .*: its score is .*, and the threshold 3; 1 of 8 rows are above it"
    ):
        step(x=rows)
    with pytest.raises(InferenceError, match=r"row 0 is unlike the data .* and the threshold 3$"):
        step(x=rows[3:4])
    told = run(_made(profile, tmp_path, threshold=3.0, refuse=False), x=rows)
    assert np.flatnonzero(told["unusual"]).tolist() == [3]


def test_the_threshold_of_the_file_is_used_unless_another_is_given(profile: Profile, tmp_path: Path) -> None:
    rows = _rows(6)[0]
    scores = profile.scores(rows)
    for threshold in (profile.threshold, 1.25):
        given = {} if threshold == profile.threshold else {"threshold": threshold}
        told = run(_made(profile, tmp_path, refuse=False, **given), x=rows)
        np.testing.assert_array_equal(told["unusual"], scores > threshold)


def test_without_labels_there_is_one_class() -> None:
    rows, labels = _rows(0)
    alone = fit(rows, held_out=_rows(1)[0])
    assert alone.means.shape == (1, 4)
    between = CENTRES.mean(axis=0).reshape(1, 2, 2)
    assert alone.scores(between) < fit(rows, labels, held_out=_rows(1)[0]).scores(between)


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (np.zeros((4, 2)), {"held_out": np.zeros((4, 3))}, r"rows are \[4, 2\], and held_out \[4, 3\]"),
        (np.eye(4), {"held_out": np.eye(4)}, "a rate of 0.01 takes 99 rows of held_out, and there are 4"),
        (np.eye(4), {"held_out": np.eye(4), "rate": 0.0}, "rate is 0.0 and share 0.95"),
        (np.eye(4) * np.nan, {"held_out": np.eye(4)}, r"rows is \[4, 4\], and must be finite"),
        (np.ones((9, 2)), {"held_out": np.ones((99, 2))}, "all rows of a class are the same"),
        (np.eye(4), {"labels": [0, 1, 2, 3], "held_out": np.ones((99, 4))}, "4 rows of 4 classes say nothing"),
        (np.eye(4), {"labels": [0.5] * 4, "held_out": np.ones((99, 4))}, r"labels is float64\[4\], and must be whole numbers"),
    ],
)
def test_what_nothing_is_fitted_to(rows: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(rows, **more)


def test_what_does_not_fit_is_named(profile: Profile, tmp_path: Path) -> None:
    step = _made(profile, tmp_path)
    with pytest.raises(ValueError, match=r"x is \[2, 4\], and the guard was fitted to \[-1,2,2\]"):
        step(x=np.zeros((2, 4)))
    (tmp_path / "no.npz").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(ConfigError, match="cannot be read as a guard's profile"):
        made("guard", file=str(tmp_path / "no.npz"))
    np.savez(tmp_path / "odd.npz", **{name: getattr(profile, name) for name in Profile.__struct_fields__} | {"row": [5]})
    with pytest.raises(ConfigError, match=r"the arrays of .*odd.npz do not fit together"):
        made("guard", file=str(tmp_path / "odd.npz"))
