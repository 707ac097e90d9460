"""The values that steer one lane: knobs of config/knobs.py as they are, and what load adds. KnobsChanged brings new ones."""

from math import inf

from msgspec import field

from dlproxy.config.knobs import LaneSettings


class LaneKnobs(LaneSettings, frozen=True, kw_only=True):
    """`slo_s`: the latency objective, None if the user declared none. `max_batch_s`: how long one batch may take at most,
    whatever the objective allows (set for models that run on the event loop). `tenant_weights`: shares of the fair discipline
    (1 if not named). `max_padding`: the share of a batch that may be padding, where requests of different lengths may be
    padded to one (0: they share no batch). `arbitrated`: every batch waits for the arbiter's turn, because lanes share the
    machine's cores; `leased`: and each turn is on one instance, because lanes of several processes share them.
    """

    slo_s: float | None = None
    max_batch_s: float = inf
    tenant_weights: dict[str, float] = field(default_factory=dict)
    arbitrated: bool = False
    leased: bool = False
    max_padding: float = 0.0
