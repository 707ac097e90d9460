"""A fresh environment and an empty folder, and commands as somebody types them there. Used by release.py and newcomer.py.

Not aware of: what is tried in it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

READY_S = 60.0
STOP_S = 30.0


class FailedError(Exception):
    """What was run, and what it said."""


class Fresh:
    """`folder` must be empty; commands run in `home`, and find first what is in `env`, beside it or in it.

    Nothing of the caller's own Python, dlproxy or caches is seen inside.
    """

    def __init__(self, folder: Path, more: Mapping[str, str] | None = None, *, env: str = "../env") -> None:
        self.home = folder / "work"
        self.home.mkdir(parents=True)
        self.env = (self.home / env).resolve()
        path = os.pathsep.join((str(self.env / "bin"), os.environ["PATH"]))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DLPROXY_", "PYTHON", "VIRTUAL_ENV"))}
        self._variables = {**kept, "PATH": path, "XDG_CACHE_HOME": str(folder / "cache"), **(more or {})}

    def make(self, python: str) -> None:
        """The environment, by this interpreter."""
        self.run(f"{python} -m venv {self.env}")

    def run(self, command: str, *, timeout_s: float = 900.0, code: int = 0) -> str:
        """What it printed. Raises FailedError for another exit code, or none in that time."""
        try:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self.home,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FailedError(f"{command}\nwas not done after {timeout_s:g} s; it said:\n{error.output}") from None
        if done.returncode != code:
            raise FailedError(f"{command}\nended with {done.returncode} instead of {code}; it said:\n{done.stdout}")
        return done.stdout

    @contextmanager
    def serving(self, command: str) -> Iterator[str]:
        """While that runs, what it had printed when it was ready; then Ctrl-C ends it. Raises FailedError."""
        said = self.home.parent / "said.txt"
        with said.open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.home,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            until = time.monotonic() + READY_S
            while "\nready" not in (text := said.read_text("utf-8")):
                if process.poll() is not None or time.monotonic() > until:
                    raise FailedError(f"{command}\nis not ready; it said:\n{text}")
                time.sleep(0.02)
            yield text
            process.send_signal(signal.SIGINT)
            if process.wait(STOP_S):
                raise FailedError(f"{command}\nended with {process.returncode} after Ctrl-C:\n{said.read_text('utf-8')}")
        finally:
            process.kill()
            process.wait()
