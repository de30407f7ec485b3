"""Options and arguments that commands share, and the requests they stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from virtuary.base.errors import Invalid
from virtuary.base.ports import MOST
from virtuary.base.units import MIB, parse_bandwidth, parse_duration, parse_size
from virtuary.cli.output import output_option
from virtuary.model.patience import STOP_TIMEOUT


def complete_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Names of servers for the shell's completion; asked of a daemon that runs already, silent and
    quick.
    """
    from virtuary.client.start import find_socket
    from virtuary.client.wire import Wire

    try:
        page = Wire(find_socket(), timeout=0.3).call("GET", "/v1/vms", query={"limit": 1000})
    except Exception:
        return []
    return [vm["meta"]["name"] for vm in page["items"] if vm["meta"]["name"].startswith(incomplete)]


NAME = click.argument("name", shell_complete=complete_names)
NAMES = click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_names
)


class Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            return parse_size(value) if isinstance(value, str) else int(value)
        except Invalid as error:
            self.fail(f"{error.sentence} ({error.hint})", param, ctx)


class BitRate(click.ParamType[int]):
    name = "rate"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            return parse_bandwidth(value) if isinstance(value, str) else int(value)
        except Invalid as error:
            self.fail(f"{error.sentence} ({error.hint})", param, ctx)


class Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return parse_duration(value) if isinstance(value, str) else float(value)
        except Invalid as error:
            self.fail(f"{error.sentence} ({error.hint})", param, ctx)


def options(*wanted: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(wanted):
            command = option(command)
        return command

    return decorate


SHAPE = options(
    click.option("--cpus", type=int, help="Virtual CPUs."),
    click.option("--memory", type=Size(), help="Memory, for example 2GiB."),
    click.option(
        "--publish",
        "-p",
        multiple=True,
        metavar="[ADDRESS:]HOST:GUEST[/udp]",
        help="A port of this host that leads to the guest: on 127.0.0.1, or on ADDRESS; 0.0.0.0 "
        "is all, [::] all of IPv6. "
        "Ranges such as 8000-8010:8000-8010 too.",
    ),
    click.option(
        "--network",
        "networks",
        multiple=True,
        metavar="NAME[,KEY=VALUE...]",
        help="A network to join; again for another NIC. Keys: ip, mac, external, firewall, "
        "unguarded; in, out (limits); floor-, burst-, weight-in and -out.",
    ),
    click.option("--label", "-l", multiple=True, metavar="KEY=VALUE", help="A label."),
    click.option(
        "--accel", type=click.Choice(["auto", "kvm", "tcg"]), help="Insist on an accelerator."
    ),
    click.option("--autostart/--no-autostart", default=None, help="Start with the host."),
    click.option(
        "--boot-order",
        type=click.IntRange(0, 1000),
        help="Lower ones start first with the host, and shut down last; 0 when not given.",
    ),
    click.option(
        "--on-host-shutdown",
        type=click.Choice(["shutdown", "off"]),
        help="Ask its guest when the host goes down, or pull the plug.",
    ),
    click.option(
        "--shutdown-timeout",
        type=Duration(),
        help=f"How long its guest has for that; {STOP_TIMEOUT:g} s when not given.",
    ),
    click.option(
        "--restart-policy",
        type=click.Choice(["always", "on-failure", "no"]),
        help="What to do when it ends.",
    ),
    click.option("--protect/--no-protect", default=None, help="Refuse deletion."),
)
ROOT_DISK = click.option("--disk", type=Size(), help="Size of the root disk, for example 20GiB.")
BIRTH = options(
    click.option(
        "--disk",
        "disks",
        multiple=True,
        metavar="SIZE|NAME=SIZE[,KEY=VALUE...]",
        help="Size of the root disk, for example 20GiB; NAME=SIZE makes another one, and may be "
        "given again. Keys: pool, serial, ro.",
    ),
    click.option(
        "--user-data",
        type=click.Path(exists=True, dir_okay=False, allow_dash=True),
        help="cloud-init user data.",
    ),
    click.option(
        "--ssh-key",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False),
        help="Public key that may log in.",
    ),
    click.option("--arch", type=click.Choice(["x86_64"]), help="Architecture."),
    click.option("--firmware", type=click.Choice(["auto", "bios", "uefi"]), help="Firmware."),
    click.option(
        "--cold", is_flag=True, help="Boot, also where a copy of a warm template could be resumed."
    ),
    click.option(
        "--dry-run", is_flag=True, help="Show the plan and what stands against it; change nothing."
    ),
    output_option,
)
DETACH = click.option("--detach", "-d", is_flag=True, help="Do not wait; print the operation's id.")


POLICY = {
    "autostart": "autostart",
    "boot_order": "boot_order",
    "on_host_shutdown": "on_host_shutdown",
    "shutdown_timeout": "shutdown_timeout",
    "restart_policy": "restart",
    "protect": "protect",
}
"""Options about a server's policy, and the fields that they are."""
_PUBLISH = re.compile(
    r"(?:(?P<address>.+):)?(?P<host>[0-9]+)(?:-(?P<last>[0-9]+))?:(?P<guest>[0-9]+)(?:-(?P<end>[0-9]+))?"
)


def parse_publish(text: str) -> list[dict[str, Any]]:
    """`[ADDRESS:]HOST:GUEST[/udp]` as the API wants it, or both ranges FIRST-LAST of the same
    length; raises Invalid.
    """
    rest, _, protocol = text.partition("/")
    found = _PUBLISH.fullmatch(rest)
    if protocol.lower() not in ("", "tcp", "udp"):
        raise Invalid(
            f"{protocol[:20]} can't be published: tcp and udp can", "leave /sctp and the like out"
        )
    if not found:
        hint = (
            "for example --publish 8080:80, 127.0.0.1:53:53/udp, 0.0.0.0:443:443 or "
            "8000-8010:8000-8010"
        )
        raise Invalid(f"{text!r} is not HOST:GUEST", hint)
    host, guest = int(found["host"]), int(found["guest"])
    count = int(found["last"] or host) - host + 1
    if count != int(found["end"] or guest) - guest + 1 or not 1 <= count <= MOST:
        raise Invalid(
            f"{text!r} are no two ranges of the same length",
            f"at most {MOST} ports, for example 8000-8010:9000-9010",
        )
    wish: dict[str, Any] = {"protocol": protocol.lower() or "tcp"}
    if found["address"]:
        wish["address"] = found["address"].strip("[]")
    return [{"host": host + number, "guest": guest + number, **wish} for number in range(count)]


_RATES = {
    f"{field}-{way}" if field != "limit" else way: (direction, field)
    for way, direction in (("in", "inbound"), ("out", "outbound"))
    for field in ("limit", "floor", "burst", "weight")
}
"""What `--network` takes about bandwidth: in, out, floor-in and so on."""


_LISTS = {"unguarded": "unguarded", "firewall": "groups", "external": "external"}
"""What it takes several times."""


def _rate(field: str, text: str) -> int:
    if field == "weight":
        if not text.isdecimal():
            raise Invalid(
                f"{text!r} is no weight", "100 is an ordinary one, 200 gets twice as much"
            )
        return int(text)
    return parse_size(text) if field == "burst" else parse_bandwidth(text)


def parse_nic(text: str) -> dict[str, Any]:
    """`NAME[,ip=ADDRESS][,mac=MAC][,firewall=GROUP][,external=ADDRESS][,unguarded=CHECK]` and what
    `_RATES` names, as the API wants it; raises Invalid.
    """
    name, *words = text.split(",")
    wish: dict[str, Any] = {"network": name}
    for word in words:
        key, equal, value = word.partition("=")
        if rate := _RATES.get(key):
            direction, field = rate
            given = wish.setdefault("bandwidth", {}).setdefault(direction, {})
            given[field] = _rate(field, value)
            continue
        if not equal or key not in ("ip", "mac", *_LISTS):
            raise Invalid(
                f"{word!r} says nothing about a NIC",
                "for example --network lan,ip=10.5.0.9 or --network lan,unguarded=mac",
            )
        if key in _LISTS:
            wish.setdefault(_LISTS[key], []).append(value)
        else:
            wish["ipv4" if key == "ip" else key] = value
    return wish


def parse_disks(words: Sequence[str]) -> list[dict[str, Any]]:
    """`20GiB` for the root disk, `data=20GiB,serial=DATA,ro` for others, as the API wants them: the
    root disk first. Raises Invalid.
    """
    roots = [word for word in words if "=" not in word]
    if len(roots) > 1:
        raise Invalid(
            f"the root disk has one size, and {' and '.join(roots)} were given",
            "name what is to be another disk: --disk data=20GiB",
        )
    root: dict[str, Any] = {"size": _whole_mib(parse_size(roots[0]))} if roots else {}
    return [root, *(parse_disk(word) for word in words if "=" in word)]


def parse_disk(text: str) -> dict[str, Any]:
    """`NAME=SIZE[,pool=POOL][,serial=SERIAL][,ro]`; raises Invalid."""
    first, *rest = text.split(",")
    name, _, size = first.partition("=")
    wish: dict[str, Any] = {"name": name, "size": _whole_mib(parse_size(size))}
    for word in rest:
        key, _, value = word.partition("=")
        if key in ("serial", "pool") and value:
            wish[key] = value
        elif word in ("ro", "read-only"):
            wish["read_only"] = True
        else:
            raise Invalid(
                f"{word!r} says nothing about a disk",
                "for example --disk data=20GiB,serial=DATA or --disk data=20GiB,ro",
            )
    return wish


def parse_labels(words: tuple[str, ...]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for word in words:
        key, equal, value = word.partition("=")
        if not equal:
            raise Invalid(f"{word!r} is not KEY=VALUE", "for example --label role=web")
        labels[key] = value
    return labels


def shape_wish(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request that the shared options stand for; what was not given is left out."""
    policy = {field: given[key] for key, field in POLICY.items() if given.get(key) is not None}
    wish: dict[str, Any] = {"policy": policy} if policy else {}
    if given.get("cpus") is not None:
        wish["cpu"] = {"count": given["cpus"]}
    if given.get("memory") is not None:
        wish["memory"] = {"size": _whole_mib(given["memory"])}
    if given.get("disk") is not None:
        wish["disks"] = [{"size": _whole_mib(given["disk"])}]
    if given.get("accel"):
        wish["accel"] = given["accel"]
    if given.get("publish"):
        words = () if given["publish"] == ("none",) else given["publish"]
        wish["publish"] = [port for text in words for port in parse_publish(text)]
    if given.get("networks"):
        wish["nics"] = [parse_nic(text) for text in given["networks"]]
    if given.get("label"):
        wish["labels"] = {} if given["label"] == ("none",) else parse_labels(given["label"])
    return wish


def _whole_mib(size: int) -> int:
    return -(-size // MIB) * MIB


def birth_wish(image: str, name: str | None, given: dict[str, Any]) -> dict[str, Any]:
    wish = {"image": image, **shape_wish(given)}
    if name:
        wish["name"] = name
    for key in ("arch", "firmware"):
        if given.get(key):
            wish[key] = given[key]
    if given.get("cold"):
        wish["cold"] = True
    if given.get("disks"):
        wish["disks"] = parse_disks(given["disks"])
    login: dict[str, Any] = {}
    if given.get("user_data"):
        login["user_data"] = read_user_data(given["user_data"])
    keys: list[str] = []
    for path in given.get("ssh_key") or ():
        keys += read_keys(path)
    if keys:
        login["ssh_keys"] = keys
    return wish | ({"login": login} if login else {})


_KEY = re.compile(
    r"(?:^|\s)(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-nistp\d+|sk-[a-z0-9-]+@openssh\.com)\s+AAAA"
)


def read_keys(path: str) -> list[str]:
    """The SSH public keys in a file, a line each. Raises Invalid where there is none, or something
    else.
    """
    with open(path, encoding="utf-8", errors="replace") as handle:
        text = handle.read(1024 * 1024)
    if "PRIVATE KEY" in text:
        raise Invalid(
            f"{path} holds a private key, and the public one is wanted", f"--ssh-key {path}.pub"
        )
    keys = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if wrong := [line for line in keys if not _KEY.search(line)]:
        raise Invalid(
            f"{path} holds something that is no SSH public key: {wrong[0][:40]!r}",
            "give a file such as ~/.ssh/id_ed25519.pub",
        )
    if not keys:
        raise Invalid(
            f"{path} holds no SSH public key", "give a file such as ~/.ssh/id_ed25519.pub"
        )
    return keys


USER_DATA_CAP = 256 * 1024


def read_user_data(path: str) -> str:
    """User data as the API wants it: text as it is, what is compressed as base64. Raises Invalid,
    with the file and the reason.
    """
    import base64

    with click.open_file(path, "rb") as handle:
        raw: bytes = handle.read(USER_DATA_CAP + 1)
    name = "standard input" if path == "-" else path
    if len(raw) > USER_DATA_CAP:
        raise Invalid(
            f"{name} holds more than {USER_DATA_CAP // 1024} KiB, which is the most that user "
            "data may have"
        )
    if raw.startswith(b"\x1f\x8b"):
        return base64.b64encode(raw).decode()
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise Invalid(
            f"{name} is not UTF-8, nor compressed by gzip: byte 0x{raw[error.start]:02x} in line "
            f"{line}",
            f"convert it, for example: iconv -f latin1 -t utf-8 {name}",
        ) from None


def idempotency() -> dict[str, str]:
    import secrets

    return {"Idempotency-Key": secrets.token_hex(16)}
