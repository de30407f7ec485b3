"""User data as it lies on disk while a daemon runs: sealed, copied sealed, and gone once its servers are removed for good."""

from __future__ import annotations

import pytest
from instances import Instance

pytestmark = pytest.mark.live
MARK = b"correct horse battery staple"
WISH = {"image": "tiny", "power": "stopped", "user_data": f"#!/bin/sh\n# {MARK.decode()}\n"}


def sealed_or_not(instance: Instance) -> tuple[bytes, bytes]:
    """All bytes of the store's files, and the secrets in it."""
    files = b"".join(path.read_bytes() for path in instance.paths.state.glob("virtuary.db*"))
    return files, b"".join(value for _, value in instance.documents("secret/"))


def test_user_data_is_never_in_the_open_and_gone_with_its_servers(own_instance: Instance) -> None:
    own_instance.call("POST", "/v1/vms", {**WISH, "name": "one"})
    own_instance.wait_state("one", "stopped")
    own_instance.ok("copy", "one", "two")
    files, secrets = sealed_or_not(own_instance)
    assert len(own_instance.documents("secret/")) == 2 and MARK not in files and secrets[:64] in files
    own_instance.stop()
    own_instance.start()
    own_instance.ok("delete", "--now", "--force", "--yes", "one", "two")
    found, _ = sealed_or_not(own_instance)
    assert MARK not in found and not any(secrets[at : at + 24] in found for at in range(0, len(secrets) - 24, 8))


def test_a_server_whose_user_data_can_not_be_read_says_why_and_can_be_removed(own_instance: Instance) -> None:
    own_instance.call("POST", "/v1/vms", {**WISH, "name": "one"})
    own_instance.wait_state("one", "stopped")
    own_instance.stop()
    own_instance.paths.secret_key.unlink()
    own_instance.start()
    assert "secrets lost" in own_instance.words() and str(own_instance.paths.secret_key) in own_instance.words()
    refused = own_instance.run("copy", "one", "two")
    assert refused.status != 0 and "secret.key is missing" in refused.err
    own_instance.ok("delete", "--now", "--force", "--yes", "one")
