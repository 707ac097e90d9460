"""`python -m dlproxy.cli.gateway LEVEL FORMAT SOCKET`: one gateway process.

Started by serve/gateways/process.py, by nobody else. Not aware of: what it serves.
"""

import asyncio
import signal
import socket
import sys

from dlproxy.cli import logs
from dlproxy.cli.serve import begun, described
from dlproxy.instance.process.worker import die_with_the_parent
from dlproxy.serve.event_loop import loop_factory
from dlproxy.serve.gateways.gateway import Gateway


def main() -> None:
    level, form, fd = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    die_with_the_parent(signal.SIGTERM)  # it drains, also when the keeper was killed
    logs.set_up(level, as_json=form == "json")
    control = socket.socket(fileno=fd)
    control.set_inheritable(False)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(Gateway(control, begun, described).run())


if __name__ == "__main__":
    main()
