"""Two hosts on one machine: network namespaces on a bridge, and an address that moves between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

FORWARDER = Path(__file__).with_name("forwarder.py")
NAMES = ("a", "b")


class TwoHosts:
    """Hosts `a` and `b`, which reach these ports of this machine under 127.0.0.1, and each other directly.

    Args:
        ports: of servers on this machine.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = [str(port) for port in ports]
        self._mark = os.getpid() % 30_000
        self._net = f"10.77.{os.getpid() % 250}"
        self.floating = f"{self._net}.100"
        self._holder: str | None = None
        self._on_exit = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._on_exit.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on_exit.close()

    def on(self, host: str) -> list[str]:
        """What to put before a command that is to run there."""
        return ["ip", "netns", "exec", self._namespace(host)]

    def give_address_to(self, host: str) -> None:
        """Move the floating address there, as keepalived would."""
        for name in NAMES:
            if name == self._holder:
                _ip("-n", self._namespace(name), "addr", "del", f"{self.floating}/32", "dev", "eth0")
        _ip("-n", self._namespace(host), "addr", "add", f"{self.floating}/32", "dev", "eth0")
        for name in NAMES:
            # A gratuitous ARP tells the others; here they are made to ask again.
            _ip("-n", self._namespace(name), "neigh", "flush", "dev", "eth0")
        self._holder = host

    def cut_off(self, host: str) -> None:
        """Nothing reaches the host or comes from it; its processes go on."""
        _ip("link", "set", self._cable(host), "down")

    def reconnect(self, host: str) -> None:
        """Its cable is back."""
        _ip("link", "set", self._cable(host), "up")

    def _make(self) -> None:
        bridge = f"ingbr{self._mark}"
        _ip("link", "add", bridge, "type", "bridge")
        self._on_exit.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{self._net}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        self._forward([], f"{self._net}.1", "127.0.0.1")
        for number, name in enumerate(NAMES, 2):
            namespace = self._namespace(name)
            _ip("netns", "add", namespace)
            self._on_exit.callback(_ip, "netns", "del", namespace)
            _ip("link", "add", self._cable(name), "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("link", "set", self._cable(name), "master", bridge, "up")
            _ip("-n", namespace, "addr", "add", f"{self._net}.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", namespace, "link", "set", device, "up")
            self._forward(self.on(name), "127.0.0.1", f"{self._net}.1")

    def _forward(self, prefix: Sequence[str], listen: str, target: str) -> None:
        process = subprocess.Popen([*prefix, sys.executable, "-S", str(FORWARDER), listen, target, *self._ports])
        self._on_exit.callback(_end, process)

    def _namespace(self, host: str) -> str:
        return f"ing{self._mark}{host}"

    def _cable(self, host: str) -> str:
        return f"ingv{self._mark}{host}"


def why_not() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the program ip (package iproute2)"
    trial = f"ingtrial{os.getpid()}"
    try:
        _ip("netns", "add", trial)
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.strip()}"
    _ip("netns", "del", trial)
    return None


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()
