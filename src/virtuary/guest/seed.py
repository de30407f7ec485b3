"""The cloud-init seed: a NoCloud ISO labelled `cidata` with meta-data, user-data, keys and a host
key.

Rock Ridge 1.09 and Joliet 3 are both on: without them the names are not found. What the user's own
text may be is guest/userdata.py's.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import NamedTuple

from virtuary.base.files import write_whole
from virtuary.guest.userdata import check_user_data, has_host_keys, normalise

__all__ = ["HostKey", "check_user_data", "has_host_keys", "seed_files", "write_seed"]


class HostKey(NamedTuple):
    """An SSH host key as ssh-keygen writes it, without the last newlines."""

    private: str
    public: str


def seed_files(
    instance: str,
    hostname: str,
    keys: tuple[str, ...],
    user_data: str,
    host_key: HostKey | None = None,
) -> dict[str, bytes]:
    """The files of a seed. `keys` go to the image's default user; `instance` is stable over
    reboots. Pure.

    `host_key` is in the vendor data, where it stands behind whatever the user data says.
    """
    meta = {"instance-id": instance, "local-hostname": hostname, "public-keys": list(keys)}
    files = {
        "meta-data": json.dumps(meta, indent=1).encode() + b"\n",
        "user-data": normalise(user_data) if user_data else b"#cloud-config\n{}\n",
    }
    if host_key and not has_host_keys(user_data):
        pair = {
            "ed25519_private": f"{host_key.private}\n",
            "ed25519_public": f"{host_key.public}\n",
        }
        files["vendor-data"] = (
            b"#cloud-config\n"
            + json.dumps({"ssh_deletekeys": False, "ssh_keys": pair}).encode()
            + b"\n"
        )
    return files


def write_seed(path: Path, files: dict[str, bytes]) -> None:
    """Write the ISO whole, readable by the daemon alone."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=4, joliet=3, rock_ridge="1.09", vol_ident="cidata", sys_ident="LINUX")
    for name, content in files.items():
        short = name.replace("-", "_").upper()[:8]
        iso.add_fp(
            io.BytesIO(content), len(content), f"/{short}.;1", rr_name=name, joliet_path=f"/{name}"
        )
    output = io.BytesIO()
    iso.write_fp(output)
    iso.close()
    content = output.getvalue()
    write_whole(path, content + bytes(-len(content) % 65536))
