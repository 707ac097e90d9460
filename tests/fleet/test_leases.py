"""Leases of shared workers: one owner each, none idle while somebody waits for it, who has waited longest first."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.fleet.leases import Leases

GATEWAYS, WORKERS = 3, 3
STEPS = st.lists(
    st.tuples(st.sampled_from(["want", "release", "gone"]), st.integers(0, GATEWAYS - 1), st.integers(0, 2**WORKERS - 1)),
    max_size=60,
)


class Gateway:
    def __init__(self, folder: Path, number: int) -> None:
        self.held: set[int] = set()
        self.wants: set[int] = set()
        self.leases = Leases(folder, number, GATEWAYS, self.granted)
        self.leases.listen()

    def want(self, workers: set[int]) -> None:
        self.wants = workers
        worker = self.leases.want(sorted(workers))
        if worker is not None:
            self.granted(worker)

    def granted(self, worker: int) -> None:
        assert worker in self.wants, "not what it waits for"
        self.wants = set()
        self.held.add(worker)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("leases")


@given(STEPS)
@settings(max_examples=60)
def test_a_worker_has_one_owner_and_is_not_idle_while_somebody_waits_for_it(
    folders: Path, steps: list[tuple[str, int, int]]
) -> None:
    folder = folders / f"table-{len(list(folders.iterdir()))}"
    Leases.create(folder)
    gateways = [Gateway(folder, number) for number in range(GATEWAYS)]
    line: list[int] = []  # who waits, the longest first
    for what, number, bits in steps:
        gateway = gateways[number]
        workers = {worker for worker in range(WORKERS) if bits >> worker & 1}
        if what == "want" and workers:
            gateway.want(workers - gateway.held)
            if gateway.wants and number not in line:
                line.append(number)
        elif what == "release" and gateway.held:
            worker = min(gateway.held)
            first = next((each for each in line if worker in gateways[each].wants), None)
            gateway.held.remove(worker)
            gateway.leases.release(worker)
            for each in gateways:
                each.leases.hear()
            assert first is None or worker in gateways[first].held, "another one has waited longer"
        elif what == "gone":
            gateways[(number + 1) % GATEWAYS].leases.clear(number)
            gateway.held, gateway.wants = set(), set()
            for each in gateways:
                each.leases.hear()
        line = [each for each in line if gateways[each].wants]
        owned = [worker for each in gateways for worker in each.held]
        assert len(owned) == len(set(owned)), "two have the same worker"
        wanted = set().union(*(each.wants for each in gateways))
        assert not wanted - set(owned), "a worker is idle that somebody waits for"
    for gateway in gateways:
        gateway.leases.close()


def test_one_that_is_gone_is_granted_nothing(tmp_path: Path) -> None:
    Leases.create(tmp_path / "table")
    here, gone = (Leases(tmp_path / "table", number, 2) for number in range(2))
    gone.listen()
    assert here.want([0]) == 0
    assert gone.want([0]) is None
    gone.close()
    here.release(0)
    assert here.want([0]) == 0
    here.close()
