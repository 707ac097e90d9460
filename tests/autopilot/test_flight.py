"""The autopilot on virtual loop time: what it finds, what it says, what it does when things go wrong. No request is lost."""

import logging

import pytest

from dlproxy.policy.tuning.pilot import AGAIN_S
from dlproxy.policy.tuning.protocol import Value
from dlproxy.policy.tuning.rules import Rules
from tests.autopilot.scene import NO_MEMORY, OBJECTIVE_S, START_S, Says, Scene, broken, once
from tests.serve.rig import pass_time, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)


async def test_it_finds_knobs_that_meet_the_objective_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dlproxy.autopilot")
    scene = Scene(Rules, max_batch=1)  # one row takes 31 ms: 32 a second on one instance
    await scene.load(45.0, 60.0, timeout_s=OBJECTIVE_S)
    assert scene.holding()["max_batch"] == 64
    newest = scene.replies[-600:]
    assert sum(reply.failure is not None for reply in newest) <= 0.01 * len(newest)
    assert scene.decided[:2] == ["tries", "keeps"]
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("model m: autopilot keeps max_batch = 64 instead of 1") for line in said)
    assert scene.stats.decisions["keeps"] == scene.decided.count("keeps")
    assert scene.control.tuned["max_batch"] == 64
    await scene.ends_well(refused=True)


async def test_another_way_is_loaded_beside_tried_in_turns_and_kept_and_the_old_one_let_go_of() -> None:
    scene = Scene(lambda: Says(once(instances=1, threads=2)))
    await scene.load(30.0, until="tries")
    await scene.load(START_S / 2)
    assert (scene.holding()["threads"], scene.garage.loads) == (1, 0), "it is being loaded"
    await scene.load(60.0, until="keeps")
    assert (scene.holding()["threads"], scene.garage.loads) == (2, 1)
    assert scene.garage.loaded == {1, 2}, "what was kept may still turn out worse"
    await scene.load(20.0)
    assert scene.garage.loaded == {2}
    await scene.ends_well()


async def test_what_does_not_help_is_undone_and_let_go_of() -> None:
    scene = Scene(lambda: Says(once(threads=2), harmless=False))
    await scene.load(60.0, until="undoes")
    await turns()
    await scene.load(1.0)
    assert (scene.holding()["threads"], scene.garage.loaded) == (1, {1})
    await scene.ends_well()


async def test_it_advises_and_does_nothing() -> None:
    scene = Scene(lambda: Says(once(max_batch=8)), mode="advise")
    await scene.load(30.0)
    assert scene.decided[0] == "advises"
    assert set(scene.decided) == {"advises"}
    assert scene.control.tuned == {}
    await scene.ends_well()


async def test_nothing_is_counted_while_it_is_off_and_it_can_be_switched() -> None:
    scene = Scene(lambda: Says(once(max_batch=8)), mode="off")
    assert (scene.stats.readers, scene.flight.state) == ([], "off")
    await scene.load(20.0)
    scene.mode = "on"
    scene.control.change({"autopilot": "on"})
    scene.autopilot.look_on()
    await scene.load_until_it_tries()
    scene.mode = "off"
    scene.control.change({"autopilot": "off"})
    scene.autopilot.look_on()
    assert (scene.holding()["max_batch"], scene.stats.readers) == (64, []), "what was on trial does not stay"
    await scene.ends_well()


async def test_paused_it_decides_nothing_and_resumed_it_does() -> None:
    scene = Scene(lambda: Says(once(max_batch=8)))
    await scene.load_until_it_tries()
    scene.autopilot.pause("m")
    assert (scene.holding()["max_batch"], scene.flight.state) == (64, "paused")
    decided = len(scene.flight.log)
    await scene.load(60.0)
    assert (scene.holding()["max_batch"], len(scene.flight.log)) == (64, decided)
    scene.autopilot.resume("m")
    await scene.load(60.0, until="keeps")
    await scene.ends_well()


async def test_telemetry_that_stands_still_ends_a_trial() -> None:
    scene = Scene(lambda: Says(once(max_batch=8)))
    await scene.load_until_it_tries()
    scene.garage.hangs = True
    await scene.load(0.2)
    await pass_time(2.0)
    assert scene.decided[-1] == "holds"
    assert "no counter moves" in scene.flight.state
    assert scene.holding()["max_batch"] == 64
    scene.garage.hangs = False
    for fake in scene.garage.up:
        fake.finish()
    await scene.load(10.0)
    await scene.ends_well()


async def test_a_clock_that_jumps_ends_a_trial() -> None:
    scene = Scene(lambda: Says(once(max_batch=8)))
    await scene.load_until_it_tries()
    scene.jump(100.0)
    await scene.load(1.0)
    assert scene.decided[-1] == "holds"
    assert "the clock jumped" in scene.flight.state
    assert scene.holding()["max_batch"] == 64
    await scene.ends_well()


async def test_an_instance_that_is_lost_ends_a_trial() -> None:
    scene = Scene(lambda: Says(once(instances=2)))
    await scene.load_until_it_tries()
    assert len(scene.garage.up) == 2
    scene.garage.roster.lose_instance(scene.garage.up[0].name, "killed", crashed=True)
    scene.garage.roster.lose_instance(scene.garage.up[1].name, "killed", crashed=True)
    scene.garage.up.clear()
    await pass_time(1.0)
    assert scene.decided[-1] == "holds"
    assert "0 of 1 instances are up" in scene.flight.state
    assert len(scene.garage.up) == 1, "with what held before it goes on"
    await scene.load(10.0)
    await scene.ends_well(refused=True)


async def test_what_an_operator_sets_during_a_trial_holds() -> None:
    scene = Scene(lambda: Says(once(max_batch=8, max_wait_s=0.01)))
    await scene.load_until_it_tries()
    scene.control.change({"max_batch": 16, "pinned": ["max_batch"]})
    assert (scene.holding()["max_batch"], scene.holding()["max_wait_s"]) == (16, 0.0)
    assert (scene.decided[-1], scene.control.tuned) == ("holds", {})
    await scene.load(60.0)
    assert scene.holding()["max_batch"] == 16
    assert scene.decided[-1] == "holds", "a proposal that turns a pinned knob is not tried"
    await scene.ends_well()


async def test_what_is_set_or_pinned_ends_what_was_tuned() -> None:
    scene = Scene(lambda: Says(once(max_batch=8, max_wait_s=0.01)))
    await scene.load(60.0, until="keeps")
    assert scene.control.tuned == {"max_batch": 8, "max_wait_s": 0.01}
    scene.control.change({"max_batch": 32})
    assert scene.control.tuned == {"max_wait_s": 0.01}
    assert scene.control.state()["tuned"] == {"max_wait_s": {"value": 0.01, "declared": 0.0}}
    scene.control.change({"pinned": ["max_wait_s"]})
    assert (scene.control.tuned, scene.holding()["max_batch"]) == ({}, 32)
    await scene.ends_well()


async def test_an_operator_who_scales_during_a_trial_gets_that_number() -> None:
    scene = Scene(lambda: Says(once(instances=2)))
    await scene.load_until_it_tries()
    await scene.control.scale(3)
    assert (scene.holding()["instances"], scene.decided[-1]) == (3, "holds")
    await scene.load(4.0)
    assert scene.holding()["instances"] == 3
    await scene.ends_well()


async def test_a_model_that_goes_during_a_trial_is_left_alone() -> None:
    scene = Scene(lambda: Says(once(threads=2)))
    await scene.load(30.0, until="tries")
    scene.autopilot.remove(scene.tuned)
    await scene.load(10.0)
    assert (scene.holding()["threads"], scene.garage.loads) == (1, 0)
    scene.control.change({"max_batch": 4})
    assert scene.stats.readers == [], "its last words to the control wake nothing"
    await scene.ends_well()


async def test_a_second_session_that_cannot_be_had_is_given_up_and_tried_again_much_later() -> None:
    scene = Scene(lambda: Says(once(threads=2)))
    scene.garage.problem = NO_MEMORY
    await scene.load(30.0, until="gives up")
    assert scene.flight.log[-1].reason == str(NO_MEMORY)
    await scene.load(AGAIN_S / 2)
    assert scene.decided == ["tries", "gives up"]
    scene.garage.problem = None
    await scene.load(2 * AGAIN_S, until="keeps")
    await scene.ends_well()


async def test_a_policy_that_contradicts_itself_does_not_go_to_and_fro() -> None:
    def there_and_back(knobs: dict[str, Value]) -> dict[str, Value]:
        return {"max_batch": 8 if knobs["max_batch"] == 64 else 64}

    scene = Scene(lambda: Says(there_and_back))
    await scene.load(240.0, 12.0)
    assert 1 <= scene.decided.count("keeps") <= 4, "each time that it may again comes twice as late"
    await scene.ends_well()


async def test_a_policy_that_fails_pauses_the_autopilot_of_its_model_alone(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(lambda: Says(broken))
    await scene.load(30.0)
    (error,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert error.exc_info is not None
    assert error.getMessage() == "model m: the autopilot has failed, and pauses itself"
    assert (scene.flight.paused, scene.flight.state) == (True, "paused itself: of nothing")
    assert scene.control.tuned == {}
    scene.control.change({"max_batch": 32})
    assert scene.flight.state == "paused itself: of nothing", "and stays so, whatever its operator changes"
    scene.autopilot.resume()
    await scene.load(30.0)
    assert scene.flight.paused
    await scene.ends_well()


async def test_a_policy_that_fails_when_it_is_told_leaves_what_held_before() -> None:
    class Forgets(Says):
        def learn(self, *_: object, kept: bool) -> None:
            raise RuntimeError("cannot learn")

    scene = Scene(lambda: Forgets(once(max_batch=8)))
    await scene.load(60.0)
    assert scene.flight.state == "paused itself: cannot learn"
    assert scene.holding()["max_batch"] == 64
    await scene.ends_well()


async def test_what_is_known_of_a_model_can_be_told() -> None:
    scene = Scene(Rules, max_batch=1)
    await scene.load(10.0, 20.0)
    (state,) = scene.autopilot.states("m")
    assert (state["mode"], state["objective_s"], state["knobs"]["threads"]) == ("on", OBJECTIVE_S, 1)
    explanation = state["explanation"]
    assert explanation["rate"] == pytest.approx(20.0, rel=0.1)
    present, *others = explanation["ways"]
    assert (present["present"], present["measured"]) == (True, True)
    assert present["base_s"] + present["row_s"] == pytest.approx(0.031, rel=0.1)
    assert [(way["instances"], way["threads"], way["measured"]) for way in others] == [(2, 1, False), (1, 2, False)]
    await scene.ends_well()
