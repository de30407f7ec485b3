"""The program that speaks to servers of images, in a jail of its own: it looks names up, connects, and reads HTTP and TLS.

Run as text (`python3 -I -S -c`), standard library only, with one end of a socket pair as standard input. It decides nothing:
which addresses are connected to and whether a redirect is followed the daemon says, question by question. A question and its
answer are a line of JSON each; the body of an answer follows its line, as it is, until the end of the socket. Ended by itself
with status 0 the body was whole.

Questions: {"name": HOST, "port": N} -> {"addresses": [...]}. {"get": TARGET, "scheme", "host", "port", "addresses", "headers",
"connect", "silence", "trust"} -> {"status": N, "headers": {...}}. What fails -> {"error": "name" | "connect" | "certificate" | "broke"}.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl

TOLD = ("location", "etag", "last-modified", "content-range", "content-length", "content-encoding")
LONGEST = 1 << 16
PIECE = 1 << 16

Question = dict[str, object]


class At(http.client.HTTPConnection):
    """A connection to one address, whatever the name is."""

    def __init__(self, address: str, question: dict) -> None:  # type: ignore[type-arg]
        super().__init__(question["host"], question["port"], timeout=question["connect"])
        self.address, self.question = address, question

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.question["scheme"] == "https":
            context = ssl.create_default_context(cadata=self.question["trust"] or None)
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)
        self.sock.settimeout(self.question["silence"])


def look_up(question: dict) -> dict:  # type: ignore[type-arg]
    try:
        found = socket.getaddrinfo(question["name"], question["port"], type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return {"error": "name"}
    return {"addresses": list(dict.fromkeys(str(item[4][0]) for item in found))[:64]}


def get(question: dict, output: socket.socket) -> None:  # type: ignore[type-arg]
    """Answer, and send the body."""
    problem = "connect"
    for address in question["addresses"]:
        connection = At(address, question)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError:
            problem = "certificate"
            continue
        except OSError:
            continue
        try:
            connection.putrequest("GET", question["get"], skip_host=True, skip_accept_encoding=True)
            for name, value in question["headers"].items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException):
            say(output, {"error": "broke"})
            return
        headers = {name: value for name in TOLD if (value := answer.getheader(name)) is not None}
        say(output, {"status": answer.status, "headers": headers})
        while piece := answer.read1(PIECE):
            output.sendall(piece)
        if answer.length:  # the connection ended before the body did
            os._exit(1)
        return
    say(output, {"error": problem})


def say(output: socket.socket, answer: dict) -> None:  # type: ignore[type-arg]
    output.sendall(json.dumps(answer).encode() + b"\n")


def main() -> None:
    door = socket.socket(fileno=0)
    for line in door.makefile("rb"):
        question = json.loads(line)
        if "name" in question:
            say(door, look_up(question))
            continue
        try:
            get(question, door)
        except (OSError, http.client.HTTPException):
            os._exit(1)
        os._exit(0)


if __name__ == "__main__":
    main()
