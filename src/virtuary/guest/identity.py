"""What makes a guest a machine of its own, given in one round trip through its agent; and what takes it away again. Pure.

Three scripts of plain POSIX shell, the same for Debian and for tiny, with the values as quoted, checked text:

- `script`: a booted guest gets its name and the keys that may log in as root. Idempotent.
- `settle_script`, `strip_script`: a booted guest becomes the template of copies: everything started, nothing unique left.
- `copy_script`: a resumed copy becomes a machine of its own. Starting a program inside an emulated guest costs tenths of a
  second, so this one uses the shell's own words and one small program (awaken.c) for what only system calls can do.
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

FOLDER = "/var/lib/virtuary"
"""Where a template keeps what its copies need to wake up."""

LISTENS = "ssh-listens"
"""What `copy_script` prints when it saw SSH listen, after it waited for an address; what it does not print may come a little later."""

_SCRIPT = """set -e
umask 077
hostname={hostname}
echo "$hostname" > /etc/hostname
chmod 644 /etc/hostname
hostname "$hostname" 2>/dev/null || echo "$hostname" > /proc/sys/kernel/hostname
{{ grep -v '^127\\.0\\.1\\.1[[:space:]]' /etc/hosts 2>/dev/null || true; echo "127.0.1.1 $hostname"; }} > /etc/hosts.new
grep -q '^127\\.0\\.0\\.1[[:space:]]' /etc/hosts.new || echo '127.0.0.1 localhost' >> /etc/hosts.new
chmod 644 /etc/hosts.new
mv /etc/hosts.new /etc/hosts
mkdir -p /root/.ssh
cat > /root/.ssh/authorized_keys <<'END-OF-KEYS'
{keys}
END-OF-KEYS
sync
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
{awaken} <<'END'
y
END
"""

_COPY = """umask 022
set -e
hostname={hostname}
nic=
for place in /sys/class/net/*; do
    read -r address < "$place/address" || continue
    [ "$address" != {old_mac} ] || nic=${{place##*/}}
done
[ -n "$nic" ] || {{ echo "it has no network interface {old_mac}" >&2; exit 1; }}
echo 1 > /proc/sys/net/ipv4/conf/$nic/arp_notify
{folder}/awaken <<END
s {entropy}
t {seconds} {nanos} {lag}
h $hostname
{address} $nic {mac}
{ipv4}END
{dns}printf '%s\\n' "$hostname" > /etc/hostname
hosts="127.0.1.1 $hostname"
while read -r line; do
    case $line in 127.0.1.1[!0-9.]*) ;; *) hosts="$hosts
$line" ;; esac
done < /etc/hosts
printf '%s\\n' "$hosts" > /etc/hosts
[ ! -e /etc/machine-id ] || printf '%s\\n' {machine_id} > /etc/machine-id
printf '%s\\n' {boot_id} > /run/virtuary/boot_id
binds='b /run/virtuary/boot_id /proc/sys/kernel/random/boot_id'
if [ -e /sys/class/dmi/id/product_uuid ]; then
    printf '%s\\n' {uuid} > /run/virtuary/product_uuid
    printf '{dmi}' > /run/virtuary/DMI
    binds="$binds
b /run/virtuary/product_uuid /sys/class/dmi/id/product_uuid
b /run/virtuary/DMI /sys/firmware/dmi/tables/DMI"
fi
umask 077
[ -d /root/.ssh ] || mkdir -p /root/.ssh
printf '%s\\n' {keys} > /root/.ssh/authorized_keys
if [ -d /etc/dropbear ]; then
    printf '{dropbear_key}' > /etc/dropbear/dropbear_ed25519_host_key
elif [ -d /etc/ssh ]; then
    printf '%s\\n' {host_key} > /etc/ssh/ssh_host_ed25519_key
    printf '%s\\n' {host_key_public} > /etc/ssh/ssh_host_ed25519_key.pub
fi
{seed}{disk}while read -r pid; do kill -KILL "$pid" || true; done < /run/virtuary/renew
[ ! -e /usr/lib/openssh/sshd-session ] || systemctl start ssh
{online}start=:
if [ -e /run/systemd/system ]; then
    read -r old < /run/virtuary/machine-id
    for place in /var/log/journal /run/log/journal; do
        [ ! -d $place/$old ] || mv $place/$old $place/{machine_id}
    done
    [ ! -e /run/virtuary/networkd ] || start="systemctl start systemd-networkd.socket systemd-networkd"
    setsid sh -c "{pause}$start; {wait}{later}systemctl restart systemd-journald; systemctl start timers.target;
        rm -f /run/systemd/network/*.d/virtuary-keep.conf" > /dev/null 2>&1 < /dev/null &
elif [ -e /run/virtuary/udhcpc ]; then
    setsid sh -c '{pause}while read -r pid; do kill -KILL "$pid"; done < /run/virtuary/udhcpc' > /dev/null 2>&1 < /dev/null &
fi
{folder}/awaken <<END
$binds
y
w $nic 5000
END
for table in /proc/net/tcp /proc/net/tcp6; do
    while read -r _ local _ state _; do
        case $local=$state in *:0016=0A) echo {listens}; break 2 ;; esac
    done < $table
done
"""


@dataclass(frozen=True)
class Identity:
    hostname: str
    """Checked name, see model.meta.check_name."""
    keys: tuple[str, ...]
    """SSH public keys, one line each."""


@dataclass(frozen=True)
class Place:
    """Where a NIC is: what DHCP would tell it, told at once. Nothing but the network where that gives no addresses."""

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
    """Seconds by which its real-time clock is behind; None where that shows another time, and can't tell how late the script is."""
    place: Place | None = None
    """Its place on a network of the host's; None: nobody else is on its network, so the template's address is its own too."""
    dmi: bytes = b""
    """The SMBIOS tables it is to show."""
    cpus: int = 1
    grown: bool = False
    """Whether its disk is larger than the template's."""
    seed: tuple[tuple[str, bytes], ...] = ()
    """cloud-init's seed files, when user data was given."""


def script(identity: Identity) -> bytes:
    """The shell script that gives a booted guest this identity; raises Invalid for text that could leave its place."""
    _check(identity)
    return _SCRIPT.format(hostname=identity.hostname, keys="\n".join(identity.keys)).encode()


def settle_script() -> bytes:
    """Wait until the guest has started everything, and make it ready to be copied; it fails with a reason."""
    program = (resources.files("virtuary.guest") / "awaken.bin").read_bytes()
    return _SETTLE.format(folder=FOLDER, room=room.READY_FOR_MEMORY, awaken=base64.encodebytes(program).decode()).encode()


def strip_script() -> bytes:
    """Take from the guest what makes it a machine of its own. The last thing it does before it is saved."""
    return _STRIP.format(awaken=f"{FOLDER}/awaken").encode()


def copy_script(identity: Identity, renewal: Renewal) -> bytes:
    """The shell script that makes a resumed copy a machine of its own; fails as a whole when any of it does."""
    _check(identity)
    seconds = int(renewal.now)
    return _COPY.format(
        hostname=identity.hostname,
        keys=quote("\n".join(identity.keys)),
        old_mac=renewal.old_mac,
        machine_id=renewal.machine_id,
        boot_id=renewal.boot_id,
        uuid=renewal.uuid,
        dmi=_octal(renewal.dmi),
        host_key=quote(renewal.host_key),
        dropbear_key=_octal(dropbear_key(renewal.host_key)),
        host_key_public=quote(renewal.host_key_public),
        folder=FOLDER,
        entropy=renewal.entropy,
        seconds=seconds,
        nanos=int((renewal.now - seconds) * 1e9),
        lag="" if renewal.lag is None else int(renewal.lag * 1e9),
        mac=renewal.mac.replace(":", ""),
        online=room.use_cpus(renewal.cpus),
        seed="".join(_seed_file(name, content) for name, content in renewal.seed),
        disk=room.GROW if renewal.grown else "",
        listens=LISTENS,
        address="m" if renewal.place else "M",
        ipv4=_ipv4(renewal.place),
        dns=_dns(renewal.place),
        pause="" if renewal.place else "sleep 5; ",
        wait="sleep 5; " if renewal.place else "",
        later="systemctl start cloud-init.target; " if renewal.seed else "",
    ).encode()


def _ipv4(place: Place | None) -> str:
    if place is None or place.address is None:
        return ""
    own = ipaddress.IPv4Interface(place.address)
    gateway = ipaddress.IPv4Address(place.gateway).packed.hex() if place.gateway else "0"
    return f"a $nic {own.ip.packed.hex()} {own.netmask.packed.hex()} {gateway}\n"


def _dns(place: Place | None) -> str:
    """What /etc/resolv.conf leads to, until the guest's own service has asked for it and writes it anew."""
    if place is None or place.nameserver is None:
        return ""
    text = f"search {place.domain}\\nnameserver {ipaddress.ip_address(place.nameserver)}\\n"
    files = "/run/resolv.conf /run/systemd/resolve/stub-resolv.conf"
    return f"for file in {files}; do [ ! -e $file ] || printf '{text}' > $file; done\n"


def renewed_dmi(tables: bytes, old: str, new: str) -> bytes:
    """SMBIOS tables with the machine's uuid replaced, wherever it stands in its mixed-endian form (SMBIOS 7.2.1)."""
    return tables.replace(_mixed(old), _mixed(new))


def dropbear_key(text: str) -> bytes:
    """An ed25519 key that ssh-keygen wrote without a passphrase, in dropbear's form. Source: PROTOCOL.key of OpenSSH."""
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


_SEED_FOLDER = "/var/lib/cloud/seed/nocloud"


def _seed_file(name: str, content: bytes) -> str:
    text = base64.b64encode(content).decode()
    return f"mkdir -p {_SEED_FOLDER}\nprintf '%s' '{text}' | base64 -d > {_SEED_FOLDER}/{name}\n: > /run/virtuary/seeded\n"


def _check(identity: Identity) -> None:
    for text in (identity.hostname, *identity.keys):
        if not text.isprintable() or "END-OF-KEYS" in text:
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
    """What a guest gets besides its name and keys that was another machine when it was shut down."""

    machine_id: str
    entropy: str
    """Hexadecimal digits."""
    host_key: str
    """SSH host key, as ssh-keygen writes it, without the last newline."""
    host_key_public: str


def fresh_script(identity: Identity, fresh: Fresh) -> bytes:
    """The shell script that gives a guest, booted from a copied disk, an identity of its own. Idempotent."""
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
"""


def live_script(identity: Identity, renewal: Renewal) -> bytes:
    """`copy_script` for a guest that was never made ready to be copied: a copy of a machine that ran, cold-started or not.

    What it does first leaves what `strip_script` leaves. A second time it waits for the end of the first and changes nothing.
    """
    program = (resources.files("virtuary.guest") / "awaken.bin").read_bytes()
    before = _LIVE.format(folder=FOLDER, uuid=renewal.uuid, awaken=base64.encodebytes(program).decode())
    return before.encode() + copy_script(identity, renewal) + f": > /run/virtuary/is-{renewal.uuid}\n".encode()
