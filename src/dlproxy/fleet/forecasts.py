"""Learnt forecasts of load: an ONNX network, asked once in some seconds on the event loop; less than a millisecond.

Called by serve/assemble.py and lab/simulate/run.py. Not aware of: how it was trained, what is done with what it says.
"""

import logging
from collections.abc import Callable, Sequence
from time import thread_time

import msgspec
import numpy as np

from dlproxy.config.paths import is_network
from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.formats import ANY
from dlproxy.instance.runtime.own import read_network
from dlproxy.policy.forecast import AROUND, Asked, Forecast, Form, HoltWinters, Learnt

FORM = "dlproxy.forecast"  # the property of an ONNX file that holds its Form as JSON
INPUTS, OUTPUT = ("window", "season"), "rate"
MOST_S = 0.05  # of computing, for which the event loop waits

log = logging.getLogger(__name__)


class OnnxForecast:
    """One session with one thread, for any number of lanes. Raises ModelError for a file that is no forecast.

    `window` FP32 [N, length, 2]: rates and bursts; `season` FP32 [N, 1 + horizons]; `rate` FP32 [N, horizons, quantiles].
    `most_s`: of computing, for an answer to count.
    """

    def __init__(self, path: str, trust: Trust = ANY, most_s: float = MOST_S) -> None:
        self._runtime = read_network(path, trust)
        self.form = _form(path, self._runtime.metadata)
        signature = self._runtime.signature
        outputs = {spec.name: place for place, spec in enumerate(signature.outputs)}
        if tuple(spec.name for spec in signature.inputs) != INPUTS or OUTPUT not in outputs:
            raise ModelError(f"{path} is no forecast of this version: it must take {' and '.join(INPUTS)} and give {OUTPUT}")
        self._rate = outputs[OUTPUT]
        self._most_s = most_s

    def __call__(self, asked: Asked) -> Sequence[Sequence[float]]:
        """The quantiles of each horizon. Raises RuntimeError, also for an answer that took too long."""
        began_at = thread_time()
        window = np.array([asked.rates, asked.bursts], np.float32).T[None]
        answer = self._runtime.run([np.ascontiguousarray(window), np.array([asked.season], np.float32)])[self._rate]
        if (took_s := thread_time() - began_at) > self._most_s:
            raise RuntimeError(f"it took {took_s * 1e3:.0f} ms, and {self._most_s * 1e3:.0f} are allowed")
        quantiles: list[list[float]] = answer[0].tolist()
        return quantiles


def _form(path: str, metadata: dict[str, str]) -> Form:
    """Raises ModelError."""
    if FORM not in metadata:
        raise ModelError(f"{path} is no forecast: it has no property {FORM}, which `dlproxy learn train forecast-days` writes")
    try:
        form = msgspec.json.decode(metadata[FORM], type=Form)
    except msgspec.MsgspecError as error:
        raise ModelError(f"{path} is no forecast of this version: its property {FORM} cannot be read: {error}") from None
    ordered = all(0.0 <= low < high for low, high in zip(form.horizons_s, form.horizons_s[1:], strict=False))
    far = form.horizons_s and form.horizons_s[-1] + (AROUND + 1) * form.step_s > form.season_s
    if form.step_s < 1.0 or form.length < 1 or not form.horizons_s or not form.quantiles or not ordered or far:
        raise ModelError(f"{path} is no forecast that can be asked: its property {FORM} is {metadata[FORM]}")
    return form


def forecast_of(name: str, knob: str, trust: Trust = ANY, *, most_s: float = MOST_S) -> str | Callable[[], Forecast]:
    """What make_policy takes, of a model's knob; reads its file, if it names one. Raises ModelError."""
    if not is_network(knob):
        return knob
    try:
        network = OnnxForecast(knob, trust, most_s)
    except ModelError as error:
        raise ModelError(f"model {name}: forecast: {error}") from None
    return lambda: Learnt(network.form, network, HoltWinters(), lambda problem: log.warning("model %s: %s", name, problem))
