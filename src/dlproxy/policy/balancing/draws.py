"""Random numbers for balancers that draw, when nobody gives others: always the same ones, so that an event log replays.

Called by make_balancer. Not aware of: what is drawn.
"""

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd


class SplitMix64:
    """Uniform numbers in [0, 1), by 64-bit SplitMix (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014): a counter, scrambled.
    """

    def __init__(self, seed: int = 0) -> None:
        self._state = seed & _MASK

    def __call__(self) -> float:
        return (self.next64() >> 11) * 2.0**-53

    def next64(self) -> int:
        """The next 64 bits."""
        self._state = mixed = (self._state + _STEP) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)
