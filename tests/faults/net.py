"""Machines that are network namespaces on one switch, whose cables can be pulled: root on Linux. For tests of partitions."""

import asyncio
import ctypes
import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

_NEW_NET = 0x40000000  # CLONE_NEWNET
_NAMED = Path("/run/netns")


class Net:
    """`machines`: by name, each with one address. The calling thread is on the first of them until `close`.

    A socket stays on the machine on which it was made, so that servers of all of them may live in this process.
    """

    def __init__(self, *machines: str) -> None:
        """Skips the test where this is not allowed."""
        self._prefix = f"dlp{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self.addresses = {machine: f"10.77.0.{place}" for place, machine in enumerate(machines, start=1)}
        self._home = -1
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._ip("netns", "add", self._switch)
            self._ip("-n", self._switch, "link", "add", "sw", "type", "bridge")
            self._ip("-n", self._switch, "link", "set", "sw", "up")
            for machine, address in self.addresses.items():
                self._plug_in(machine, address)
            self._home = os.open("/proc/self/ns/net", os.O_RDONLY)
            self._move(self._open(machines[0]))
        except OSError as error:
            self.close()
            pytest.skip(f"no network namespaces here: {error}")

    def close(self) -> None:
        if self._home >= 0:
            self._move(self._home)
        for machine in (*self.addresses, "switch"):
            with suppress(OSError):
                self._ip("netns", "del", f"{self._prefix}-{machine}")

    def listener(self, machine: str, port: int = 0) -> socket.socket:
        """On that machine, whoever accepts there."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._move(self._open(machine))
        try:
            return socket.create_server((self.addresses[machine], port))
        finally:
            self._move(here)

    async def pull(self, machine: str) -> None:
        """Its cable: nothing arrives, and nobody is told."""
        await asyncio.to_thread(self._ip, "-n", self._switch, "link", "set", machine, "down")

    async def plug(self, machine: str) -> None:
        await asyncio.to_thread(self._ip, "-n", self._switch, "link", "set", machine, "up")

    def _plug_in(self, machine: str, address: str) -> None:
        own = f"{self._prefix}-{machine}"
        self._ip("netns", "add", own)
        self._ip("-n", self._switch, "link", "add", machine, "type", "veth", "peer", "name", "eth0", "netns", own)
        self._ip("-n", self._switch, "link", "set", machine, "master", "sw", "up")
        self._ip("-n", own, "address", "add", f"{address}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            self._ip("-n", own, "link", "set", link, "up")

    def _open(self, machine: str) -> int:
        return os.open(_NAMED / f"{self._prefix}-{machine}", os.O_RDONLY)

    def _move(self, namespace: int) -> None:
        """Of this thread alone."""
        failed = self._libc.setns(namespace, _NEW_NET)
        os.close(namespace)
        if failed:
            raise OSError(ctypes.get_errno(), "setns")

    @staticmethod
    def _ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
