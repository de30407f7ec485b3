"""What a NIC is given of its network: a limit, a floor and a share, for each direction; and whether
a network can promise it.

Directions are the server's own: inbound is what it receives. Rates are bits a second, counted as on
Ethernet with all headers but without checksum, preamble and gap; None means no limit and no floor.
Weights share what nobody has a claim to; 100 is the ordinary one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from virtuary.base.errors import NoRoom
from virtuary.base.units import format_bandwidth
from virtuary.model.meta import Model

MIN_RATE, MAX_RATE = 64_000, 10**12
BURST_SECONDS = 60
"""How long a burst may last at the limit; the kernel counts no further."""
RESERVE_PERCENT = 5
"""Of a link, what is promised and used by nobody: gaps and checksums that are not counted, and room
so that frames wait in this host, where they are told apart, and not in the switch.
"""
Direction = Literal["inbound", "outbound"]
DIRECTIONS: tuple[Direction, ...] = ("inbound", "outbound")


class Rate(Model):
    """One direction of a NIC."""

    limit: int | None = Field(default=None, ge=MIN_RATE, le=MAX_RATE)
    """Bits a second that it never exceeds for long, however idle the network is."""
    burst: int | None = Field(default=None, ge=1, le=2**30)
    """Bytes that pass at full speed after a quiet time; as few as work well when not given."""
    floor: int | None = Field(default=None, ge=MIN_RATE, le=MAX_RATE)
    """Bits a second that it gets whenever it wants them; counted when servers are admitted."""
    weight: int = Field(default=100, ge=1, le=10_000)
    """Its share of what is left, beside others of the network."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.limit is not None and self.floor is not None and self.floor > self.limit:
            raise ValueError(
                f"a floor of {format_bandwidth(self.floor)} lies above the limit of "
                f"{format_bandwidth(self.limit)}"
            )
        if self.burst is not None and self.limit is None:
            raise ValueError("a burst belongs to a limit")
        if (
            self.burst is not None
            and self.limit is not None
            and self.burst * 8 > self.limit * BURST_SECONDS
        ):
            raise ValueError(
                f"a burst of {self.burst} bytes lasts longer than {BURST_SECONDS} s at "
                f"{format_bandwidth(self.limit)}"
            )
        return self

    @property
    def shares(self) -> bool:
        """Whether it says anything about its place beside others."""
        return self.floor is not None or self.weight != 100


class Bandwidth(Model):
    """Both directions of a NIC, as the server sees them."""

    inbound: Rate = Rate()
    outbound: Rate = Rate()

    def rate(self, direction: Direction) -> Rate:
        return self.inbound if direction == "inbound" else self.outbound


class RateChange(Model):
    """What of `Rate` is to be changed; what is left out stays, an explicit null takes a limit or
    floor away.
    """

    limit: int | None = None
    burst: int | None = None
    floor: int | None = None
    weight: int | None = None


class BandwidthChange(Model):
    """What of `Bandwidth` is to be changed; what is left out stays."""

    inbound: RateChange = RateChange()
    outbound: RateChange = RateChange()


def changed(bandwidth: Bandwidth, change: BandwidthChange) -> Bandwidth:
    """`bandwidth` after `change`. A null weight is the ordinary one. Raises pydantic's
    ValidationError when the outcome makes no sense.
    """
    body = bandwidth.model_dump()
    for direction, given in change.model_dump(exclude_unset=True).items():
        body[direction] |= {
            field: 100 if field == "weight" and value is None else value
            for field, value in given.items()
        }
    return Bandwidth.model_validate(body)


def usable(link: int) -> int:
    """Bits a second of a link's speed that its servers share; the reserve is left out."""
    return link * (100 - RESERVE_PERCENT) // 100


class Shortage(NamedTuple):
    """A floor that a network can't promise."""

    direction: Direction
    asked: int
    """Bits a second."""
    taken: int
    """The floors of the others together."""
    room: int | None
    """What the link can promise in all; None where its speed is not known."""

    @property
    def missing(self) -> int | None:
        """Bits a second by which it is too much."""
        return None if self.room is None else self.taken + self.asked - self.room

    @property
    def sentence(self) -> str:
        if self.missing is None:
            return (
                f"a floor of {format_bandwidth(self.asked)} {self.direction} can't be "
                "promised: the speed of the network's link is not known"
            )
        return (
            f"a floor of {format_bandwidth(self.asked)} {self.direction} can't be promised: "
            f"{format_bandwidth(self.missing)} are missing, "
            f"of {format_bandwidth(self.room or 0)} others have {format_bandwidth(self.taken)}"
        )


def admit(wanted: Bandwidth, others: Iterable[Bandwidth], link: int | None) -> tuple[Shortage, ...]:
    """What a network whose link has this speed can't promise to one NIC beside the others; empty
    when it can everything. Pure.

    One without floors is always admitted. The floors of all may reach the link's speed without its
    reserve, in each direction.
    """
    there = tuple(others)
    found = []
    for direction in DIRECTIONS:
        asked = wanted.rate(direction).floor or 0
        taken = sum(other.rate(direction).floor or 0 for other in there)
        room = None if link is None else usable(link)
        if asked and (room is None or taken + asked > room):
            found.append(Shortage(direction, asked, taken, room))
    return tuple(found)


def refusal(shortages: tuple[Shortage, ...]) -> NoRoom | None:
    """The error that tells all shortages, how much is missing and what to do; None without any."""
    if not shortages:
        return None
    known = shortages[0].room is not None
    return NoRoom(
        "; ".join(shortage.sentence for shortage in shortages),
        "ask for less, or take floors from other servers of the network"
        if known
        else "state the link's speed in the network's settings",
        missing={shortage.direction: shortage.missing for shortage in shortages},
    )
