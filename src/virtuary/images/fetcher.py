"""The program that speaks to servers of images, in a jail of its own: it reads TLS and HTTP on a
connection that it was given.

Run as text (`python3 -I -S -c`), standard library only, with one end of a socket pair as descriptor
0 and the connection as 3. It has no network and decides nothing: where a connection leads and
whether a redirect is followed the daemon says. The question is a line of JSON, {"get": TARGET,
"scheme", "host", "headers", "patience", "trust"}, and so is the answer: {"status": N, "headers":
{...}} or {"error": "certificate" | "broke"}. The body of an answer follows its line, as it is,
until the end of the socket. Ended with status 0 the body was whole.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl

TOLD = ("location", "etag", "last-modified", "content-range", "content-length", "content-encoding")
PIECE = 1 << 16


def ask(question: dict) -> http.client.HTTPResponse:  # type: ignore[type-arg]
    server = http.client.HTTPConnection(question["host"], 0)  # which it never connects to itself
    server.sock = socket.socket(fileno=3)
    server.sock.settimeout(question["patience"])
    if question["scheme"] == "https":
        context = ssl.create_default_context(cadata=question["trust"] or None)
        server.sock = context.wrap_socket(server.sock, server_hostname=question["host"])
    server.putrequest("GET", question["get"], skip_host=True, skip_accept_encoding=True)
    for name, value in question["headers"].items():
        server.putheader(name, value)
    server.endheaders()
    return server.getresponse()


def say(door: socket.socket, answer: dict) -> None:  # type: ignore[type-arg]
    door.sendall(json.dumps(answer).encode() + b"\n")


def main() -> None:
    door = socket.socket(fileno=0)
    try:
        answer = ask(json.loads(door.makefile("rb").readline()))
    except ssl.SSLCertVerificationError:
        say(door, {"error": "certificate"})
        return
    except (OSError, http.client.HTTPException):
        say(door, {"error": "broke"})
        return
    headers = {name: value for name in TOLD if (value := answer.getheader(name)) is not None}
    say(door, {"status": answer.status, "headers": headers})
    try:
        while piece := answer.read1(PIECE):
            door.sendall(piece)
    except (OSError, http.client.HTTPException):
        os._exit(1)
    os._exit(1 if answer.length else 0)  # the connection may have ended before the body did


if __name__ == "__main__":
    main()
