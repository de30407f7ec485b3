"""A bridge with servers and a world outside, in network namespaces; and the programs that send and
count.

A "guest" namespace stands for a server: its cable ends in a port of the bridge, as a tap would. Run
as a program, this file is one end of a flow. What is counted is what a limit counts: frames with
all headers, calculated from what the receiver got and the size of its segments.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Self

UDP_SEGMENT, UDP_GRO, SOL_UDP, SEND_BUFFER, RECEIVE_BUFFER = 103, 104, 17, 32, 33
DATAGRAM, MTU, ETHERNET = 1400, 1500, 14
TCP_PAYLOAD = MTU - 20 - 32  # IPv4, TCP with time stamps
OUTSIDE = "10.9.0.1"


def on_wire(kind: str, payload: float, size: int = DATAGRAM) -> float:
    """Bytes of frames that carry so much payload."""
    return payload * (
        (MTU + ETHERNET) / TCP_PAYLOAD if kind == "tcp" else (size + 28 + ETHERNET) / size
    )


@dataclass
class Flow:
    kind: str
    size: int
    receiver: subprocess.Popen[str]
    sender: subprocess.Popen[str]
    samples: list[tuple[float, int]] = field(default_factory=list)
    sent: int = 0

    def wait(self) -> Self:
        """Until both ends have finished; afterwards there are samples of when how much had
        arrived.
        """
        said, _ = self.sender.communicate(timeout=90)
        self.sent = int(said or 0)
        said, _ = self.receiver.communicate(timeout=90)
        self.samples = [(moment, total) for moment, total in json.loads(said)]
        return self

    def rate(self, begin: float, end: float) -> float:
        """Bits a second on the wire between two moments (seconds after the first arrival)."""
        zero = self.samples[0][0]
        inside = [
            (moment, total) for moment, total in self.samples[:-1] if begin <= moment - zero <= end
        ]
        (first, before), (last, after) = inside[0], inside[-1]
        return on_wire(self.kind, after - before, self.size) * 8 / (last - first)

    @property
    def received(self) -> int:
        return self.samples[-1][1] if self.samples else 0


class Rig:
    """`guests` servers on a bridge `br0`, with ports t0, t1, ...; closed, nothing is left of it."""

    def __init__(self, token: str, guests: int = 1) -> None:
        self.host, self.outside = f"vt-{token}-host", f"vt-{token}-out"
        self.guests = [f"vt-{token}-g{number}" for number in range(guests)]
        self.port = 5000
        self.flows: list[Flow] = []

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for flow in self.flows:
            for process in (flow.sender, flow.receiver):
                process.kill()
                process.communicate()
        for name in (self.host, self.outside, *self.guests):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def _build(self) -> None:
        for name in (self.host, self.outside, *self.guests):
            say("ip", "netns", "add", name)
            say("ip", "-n", name, "link", "set", "lo", "up")
        say(
            "ip",
            "-n",
            self.host,
            "link",
            "add",
            "name",
            "br0",
            "type",
            "bridge",
            "stp_state",
            "0",
            "forward_delay",
            "0",
        )
        say("ip", "-n", self.host, "link", "set", "br0", "up")
        self._cable(self.outside, "up0", f"{OUTSIDE}/24")
        for number, name in enumerate(self.guests):
            self._cable(name, f"t{number}", f"{address(number)}/24")

    def _cable(self, name: str, port: str, addressed: str) -> None:
        say(
            "ip",
            "-n",
            self.host,
            "link",
            "add",
            "name",
            port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            name,
        )
        say("ip", "-n", self.host, "link", "set", port, "master", "br0", "up")
        say("ip", "-n", name, "addr", "add", addressed, "dev", "eth0")
        say("ip", "-n", name, "link", "set", "eth0", "up")

    def renew_port(self, number: int) -> None:
        """What a restart of a server does: its interface goes, and another one comes with the same
        name.
        """
        say("ip", "-n", self.host, "link", "del", f"t{number}")
        self._cable(self.guests[number], f"t{number}", f"{address(number)}/24")

    def start(
        self,
        direction: str,
        kind: str,
        seconds: float,
        *,
        guest: int = 0,
        to: int | None = None,
        pace: int = 0,
        size: int = DATAGRAM,
    ) -> Flow:
        """A flow from or to a guest; `to` another one instead of the world outside. `pace`: bits a
        second of UDP's payload.
        """
        self.port += 1
        far, there = (self.outside, OUTSIDE) if to is None else (self.guests[to], address(to))
        source, sink, target = (
            (self.guests[guest], far, there)
            if direction == "outbound"
            else (far, self.guests[guest], address(guest))
        )
        receiver = self._program(sink, "receive", kind, str(self.port), str(seconds))
        assert receiver.stdout
        assert receiver.stdout.readline() == "ready\n"
        sender = self._program(
            source, "send", kind, target, str(self.port), str(seconds), str(pace), str(size)
        )
        flow = Flow(kind, size, receiver, sender)
        self.flows.append(flow)
        return flow

    def _program(self, place: str, *words: str) -> subprocess.Popen[str]:
        command = ["ip", "netns", "exec", place, sys.executable, "-I", "-S", __file__, *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def left(self) -> str:
        """What traffic control and which devices there are besides the rig's own."""
        qdiscs = say("tc", "-n", self.host, "qdisc", "show").splitlines()
        links = [
            line.split()[0].partition("@")[0]
            for line in say("ip", "-n", self.host, "-br", "link").splitlines()
        ]
        own = {"lo", "br0", "up0", *(f"t{number}" for number in range(len(self.guests)))}
        return "\n".join(
            [line for line in qdiscs if "noqueue" not in line]
            + [name for name in links if name not in own]
        )


def address(number: int) -> str:
    return f"10.9.0.{10 + number}"


def say(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


# ---- the ends of a flow


def receive(kind: str, port: int, seconds: float) -> None:
    if kind == "tcp":
        with socket.create_server(("", port)) as listener:
            print("ready", flush=True)
            listener.settimeout(10)
            link, _ = listener.accept()
    else:
        link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        link.setsockopt(socket.SOL_SOCKET, RECEIVE_BUFFER, 8 << 20)
        link.setsockopt(SOL_UDP, UDP_GRO, 1)
        link.bind(("", port))
        print("ready", flush=True)
    samples: list[tuple[float, int]] = []
    total, buffer, until, last = 0, bytearray(1 << 20), time.monotonic() + seconds + 1, 0.0
    with link:
        while (now := time.monotonic()) < until:
            link.settimeout(max(0.01, until - now))
            try:
                got = link.recv_into(buffer, 0, socket.MSG_TRUNC if kind == "tcp" else 0)
            except TimeoutError:
                break
            if not got:
                break
            total += got
            now = time.monotonic()
            if not samples or now - last > 0.005:
                samples.append((now, total))
                last = now
            if kind == "tcp" and got < 1 << 18:
                time.sleep(0.002)  # fewer and bigger reads: there are few CPUs
    print(json.dumps([*samples, (time.monotonic(), total)]))


def send(kind: str, host: str, port: int, seconds: float, pace: int, size: int) -> None:
    until, sent = time.monotonic() + seconds, 0
    if kind == "tcp":
        with socket.create_connection((host, port), 10) as link, contextlib.suppress(OSError):
            link.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic"
            )  # bbr sends nothing for a while every ten seconds
            data = bytes(1 << 18)
            while (left := until - time.monotonic()) > 0:
                link.settimeout(left)
                sent += link.send(data)
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.setsockopt(SOL_UDP, UDP_SEGMENT, size)
            link.setsockopt(socket.SOL_SOCKET, SEND_BUFFER, 8 << 20)
            many = max(1, min(40, int(pace / 8 / size * 0.004)))
            data, began = bytes(size * many), time.monotonic()
            link.connect((host, port))
            while (now := time.monotonic()) < until:
                if (ahead := sent * 8 / pace - (now - began)) > 0:
                    time.sleep(ahead)
                with contextlib.suppress(OSError):
                    sent += link.send(data)
    print(sent)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        send(
            sys.argv[2],
            sys.argv[3],
            int(sys.argv[4]),
            float(sys.argv[5]),
            int(sys.argv[6]),
            int(sys.argv[7]),
        )
