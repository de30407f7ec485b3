"""Commands that go inside a server: shell, exec, console, ssh-config; cp is in cli/copying.py, how
they log in in cli/login.py.
"""

from __future__ import annotations

import base64
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from virtuary.base.errors import Failed, GuestSilent, Invalid, VirtuaryError
from virtuary.base.text import Stream
from virtuary.cli.login import config_block, exec_by_ssh, say_suspects, ssh_command, wait_for_ssh
from virtuary.cli.options import NAME, Duration
from virtuary.cli.output import emit, output_option, say, tell
from virtuary.cli.running import NotBegun, own_input, put_out, run_inside
from virtuary.client.start import connect
from virtuary.client.wire import Wire, path_part

DETACH = b"\x1d"  # Ctrl-]
SHELL_WAIT = 600.0
SSH_FAILED = 255
"""What ssh ends with where it could not log in."""


class Inside(click.Command):
    """From the first word of the command that runs inside, everything is that command's, also what
    looks like an option of ours.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        valued = {
            name
            for option in self.params
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }
        words = [
            at
            for at, word in enumerate(args)
            if not word.startswith("-") and (at == 0 or args[at - 1] not in valued)
        ]
        if len(words) > 1 and "--" not in args[: words[1]]:
            args = [*args[: words[1]], "--", *args[words[1] :]]
        return super().parse_args(ctx, args)


@click.command(cls=Inside, context_settings={"ignore_unknown_options": True})
@NAME
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "-A",
    "--forward-agent",
    is_flag=True,
    help="Let the server use your ssh agent's keys for as long as the shell is open.",
)
@click.option(
    "--timeout", type=Duration(), default=SHELL_WAIT, help="How long to wait for the server's SSH."
)
def shell_command(name: str, command: tuple[str, ...], forward_agent: bool, timeout: float) -> None:
    """Open a shell inside a server, by SSH with a key that Virtuary manages; by the serial console
    where there is no SSH.

    Your own ssh configuration is not read: a server is given neither your agent nor variables,
    ports or your display, unless options of ssh after its name say so.

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
    if not way["suspects"]:
        os.execvp(words[0], words)  # noqa: S606
    status = subprocess.run(words, check=False).returncode
    if status == SSH_FAILED:
        say_suspects(way)
    sys.exit(status if status >= 0 else 128 - status)


@click.command(cls=Inside, context_settings={"ignore_unknown_options": True})
@NAME
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "-t",
    "--tty",
    "terminal",
    is_flag=True,
    help="Give the command a terminal, of the size of yours.",
)
@click.option(
    "-n",
    "--no-stdin",
    "silent",
    is_flag=True,
    help="Give the command no input: its standard input is at its end.",
)
@click.option("--timeout", type=Duration(), help="How long the command may take; then it is ended.")
@output_option
def exec_command(
    name: str,
    command: tuple[str, ...],
    terminal: bool,
    silent: bool,
    timeout: float | None,
    output: str,
) -> None:
    """Run a command inside a server through its guest agent; no network is needed. Ends with the
    command's own status.

    Standard input, output and errors are passed on as they come; signals are the command's, and it
    is ended when this is. Where no agent answers it runs by SSH, as root too. 125: could not be run
    there, 126: not executable, 127: not found. Where the server can't be asked at all (it is not
    there, or paused) it ends as every other command does.

    \b
    Examples:
      virtuary exec web1 -- uname -a
      virtuary exec web1 -- tar -C / -x < site.tar
      virtuary exec -t web1 -- top
    """
    if output == "name":
        raise Invalid("what a command says has no name", "-o json prints its status and output")
    said = {1: bytearray(), 2: bytearray()}
    wire = connect()
    try:
        put = put_out if output == "table" else lambda stream, data: said[stream].extend(data)
        status = run_inside(
            wire, name, command, None if silent else own_input(), terminal, timeout, put
        )
    except NotBegun as why:
        if output == "table" and isinstance(why.error, (GuestSilent, Failed)):
            exec_by_ssh(wire, name, command, terminal, silent)
        raise why.error from None
    except BrokenPipeError:
        sys.exit(128 + signal.SIGPIPE)
    except Failed as error:
        say(f"error: {error.sentence}")
        number = error.details.get("errno")
        sys.exit(125 if number is None else 127 if number in (errno.ENOENT, errno.ENOTDIR) else 126)
    texts = {
        key: base64.b64encode(said[stream]).decode()
        for key, stream in (("stdout", 1), ("stderr", 2))
    }
    emit({"status": status, **texts, "truncated": False}, output)
    sys.exit(status)


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
            tell(
                stream.text(chunk if isinstance(chunk, bytes) else chunk.encode()),
                end="",
                flush=True,
            )


@contextmanager
def _socket(wire: Wire, name: str) -> Iterator[Any]:
    from websockets.exceptions import ConnectionClosedError
    from websockets.sync.client import unix_connect
    from websockets.typing import Subprotocol

    url = f"ws://virtuary/v1/vms/{path_part(name)}/console/serial"
    with unix_connect(
        wire.path, url, subprotocols=[Subprotocol("binary")], compression=None
    ) as socket:
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

    Put it before what your configuration says of all hosts: of two values ssh takes the first, but
    for forwarded ports and variables sent, which add up.

    \b
    Example:
      virtuary ssh-config web1 >> ~/.ssh/config && ssh web1
    """
    wire = connect()
    if not names:
        names = tuple(
            vm["meta"]["name"]
            for vm in wire.call("GET", "/v1/vms", query={"limit": 1000})["items"]
            if vm["status"]["runtime"]
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
