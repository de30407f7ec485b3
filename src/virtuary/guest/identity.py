"""What makes a copy of an image a machine of its own, given to the guest in one round trip. Pure.

The script is plain POSIX shell with the values as here-documents of checked text, and runs the same on Debian and on tiny:
hostname, /etc/hosts, the keys that may log in as root. It is idempotent.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.base.errors import Invalid

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


@dataclass(frozen=True)
class Identity:
    hostname: str
    """Checked name, see model.meta.check_name."""
    keys: tuple[str, ...]
    """SSH public keys, one line each."""


def script(identity: Identity) -> bytes:
    """The shell script that gives a guest this identity; raises Invalid for text that could leave its place."""
    for text in (identity.hostname, *identity.keys):
        if not text.isprintable() or "END-OF-KEYS" in text:
            raise Invalid("an identity holds characters that can't be written into a guest")
    if not identity.hostname.replace("-", "").isalnum():
        raise Invalid("a hostname consists of letters, digits and dashes")
    return _SCRIPT.format(hostname=identity.hostname, keys="\n".join(identity.keys)).encode()
