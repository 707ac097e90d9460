"""What versions that changed within a second are told as."""

from dlproxy.policy.planner import VersionState
from dlproxy.wire.dashboard.events import of_versions

WAITS = VersionState("m", "1", "wanted", on_demand=True)
FIRST = VersionState("m", "1", "serving", default=True)
SECOND = VersionState("m", "2", "serving")


def test_another_default_is_told_and_the_first_is_not() -> None:
    def told(before: list[VersionState], after: list[VersionState]) -> list[tuple[str, str]]:
        def by_key(states: list[VersionState]) -> dict[tuple[str, str], VersionState]:
            return {(one.name, one.version): one for one in states}

        return [(kind, words) for _, kind, words in of_versions(by_key(before), by_key(after))]

    assert told([WAITS], [FIRST]) == [("load", "version 1 is up")]
    promoted = VersionState("m", "2", "serving", default=True)
    other = VersionState("m", "1", "serving")
    assert told([FIRST, SECOND], [other, promoted]) == [("canary", "version 2 answers whoever names no version")]
