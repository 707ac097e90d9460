"""What changes examples changes them as far as it says, and nothing else."""

import pytest

torch = pytest.importorskip("torch")

from dlproxy.lab.learn.experiment import LearnError  # noqa: E402
from dlproxy.lab.learn.networks.augment import Changes, augment, images, stretched  # noqa: E402

pytestmark = pytest.mark.extras
COUNT = 200


@pytest.fixture
def dots() -> torch.Tensor:
    """A dot at row 3, column 2 of each image."""
    torch.manual_seed(1)
    given = torch.zeros(COUNT, 1, 8, 8)
    given[:, :, 3, 2] = 1.0
    return given


def centres(given: torch.Tensor) -> torch.Tensor:
    """Where the ink is on average: (row, column) of each."""
    total = given.sum((1, 2, 3))
    places = torch.arange(8.0)
    return torch.stack([(given.sum((1, 3)) * places).sum(1), (given.sum((1, 2)) * places).sum(1)], 1) / total[:, None]


def test_a_shift_moves_up_to_its_pixels_in_both_directions_each_image_in_its_own_way(dots: torch.Tensor) -> None:
    moved = centres(images(dots, Changes(shift=1.5))) - torch.tensor([3.0, 2.0])
    assert moved.abs().max() <= 1.5 + 1e-4
    assert moved.min() < -1.2
    assert moved.max() > 1.2
    assert len(moved[:, 0].round(decimals=3).unique()) > COUNT / 2


def test_what_is_shifted_in_is_paper() -> None:
    torch.manual_seed(1)
    moved = images(torch.ones(COUNT, 1, 8, 8), Changes(shift=3.0))
    assert moved.mean((1, 2, 3)).min() < 0.8


def test_a_flip_mirrors_the_share_that_it_says(dots: torch.Tensor) -> None:
    columns = images(dots, Changes(flip=0.3)).argmax(-1).amax((1, 2))
    assert set(columns.tolist()) == {2, 5}
    assert (columns == 5).float().mean() == pytest.approx(0.3, abs=0.1)
    assert torch.equal(images(images(dots, Changes(flip=1.0)), Changes(flip=1.0)), dots)


def test_rotation_and_zoom_keep_the_middle(dots: torch.Tensor) -> None:
    turned = centres(images(dots, Changes(rotate=30))) - 3.5
    assert turned.norm(dim=1).mean() == pytest.approx((1.5**2 + 0.5**2) ** 0.5, abs=0.1)
    assert turned[:, 0].std() > 0.2
    zoomed = centres(images(dots, Changes(zoom=0.3))) - 3.5
    assert 0.5 < (zoomed[:, 1] / -1.5).min() < 0.9
    assert 1.1 < (zoomed[:, 1] / -1.5).max() < 1.6


def test_brightness_moves_the_mean_and_contrast_the_spread() -> None:
    torch.manual_seed(1)
    given = torch.rand(COUNT, 1, 8, 8) * 0.2 + 0.4
    lighter = images(given, Changes(brightness=0.2)) - given
    assert lighter.std((1, 2, 3)).max() < 1e-6
    assert 0.15 < lighter.amax() <= 0.2 + 1e-6
    paler = images(given, Changes(contrast=0.5))
    torch.testing.assert_close(paler.mean((1, 2, 3)), given.mean((1, 2, 3)))
    spread = paler.std((1, 2, 3)) / given.std((1, 2, 3))
    assert 0.5 - 1e-5 <= spread.min() < 0.6
    assert 1.4 < spread.max() <= 1.5 + 1e-5
    assert images(given, Changes(brightness=1.0, contrast=1.0)).aminmax() == (0.0, 1.0)


def test_stretching_reads_a_series_at_another_pace_about_its_middle() -> None:
    torch.manual_seed(1)
    line = torch.arange(11.0).reshape(1, 11, 1).expand(COUNT, 11, 2)
    read = stretched(line, 0.5)
    assert read.shape == line.shape
    torch.testing.assert_close(read[:, 5], line[:, 5])
    paces = read[:, 6, 0] - read[:, 5, 0]
    assert 0.5 - 1e-5 <= paces.min() < 0.6
    assert 1.4 < paces.max() <= 1.5 + 1e-5
    assert read.aminmax() == (0.0, 10.0)
    torch.testing.assert_close(stretched(line, 0.0), line)


@pytest.mark.parametrize(("kind", "shape"), [("series", (5, 2)), ("table", (7,))])
def test_jitter_is_noise_of_its_deviation(kind: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    change = augment(Changes(jitter=0.2), kind, shape)
    assert change is not None
    assert change(torch.zeros(2000, *shape), None).std() == pytest.approx(0.2, rel=0.05)


def test_images_may_come_in_any_shape(dots: torch.Tensor) -> None:
    change = augment(Changes(flip=1.0), "image", (1, 8, 8))
    assert change is not None
    assert torch.equal(change(dots.reshape(COUNT, 64), None).reshape(dots.shape), dots.flip(-1))
    assert augment(Changes(), "image", (1, 8, 8)) is None


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (Changes(flip=1.5), "image", "flip 1.5 is out of range: give 0 to 1"),
        (Changes(zoom=-0.1), "image", "zoom -0.1 is out of range: give 0 to 0.9"),
        (Changes(flip=0.5), "series", "flip changes nothing of series, which take jitter, stretch"),
        (Changes(stretch=0.5), "table", "stretch changes nothing of tables, which take jitter"),
    ],
)
def test_changes_that_make_no_sense_are_refused(changes: Changes, kind: str, message: str) -> None:
    with pytest.raises(LearnError, match=message):
        augment(changes, kind, (8, 8))
