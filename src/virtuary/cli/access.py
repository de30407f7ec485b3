"""Commands that go inside a server: shell, exec, console, ssh-config; cp is in cli/copying.py, how they log in in cli/login.py."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from virtuary.base.errors import Failed, GuestSilent, NotFound, VirtuaryError
from virtuary.base.text import Stream
from virtuary.cli.login import config_block, ssh_command, wait_for_ssh
from virtuary.cli.options import NAME, Duration
from virtuary.cli.output import emit, output_option, say, tell
from virtuary.client.start import connect
from virtuary.client.wire import Wire, path_part

DETACH = b"\x1d"  # Ctrl-]
SHELL_WAIT = 600.0


class Inside(click.Command):
    """From the first word of the command that runs inside, everything is that command's, also what looks like an option of ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        valued = {
            name for option in self.params if isinstance(option, click.Option) and not option.is_flag for name in option.opts
        }
        words = [at for at, word in enumerate(args) if not word.startswith("-") and (at == 0 or args[at - 1] not in valued)]
        if len(words) > 1 and "--" not in args[: words[1]]:
            args = [*args[: words[1]], "--", *args[words[1] :]]
        return super().parse_args(ctx, args)


@click.command(cls=Inside, context_settings={"ignore_unknown_options": True})
@NAME
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "-A", "--forward-agent", is_flag=True, help="Let the server use your ssh agent's keys for as long as the shell is open."
)
@click.option("--timeout", type=Duration(), default=SHELL_WAIT, help="How long to wait for the server's SSH.")
def shell_command(name: str, command: tuple[str, ...], forward_agent: bool, timeout: float) -> None:
    """Open a shell inside a server, by SSH with a key that Virtuary manages; by the serial console where there is no SSH.

    Your own ssh configuration is not read: a server is given neither your agent nor variables, ports or your display, unless options of ssh
    after its name say so.

    \b
    Examples:
      virtuary shell web1
      virtuary shell web1 -- uname -a
      virtuary shell web1 -L 8080:localhost:80
    """
    wire = connect()
    try:
        way = wait_for_ssh(wire, name, timeout)
    except GuestSilent as error:
        if command or not sys.stdin.isatty():
            raise
        say(f"{error.sentence}: falling back to the serial console")
        return attach(wire, name)
    words = ssh_command(way, *command, terminal=not command, agent=forward_agent)
    os.execvp(words[0], words)  # noqa: S606


@click.command(context_settings={"ignore_unknown_options": True})
@NAME
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--timeout", type=Duration(), default=600.0, help="How long the command may take.")
@output_option
def exec_command(name: str, command: tuple[str, ...], timeout: float, output: str) -> None:
    """Run a command inside a server through its guest agent; no network is needed. Ends with the command's own status.

    125: could not be run, 126: not executable, 127: not found. What it prints is passed on as it is.

    \b
    Example:
      virtuary exec web1 -- uname -a
    """
    wire = connect()
    stdin = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    body = {"command": list(command), "stdin": base64.b64encode(stdin).decode(), "timeout": timeout}
    wire.timeout = timeout + 30
    try:
        answer = wire.call("POST", f"/v1/vms/{path_part(name)}/exec", body)
    except NotFound:
        raise
    except Failed as error:
        say(f"error: {error.sentence}")
        sys.exit(127 if "No such file" in error.sentence else 126 if "Permission denied" in error.sentence else 125)

    def plain() -> None:
        sys.stdout.buffer.write(base64.b64decode(answer["stdout"]))
        sys.stdout.buffer.flush()
        sys.stderr.buffer.write(base64.b64decode(answer["stderr"]))
        sys.stderr.buffer.flush()
        if answer["truncated"]:
            say("the output was cut: the guest agent keeps 16 MiB")

    emit(answer, output, plain, lambda item: str(item["status"]))
    sys.exit(answer["status"])


@click.command()
@NAME
def console_command(name: str) -> None:
    """Attach to a server's serial console. Ctrl-] detaches.

    \b
    Example:
      virtuary console web1
    """
    attach(connect(), name)


def attach(wire: Wire, name: str) -> None:
    """Connect this terminal with the serial console until it is detached or the console closes."""
    import threading

    from websockets.exceptions import ConnectionClosed

    closed: list[ConnectionClosed] = []
    with _socket(wire, name) as socket, _raw_terminal():
        if sys.stdin.isatty():
            sys.stderr.write("attached; Ctrl-] detaches\r\n")

        def outwards() -> None:
            try:
                for chunk in socket:
                    sys.stdout.buffer.write(chunk if isinstance(chunk, bytes) else chunk.encode())
                    sys.stdout.buffer.flush()
            except ConnectionClosed as error:
                closed.append(error)

        printer = threading.Thread(target=outwards, daemon=True)
        printer.start()
        while printer.is_alive():
            data = _typed()
            if data is None:
                continue
            if not data or DETACH in data:
                return
            socket.send(data)
        if closed:
            raise closed[0]


def _typed() -> bytes | None:
    """What was typed; empty at the end of the input, None when nothing was typed for a moment."""
    import select

    ready, _, _ = select.select([sys.stdin], [], [], 0.2)
    return os.read(sys.stdin.fileno(), 4096) if ready else None


def watch_console(wire: Wire, name: str) -> None:
    """Print what the console prints from now on, as it may be shown."""
    stream = Stream()
    with _socket(wire, name) as socket:
        socket.recv()
        for chunk in socket:
            tell(stream.text(chunk if isinstance(chunk, bytes) else chunk.encode()), end="", flush=True)


@contextmanager
def _socket(wire: Wire, name: str) -> Iterator[Any]:
    from websockets.exceptions import ConnectionClosedError
    from websockets.sync.client import unix_connect
    from websockets.typing import Subprotocol

    url = f"ws://virtuary/v1/vms/{path_part(name)}/console/serial"
    with unix_connect(wire.path, url, subprotocols=[Subprotocol("binary")], compression=None) as socket:
        try:
            yield socket
        except ConnectionClosedError as error:
            if error.rcvd and error.rcvd.code >= 4000:
                raise Failed(error.rcvd.reason) from error


@contextmanager
def _raw_terminal() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        say()


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
def ssh_config_command(names: tuple[str, ...]) -> None:
    """Print an OpenSSH configuration, so that ssh, scp, rsync and editors reach servers by name.

    Put it before what your configuration says of all hosts: of two values ssh takes the first, but for forwarded ports and variables sent,
    which add up.

    \b
    Example:
      virtuary ssh-config web1 >> ~/.ssh/config && ssh web1
    """
    wire = connect()
    if not names:
        names = tuple(
            vm["meta"]["name"] for vm in wire.call("GET", "/v1/vms", query={"limit": 1000})["items"] if vm["status"]["runtime"]
        )
    for name in names:
        try:
            way = wire.call("GET", f"/v1/vms/{path_part(name)}/ssh")
        except VirtuaryError as error:
            if len(names) == 1:
                raise
            say(f"# {error.sentence}")
            continue
        if not way["known"]:
            say(f"# the host key of {name} is not known yet: ssh will ask")
        tell(config_block(name, way))
