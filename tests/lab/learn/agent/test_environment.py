"""The environment: Gymnasium's own check, the same twice, the rules as the rules, and time that only goes forward."""

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env

from dlproxy.lab.learn import ProxyEnv
from dlproxy.lab.learn.agent.environment import ADVISED, Weights
from dlproxy.lab.learn.agent.scenarios import MOST_RATE, plain, randomised
from dlproxy.lab.simulate.scenario import Part, Stage, both
from dlproxy.policy.tuning.moves import MOVES, Move
from dlproxy.policy.tuning.pilot import Decision
from dlproxy.policy.tuning.rules import Rules

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore::UserWarning")]
LEAVE = np.int64(MOVES.index(Move.LEAVE))
SHORT_S = 8.0


@pytest.mark.parametrize("guarded", [False, True])
def test_gymnasium_has_nothing_to_complain_of(guarded: bool) -> None:
    check_env(ProxyEnv(guarded=guarded, phase_s=SHORT_S), skip_render_check=True)


def test_environments_run_in_a_row() -> None:
    DummyVecEnv = pytest.importorskip("stable_baselines3.common.vec_env").DummyVecEnv  # noqa: N806

    envs = DummyVecEnv([lambda: ProxyEnv(phase_s=SHORT_S) for _ in range(2)])
    envs.seed(3)
    first = envs.reset()
    assert not np.array_equal(first[0], first[1])
    states, rewards, _, infos = envs.step(np.array([ADVISED, LEAVE]))
    assert states.shape == first.shape
    assert rewards.shape == (2,)
    assert {"mask", "scenario", "now"} <= infos[0].keys()


def played(env: ProxyEnv, move: np.int64, number: int) -> tuple[float, ProxyEnv]:
    """The sum of the rewards."""
    env.reset(options={"number": number})
    total, over, now = 0.0, False, 0.0
    while not over:
        state, reward, ended, over, info = env.step(move)
        assert not ended
        assert env.observation_space.contains(state)
        assert info["now"] > now or over
        total, now = total + reward, info["now"]
    return total, env


def test_one_that_does_as_the_rules_advise_is_the_production_autopilot() -> None:
    """Behind the pilot, the environment and the simulator's own host come to the same decisions at the same instants."""
    _, env = played(ProxyEnv(guarded=True, phase_s=20.0), ADVISED, 10)
    stage = Stage(randomised(10), 10, parts=[(0.0, 40.0, Part())])
    pilot, _ = stage.fly(Rules(), 40.0)
    stage.shift_at(20.0)
    stage.simulation.run(both(randomised(10), 10, 20.0))

    def told(log: object) -> list[tuple[float, str, str]]:
        return [(round(one.at, 3), one.kind, one.measured) for one in log if isinstance(one, Decision) and one.at < 39.0]  # type: ignore[attr-defined]

    assert told(env.pilot.log) == told(pilot.log)
    assert len(told(pilot.log)) >= 2


def test_beside_the_rules_they_are_worth_nothing_and_standing_still_is_worth_less() -> None:
    free = Weights(change=0.0)
    env = ProxyEnv(guarded=True, versus=True, phase_s=20.0, weights=free)
    assert played(env, ADVISED, 10)[0] == pytest.approx(0.0, abs=1e-9)
    assert played(env, LEAVE, 10)[0] < -1.0


def test_the_multiplier_prices_what_is_missed_beyond_what_is_tolerated() -> None:
    def reward(multiplier: float) -> float:
        env = ProxyEnv(phase_s=SHORT_S, weights=Weights(p99=0.0, change=0.0))
        env.set_multiplier(multiplier)
        return played(env, LEAVE, 5)[0]

    free, priced, dear = reward(0.0), reward(1.0), reward(2.0)
    missed_s = -free
    assert missed_s > 1.0
    assert priced == pytest.approx(free - (missed_s - 0.01 * 2.0 * SHORT_S), abs=0.02)
    assert dear - priced == pytest.approx(priced - free, abs=1e-6)


def test_a_move_that_is_not_possible_leaves_the_knobs() -> None:
    env = ProxyEnv(phase_s=SHORT_S)
    _, info = env.reset(options={"number": 1})
    before = info["knobs"]
    impossible = np.flatnonzero(~info["mask"])
    assert info["mask"][LEAVE]
    assert impossible.size
    assert env.step(impossible[0])[4]["knobs"] == before


def test_scenarios_repeat_and_randomised_ones_differ_in_what_a_simulator_may_have_wrong() -> None:
    assert randomised(7) == randomised(7) != randomised(8)
    drawn = [randomised(number) for number in range(40)]
    assert len({one.parallel for one in drawn}) == len({one.cv for one in drawn}) == 40
    assert len({(one.parallel, one.cv, one.start_s) for one in map(plain, range(40))}) == 1
    assert max(one.phases[0].rate for one in drawn) <= MOST_RATE * 1.01
