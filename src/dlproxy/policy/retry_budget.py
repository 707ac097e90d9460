"""Retry budget: second runs are a small share of the first ones, so that trouble does not multiply. Called by policy/lane.py.

After Finagle's RetryBudget. Not aware of: what is run again and why (an error, a lost instance, a hedge).
"""

BUCKETS = 10  # that a window is divided into


class RetryBudget:
    """Second runs may be `share` of the fresh requests of the last window, and `least_per_s` besides.

    Exactly: within any `window_s` the requests that `spend` allowed are at most share * (the requests earned in it and in the
    tenth of a window before it) + least_per_s * window_s. Finagle's share and window; besides, Finagle lets 10 retries a second
    pass and Envoy 3 at a time. With share 0 nothing is ever allowed. O(1) in time (amortised) and memory.
    """

    def __init__(self, share: float = 0.2, least_per_s: float = 3.0, window_s: float = 10.0) -> None:
        assert share >= 0.0
        assert least_per_s >= 0.0
        assert window_s > 0.0
        self._share = share
        self._least = least_per_s * window_s
        self._bucket_s = window_s / BUCKETS
        self._earned, self._spent = [0] * (BUCKETS + 1), [0] * (BUCKETS + 1)  # and the one that is being filled
        self._earned_sum = self._spent_sum = 0
        self._bucket = 0  # counted from time 0

    def configure(self, share: float) -> None:
        """A new share, also of what was earned before."""
        assert share >= 0.0
        self._share = share

    def earn(self, requests: int, now: float) -> None:
        """So many requests came in, to be run for the first time. `now` never decreases."""
        self._advance(now)
        self._earned[self._bucket % (BUCKETS + 1)] += requests
        self._earned_sum += requests

    def spend(self, requests: int, now: float) -> bool:
        """Whether so many requests may be run a second time now; if so they are charged, all or none."""
        if not self._share:
            return False
        self._advance(now)
        if self._spent_sum + requests > self._share * self._earned_sum + self._least:
            return False
        self._spent[self._bucket % (BUCKETS + 1)] += requests
        self._spent_sum += requests
        return True

    def _advance(self, now: float) -> None:
        bucket = int(now // self._bucket_s)
        if bucket == self._bucket:
            return
        for passed in range(max(self._bucket, bucket - BUCKETS - 1) + 1, bucket + 1):
            index = passed % (BUCKETS + 1)
            self._earned_sum -= self._earned[index]
            self._spent_sum -= self._spent[index]
            self._earned[index] = self._spent[index] = 0
        self._bucket = bucket
