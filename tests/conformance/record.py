"""Asks a real Triton every case and writes its answers down: `python -m tests.conformance.record PYTHON`.

PYTHON: the interpreter of an environment with nvidia-pytriton; `make prove-triton` makes one.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from benchmarks.harness.triton import running
from tests.conformance.answers import Answer, Asker
from tests.conformance.asking import Http
from tests.conformance.cases import CASES
from tests.conformance.repository import for_triton

RECORDED = Path(__file__).with_name("triton.json")
DYING_S = 2.0


def read() -> dict[str, Answer]:
    """Triton's answers by the names of their cases."""
    answers: dict[str, Answer] = json.loads(RECORDED.read_text("utf-8"))["answers"]
    return answers


def ask_triton(python: Path) -> tuple[str, dict[str, Answer]]:
    """Its version and its answers. What it dies of is noted, and the rest asked of another one."""
    version, answers, left = "", {}, dict(CASES)
    with tempfile.TemporaryDirectory() as folder:
        repository = for_triton(Path(folder))
        while left:
            with running(python, repository) as triton, Asker(triton.http_port, triton.grpc_port) as asker:
                version = asker.ask(Http("GET", "/v2"))["json"]["version"]
                while left and triton.process.poll() is None:
                    name = next(iter(left))
                    answers[name] = asker.ask(left.pop(name))
                    if "broken" in answers[name] or answers[name].get("code") == "UNAVAILABLE":
                        with suppress(subprocess.TimeoutExpired):
                            answers[name] = {"died": signal.Signals(-triton.process.wait(DYING_S)).name}
        lasting = {name: _lasting(name, answer) for name, answer in answers.items()}
        found: dict[str, Answer] = json.loads(json.dumps(lasting).replace(folder, ""))
    return version, found


def _lasting(name: str, answer: Answer) -> Answer:
    """Without what is new in every record and not compared: numbers of all models."""
    for body in [answer.get("json"), *answer.get("messages", [])]:
        if ": stats" in name and isinstance(body, dict) and "model_stats" in body:
            del body["model_stats"][1:]
    return answer


def written(version: str, answers: dict[str, Answer]) -> str:
    """A line for each answer, so that what differs can be seen."""
    lines = ",\n".join(f"{json.dumps(name)}:{json.dumps(answer, separators=(',', ':'))}" for name, answer in answers.items())
    return f'{{"triton":{json.dumps(version)},"answers":{{\n{lines}\n}}}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", type=Path)
    version, answers = ask_triton(parser.parse_args().python.absolute())
    RECORDED.write_text(written(version, answers), "utf-8")
    sys.stdout.write(f"{len(answers)} answers of Triton {version}\n")


if __name__ == "__main__":
    main()
