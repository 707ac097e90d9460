"""What several gateways tell, as one."""

import pytest

from dlproxy.serve.gateways.sums import apart, summed, summed_history, summed_page, with_gateways
from dlproxy.serve.gateways.totals import Totals

ONE = """\
# HELP a_total Things
# TYPE a_total counter
a_total{model="m",path="a } b\\"c"} 3.0
# HELP dlproxy_model_ready 1 while an instance is live
# TYPE dlproxy_model_ready gauge
dlproxy_model_ready{model="m"} 1.0
"""
OTHER = """\
# HELP a_total Things
# TYPE a_total counter
a_total{model="m",path="a } b\\"c"} 4.0
a_total{model="n",path=""} 1.0
# HELP dlproxy_model_ready 1 while an instance is live
# TYPE dlproxy_model_ready gauge
dlproxy_model_ready{model="m"} 0.0
"""


def test_counters_are_added_and_what_only_one_has_stays_in_its_family() -> None:
    assert (
        summed_page([ONE, OTHER])
        == """\
# HELP a_total Things
# TYPE a_total counter
a_total{model="m",path="a } b\\"c"} 7.0
a_total{model="n",path=""} 1.0
# HELP dlproxy_model_ready 1 while an instance is live
# TYPE dlproxy_model_ready gauge
dlproxy_model_ready{model="m"} 0.0
"""
    )


def test_openmetrics_keeps_an_exemplar_and_one_end() -> None:
    page = '# TYPE a histogram\na_bucket{le="1.0"} 2 # {trace_id="x"} 0.5 17.0\na_count 2\n# EOF\n'
    other = page.replace(' # {trace_id="x"} 0.5 17.0', "")
    told = '# TYPE a histogram\na_bucket{le="1.0"} 4.0 # {trace_id="x"} 0.5 17.0\na_count 4.0\n# EOF\n'
    assert summed_page([page, other]) == told
    assert summed_page([ONE]) == ONE


def page(answered: int, *, model: str = "m", ready: int = 1) -> str:
    return f"""\
# TYPE answered counter
answered_total{{kind="x",model="{model}",version="1"}} {answered}.0
# TYPE ready gauge
ready{{model="{model}",version="1"}} {ready}.0
"""


def test_what_a_process_counted_that_has_ended_stays_in_the_sum_and_what_it_had_does_not() -> None:
    totals = Totals()
    totals.told("a", page(3))
    totals.told("b", page(10))
    assert totals.page({"a": page(4), "b": page(10)}) == page(14, ready=2)
    assert totals.page({"b": page(11)}) == page(15)  # the other one is busy
    totals.over("a")
    assert totals.page({"b": page(11)}) == page(15)
    totals.told("c", page(0))
    totals.over("b")
    totals.over("never told")
    assert totals.page({"c": page(2)}) == page(17)


def test_of_a_model_that_nobody_has_any_more_or_that_one_may_not_see_nothing_is_told() -> None:
    totals = Totals()
    totals.told("a", page(3))
    totals.told("b", page(3))
    totals.over("a")
    assert totals.page({"b": page(7, model="other")}) == page(7, model="other")
    assert totals.page({"b": page(3)}) == page(6)
    totals.told("b", page(7, model="other"))
    assert totals.page({"b": page(1)}) == page(1)  # loaded again, it begins anew


@pytest.mark.parametrize(
    ("told", "sum_"),
    [
        ([{"rate": 1.0, "p99_s": 0.1}, {"rate": 2.0, "p99_s": 0.3}], {"rate": 3.0, "p99_s": 0.3}),
        ([{"ready": True}, {"ready": False}], {"ready": False}),
        ([{"state": "up"}, {"state": "down"}], {"state": "down"}),
        ([{"knobs": {"max_batch": 8}}, {"knobs": {"max_batch": 8}}], {"knobs": {"max_batch": 8}}),
        ([{"p50_s": None}, {"p50_s": 0.2}], {"p50_s": 0.2}),
        ([{"reason": ""}, {"reason": "no room"}], {"reason": "no room"}),
        ([[{"name": "a", "queued": 1}], [{"name": "a", "queued": 2}, {"name": "b", "queued": 5}]],
         [{"name": "a", "queued": 3}, {"name": "b", "queued": 5}]),
        ([["prod"], ["prod"]], ["prod"]),
        ([None, None], None),
    ],
)  # fmt: skip
def test_numbers_are_added_and_states_joined(told: list[object], sum_: object) -> None:
    assert summed(told) == sum_


def test_instances_stay_apart() -> None:
    models = [{"name": "m", "instances": [{"name": "m-0", "busy": 1}]}] * 2
    told = summed([with_gateways(number, model) for number, model in enumerate(models)])
    assert told["instances"] == [{"name": "0:m-0", "busy": 1}, {"name": "1:m-0", "busy": 1}]
    assert apart([(0, [{"name": "m"}]), (1, [{"name": "m"}])]) == [{"name": "m", "gateway": 0}, {"name": "m", "gateway": 1}]


def test_an_hour_is_added_second_by_second() -> None:
    one = {"name": "m", "at": [1.0, 2.0], "rate": [5.0, 5.0], "batch_rows": [2.0, 4.0]}
    other = {"name": "m", "at": [2.01, 3.0], "rate": [1.0, 2.0], "batch_rows": [8.0, None]}
    assert summed_history([one, other]) == {
        "name": "m",
        "at": [1.0, 2.0, 3.0],
        "rate": [5.0, 6.0, 2.0],
        "batch_rows": [2.0, 6.0, None],
    }
