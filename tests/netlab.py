"""A host with bridges, servers on them and an outside world, each a network namespace; pairs of
veth stand in for taps.

Sockets are opened in a namespace and used from here, so nothing waits for other processes. Networks
by number, with the host as .1 and ::1: 1 and 2 are of kind nat (servers a b, and c), 3 is isolated
(d e), 4 is a bridge to outside (f g).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from virtuary.model.firewall import Match
from virtuary.network import obstacles, ruleset
from virtuary.network.filtered import Forward, Net
from virtuary.network.ruleset import CHECKS, Port

SERVERS = {1: "ab", 2: "c", 3: "de", 4: "fg"}
KINDS = {1: "nat", 2: "nat", 3: "isolated", 4: "bridge"}
BRIDGES = ("vbr1", "vbr2", "vbr3")
"""Those whose traffic the host forwards."""
PLACES = ("h", "o", *"abcdefg")  # the host, outside, and the servers
HOST, OUTSIDE, HOST6, OUTSIDE6 = "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"
_LIBC = ctypes.CDLL(None, use_errno=True)


def number_of(server: str) -> tuple[int, int]:
    """The number of a server's network, and of the server on it."""
    return next((net, names.index(server) + 2) for net, names in SERVERS.items() if server in names)


def v4(server: str) -> str:
    return "10.{}.0.{}".format(*number_of(server))


def v6(server: str) -> str:
    return "fd0{}::{}".format(*number_of(server))


def mac(server: str) -> str:
    return "52:54:00:00:0{}:0{}".format(*number_of(server))


def nets(**of_all: Any) -> list[Net]:
    return [
        Net(
            f"vbr{n}",
            kind,  # type: ignore[arg-type]
            (ip_network(f"10.{n}.0.0/24"), ip_network(f"fd0{n}::/64")),
            (ip_address(f"10.{n}.0.1"), ip_address(f"fd0{n}::1")),
            **of_all,
        )
        for n, kind in KINDS.items()
    ]


def port(server: str, *rules: Match, free: bool = False) -> Port:
    unguarded = frozenset(CHECKS) if free else frozenset()
    bridge = f"vbr{number_of(server)[0]}"
    return Port(
        f"tap{server}",
        bridge,
        mac(server),
        (ip_address(v4(server)), ip_address(v6(server))),
        unguarded,
        rules,
    )


def ports(**rules: tuple[Match, ...]) -> list[Port]:
    return [port(server, *rules.get(server, ())) for names in SERVERS.values() for server in names]


def forward(
    address: str, number: int, guest: str, guest_port: int = 80, protocol: str = "tcp"
) -> Forward:
    return Forward(protocol, ip_address(address), number, ip_address(guest), guest_port)  # type: ignore[arg-type]


class Lab:
    """The namespaces. `filtering`: whether the host filters bridged packets
    (net.bridge.bridge-nf-call-iptables).
    """

    def __init__(self, filtering: bool) -> None:
        self.filtering = filtering
        self.tag = f"vt-{os.getpid()}-{int(filtering)}"
        self.open: list[socket.socket] = []

    def name(self, place: str) -> str:
        return f"{self.tag}-{place}"

    def run(self, place: str, *lines: str) -> str:
        command = ["ip", "netns", "exec", self.name(place), "sh", "-ec", "\n".join(lines)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def inside(self, place: str) -> Iterator[None]:
        """This thread, and the programs it starts, are in the namespace meanwhile."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        other = os.open(f"/run/netns/{self.name(place)}", os.O_RDONLY)
        try:
            assert _LIBC.setns(other, 0x40000000) == 0
            yield
        finally:
            assert _LIBC.setns(own, 0x40000000) == 0
            os.close(own)
            os.close(other)

    def on_host(self, work: Callable[..., Coroutine[Any, Any, Any]], *words: Any) -> Any:
        with self.inside("h"):
            return asyncio.run(work(*words))

    # ---- building

    def make(self) -> None:
        for place in PLACES:
            subprocess.run(["ip", "netns", "add", self.name(place)], check=True, timeout=10)
            quiet = [
                f"echo 0 > /proc/sys/net/ipv6/conf/{which}/accept_dad"
                for which in ("all", "default")
            ]
            self.run(
                place,
                "ip link set lo up",
                "echo 0 > /proc/sys/net/ipv6/conf/default/router_solicitations",
                *quiet,
            )
        bridged = int(self.filtering)
        self.run(
            "h",
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
            "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
            "echo 0 > /proc/sys/net/ipv4/conf/all/send_redirects",
            *(
                f"test ! -e {file} || echo {bridged} > {file}"
                for file in (
                    "/proc/sys/net/bridge/bridge-nf-call-iptables",
                    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
                )
            ),
            f"ip link add up0 type veth peer name eth0 netns {self.name('o')}",
            "ip link set up0 up",
            f"ip addr add {HOST}/24 dev up0",
            f"ip addr add {HOST6}/64 dev up0 nodad",
        )
        self.run(
            "o",
            "ip link set eth0 up",
            f"ip addr add {OUTSIDE}/24 dev eth0",
            f"ip addr add {OUTSIDE6}/64 dev eth0 nodad",
            f"ip route add 10.0.0.0/8 via {HOST}",
            f"ip route add fd00::/8 via {HOST6}",
        )
        for net in SERVERS:
            self._make_bridge(net)
        self.run(
            "h",
            f"ip link add up4 type veth peer name eth4 netns {self.name('o')}",
            "ip link set up4 master vbr4",
            "ip link set up4 up",
        )
        self.run("o", "ip link set eth4 up")

    def _make_bridge(self, net: int) -> None:
        bridge = f"vbr{net}"
        settings = (
            ("conf", "proxy_arp_pvlan", 1),
            ("conf", "send_redirects", 0),
            ("conf", "route_localnet", 1),
            ("neigh", "proxy_delay", 0),
        )
        self.run(
            "h",
            f"ip link add {bridge} address 52:54:00:00:0{net}:01 type bridge mcast_snooping 0",
            f"ip link set {bridge} up",
            f"ip addr add 10.{net}.0.1/24 dev {bridge}",
            f"ip addr add fd0{net}::1/64 dev {bridge} nodad",
            *(
                f"echo {value} > /proc/sys/net/ipv4/{where}/{bridge}/{name}"
                for where, name, value in settings
            ),
        )
        flags = "" if KINDS[net] == "bridge" else "hairpin on" if self.filtering else "isolated on"
        for server in SERVERS[net]:
            tap = f"tap{server}"
            self.run(
                "h",
                f"ip link add {tap} type veth peer name eth0 address {mac(server)} netns "
                f"{self.name(server)}",
                f"ip link set {tap} master {bridge}",
                f"ip link set {tap} type bridge_slave {flags}" if flags else "true",
                f"echo 1 > /proc/sys/net/ipv6/conf/{tap}/disable_ipv6",
                f"ip link set {tap} up",
            )
            self.run(
                server,
                "ip link set eth0 up",
                f"ip addr add {v4(server)}/24 dev eth0",
                f"ip route add default via 10.{net}.0.1",
                f"ip addr add {v6(server)}/128 dev eth0 nodad",
                f"ip route add fd0{net}::1 dev eth0",
                f"ip route add default via fd0{net}::1 dev eth0",
            )

    def remove(self) -> None:
        for one in self.open:
            one.close()
        for place in reversed(PLACES):
            subprocess.run(
                ["ip", "netns", "del", self.name(place)], timeout=10, capture_output=True
            )

    # ---- using

    def socket(self, place: str, *kind: int) -> socket.socket:
        with self.inside(place):
            made = socket.socket(*kind)
        self.open.append(made)
        return made

    def listener(self, place: str, family: int, number: int) -> socket.socket:
        made = self.socket(place, family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(("", number))
        made.listen()
        made.settimeout(0.5)
        return made

    def rule(self) -> None:
        """Our own rules, with port 8080 of the host led to server a."""
        forwards = [forward("0.0.0.0", 8080, v4("a")), forward("::", 8080, v6("a"))]
        self.on_host(ruleset.apply, ruleset.render(nets(), ports(), forwards))

    def reached(self) -> list[bool]:
        """Whether servers reach outside, outside reaches what is published, and servers reach each
        other.
        """
        calls = [
            ("a", OUTSIDE, 80, "o"),
            ("a", OUTSIDE6, 80, "o"),
            ("o", HOST, 8080, "a"),
            ("o", HOST6, 8080, "a"),
            ("a", v4("b"), 80, "b"),
        ]
        return [self.call(*call, patience=0.25) not in ("silence", "refused") for call in calls]

    def clear(self) -> tuple[obstacles.Obstacle, ...]:
        """Look for what stops our bridges in others' rules, and let them pass; what was found."""
        found: tuple[obstacles.Obstacle, ...] = self.on_host(obstacles.find_obstacles, BRIDGES)
        for obstacle in found:
            self.on_host(obstacles.clear, obstacle)
        return found

    def call(
        self,
        caller: str,
        address: str,
        number: int,
        answers: str,
        listens: int = 80,
        patience: float = 0.4,
    ) -> str:
        """Who the called one says called, or "refused" or "silence"."""
        with self.connect(caller, address, number, answers, listens, patience) as (found, _, _):
            return found

    @contextlib.contextmanager
    def connect(
        self,
        caller: str,
        address: str,
        number: int,
        answers: str,
        listens: int = 80,
        patience: float = 0.4,
    ) -> Iterator[tuple[str, socket.socket, socket.socket]]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with (
            self.listener(answers, family, listens) as listening,
            self.socket(caller, family, socket.SOCK_STREAM) as client,
        ):
            client.settimeout(patience)
            try:
                client.connect((address, number))
            except TimeoutError:
                yield "silence", client, client
                return
            except OSError:
                yield "refused", client, client
                return
            try:
                server, peer = listening.accept()
            except TimeoutError:
                yield "somebody else answered", client, client
                return
            listening.close()  # the port is free for the next call while this one is open
            server.settimeout(1)
            with server:
                yield peer[0], client, server


def lab_of(filtering: bool) -> Iterator[Lab]:
    made = Lab(filtering)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def knows_bridge_filtering() -> bool:
    return Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
