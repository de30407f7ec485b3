"""Stories that together pass every crash point, and what must be true after the daemon died in the
middle of one.

A story is told through the API, one deed after the other; each waits for its operation. What was
acknowledged is noted here, apart from the daemon. A deed that was never answered may or may not
have happened; everything else has to be true.
"""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instances import Instance, Json, until

from virtuary.base.errors import VirtuaryError
from virtuary.client.wire import Wire

ENDED = ("done", "failed", "cancelled")
REASONS = ("no-room", "store-away")
"""Kinds of problems that a full disk may become."""


class DaemonDied(Exception):
    """It went away before it answered."""


class DeedRefused(Exception):
    """The fault became an error with a reason."""


@dataclass
class Teller:
    """Tells a story to one instance and keeps the record of what was acknowledged."""

    instance: Instance
    forgiving: bool = False
    """Whether a deed may be refused for lack of space."""
    there: dict[str, str] = field(default_factory=dict)
    """Document -> power last acknowledged (servers) or `ready` (images)."""
    doubtful: set[str] = field(default_factory=set)
    """Documents whose last deed was not answered."""
    told: set[str] = field(default_factory=set)
    """Operations that were acknowledged."""

    def ask(self, key: str, method: str, target: str, body: Json = None, **query: Any) -> Json:
        """One request about the document `key`; raises DaemonDied or DeedRefused."""
        return self._try(key, lambda: self.instance.call(method, target, body, **query))

    def upload(self, key: str, target: str, path: Path, **query: Any) -> Json:
        with open(path, "rb") as handle:
            wire = Wire(str(self.instance.paths.socket), 60)
            return self._try(key, lambda: wire.upload(target, query, handle, path.stat().st_size))

    def _try(self, key: str, request: Callable[[], Json]) -> Json:
        self.doubtful.add(key)
        try:
            answer = request()
        except VirtuaryError as error:
            if error.code == "peer-away":
                raise DaemonDied from error
            if self.forgiving and error.code in REASONS:
                self.doubtful.discard(key)
                raise DeedRefused from error
            raise
        except (OSError, IndexError, ValueError) as error:  # cut off in the middle of an answer
            raise DaemonDied from error
        self.doubtful.discard(key)
        if isinstance(answer, dict) and (
            operation := answer.get("operation") or ("target" in answer.get("spec", {}) and answer)
        ):
            self.told.add(operation["meta"]["id"])
        return answer

    def end(self, answer: Json) -> None:
        """Wait for the end of an operation; raises DaemonDied or DeedRefused."""
        identity = answer.get("operation", answer)["meta"]["id"]
        found = self._ended(identity)
        if found["status"]["phase"] != "done":
            assert self.forgiving, found["status"]
            assert found["status"]["error"]["code"] in REASONS, found["status"]["error"]
            raise DeedRefused(found["status"]["error"]["detail"])

    def _ended(self, identity: str) -> Json:
        def look() -> Json:
            try:
                found = self.instance.call("GET", f"/v1/operations/{identity}")
            except VirtuaryError as error:
                if error.code == "peer-away":
                    raise DaemonDied from error
                raise
            except (OSError, IndexError, ValueError) as error:
                raise DaemonDied from error
            return found if found["status"]["phase"] in ENDED else None

        # making a template boots a guest, beside another test
        return until(look, 120, f"operation {identity} ends", 0.05)

    # ---- deeds

    def create(self, name: str, **wish: Any) -> Json:
        answer = self.ask(
            f"vm {name}",
            "POST",
            "/v1/vms",
            {"name": name, "memory": 96 << 20, "power": "stopped", **wish},
        )
        self.there[f"vm {name}"] = wish.get("power", "stopped")
        self.end(answer)
        return answer["vm"]

    def copy(self, source: str, name: str, **wish: Any) -> None:
        answer = self.ask(
            f"vm {name}", "POST", f"/v1/vms/{source}/actions/copy", {"name": name, **wish}
        )
        self.there[f"vm {name}"] = "running" if wish.get("start") else "stopped"
        self.end(answer)

    def power(self, name: str, deed: str, **params: Any) -> None:
        answer = self.ask(f"vm {name}", "POST", f"/v1/vms/{name}/actions/{deed}", params)
        self.there[f"vm {name}"] = "stopped" if deed == "stop" else "running"
        self.end(answer)

    def delete(self, name: str) -> None:
        answer = self.ask(f"vm {name}", "DELETE", f"/v1/vms/{name}", now="true", force="true")
        self.there.pop(f"vm {name}")
        self.end(answer)

    def image(self, name: str, answer: Json) -> None:
        self.there[f"image {name}"] = "ready"
        self.end(answer)

    def delete_image(self, name: str) -> None:
        answer = self.ask(f"image {name}", "DELETE", f"/v1/images/{name}")
        self.there.pop(f"image {name}")
        self.end(answer)


def make_disk(folder: Path) -> Path:
    """A disk that can be imported; nothing boots from it."""
    path = folder / "disk.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(path), "64M"], check=True, timeout=20
    )
    return path


def life(teller: Teller) -> None:
    """Create, start, restart, stop, grow, start, stop, delete; the guest needs not come up."""
    teller.create("life", image="tiny")
    teller.power("life", "start", wait="running")
    teller.power("life", "restart", force=True)
    teller.power("life", "stop", force=True)
    teller.ask("vm life", "PATCH", "/v1/vms/life", {"disks": [300 << 20]})
    teller.power("life", "start", wait="running")
    teller.power("life", "stop", force=True)
    teller.delete("life")


def boot(teller: Teller) -> None:
    """Launch until a shell is possible, then delete: the only story in which the guest is given its
    identity.
    """
    teller.create("boot", image="tiny", power="running")
    teller.delete("boot")


def sized(teller: Teller) -> None:
    """Give a server that runs limits, CPUs, memory and a larger disk; then take back the CPUs and
    the memory.
    """
    teller.create("sized", image="tiny", power="running", memory=128 << 20)
    for wish in (
        {"cpu": {"limit": 80, "weight": 200}},
        {"cpu": 2, "memory": 256 << 20},
        {"disks": [300 << 20]},
        {"cpu": 1, "memory": 128 << 20},
    ):
        answer = teller.ask("vm sized", "PATCH", "/v1/vms/sized", wish)
        if "operation" in answer:
            teller.end(answer)
    until(
        lambda: teller.ask("vm sized", "GET", "/v1/vms/sized")["status"]["cpus"] == 1,
        20,
        "it has what was wished",
        0.05,
    )
    teller.delete("sized")


def shared(teller: Teller) -> None:
    """Copy a server on whose disk something was written, then remove it, and the copy after it."""
    vm = teller.create("first", image="tiny")
    disk = teller.instance.paths.vm(vm["meta"]["id"]).disk
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", str(disk)],
        check=True,
        timeout=20,
        capture_output=True,
    )
    teller.copy("first", "second")
    teller.copy("first", "third")
    teller.delete("first")
    teller.delete("second")


def renewed(teller: Teller) -> None:
    """Start a copy: the only story in which one that was stopped becomes a machine of its own."""
    teller.create("proto", image="tiny")
    teller.copy("proto", "copy", start=True)
    teller.delete("copy")


def living(teller: Teller) -> None:
    """Copy a server as it runs; both are there."""
    teller.create("source", image="tiny", power="running", memory=128 << 20)
    teller.copy("source", "alive", mode="live", start=True)
    teller.delete("alive")


def whole(teller: Teller) -> None:
    """Copy a server in full; the copy is there when the source is gone."""
    teller.create("part", image="tiny")
    teller.copy("part", "whole", mode="full")
    teller.delete("part")


def picture(teller: Teller) -> None:
    """Import an image and give a server of it a seed; remove both."""
    disk = make_disk(teller.instance.root)
    teller.image(
        "picture",
        teller.upload("image picture", "/v1/images/picture/content", disk, cloud_init="true"),
    )
    teller.create("seeded", image="picture", login={"user_data": "#cloud-config\n{}\n"})
    teller.power("seeded", "start", wait="running")
    teller.delete("seeded")
    teller.delete_image("picture")


def fetched(teller: Teller) -> None:
    """Fetch an image from an address."""
    disk = make_disk(teller.instance.root)
    content = disk.read_bytes()

    class Give(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Give)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # it stays until the end: what was begun may be repeated after a crash
    teller.instance.servers.append(server)
    source = {
        "kind": "url",
        "url": f"http://127.0.0.1:{server.server_port}/disk.qcow2",
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    teller.image(
        "fetched",
        teller.ask("image fetched", "POST", "/v1/images", {"name": "fetched", "source": source}),
    )
    teller.delete_image("fetched")


def made(teller: Teller) -> None:
    """Make an image warm, and cold again."""
    teller.end(teller.ask("image tiny", "POST", "/v1/images/tiny/actions/warm", {}))
    cool(teller)


def warmed(teller: Teller) -> None:
    """Start a copy of a warm image, remove both."""
    teller.create("copied", image="tiny", power="running", memory=128 << 20)
    teller.ask("image tiny", "POST", "/v1/images/tiny/actions/cool", {})
    teller.delete("copied")
    cool(teller)


def cool(teller: Teller) -> None:
    """Have the templates of the image go, and wait until they have: not before their last copy."""
    teller.ask("image tiny", "POST", "/v1/images/tiny/actions/cool", {})
    until(
        lambda: not teller.ask("image tiny", "GET", "/v1/templates")["items"],
        20,
        "the template goes",
        0.05,
    )


def attached(teller: Teller) -> None:
    """Make disks, attach and grow them, detach and remove them: with a server that runs, and with
    one that does not.
    """
    teller.create("holder", image="tiny", power="running", memory=128 << 20)
    key, path = "disk data", "/v1/disks/data"
    answer = teller.ask(key, "POST", "/v1/disks", {"name": "data", "size": 16 << 20})
    teller.there[key] = "ready"
    teller.end(answer)
    teller.end(teller.ask(key, "PATCH", path, {"size": 32 << 20}))
    for size in (48 << 20, 64 << 20):
        attach = {"server": "holder"}
        teller.end(teller.ask(key, "POST", f"{path}/actions/attach", attach))
        teller.end(teller.ask(key, "PATCH", path, {"size": size}))
        teller.end(teller.ask(key, "POST", f"{path}/actions/detach", {}))
        if size == 48 << 20:
            teller.power("holder", "stop", force=True)
    teller.end(teller.ask(key, "POST", f"{path}/actions/attach", {"server": "holder"}))
    teller.delete("holder")
    until(
        lambda: not teller.ask(key, "GET", path)["spec"]["attached"],
        20,
        "the disk is let go",
        0.05,
    )
    answer = teller.ask(key, "DELETE", path, now="true")
    teller.there.pop(key)
    teller.end(answer)


OUTSIDE = "192.0.2.50"
"""On a link of the host that a networked story is told on."""


def joined(teller: Teller) -> None:
    """Join a network that is made for it, get a second NIC and lose it; server and networks are
    removed.
    """
    teller.ask("network lan", "POST", "/v1/networks", {"name": "lan", "ipv4": "10.98.0.0/24"})
    teller.ask(
        "network back",
        "POST",
        "/v1/networks",
        {"name": "back", "kind": "isolated", "ipv4": "10.98.1.0/24"},
    )
    teller.create(
        "joined",
        image="tiny",
        power="running",
        memory=128 << 20,
        nics=[{"network": "lan", "external": [OUTSIDE]}],
    )
    for networks in (("lan", "back"), ("lan",)):
        teller.ask(
            "vm joined",
            "PATCH",
            "/v1/vms/joined",
            {
                "nics": [
                    {"network": name, "external": [OUTSIDE] if name == "lan" else []}
                    for name in networks
                ]
            },
        )
        until(lambda: has_nics(teller, len(networks)), 30, f"it has {len(networks)} NICs", 0.05)  # noqa: B023
    teller.delete("joined")
    teller.ask("network back", "DELETE", "/v1/networks/back")
    until(
        lambda: len(teller.ask("network lan", "GET", "/v1/networks")["items"]) == 1,
        20,
        "the network is gone",
        0.05,
    )
    teller.ask("network lan", "DELETE", "/v1/networks/lan")
    until(
        lambda: not teller.ask("network lan", "GET", "/v1/networks")["items"],
        20,
        "the other one is gone too",
        0.05,
    )


def has_nics(teller: Teller, count: int) -> bool:
    return (
        len(teller.ask("vm joined", "GET", "/v1/vms/joined")["status"]["runtime"]["nics"]) == count
    )


STORIES: dict[str, Callable[[Teller], None]] = {
    story.__name__: story
    for story in (
        life,
        boot,
        sized,
        shared,
        renewed,
        living,
        whole,
        picture,
        fetched,
        made,
        warmed,
        attached,
        joined,
    )
}
WARM = ("living", "warmed", "sized", "attached", "joined")
"""Stories that begin where the image is warm already: what they tell does not need a boot."""
NETWORKED = ("joined",)
"""Stories told in a network namespace of their own."""
TOLD_BY = {
    "life": (
        "disk.before_overlay", "disk.after_overlay", "disk.before_rename", "disk.after_rename",
        "disk.after_grow",
        "start.before_spawn", "start.after_spawn", "start.after_record", "start.before_release",
        "start.after_release",
        "network.after_start", "stop.after_mark", "stop.after_kill", "collect.before_clean",
        "collect.after_clean",
        "forget.before_files", "forget.after_files", "forget.after_rules", "store.before_commit",
        "store.after_commit",
    ),
    "boot": ("identity.before", "identity.after"),
    "sized": ("tune.after", "resize.before", "resize.after_offer", "resize.after",
    "grow.after_resize", "grow.after_record"),
    "shared": (
        "copy.before_link", "copy.after_link", "copy.after_overlay", "copy.before_record",
        "copy.after_record", "copy.after_unlink",
        "copy.after_stand",
    ),
    "renewed": ("copy.before_renew", "copy.after_renew"),
    "living": (
        "live.before_save", "live.standing", "live.before_going_on", "live.after_save",
        "live.before_record", "live.after_record",
        "live.after_load", "live.before_renew", "live.after_renew", "live.after_identity",
    ),
    "whole": ("full.after_convert", "copy.after_convert", "copy.after_give"),
    "picture": (
        "image.before_make", "image-converted", "image.after_make", "image.before_rename",
        "image.after_rename",
        "image.after_record", "image.after_remove", "seed.after_write",
    ),
    "fetched": ("image-fetched",),
    "made": (
        "template.before_make", "template.after_boot", "template.before_save",
        "template.after_save", "template.before_rename",
        "template.after_rename", "template.after_record", "template.after_remove",
    ),
    "warmed": ("warm.after_load", "renew.before", "renew.after"),
    "attached": (
        "disk.after_empty", "volume.after_make", "volume.after_grow", "volume.after_plug",
        "volume.after_record", "volume.after_resize", "volume.after_unplug", "volume.after_remove",
    ),
    "joined": (
        "network.after_bridge", "network.after_dhcp", "network.after_record", "tap.after_open",
        "nic.after_plug", "nic.after_record",
        "nic.after_unplug", "network.after_remove", "network.after_external", "rules.after_apply",
        "rules.after_pass",
        "rules.after_remove", "rules.after_restore",
    ),
}  # fmt: skip
"""Which story passes which point. A new point is added here, or to a new story; a test holds both
to the code.
"""
