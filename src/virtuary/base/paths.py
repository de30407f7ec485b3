"""Every path Virtuary uses on disk, with its reason, for the two modes.

System mode (root) follows the FHS, user mode the XDG directories. `VIRTUARY_ROOT=DIR` puts
everything below one folder; it serves tests and trials. Ids, never names, become paths.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Mode = Literal["user", "system"]


@dataclass(frozen=True)
class VmPaths:
    """The places of one server. `home` stays, `runtime` lives while it runs."""

    home: Path
    runtime: Path

    @property
    def disk(self) -> Path:
        """Root disk, an overlay on the image; once the server was copied `status.disk.file` names
        another file beside it.
        """
        return self.home / "disk.qcow2"

    @property
    def state(self) -> Path:
        """Memory of the server that this one is a live copy of; gone once it runs as a machine of
        its own.
        """
        return self.home / "state"

    @property
    def origin(self) -> Path:
        """What a live copy has to know about the machine that its memory comes from."""
        return self.home / "origin.json"

    @property
    def seed(self) -> Path:
        """cloud-init seed."""
        return self.home / "seed.iso"

    @property
    def firmware_vars(self) -> Path:
        """UEFI variables of this server."""
        return self.home / "firmware-vars.fd"

    @property
    def console(self) -> Path:
        """What the serial console printed, capped; `console.old` is the part before."""
        return self.home / "console.log"

    @property
    def errors(self) -> Path:
        """What QEMU wrote to stderr, capped."""
        return self.home / "qemu.log"

    @property
    def known_hosts(self) -> Path:
        """The guest's SSH host keys, as it was given them or its agent tells them."""
        return self.home / "known_hosts"

    @property
    def history(self) -> Path:
        """What the server used, by the second, minute and hour; `history.old` is one of another
        layout.
        """
        return self.home / "history"

    def socket(self, role: str) -> Path:
        """Listening sockets of QEMU: qmp, rescue, serial, agent, network."""
        return self.runtime / role


@dataclass(frozen=True)
class Paths:
    mode: Mode
    state: Path
    cache: Path
    run: Path
    config: Path

    @property
    def store(self) -> Path:
        """The document store."""
        return self.state / "virtuary.db"

    @property
    def secret_key(self) -> Path:
        """The key under which user data is kept in the store, made with the first one; without it
        that can't be read. A copy of the host's state has to hold it, a copy of the store alone
        should not.
        """
        return self.state / "secret.key"

    @property
    def ballast(self) -> Path:
        """Space kept for the store: given up piece by piece when the disk is full, so that servers
        can still be stopped and removed.
        """
        return self.state / "ballast"

    @property
    def images(self) -> Path:
        """One folder an image, by id; `.making-ID` while it is being made."""
        return self.state / "images"

    @property
    def vms(self) -> Path:
        return self.state / "vms"

    @property
    def key(self) -> Path:
        """The SSH key Virtuary logs in with; the public half beside it."""
        return self.state / "ssh" / "id_ed25519"

    @property
    def probes(self) -> Path:
        """Cached answers about QEMU and the accelerator."""
        return self.cache / "probes"

    @property
    def downloads(self) -> Path:
        """Packages and partial downloads; may be removed at any time."""
        return self.cache / "downloads"

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return self.run / "virtuary.sock"

    @property
    def scratch(self) -> Path:
        """What tools need while they run; emptied when the daemon starts."""
        return self.run / "scratch"

    @property
    def resolvers(self) -> Path:
        """The host's resolvers as programs in a jail see them: a copy of its file that follows
        it.
        """
        return self.run / "resolvers"

    @property
    def lock(self) -> Path:
        """Held by the daemon for its whole life: one daemon a mode."""
        return self.state / "daemon.lock"

    @property
    def instances(self) -> Path:
        """Which instance, as root, has which users and networks of the host: the same folder for
        all of them, also with `VIRTUARY_ROOT`.
        """
        return Path("/run/virtuary-instances")

    @property
    def log(self) -> Path:
        """The daemon's log when it runs in the background without a service manager, capped;
        `daemon.old` is the part before.
        """
        return self.state / "daemon.log"

    @property
    def history(self) -> Path:
        """What the host used, by the second, minute and hour; `history.old` is one of another
        layout.
        """
        return self.state / "history"

    @property
    def templates(self) -> Path:
        """One folder a warm template, by id; `.making-ID` while it is being made."""
        return self.state / "templates"

    def template(self, template_id: str) -> Path:
        return self.templates / template_id

    @property
    def layers(self) -> Path:
        """Disks that servers and their copies share: read-only, each for as long as a server names
        it.
        """
        return self.state / "layers"

    @property
    def disks(self) -> Path:
        """One folder a disk that is no server's root disk, by id."""
        return self.state / "disks"

    def volume(self, volume_id: str) -> Path:
        """The file of such a disk."""
        return self.disks / volume_id / "disk.qcow2"

    def vm(self, vm_id: str) -> VmPaths:
        return VmPaths(self.vms / vm_id, self.run / "vms" / vm_id)

    def image(self, image_id: str) -> Path:
        return self.images / image_id

    def ensure(self) -> None:
        """Make the folders. The state folder is passable (0711), what lies in it is the daemon's
        alone.
        """
        for folder, mode in ((self.state, 0o711), (self.run, 0o711), (self.cache, 0o700)):
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            os.chmod(folder, mode)
        private = (
            self.images,
            self.templates,
            self.layers,
            self.disks,
            self.vms,
            self.key.parent,
            self.probes,
            self.downloads,
            self.run / "vms",
        )
        for folder in private:
            folder.mkdir(exist_ok=True, mode=0o700)


def find_paths(environment: dict[str, str] | None = None, uid: int | None = None) -> Paths:
    """The paths of this user: system mode for root, user mode for everybody else. Relative XDG
    values are ignored.
    """
    env = dict(os.environ) if environment is None else environment
    uid = os.getuid() if uid is None else uid
    mode: Mode = "system" if uid == 0 else "user"
    if root := env.get("VIRTUARY_ROOT"):
        base = Path(root).absolute()
        return Paths(mode, base / "state", base / "cache", base / "run", base / "config")
    if mode == "system":
        return Paths(
            mode,
            Path("/var/lib/virtuary"),
            Path("/var/cache/virtuary"),
            Path("/run/virtuary"),
            Path("/etc/virtuary"),
        )
    home = Path(env.get("HOME", "/"))
    state = _xdg(env, "XDG_STATE_HOME", home / ".local/state") / "virtuary"
    runtime = env.get("XDG_RUNTIME_DIR", "")
    run = (
        Path(runtime) / "virtuary"
        if runtime.startswith("/") and os.path.isdir(runtime)
        else state / "run"
    )
    return Paths(
        mode,
        state,
        _xdg(env, "XDG_CACHE_HOME", home / ".cache") / "virtuary",
        run,
        _xdg(env, "XDG_CONFIG_HOME", home / ".config") / "virtuary",
    )


def _xdg(env: dict[str, str], name: str, default: Path) -> Path:
    value = env.get(name, "")
    return Path(value) if value.startswith("/") else default
