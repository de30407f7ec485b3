"""What stands for a host and for what is outside, in network namespaces; and questions to servers
on networks of that host's.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

from instances import Instance

HOST4, OUTSIDE4, HOST6, OUTSIDE6 = "192.0.2.1", "192.0.2.2", "2001:db8:1::1", "2001:db8:1::2"

HOST_TOO4 = "192.0.2.40"
"""Another address of the host, by which it calls nobody."""


class Place:
    """A host's network namespace, and one outside that it has its way out by."""

    def __init__(self, tag: str = "") -> None:
        self.host, self.outside = f"vt-h{tag}{os.getpid()}", f"vt-o{tag}{os.getpid()}"

    def make(self) -> None:
        for name in (self.host, self.outside):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run(
            "ip",
            "link",
            "add",
            "out0",
            "netns",
            self.host,
            "type",
            "veth",
            "peer",
            "name",
            "in0",
            "netns",
            self.outside,
        )
        for name, link, four, six in (
            (self.host, "out0", HOST4, HOST6),
            (self.outside, "in0", OUTSIDE4, OUTSIDE6),
        ):
            run("ip", "-n", name, "address", "add", f"{four}/24", "dev", link)
            run("ip", "-n", name, "address", "add", f"{six}/64", "dev", link, "nodad")
            run("ip", "-n", name, "link", "set", link, "up")
        run("ip", "-n", self.host, "address", "add", f"{HOST_TOO4}/24", "dev", "out0")
        run("ip", "-n", self.host, "route", "add", "default", "via", OUTSIDE4)
        run("ip", "-n", self.host, "-6", "route", "add", "default", "via", OUTSIDE6)

    def remove(self) -> None:
        for name in (self.host, self.outside):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def in_host(self, *command: str) -> str:
        return run("ip", "netns", "exec", self.host, *command)

    def ask(self, where: str, address: str, port: int) -> str:
        """What a TCP service says, called from a namespace; empty when it can't be reached."""
        code = (
            "import socket,sys\n"
            "s=socket.create_connection((sys.argv[1],int(sys.argv[2])),3)\n"
            "s.settimeout(3)\nprint(s.recv(100).decode().strip())"
        )
        done = subprocess.run(
            ["ip", "netns", "exec", where, "python3", "-c", code, address, str(port)],
            capture_output=True, text=True, timeout=20, check=False
        )  # fmt: skip
        return done.stdout.strip()


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


SPEAK = "setsid nc -ll -p 7 -e echo {name} >/dev/null 2>&1 </dev/null &"


def ipv4(instance: Instance, name: str) -> str:
    return str(instance.vm(name)["spec"]["nics"][0]["ipv4"])


def leases(instance: Instance, network: str = "default") -> dict[str, Any]:
    return {
        item["vm"]: item for item in instance.call("GET", f"/v1/networks/{network}/leases")["items"]
    }


def foretold(instance: Instance, source: str, destination: str, service: str = "tcp/7") -> Any:
    protocol, _, port = service.partition("/")
    query = {
        "source": source,
        "destination": destination,
        "protocol": protocol,
        **({"port": port} if port else {}),
    }
    return instance.call("GET", "/v1/firewall-test", **query)
