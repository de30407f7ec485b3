"""Who may log in to a server."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from virtuary.model.meta import Model

_KEY_KIND = r"(?:ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp(?:256|384|521)|sk-[a-z0-9@.-]+)"
_KEY = re.compile(_KEY_KIND + r" [A-Za-z0-9+/=]{40,16000}(?: [^\n\r]{0,200})?")


def _check_key(text: str) -> str:
    key = text.strip()
    if not _KEY.fullmatch(key) or not key.isprintable():
        raise ValueError("an SSH public key is one line such as 'ssh-ed25519 AAAA... name'")
    return key


SshKey = Annotated[str, AfterValidator(_check_key)]


class Login(Model):
    ssh_keys: tuple[SshKey, ...] = Field(default=(), max_length=64)
    """Public keys that may log in, besides Virtuary's own."""
    user_data: bool = False
    """Whether cloud-init user data was given; the text itself is kept apart and never shown."""


class LoginWish(Model):
    """As it is asked for."""

    ssh_keys: tuple[SshKey, ...] = Field(default=(), max_length=64)
    user_data: str | None = Field(default=None, max_length=256 * 1024)
    """Text for cloud-init, in any of its forms; what is compressed as base64."""
