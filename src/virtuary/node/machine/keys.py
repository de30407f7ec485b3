"""Which SSH keys a guest is given: the host's own, and those of the server."""

from __future__ import annotations

from virtuary.model.image import Image
from virtuary.model.vm import Vm
from virtuary.node.site import Site


def keys_of(site: Site, vm: Vm) -> tuple[str, ...]:
    """Whose keys may log in: Virtuary's own and the user's."""
    return (public_key(site), *vm.spec.login.ssh_keys)


def seed_keys(site: Site, vm: Vm, image: Image | None) -> tuple[str, ...]:
    """Keys that cloud-init is handed: Virtuary's own is not among them where its login is root's,
    to whom the agent gives it.
    """
    by_agent = image is not None and image.status.agent and image.status.user == "root"
    return vm.spec.login.ssh_keys if by_agent else keys_of(site, vm)


def public_key(site: Site) -> str:
    return site.paths.key.with_suffix(".pub").read_text(encoding="utf-8").strip()
