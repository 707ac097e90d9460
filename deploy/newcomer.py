"""Does what docs/newcomer.md says, command by command, in an empty folder, and takes the time: `make prove-newcomer`.

Needs dist/packages/ of `make release`, which stands for the index. With --record, what was printed goes into the page.
Not aware of: what the commands do.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from fresh import FailedError, Fresh

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "newcomer.md"
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
TIMES = re.compile(r"(?<=^<!-- times -->\n).*?(?=^<!-- end of times -->$)", re.MULTILINE | re.DOTALL)
FIRST_ANSWER_S, TUNED_S = 120.0, 600.0
USER_ERROR = 2
REFUSED = ("dlproxy: ", "usage: ")  # a command of which the page shows this is one that is refused
WIDTH = 150
LEAST_S = 0.3  # what is quicker is not in the table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write what was printed into docs/newcomer.md")
    record = parser.parse_args().record
    sys.path.insert(0, str(ROOT))
    try:
        with tempfile.TemporaryDirectory() as folder:
            newcomer = Newcomer(Path(folder))
            page = newcomer.follow(PAGE.read_text("utf-8"))
    except FailedError as error:
        print(error, file=sys.stderr)
        return 1
    if record:
        PAGE.write_text(page, "utf-8")
    print(newcomer.table())
    return 0 if newcomer.in_time() else 1


class Newcomer:
    """Has a model of their own, and an image for it. `folder` must be empty."""

    def __init__(self, folder: Path) -> None:
        from benchmarks.models import build_small_resnet

        wheels = list((ROOT / "dist" / "packages").glob("*.whl"))
        if len(wheels) != 1:
            raise FailedError("there is no wheel in dist/packages; run: make release")
        self._wheel = wheels[0]
        self._fresh = Fresh(
            folder,
            {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1", "PIP_QUIET": "1", "COLUMNS": str(WIDTH)},
            env="env",
        )
        build_small_resnet(self._fresh.home / "resnet.onnx")
        image = np.random.default_rng(1).random((1, 3, 64, 64), np.float32)
        np.save(self._fresh.home / "image.npy", image)
        self._began = time.monotonic()
        self._answers: list[float] = []
        self._rows: list[tuple[str, float, float]] = []
        self._server = ExitStack()

    def follow(self, page: str) -> str:
        """The page with what was printed now. Raises FailedError."""
        with self._server:
            page = BLOCK.sub(lambda block: "".join(self._block(block.group())), page)
        return TIMES.sub(lambda _: f"{self.table()}\n", page)

    def _block(self, text: str) -> Iterator[str]:
        for part in re.split(r"^(?=\$ )", text, flags=re.MULTILINE)[1:]:
            command, shown = part.removeprefix("$ ").split("\n", 1)
            print(f"$ {command}", flush=True)
            began = time.monotonic()
            said = self._typed(command, USER_ERROR if shown.startswith(REFUSED) else 0)
            took, since = time.monotonic() - began, time.monotonic() - self._began
            print(f"{said}# {took:.1f} s; {since:.0f} s since the beginning", flush=True)
            if not shown.startswith(REFUSED):
                self._rows.append((command, took, since))
                if command.startswith("dlproxy infer"):
                    self._answers.append(since)
            yield f"$ {command}\n{said}"

    def _typed(self, command: str, code: int) -> str:
        """A server runs on until the next one takes its place."""
        really = re.sub(r"(?<=pip install -q )'?dlproxy(\[\w+\])?'?$", rf"'{self._wheel}\1'", command)
        if command.startswith("dlproxy serve") and not code:
            self._server.close()
            return self._server.enter_context(self._fresh.serving(really))
        return self._fresh.run(really, code=code)

    def in_time(self) -> bool:
        """The first answer of the model, and the first one of the tuned model."""
        return len(self._answers) > 1 and self._answers[0] <= FIRST_ANSWER_S and self._answers[1] <= TUNED_S

    def table(self) -> str:
        """Of all that took its time."""
        rows = [f"| `{command}` | {took:.1f} | {since:.0f} |" for command, took, since in self._rows if took >= LEAST_S]
        return "\n".join(("| command | seconds | seconds since the beginning |", "|---|---:|---:|", *rows))


if __name__ == "__main__":
    sys.exit(main())
