"""How the command line logs in to a server by SSH: by Virtuary's key, to a host key that is known,
and by no configuration of the user's.

What the user's ssh is configured to give to other machines (agent, display, ports, variables,
commands that run at a login) is not given to a server, which may be hostile. `SAFE` says so once,
for `shell`, `cp` and `ssh-config` alike.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from typing import Any

from virtuary.base.errors import Failed, GuestSilent, Refused, VirtuaryError
from virtuary.base.units import format_duration
from virtuary.cli.output import say
from virtuary.client.wire import Wire, path_part

SAFE = {
    "IdentitiesOnly": "yes",
    "PreferredAuthentications": "publickey",
    "PubkeyAuthentication": "yes",
    "PasswordAuthentication": "no",
    "KbdInteractiveAuthentication": "no",
    "GSSAPIAuthentication": "no",
    "HostbasedAuthentication": "no",
    "AddKeysToAgent": "no",
    "GlobalKnownHostsFile": "none",
    "KnownHostsCommand": "none",
    "VerifyHostKeyDNS": "no",
    "UpdateHostKeys": "no",
    "CanonicalizeHostname": "no",
    "CheckHostIP": "no",
    "ProxyCommand": "none",
    "ControlMaster": "no",
    "ControlPath": "none",
    "ControlPersist": "no",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ForwardX11Trusted": "no",
    "GatewayPorts": "no",
    "Tunnel": "no",
    "PermitLocalCommand": "no",
    "LocalCommand": "none",
    "RemoteCommand": "none",
    "SendEnv": "-*",
}
"""Options of ssh_config(5) under which a login gives nothing to the server but what is typed."""


def options_of(way: dict[str, Any]) -> dict[str, str]:
    """Where a server is found, and by which key each side is known."""
    return {
        "HostName": way["host"],
        "Port": str(way["port"]),
        "User": way["user"],
        "IdentityFile": way["key"],
        "HostKeyAlias": way["alias"],
        "UserKnownHostsFile": way["known_hosts"],
        "StrictHostKeyChecking": "yes" if way["known"] else "ask",
    }


def ssh_command(
    way: dict[str, Any], *words: str, terminal: bool = False, agent: bool = False
) -> list[str]:
    """The ssh command that logs in; with `way["share"]`, a path of a socket, by one login for all
    that name it.

    `agent` lets the server use the keys of the user's agent while it lasts.

    Keys are agreed on by X25519 first: the way leads over loopback, and the hybrid default costs an
    emulated guest 0.2-0.4 s.
    """
    chosen = {
        "LogLevel": "ERROR",
        "KexAlgorithms": "^curve25519-sha256",
        "ForwardAgent": "yes" if agent else "no",
    }
    if way.get("share"):
        chosen |= {"ControlMaster": "auto", "ControlPath": way["share"], "ControlPersist": "15"}
    every = options_of(way) | SAFE | ({} if agent else {"IdentityAgent": "none"}) | chosen
    return [
        *("ssh", "-F", "none", *(f"-o{name}={value}" for name, value in every.items())),
        *(["-t"] if terminal else []),
        *(way["host"], *words),
    ]


def leave_login(way: dict[str, Any]) -> None:
    """End the login that is shared by `way["share"]`."""
    words = ["ssh", "-F", "none", "-O", "exit", f"-oControlPath={way['share']}", way["host"]]
    subprocess.run(
        words,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=20,
    )


def config_block(name: str, way: dict[str, Any]) -> str:
    """What `ssh NAME` needs to know, as ssh_config(5) reads it. Agent forwarding stays possible by
    `ssh -A`.
    """
    return (
        "\n".join(
            [
                f"Host {name}",
                *(f"  {key} {value}" for key, value in (options_of(way) | SAFE).items()),
            ]
        )
        + "\n"
    )


def wait_for_ssh(wire: Wire, name: str, limit: float) -> dict[str, Any]:
    """How to log in, once that is possible. Raises GuestSilent at `limit` seconds with the last
    stage reached; Failed at once for a server whose start failed.
    """
    began, told = time.monotonic(), ""
    while True:
        way: dict[str, Any] = wire.call("GET", f"/v1/vms/{path_part(name)}/ssh")
        if way["ready"]:
            return check_way(name, way)
        if way.get("failed"):
            raise Failed(
                f"the start of {name} failed: {way['failed']}",
                f"virtuary console {name} shows it from inside, virtuary logs {name} what its "
                f"console printed; virtuary restart {name} --force starts it again",
            )
        stage = list(way["stages"])[-1] if way["stages"] else "firmware"
        if time.monotonic() - began > limit:
            raise GuestSilent(
                f"{name} offers no SSH after {format_duration(limit)} (last stage: {stage})",
                f"virtuary console {name}",
            )
        if stage != told:
            say(f"waiting for {name} (reached: {stage})")
            told = stage
        time.sleep(0.25)


def check_way(name: str, way: dict[str, Any]) -> dict[str, Any]:
    """The way, if it can be gone from here: by a key that may be read, to a host key that is known
    or that somebody can be asked about.
    """
    if not os.access(way["key"], os.R_OK):
        hint = f"launch it with --ssh-key, then ssh -p {way['port']} {way['user']}@{way['host']}"
        raise Refused("Virtuary's key may be read by the daemon's user only", hint)
    if not way["known"] and not sys.stdin.isatty():
        hint = (
            f"virtuary shell {name} from a terminal shows it and asks; virtuary console "
            f"{name} shows it from inside"
        )
        raise Refused(
            f"the host key of {name} is not known: its guest has no agent that tells it", hint
        )
    return way


def say_suspects(way: dict[str, Any]) -> None:
    """After a login that failed: which lines of the user data may have taken it away."""
    if way["suspects"]:
        say("the user data may have taken this login away:")
        for line in way["suspects"]:
            say(f"  {line}")


def exec_by_ssh(
    wire: Wire, name: str, words: tuple[str, ...], terminal: bool, silent: bool
) -> None:
    """Become the ssh that runs this command as root inside, word for word; returns where SSH is no
    way either.
    """
    try:
        way: dict[str, Any] = wire.call("GET", f"/v1/vms/{path_part(name)}/ssh")
        if not way["ready"]:
            return
        check_way(name, way)
    except VirtuaryError:
        return
    told = shlex.join(words if way["user"] == "root" else ("sudo", "-n", "--", *words))
    command = ssh_command(way, told, terminal=terminal)
    os.execvp("ssh", [command[0], *(["-n"] if silent else []), *command[1:]])  # noqa: S606
