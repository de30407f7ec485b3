"""A port of the host that leads to a port of a guest."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field, model_validator

from virtuary.model.meta import Model


class Publish(Model):
    """A port of the host that leads to a port of the guest."""

    host: int = Field(ge=1, le=65535)
    guest: int = Field(ge=1, le=65535)
    protocol: Literal["tcp", "udp"] = "tcp"
    address: str = "127.0.0.1"
    """Address of the host to listen on; 0.0.0.0 for all."""

    @model_validator(mode="after")
    def _address_is_one(self) -> Publish:
        ipaddress.ip_address(self.address)
        # a scope may hold any text, and the address stands on a command line
        if "%" in self.address:
            raise ValueError("an address to listen on has no scope")
        return self

    def meets(self, other: Publish) -> bool:
        """Whether only one server can have both: the same port of the same address, or of all of
        its family.
        """
        own, its = ipaddress.ip_address(self.address), ipaddress.ip_address(other.address)
        return (self.protocol, self.host, own.version) == (
            other.protocol,
            other.host,
            its.version,
        ) and (own == its or own.is_unspecified or its.is_unspecified)

    def __str__(self) -> str:
        return f"{self.address}:{self.host}->{self.guest}/{self.protocol}"
