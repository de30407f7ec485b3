"""What makes a guest a machine of its own, given in one round trip; and what takes it away again.
Pure.

Scripts of plain POSIX shell, the same for Debian and for tiny, with the values as quoted, checked
text:

- `script`: a booted guest gets its name and the keys that may log in as root. Idempotent.
- `settle_script`, `strip_script`: a booted guest becomes the template of copies: everything
  started, nothing unique left.
- `fresh_script`, `live_script`: a guest that was another machine, stopped or running, becomes one
  of its own.

And lines for a small program (awaken.c): `copy_lines` make a resumed copy a machine of its own.
Starting a program inside an emulated guest costs tenths of a second, so this one waits in the
template already, at a port of its own, and starts nothing.
"""

from __future__ import annotations

import base64
import ipaddress
import struct
from dataclasses import dataclass
from importlib import resources
from shlex import quote

from virtuary.base.errors import Invalid
from virtuary.guest import room
from virtuary.model.template import WAKE_PORT

FOLDER = "/var/lib/virtuary"
"""Where a template keeps what its copies need to wake up."""

LISTENS = b"awake 0 1\n"
"""What it says last when nothing failed and it saw SSH listen, after it waited for an address; else
that may come a little later.
"""

_SCRIPT = """set -e
umask 077
hostname={hostname}
where() {{ readlink -f "$1" 2>/dev/null || echo "$1"; }}
new() {{ # FILE MODE: standard input is what it is to be
    cat > "$1.virtuary"
    chmod "$2" "$1.virtuary"
}}
drop() {{ rm -f "$name.virtuary" "$hosts.virtuary" "$keys.virtuary"; }}
ours=$(cat <<'END-OF-KEYS'
{keys}
END-OF-KEYS
)
mkdir -p /root/.ssh
name=$(where /etc/hostname) hosts=$(where /etc/hosts) keys=$(where /root/.ssh/authorized_keys)
trap drop EXIT
echo "$hostname" | new "$name" 644
{{
    grep -v '^127\\.0\\.1\\.1[[:space:]]' "$hosts" 2>/dev/null || true
    echo "127.0.1.1 $hostname"
    grep -q '^127\\.0\\.0\\.1[[:space:]]' "$hosts" 2>/dev/null || echo '127.0.0.1 localhost'
}} | new "$hosts" 644
{{
    echo "$ours" | while read -r key; do
        blob=${{key#* }} blob=${{blob%% *}}
        [ -n "$key" ] || continue
        [ "$key" = "${{key% virtuary}}" ] && grep -qF "$blob" "$keys" 2>/dev/null || printf '%s\\n' "$key"
    done
    grep -v ' virtuary$' "$keys" 2>/dev/null || true
}} | new "$keys" 600
for file in "$name" "$hosts" "$keys"; do
    if cmp -s "$file" "$file.virtuary"; then rm "$file.virtuary"; else mv -f "$file.virtuary" "$file"; fi
done
hostname "$hostname" 2>/dev/null || echo "$hostname" > /proc/sys/kernel/hostname
sync
"""
"""Everything new is written beside what is there before anything is changed: a full or read-only
disk leaves all as it was. Of who may log in as root only the line of Virtuary's own key, which ends
with its name, is replaced; a key that was given is added where it is missing.
"""

_SETTLE = """set -e
umask 022
if command -v systemctl >/dev/null; then
    state=$(systemctl is-system-running --wait) || true
    case $state in running | degraded) ;; *) echo "its system is $state" >&2; exit 1 ;; esac
    systemctl stop '*.timer'
    if systemctl -q is-active systemd-networkd; then
        for place in /etc/systemd/network/*.network /run/systemd/network/*.network; do
            [ -e "$place" ] || continue
            mkdir -p /run/systemd/network/${{place##*/}}.d
            printf '[Network]\\nKeepConfiguration=dhcp\\n' > /run/systemd/network/${{place##*/}}.d/virtuary-keep.conf
        done
        networkctl reload
        sleep 3
    fi
fi
{room}mkdir -p {folder} /run/virtuary
base64 -d > {folder}/awaken <<'END'
{awaken}
END
chmod 755 {folder}/awaken
[ ! -L /etc/hosts ] && [ ! -L /etc/machine-id ]
[ ! -f /var/lib/dbus/machine-id ] || ln -sf /etc/machine-id /var/lib/dbus/machine-id
sync
echo 3 > /proc/sys/vm/drop_caches
"""

_STRIP = """set -e
umask 022
: > /run/virtuary/renew
if command -v systemctl >/dev/null; then
    cp /etc/machine-id /run/virtuary/machine-id
    journalctl -q --rotate
    journalctl -q --vacuum-time=1s
    [ ! -e /usr/lib/openssh/sshd-session ] || systemctl stop ssh
    if systemctl -q is-active systemd-networkd; then
        systemctl stop systemd-networkd.socket systemd-networkd
        : > /run/virtuary/networkd
    fi
else
    cat /var/run/dropbear.pid >> /run/virtuary/renew 2>/dev/null || pidof dropbear | tr ' ' '\\n' >> /run/virtuary/renew || true
    pidof udhcpc | tr ' ' '\\n' > /run/virtuary/udhcpc || true
fi
rm -f /etc/ssh/ssh_host_*key* /etc/dropbear/*_host_key /var/lib/systemd/random-seed /root/.ssh/authorized_keys /root/.ssh/known_hosts
rm -f /root/.bash_history /root/.ash_history /var/lib/dhcp/*.leases /var/lib/systemd/timesync/clock
rm -rf /var/lib/cloud/instance /var/lib/cloud/instances/*
[ ! -e /etc/machine-id ] || : > /etc/machine-id
sync
for place in /sys/class/virtio-ports/*; do
    read -r name < "$place/name" || continue
    [ "$name" = {port} ] || continue
    setsid {awaken} "/dev/${{place##*/}}" > /dev/null 2>&1 < /dev/null &
    echo $! >> /run/virtuary/renew
done
"""

_LATER = """[ ! -e /run/virtuary/networkd ] || systemctl start systemd-networkd.socket systemd-networkd
{wait}{cloud}systemctl restart systemd-journald
systemctl start timers.target
rm -f /run/systemd/network/*.d/virtuary-keep.conf
"""

_ASK_AGAIN = 'while read -r pid; do kill -KILL "$pid" || true; done < /run/virtuary/udhcpc'


@dataclass(frozen=True)
class Identity:
    hostname: str
    """Checked name, see model.meta.check_name."""
    keys: tuple[str, ...]
    """SSH public keys, one line each."""


@dataclass(frozen=True)
class Place:
    """Where a NIC is: what DHCP would tell it, told at once. Nothing but the network where that
    gives no addresses.
    """

    address: str | None = None
    """IPv4, with the length of its prefix."""
    gateway: str | None = None
    nameserver: str | None = None
    domain: str = ""


@dataclass(frozen=True)
class Renewal:
    """What a copy gets besides its name and keys, and what it must find to know that it is one."""

    uuid: str
    old_mac: str
    mac: str
    machine_id: str
    boot_id: str
    host_key: str
    """SSH host key, as ssh-keygen writes it, without the last newline."""
    host_key_public: str
    entropy: str
    """Hexadecimal digits, at most 512."""
    now: float
    """Seconds since 1970, when the script is sent."""
    lag: float | None = None
    """Seconds by which its real-time clock is behind; None where that shows another time, and can't
    tell how late the script is.
    """
    place: Place | None = None
    """Its place on a network of the host's; None: nobody else is on its network, so the template's
    address is its own too.
    """
    dmi: bytes = b""
    """The SMBIOS tables it is to show."""
    crowd: int = 0
    """Servers that are being started beside it: what nobody waits for is put off until they are
    there.
    """
    cpus: int = 1
    grown: int | None = None
    """Bytes of its disk, where that is larger than the template's."""
    seed: tuple[tuple[str, bytes], ...] = ()
    """cloud-init's seed files, when user data was given."""


def script(identity: Identity) -> bytes:
    """The shell script that gives a booted guest this identity; raises Invalid for text that could
    leave its place.
    """
    _check(identity)
    return _SCRIPT.format(hostname=identity.hostname, keys="\n".join(identity.keys)).encode()


def settle_script() -> bytes:
    """Wait until the guest has started everything, and make it ready to be copied; it fails with a
    reason.
    """
    program = (resources.files("virtuary.guest") / "awaken.bin").read_bytes()
    return _SETTLE.format(
        folder=FOLDER, room=room.READY_FOR_MEMORY, awaken=base64.encodebytes(program).decode()
    ).encode()


def strip_script() -> bytes:
    """Take from the guest what makes it a machine of its own, and have it wait for what its copy
    becomes. The last thing before it is saved.
    """
    return _STRIP.format(awaken=f"{FOLDER}/awaken", port=WAKE_PORT).encode()


class _Lines:
    """What awaken.c reads, in order."""

    def __init__(self) -> None:
        self.all: list[bytes] = []

    def do(self, *words: object) -> None:
        self.all.append(" ".join(str(word) for word in words).encode() + b"\n")

    def write(self, kind: str, mode: int, path: str, content: bytes) -> None:
        self.do(kind, f"{mode:o}", len(content), path)
        self.all.append(content + b"\n")

    def run(self, path: str, text: str) -> None:
        script = f"set -e\n{text}".encode()
        self.do("x", len(script), path)
        self.all.append(script + b"\n")

    def run_apart(self, seconds: int, path: str, text: str) -> None:
        self.do("z", len(text.encode()), seconds, path)
        self.all.append(text.encode() + b"\n")


def copy_lines(identity: Identity, renewal: Renewal, keys: bool = True) -> bytes:
    """What awaken.c is told to make a resumed copy a machine of its own. Safe to repeat. `keys`:
    nobody could log in before it.
    """
    _check(identity)
    lines, name, place = _Lines(), identity.hostname, renewal.place
    seconds = int(renewal.now)
    lines.do("n", renewal.old_mac.replace(":", ""))
    lines.do("s", renewal.entropy)
    lag = "" if renewal.lag is None else int(renewal.lag * 1e9)
    lines.do("t", seconds, int((renewal.now - seconds) * 1e9), lag)
    lines.do("h", name)
    lines.do("m" if place else "M", renewal.mac.replace(":", ""))
    if place and place.address:
        own = ipaddress.IPv4Interface(place.address)
        gateway = ipaddress.IPv4Address(place.gateway).packed.hex() if place.gateway else "0"
        lines.do("a", own.ip.packed.hex(), own.netmask.packed.hex(), gateway)
    # until the guest's own service has asked for it and writes it anew
    if place and place.nameserver:
        resolv = (
            f"search {place.domain}\nnameserver {ipaddress.ip_address(place.nameserver)}\n".encode()
        )
        for path in ("/run/resolv.conf", "/run/systemd/resolve/stub-resolv.conf"):
            lines.write("e", 0o644, path, resolv)
    lines.write("f", 0o644, "/etc/hostname", f"{name}\n".encode())
    lines.do("H", name, "/etc/hosts")
    lines.write("e", 0o644, "/etc/machine-id", f"{renewal.machine_id}\n".encode())
    lines.do("d", "700", "/root/.ssh")
    if keys:
        lines.write(
            "f",
            0o600,
            "/root/.ssh/authorized_keys",
            "".join(f"{key}\n" for key in identity.keys).encode(),
        )
    lines.write(
        "o", 0o600, "/etc/dropbear/dropbear_ed25519_host_key", dropbear_key(renewal.host_key)
    )
    lines.write("o", 0o600, "/etc/ssh/ssh_host_ed25519_key", f"{renewal.host_key}\n".encode())
    lines.write(
        "o", 0o644, "/etc/ssh/ssh_host_ed25519_key.pub", f"{renewal.host_key_public}\n".encode()
    )
    for folder in _SEED_FOLDERS if renewal.seed else ():
        lines.do("d", "755", folder)
    for file, content in renewal.seed:
        lines.write("f", 0o600, f"{_SEED_FOLDERS[-1]}/{file}", content)
        lines.write("f", 0o644, "/run/virtuary/seeded", b"")
    if renewal.grown:
        lines.run("/", room.grow(renewal.grown))
    lines.do("k", "/run/virtuary/renew")
    lines.run("/usr/lib/openssh/sshd-session", "systemctl start ssh")
    if renewal.cpus > 1:
        lines.run("/", room.use_cpus(renewal.cpus))
    _start_again(lines, renewal)
    lines.write("f", 0o444, "/run/virtuary/boot_id", f"{renewal.boot_id}\n".encode())
    lines.write("f", 0o400, "/run/virtuary/product_uuid", f"{renewal.uuid}\n".encode())
    lines.write("f", 0o400, "/run/virtuary/DMI", renewal.dmi)
    lines.do("b", "/run/virtuary/boot_id", "/proc/sys/kernel/random/boot_id")
    lines.do("B", "/run/virtuary/product_uuid", "/sys/class/dmi/id/product_uuid")
    lines.do("B", "/run/virtuary/DMI", "/sys/firmware/dmi/tables/DMI")
    lines.do("y")
    lines.do("w", 5000)
    lines.do("l", 2000, "/etc/dropbear")  # ended above, it is started again by its guest's init
    return b"".join(lines.all)


_LATER_BY, _SEEDED_BY, _ASKING_BY = 15, 5, 3
"""Seconds after which services go on under their new name: it takes an emulated processor a second,
and others may be starting now too. Sooner where somebody waits for cloud-init, or for what a
network gives besides the address that a copy was told.
"""
_MOST_LATER = 15
"""Seconds by which that is put off at most for others, half of one for each."""


def _start_again(lines: _Lines, renewal: Renewal) -> None:
    """What goes on under another name. Nobody waits for it: while its user logs in the guest's
    processor has enough to do.
    """
    for place in ("/var/log/journal", "/run/log/journal"):
        lines.do("j", "/run/virtuary/machine-id", renewal.machine_id, place)
    wait = f"sleep {_SEEDED_BY - _ASKING_BY}\n" if renewal.place else ""
    later = _LATER.format(
        wait=wait, cloud="systemctl start cloud-init.target\n" if renewal.seed else ""
    )
    pause = _ASKING_BY if renewal.place else _SEEDED_BY if renewal.seed else _LATER_BY
    pause += min(renewal.crowd // 2, _MOST_LATER)
    lines.run_apart(pause, "/run/systemd/system", later)
    lines.run_apart(pause, "/run/virtuary/udhcpc", _ASK_AGAIN)


def complaints(answer: bytes) -> bytes:
    """What awaken.c said before its last line, in one."""
    return b"; ".join(line for line in answer.splitlines() if not line.startswith(b"awake "))


def renewed_dmi(tables: bytes, old: str, new: str) -> bytes:
    """SMBIOS tables with the machine's uuid replaced, wherever it stands in its mixed-endian form
    (SMBIOS 7.2.1).
    """
    return tables.replace(_mixed(old), _mixed(new))


def dropbear_key(text: str) -> bytes:
    """An ed25519 key that ssh-keygen wrote without a passphrase, in dropbear's form. Source:
    PROTOCOL.key of OpenSSH.
    """
    rest = base64.b64decode("".join(text.splitlines()[1:-1])).removeprefix(b"openssh-key-v1\0")
    for _ in range(3):  # cipher, key derivation, its options: none
        _, rest = _string(rest)
    _, rest = _string(rest[4:])  # after the number of keys, the public one
    private, _ = _string(rest)
    kind, rest = _string(private[8:])  # after two equal check numbers
    _, rest = _string(rest)
    both, _ = _string(rest)
    return struct.pack(">I", len(kind)) + kind + struct.pack(">I", len(both)) + both


def _string(data: bytes) -> tuple[bytes, bytes]:
    """A length and so many bytes; what follows them."""
    size = int.from_bytes(data[:4], "big")
    return data[4 : 4 + size], data[4 + size :]


def _octal(data: bytes) -> str:
    """Bytes for the shell's printf."""
    return "".join(f"\\{byte:03o}" for byte in data)


def _mixed(text: str) -> bytes:
    raw = bytes.fromhex(text.replace("-", ""))
    return raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:]


_SEED_FOLDERS = ("/var/lib/cloud", "/var/lib/cloud/seed", "/var/lib/cloud/seed/nocloud")


def _check(identity: Identity) -> None:
    for text in (identity.hostname, *identity.keys):
        if not text.isprintable() or "END-OF-" in text:
            raise Invalid("an identity holds characters that can't be written into a guest")
    if not identity.hostname.replace("-", "").isalnum():
        raise Invalid("a hostname consists of letters, digits and dashes")


_FRESH = """umask 022
[ ! -e /run/cloud-init/enabled ] || cloud-init status --wait > /dev/null 2>&1 || true
if [ -e /etc/machine-id ]; then
    printf '%s\\n' {machine_id} > /etc/machine-id
    [ ! -f /var/lib/dbus/machine-id ] || [ -L /var/lib/dbus/machine-id ] || ln -sf /etc/machine-id /var/lib/dbus/machine-id
fi
printf '%s' {entropy} > /dev/urandom
rm -f /etc/ssh/ssh_host_*key* /etc/dropbear/*_host_key /var/lib/systemd/random-seed
umask 077
if [ -d /etc/dropbear ]; then
    printf '{dropbear_key}' > /etc/dropbear/dropbear_ed25519_host_key
elif [ -d /etc/ssh ]; then
    printf '%s\\n' {host_key} > /etc/ssh/ssh_host_ed25519_key
    printf '%s\\n' {host_key_public} > /etc/ssh/ssh_host_ed25519_key.pub
fi
sync
if [ -e /run/systemd/system ]; then
    systemctl restart systemd-journald || true
    systemctl try-restart ssh.service sshd.service 2> /dev/null || true
elif [ -e /var/run/dropbear.pid ]; then
    read -r pid < /var/run/dropbear.pid
    kill -KILL "$pid" || true
    tries=0
    until grep -q '^ *[0-9]*: [0-9A-F]*:0016 [0-9A-F:]* 0A ' /proc/net/tcp /proc/net/tcp6 2> /dev/null || [ $tries -gt 20 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
fi
"""


@dataclass(frozen=True)
class Fresh:
    """What a guest gets besides its name and keys that was another machine when it was shut
    down.
    """

    machine_id: str
    entropy: str
    """Hexadecimal digits."""
    host_key: str
    """SSH host key, as ssh-keygen writes it, without the last newline."""
    host_key_public: str


def fresh_script(identity: Identity, fresh: Fresh) -> bytes:
    """The shell script that gives a guest, booted from a copied disk, an identity of its own.
    Idempotent.
    """
    rest = _FRESH.format(
        machine_id=fresh.machine_id,
        entropy=fresh.entropy,
        host_key=quote(fresh.host_key),
        dropbear_key=_octal(dropbear_key(fresh.host_key)),
        host_key_public=quote(fresh.host_key_public),
    )
    return script(identity) + rest.encode()


_LIVE = """set -e
umask 022
mkdir -p {folder} /run/virtuary
if ! mkdir /run/virtuary/begun-{uuid} 2> /dev/null; then
    tries=0
    until [ -e /run/virtuary/is-{uuid} ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || {{ echo 'an earlier attempt did not end' >&2; exit 1; }}
        sleep 0.2
    done
    exit 0
fi
base64 -d > {folder}/awaken.new <<'END'
{awaken}
END
chmod 755 {folder}/awaken.new
mv {folder}/awaken.new {folder}/awaken
: > /run/virtuary/renew
if [ -e /run/systemd/system ]; then
    cp /etc/machine-id /run/virtuary/machine-id
    [ ! -e /usr/lib/openssh/sshd-session ] || systemctl stop ssh
else
    [ ! -e /var/run/dropbear.pid ] || cat /var/run/dropbear.pid >> /run/virtuary/renew
    pidof udhcpc | tr ' ' '\\n' >> /run/virtuary/renew || true
fi
rm -f /etc/ssh/ssh_host_*key* /etc/dropbear/*_host_key /var/lib/systemd/random-seed
[ ! -f /var/lib/dbus/machine-id ] || [ -L /var/lib/dbus/machine-id ] || ln -sf /etc/machine-id /var/lib/dbus/machine-id
/bin/sh << 'END-OF-SCRIPT'
{script}END-OF-SCRIPT
base64 -d << 'END' | {folder}/awaken
{lines}
END
: > /run/virtuary/is-{uuid}
"""


def live_script(identity: Identity, renewal: Renewal) -> bytes:
    """What `copy_lines` do, for a guest that was never made ready to be copied: a copy of a machine
    that ran, cold-started or not.

    What it does first leaves what `strip_script` leaves. A second time it waits for the end of the
    first and changes nothing.
    """
    program = (resources.files("virtuary.guest") / "awaken.bin").read_bytes()
    return _LIVE.format(
        folder=FOLDER,
        uuid=renewal.uuid,
        awaken=base64.encodebytes(program).decode(),
        script=script(identity).decode(),
        lines=base64.encodebytes(copy_lines(identity, renewal, keys=False)).decode(),
    ).encode()
