"""Counters that go on where a process has ended or does not answer: a sum over gateways never falls, as rates want it.

Held by keeper.py, asked by control.py. Not aware of: processes, HTTP, who asks.
"""

import re
from collections.abc import Iterable, Mapping

from dlproxy.serve.gateways.sums import SAMPLE, names_of, summed_page

Counters = dict[str, float]
"""By name and labels, as the page has them."""

_COUNTS = ("counter", "histogram", "summary")
_TYPE = re.compile(r"# TYPE (?P<family>\S+) (?P<kind>\S+)")
_LABEL = re.compile(r'[{,](?P<name>model|version)="(?P<value>(?:[^"\\]|\\.)*)"')


class Totals:
    """Processes are known by names that are used once."""

    def __init__(self) -> None:
        self._living: dict[str, Counters] = {}
        self._ended: Counters = {}

    def told(self, process: str, page: str) -> None:
        """All that it counts now. What ended processes counted of a model is forgotten once no living one has that model."""
        self._living[process] = _counters(page)
        models = _models(key for counters in self._living.values() for key in counters)
        self._ended = {key: value for key, value in self._ended.items() if _model(key) in models}

    def over(self, process: str) -> None:
        for key, value in self._living.pop(process, {}).items():
            self._ended[key] = self._ended.get(key, 0.0) + value

    def page(self, pages: Mapping[str, str]) -> str:
        """The sum of what those tell that answered now, and of what the others counted last: of models that these pages have,
        since somebody may not see all.
        """
        for process, page in pages.items():
            if process in self._living:
                self._living[process] |= _counters(page)
        models = _models(found["key"] for page in pages.values() for found in _samples(page))
        silent = [counters for process, counters in self._living.items() if process not in pages]
        kept = [
            "\n".join(f"{key} {value}" for key, value in counters.items() if _model(key) in models)
            for counters in (*silent, self._ended)
        ]
        return summed_page([*pages.values(), *kept])


def _counters(page: str) -> Counters:
    families, counters = set[str](), Counters()
    for line in page.splitlines():
        if (kind := _TYPE.fullmatch(line)) is not None:
            if kind["kind"] in _COUNTS:
                families.add(kind["family"])
        elif (found := SAMPLE.fullmatch(line)) is not None and families.intersection(names_of(found["name"])):
            counters[found["key"]] = float(found["value"])
    return counters


def _samples(page: str) -> Iterable[re.Match[str]]:
    return filter(None, map(SAMPLE.fullmatch, page.splitlines()))


def _model(key: str) -> tuple[str | None, str | None]:
    """Its name and version; neither where the server is meant."""
    labels = {found["name"]: found["value"] for found in _LABEL.finditer(key)}
    return labels.get("model"), labels.get("version")


def _models(keys: Iterable[str]) -> set[tuple[str | None, str | None]]:
    return {(None, None), *map(_model, keys)}
