"""Hosts as network namespaces of this machine, and a switch between them with links of a given rate and latency.

    python -m benchmarks.harness.switch NAMESPACE... --mbit RATE --us LATENCY

opens a TUN device called ``link`` in each namespace and passes packets between them in user space, where the kernel has
no traffic control: a packet takes its length over the rate to leave its host, as long to enter the other one, both at
the same time as in a switch that cuts through, and then the latency. Nothing is dropped. It prints a line when it is
ready and takes lines on stdin: ``cut HOST``, ``delay HOST SECONDS``, ``pass HOST``. It ends with stdin. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from sensai_serve.errors import ServingError

MTU = 60_000
"""Bytes of the largest packet: two cores forward few large ones, and not many small ones."""
_TUNSETIFF = 0x400454CA
_IFF_TUN_WITHOUT_HEADER = 0x1001
_IPV4_HEADER = 20
_CLONE_NEWNET = 0x40000000


def address_of(host: int) -> str:
    """The IPv4 address of a host."""
    return f"10.77.0.{host + 1}"


def enter(namespace: str) -> None:
    """Move the calling thread, and those that it will start, into a network namespace.

    Raises:
        ServingError: there is none of that name, or the user is not root.
    """
    try:
        handle = os.open(namespace if "/" in namespace else f"/run/netns/{namespace}", os.O_RDONLY)
    except OSError as error:
        raise ServingError(f"network namespace {namespace} cannot be opened: {error.strerror}") from None
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET):
            raise ServingError(f"network namespace {namespace}: {os.strerror(ctypes.get_errno())}, expected root")
    finally:
        os.close(handle)


class Switch:
    """A running switch."""

    def __init__(self, process: subprocess.Popen[str], namespaces: Sequence[str]) -> None:
        self.namespaces = namespaces
        """The namespace of each host."""
        self._process = process

    def tell(self, line: str) -> None:
        """Send a command: ``cut HOST``, ``delay HOST SECONDS`` or ``pass HOST``."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


@contextlib.contextmanager
def switched(hosts: int, mbit: float, latency_us: float) -> Iterator[Switch]:
    """Make namespaces for hosts 0 to `hosts` - 1, and switch packets between them while the block runs.

    Raises:
        ServingError: the machine has no network namespaces or TUN devices, or the user is not root.
    """
    names = [f"sensai-{os.getpid()}-{host}" for host in range(hosts)]
    made: list[str] = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
        command = [sys.executable, "-m", "benchmarks.harness.switch", *names, "--mbit", str(mbit)]
        with subprocess.Popen(
            [*command, "--us", str(latency_us)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                if not process.stdout.readline():
                    raise ServingError("the switch between network namespaces does not start, expected root and TUN")
                for host, name in enumerate(names):
                    _ip("-n", name, "address", "add", f"{address_of(host)}/24", "dev", "link")
                    _ip("-n", name, "link", "set", "dev", "lo", "up")
                    _ip("-n", name, "link", "set", "dev", "link", "mtu", str(MTU), "up")
                yield Switch(process, names)
            finally:
                process.terminate()
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ServingError(f"ip: {error.strerror}, expected iproute2") from None
    if done.returncode:
        raise ServingError(f"ip {' '.join(arguments)}: {' '.join(done.stderr.split())}")


class _Port:
    """One host's link."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.out_free = self.in_free = 0.0  # when its link is free again, each way
        self.delay_s = 0.0
        self.is_cut = False


def _open(namespace: str, home: int) -> _Port:
    enter(namespace)
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"link", _IFF_TUN_WITHOUT_HEADER))
    finally:
        enter(f"/proc/self/fd/{home}")
    return _Port(device)


def _run(namespaces: Sequence[str], bytes_per_s: float, latency_s: float) -> None:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    ports = [_open(name, home) for name in namespaces]
    port_of = {port.device: port for port in ports}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    commands = sys.stdin.fileno()
    os.set_blocking(commands, False)
    due: list[tuple[float, int, _Port, bytes]] = []
    number, text = 0, b""
    while True:
        wait = max(0.0, due[0][0] - time.monotonic()) if due else None
        readable, _, _ = select.select([commands, *port_of], [], [], wait)
        now = time.monotonic()
        while due and due[0][0] <= now:
            *_, port, packet = heapq.heappop(due)
            with contextlib.suppress(OSError):  # the device is not up yet
                os.write(port.device, packet)
        for device in readable:
            if device == commands:
                more = os.read(commands, 4096)
                if not more:
                    return
                *lines, text = (text + more).split(b"\n")
                for line in lines:
                    _command(ports, line.decode())
                continue
            source = port_of[device]
            with contextlib.suppress(BlockingIOError):
                packet = os.read(device, 1 << 16)
                host = packet[19] - 1 if len(packet) >= _IPV4_HEADER and packet[0] >> 4 == 4 else -1
                if not 0 <= host < len(ports):
                    continue
                sink, takes = ports[host], len(packet) / bytes_per_s
                source.out_free = max(now, source.out_free) + takes
                sink.in_free = max(source.out_free, sink.in_free + takes)
                if not source.is_cut and not sink.is_cut:
                    number += 1
                    at = sink.in_free + latency_s + source.delay_s + sink.delay_s
                    heapq.heappush(due, (at, number, sink, packet))


def _command(ports: Sequence[_Port], line: str) -> None:
    word, host, *value = line.split()
    port = ports[int(host)]
    port.is_cut = word == "cut"
    port.delay_s = float(value[0]) if word == "delay" else 0.0


if __name__ == "__main__":
    *_names, _, _mbit, _, _us = sys.argv[1:]
    _run(_names, float(_mbit) * 1e6 / 8, float(_us) / 1e6)
