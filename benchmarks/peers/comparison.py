"""The comparison itself: each peer beside a dlproxy of its own, the two loaded in turn so that noise disturbs both alike."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.processes import BenchmarkError, Children, Cores
from benchmarks.harness.servers import Launcher, constant
from benchmarks.harness.turns import in_turn
from benchmarks.harness.wrk import Figures, Load, run_wrk, wrk_command
from benchmarks.peers import venvs
from benchmarks.peers.registry import DLPROXY, System
from benchmarks.peers.results import Footprint, Measurement, Results
from benchmarks.peers.running import Question, Running, question_for, run_system
from benchmarks.peers.workloads import Workload, model_path

WARM_UP_SECONDS = 1
FOOTPRINT_MODEL = "mlp"


@dataclass(frozen=True)
class Comparison:
    results: Results
    children: Children
    cores: Cores
    folder: Path
    seconds: int
    repeats: int

    def install(self, systems: Sequence[System], *, fresh: bool) -> list[System]:
        """The systems that can be run; of the others the results say why not."""
        usable = []
        for system in systems:
            try:
                venvs.ensure(system, self.children, fresh=fresh)
                self.results.versions[system.name] = venvs.versions(system)
                usable.append(system)
            except BenchmarkError as error:
                self._fail(system, self.results.workloads, f"not installed: {error}")
        return usable

    def compare(self, peer: System, workloads: Sequence[Workload]) -> None:
        by_model: dict[str, list[Workload]] = {}
        for workload in workloads:
            by_model.setdefault(workload.model, []).append(workload)
        for model, of_model in by_model.items():
            path = model_path(model)
            question = question_for(path)
            try:
                self._compare_on(peer, path, question, of_model)
            except BenchmarkError as error:
                self._fail(peer, [workload.name for workload in of_model], str(error))

    def measure_nginx(self, launcher: Launcher, workload: Workload) -> None:
        """A constant reply from nginx, as large as dlproxy's: what this machine's loopback and wrk allow."""
        question = question_for(model_path(workload.model))
        with launcher.nginx(constant(len(question.answer.tobytes()))) as nginx:
            load = Load(workload.connections, self.seconds)
            command = wrk_command(nginx.url(), load, self.cores, self.folder)
            for _ in range(self.repeats):
                figures = run_wrk(command, load)
                self.results.yardsticks.setdefault("nginx", []).append(figures)
                _tell("nginx", workload, figures)

    def _compare_on(self, peer: System, model: Path, question: Question, workloads: Sequence[Workload]) -> None:
        core = self.cores.server
        with (
            run_system(peer, model, question, self.children, core) as theirs,
            run_system(DLPROXY, model, question, self.children, core) as ours,
        ):
            both = [theirs, ours]
            for side in both:
                self.results.note_difference(side.system.name, side.check())
            # the calmest first: BentoML's learned batch wait outlives a load by minutes, which its single client would pay
            for workload in sorted(workloads, key=lambda found: found.connections):
                for side, partner in (both, both[::-1]):
                    with alone(side, partner):
                        self._warm_up(side, workload)
                for repeat in range(self.repeats):
                    self._pair(in_turn(both, repeat), workload, f"{peer.name}-{workload.name}-{repeat}")
            if workloads[0].model == FOOTPRINT_MODEL:
                for side, partner in (both, both[::-1]):
                    with alone(side, partner):
                        self._take_footprint(side)

    def _warm_up(self, side: Running, workload: Workload) -> None:
        try:
            side.settle()
            side.load(workload, WARM_UP_SECONDS * workload.longer, self.cores, self.folder)
        except BenchmarkError as error:
            self._fail(side.system, [workload.name], str(error))

    def _pair(self, sides: Sequence[Running], workload: Workload, pair: str) -> None:
        """Both or none: one without its partner has no ratio."""
        if any(workload.name in self.results.failures.get(side.system.name, {}) for side in sides):
            return
        measured = []
        for side, partner in (sides, sides[::-1]):
            try:
                with alone(side, partner):
                    side.settle()
                    figures = side.load(workload, self.seconds * workload.longer, self.cores, self.folder)
            except BenchmarkError as error:
                self._fail(side.system, [workload.name], str(error))
                return
            measured.append(Measurement(side.system.name, workload.name, pair, figures))
            _tell(side.system.name, workload, figures)
        self.results.measurements += measured

    def _take_footprint(self, side: Running) -> None:
        side.settle()
        memory, idle = side.family.pss_megabytes(), side.family.idle_cpu_share()
        self.results.footprints.append(Footprint(side.system.name, side.seconds_to_answer, memory, idle))

    def _fail(self, system: System, workloads: Sequence[str], reason: str) -> None:
        self.results.fail(system.name, list(workloads), reason)
        print(f"{system.name}  {', '.join(workloads)}: failed: {reason}", flush=True)


@contextmanager
def alone(side: Running, partner: Running) -> Iterator[None]:
    """The partner is stopped meanwhile: some systems poll, and would take up to half of the core when idle.

    Not before it is idle: BentoML would take the pause for the time that a batch took, and learn to wait that long.
    """
    partner.family.wait_until_idle()
    partner.family.pause()
    try:
        yield
    finally:
        partner.family.resume()


def _tell(system: str, workload: Workload, figures: Figures) -> None:
    rate = f"{figures.requests_per_s:,.1f}/s, p50 {figures.p50_ms:.3f} ms, p99 {figures.p99_ms:.3f} ms"
    print(f"{system}  {workload.title}: {rate}", flush=True)
