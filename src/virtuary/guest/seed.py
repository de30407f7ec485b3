"""The cloud-init seed: a NoCloud ISO labelled `cidata` with meta-data, user-data, keys and a host key.

Rock Ridge 1.09 and Joliet 3 are both on: without them the names are not found. The user's own text is passed as it is.

A #cloud-config is gone through event by event, and given up at the first that is too much, before anything is made of it: no text
that a user may send holds up the daemon.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import NamedTuple

import yaml

from virtuary.base.errors import Invalid
from virtuary.base.files import write_whole

_STARTS = (
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "## template:",
    "Content-Type:",
    "MIME-Version:",
    "From ",
)
DEPTH_CAP = 64
EVENTS_CAP = 8192
"""Parts of a #cloud-config: each word, and the beginning and end of each list and mapping."""
DIRECTIVES_CAP = 64
"""Lines that may be directives, each of which libyaml compares with all others."""
NUMBERS_CAP = 4096
"""Characters of all numbers that do not fit into 64 bits: to make them, and to keep them apart as keys, takes their number squared."""
_NUMBER = re.compile(r"[-+0-9_.:]{19,}")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_user_data(text: str) -> str:
    """User data that cloud-init will take; raises Invalid, with the line, for a #cloud-config that is not valid YAML."""
    if not text.startswith(_STARTS):
        raise Invalid(
            "user data must begin with '#cloud-config', '#!' or another header cloud-init knows", "see cloud-init's manual"
        )
    if text.startswith("#cloud-config"):
        try:
            _check_extent(text)
            body = _LOADER(text).get_single_data()
        except Exception as error:  # besides YAMLError whatever a broken date, number or tag makes of it
            raise Invalid(f"the user data is not valid YAML: {' '.join(str(error).split())[:300]}") from error
        if body is not None and not isinstance(body, dict):
            raise Invalid("a #cloud-config must be a mapping of keys to values")
    return text


class HostKey(NamedTuple):
    """An SSH host key as ssh-keygen writes it, without the last newlines."""

    private: str
    public: str


def has_host_keys(user_data: str) -> bool:
    """Whether the user data may bring host keys of its own, which then are the server's. Pure."""
    return "ssh_keys" in user_data


def _check_extent(text: str) -> None:
    """Raise ValueError for YAML that would take long to make something of; in time that goes by what is accepted."""
    if text.count("\n%") > DIRECTIVES_CAP:
        raise ValueError("it has too many directives")
    depth = numbers = 0
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.ScalarEvent) and _NUMBER.fullmatch(event.value):
            numbers += len(event.value)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias, *{event.anchor}: write out what that stands for")
        if depth > DEPTH_CAP or count > EVENTS_CAP or numbers > NUMBERS_CAP:
            raise ValueError(
                f"it has more than {DEPTH_CAP} levels, {EVENTS_CAP} parts or {NUMBERS_CAP} characters of long numbers"
            )


def seed_files(
    instance: str, hostname: str, keys: tuple[str, ...], user_data: str, host_key: HostKey | None = None
) -> dict[str, bytes]:
    """The files of a seed. `keys` go to the image's default user; `instance` is stable over reboots. Pure.

    `host_key` is in the vendor data, where it stands behind whatever the user data says.
    """
    meta = {"instance-id": instance, "local-hostname": hostname, "public-keys": list(keys)}
    files = {
        "meta-data": json.dumps(meta, indent=1).encode() + b"\n",
        "user-data": (user_data or "#cloud-config\n{}\n").encode(),
    }
    if host_key and not has_host_keys(user_data):
        pair = {"ed25519_private": f"{host_key.private}\n", "ed25519_public": f"{host_key.public}\n"}
        files["vendor-data"] = b"#cloud-config\n" + json.dumps({"ssh_keys": pair}).encode() + b"\n"
    return files


def write_seed(path: Path, files: dict[str, bytes]) -> None:
    """Write the ISO whole, readable by the daemon alone."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=4, joliet=3, rock_ridge="1.09", vol_ident="cidata", sys_ident="LINUX")
    for name, content in files.items():
        short = name.replace("-", "_").upper()[:8]
        iso.add_fp(io.BytesIO(content), len(content), f"/{short}.;1", rr_name=name, joliet_path=f"/{name}")
    output = io.BytesIO()
    iso.write_fp(output)
    iso.close()
    content = output.getvalue()
    write_whole(path, content + bytes(-len(content) % 65536))
