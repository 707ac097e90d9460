"""Who belongs to a group of servers, as far as repeated looks at a directory tell. Called by fleet/upstreams.py.

A directory may fail, be empty after a restart, or lose a few for a moment; health checks say who can be used, so that
nobody has to leave in a hurry. Not aware of: DNS, Redis, what a member is.
"""

from collections.abc import Collection, Iterable

MISSES = 2  # looks in a row that a member is missing from before it leaves


class Membership:
    """`known`: in the order of joining. The last ones stay: a directory that names nobody is taken to have failed.

    `grace_s`: nor does anybody leave who was found in so many seconds; what a directory takes to be whole again.
    """

    def __init__(self, known: Iterable[str], now: float, *, misses: int = MISSES, grace_s: float = 0.0) -> None:
        self._misses = misses
        self._grace_s = grace_s
        self._missing = dict.fromkeys(known, 0)  # looks in a row that each was missing from
        self._found_at = dict.fromkeys(self._missing, now)

    @property
    def known(self) -> Collection[str]:
        return self._missing.keys()

    def looked(self, found: Collection[str], now: float) -> tuple[list[str], list[str]]:
        """Who joins, and who leaves. `now` never decreases."""
        if not found:
            return [], []
        joining = [one for one in dict.fromkeys(found) if one not in self._missing]
        self._found_at.update(dict.fromkeys(found, now))
        for one in self._missing:
            self._missing[one] = 0 if one in found else self._missing[one] + 1
        silent = [one for one, misses in self._missing.items() if misses >= self._misses]
        leaving = [one for one in silent if now - self._found_at[one] >= self._grace_s]
        for one in leaving:
            del self._missing[one], self._found_at[one]
        self._missing.update(dict.fromkeys(joining, 0))
        return joining, leaving
