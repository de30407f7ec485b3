"""User data as it lies on disk while a daemon runs: sealed, copied sealed, and gone once its
servers are removed for good.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from instances import Instance

pytestmark = pytest.mark.live
MARK = b"correct horse battery staple"
WISH = {
    "image": "picture",
    "power": "stopped",
    "login": {"user_data": f"#!/bin/sh\n# {MARK.decode()}\n"},
}


@pytest.fixture
def picture(own_instance: Instance, tmp_path: Path) -> Instance:
    """A daemon with an image that is said to have cloud-init; nothing of it is ever started."""
    (tmp_path / "disk").write_bytes(bytes(510) + b"\x55\xaa" + bytes(2**20 - 512))
    own_instance.ok(
        "image", "import", str(tmp_path / "disk"), "--name", "picture", "--format", "raw"
    )
    return own_instance


def sealed_or_not(instance: Instance) -> tuple[bytes, bytes]:
    """All bytes of the store's files, and the secrets in it."""
    files = b"".join(path.read_bytes() for path in instance.paths.state.glob("virtuary.db*"))
    return files, b"".join(value for _, value in instance.documents("secret/"))


def test_user_data_is_never_in_the_open_and_gone_with_its_servers(picture: Instance) -> None:
    picture.call("POST", "/v1/vms", {**WISH, "name": "one"})
    picture.wait_state("one", "stopped")
    picture.ok("copy", "one", "two")
    files, secrets = sealed_or_not(picture)
    assert len(picture.documents("secret/")) == 2 and MARK not in files and secrets[:64] in files
    picture.stop()
    picture.start()
    picture.ok("delete", "--now", "--force", "--yes", "one", "two")
    found, _ = sealed_or_not(picture)
    assert MARK not in found and not any(
        secrets[at : at + 24] in found for at in range(0, len(secrets) - 24, 8)
    )


def test_a_server_whose_user_data_can_not_be_read_says_why_and_can_be_removed(
    picture: Instance,
) -> None:
    picture.call("POST", "/v1/vms", {**WISH, "name": "one"})
    picture.wait_state("one", "stopped")
    picture.stop()
    picture.paths.secret_key.unlink()
    picture.start()
    assert "secrets lost" in picture.words() and str(picture.paths.secret_key) in picture.words()
    refused = picture.run("copy", "one", "two")
    assert refused.status != 0 and "secret.key is missing" in refused.err
    picture.ok("delete", "--now", "--force", "--yes", "one")
