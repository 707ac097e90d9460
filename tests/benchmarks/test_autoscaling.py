"""The comparison of autoscalers, on minutes in place of days."""

from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.autoscaling.__main__ import parse_options
from benchmarks.autoscaling.days import DAY_S, MOST, RATE, model_of, policies, simulate, two_days
from benchmarks.autoscaling.live import SECONDS, instants
from benchmarks.autoscaling.page import as_table, page, picture


def test_a_day_is_three_times_as_busy_at_its_peak_as_at_its_trough_and_the_next_is_alike() -> None:
    counts, _ = np.histogram(two_days(1), np.arange(0, 2 * DAY_S + 1, 3600))
    first, second = np.split(counts, 2)
    assert 2.5 < np.sort(first)[-3:].mean() / np.sort(first)[:3].mean() < 3.5
    assert np.corrcoef(first, second)[0, 1] > 0.95
    assert counts.mean() == pytest.approx(3600 * RATE, rel=0.1)


def test_every_policy_runs_and_is_told_of_in_the_table_and_the_picture() -> None:
    requests = np.sort(np.random.default_rng(1).random(12_00) * 120.0)
    outcomes = [simulate(name, policy, requests, 60.0, 120.0, 1) for name, policy in policies(*model_of(1)).items()]
    by_name = {one.name: one for one in outcomes}
    always = by_name[f"{MOST} always (most)"]
    assert (always.most, always.instances) == (MOST, pytest.approx(MOST))
    assert by_name["Knative"].instances == 1.0
    assert by_name["Knative"].missed > by_name["in-flight"].missed
    text = page(outcomes, date="today", command="it")
    drawn = ElementTree.fromstring(picture(outcomes))
    labels = {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    for name in by_name:
        assert f"| {name} |" in text
        assert name in labels
    assert as_table(outcomes) in text


def test_a_page_needs_a_run_of_everything() -> None:
    for more in (["--only", "Knative"], ["--trace", "x.csv"], ["--live"]):
        with pytest.raises(SystemExit):
            parse_options(["--write", *more])


def test_the_live_day_has_as_many_requests_a_second() -> None:
    assert len(instants(1)) == pytest.approx(RATE * SECONDS, rel=0.35)
