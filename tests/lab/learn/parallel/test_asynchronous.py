"""Workers at their own pace, on a real Ray: they learn, no further apart than they may be, and go on without a killed one."""

from collections.abc import Iterator

import pytest

from dlproxy.lab.learn.experiment import LearnError
from dlproxy.lab.learn.parallel.workers import Parallel, opened
from tests.lab.learn.parallel.networks import Killing, experiment, trained

pytestmark = pytest.mark.extras
pytest.importorskip("ray")

ONE = experiment(epochs=10, rate=1e-2)


@pytest.fixture(autouse=True, scope="module")
def ray_ends() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


def test_they_learn_within_the_bound_and_go_on_without_one_that_is_killed() -> None:
    said: list[str] = []
    with opened(Parallel(workers=2, asynchronous=True, staleness=1), ONE, [1], 1, said.append) as workers:
        _, losses = trained(ONE, workers)
        assert losses[-1] < 0.5 * losses[0]
        figures = workers.figures()
        assert 0.0 < figures["staleness, most"] <= 3  # of two workers: twice the bound, and one
        assert figures["staleness, mean"] <= figures["staleness, most"]
        _, losses = trained(ONE, Killing(workers, workers.pids[1], after=2))  # type: ignore[attr-defined]
        assert losses[-1] < 0.5 * losses[0]
        assert said == ["worker 2 of 2 was lost; the others go on"]
        with pytest.raises(LearnError, match="all workers were lost"):
            trained(ONE, Killing(workers, workers.pids[0], after=1))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("127.0.0.1:9", "no Ray cluster at '127.0.0.1:9': connection refused"),
        ("somewhere", "'somewhere' is no address of a Ray cluster"),
    ],
)
def test_no_cluster_where_one_is_said_to_be(address: str, complaint: str) -> None:
    import ray

    ray.shutdown()
    with pytest.raises(LearnError, match=complaint), opened(Parallel(workers=2, ray=address), ONE, [1], 1, str):
        pass
