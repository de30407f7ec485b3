"""Other people's firewalls on this host that stop what ours lets pass, and the least that must be
said in them.

In Linux a packet passes when every table lets it pass: an accept of ours does not outvote a drop of
Docker's, ufw's, firewalld's or an administrator's. So rules of ours go into the chain that drops:
traffic of our bridges that our own tables judge anyway, and the DNS and DHCP of our networks. Each
carries the comment `virtuary:BRIDGE:NUMBER`, by which it is found again. They go to the chain's
end, before a rule that stops everything, so that what an administrator forbids in it stays
forbidden. Only in firewalld's they come first, because its chains reject what comes from no zone on
the way. Rules kept by iptables' old kernel interface (iptables-legacy) are not seen.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from virtuary.base.errors import Failed, HostLacks
from virtuary.base.proc import find_program, run
from virtuary.network.nft import check_interface, load

Hook = Literal["forward", "input", "output"]
OURS, FIREWALLD = "virtuary", "firewalld"
"""Names of tables."""
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_PROGRAMS = {"ip": "iptables", "ip6": "ip6tables"}


class Opening(NamedTuple):
    """A rule that lets pass, in both languages; `way` is `i` for what comes from a bridge and `o`
    for what goes to it.
    """

    way: Literal["i", "o"]
    iptables: str
    nft: str


OPENINGS: dict[Hook, tuple[Opening, ...]] = {
    "forward": (
        Opening("i", "", ""),
        Opening("o", "-m conntrack --ctstate RELATED,ESTABLISHED", "ct state established,related"),
        Opening("o", "-m conntrack --ctstate DNAT", "ct status dnat"),
    ),
    "input": (
        Opening("i", "-p udp --dport 53", "udp dport 53"),
        Opening("i", "-p tcp --dport 53", "tcp dport 53"),
        Opening("i", "-p udp --dport 67", "udp dport 67"),
        Opening("i", "-p udp --dport 547", "udp dport 547"),
    ),
    "output": (
        Opening("o", "-p udp --sport 53", "udp sport 53"),
        Opening("o", "-p tcp --sport 53", "tcp sport 53"),
        Opening("o", "-p udp --sport 67", "udp sport 67"),
        Opening("o", "-p udp --sport 547", "udp sport 547"),
    ),
}


class Chain(NamedTuple):
    """A chain the kernel asks about forwarded packets, packets to the host, or its own."""

    family: str
    table: str
    name: str
    hook: Hook
    policy: str

    @property
    def program(self) -> str | None:
        """The iptables that keeps it; None for a chain of nftables' own."""
        legacy = self.table == "filter" and self.name == self.hook.upper()
        return _PROGRAMS.get(self.family) if legacy else None


class Obstacle(NamedTuple):
    """A chain that stops traffic of these bridges."""

    chain: Chain
    bridges: tuple[str, ...]
    owner: str

    @property
    def sentence(self) -> str:
        """For people."""
        chain = self.chain
        what = {
            "forward": "forwarded traffic",
            "input": "DNS and DHCP",
            "output": "answers of DNS and DHCP",
        }[chain.hook]
        return (
            f"{self.owner} drops {what} of {', '.join(self.bridges)} in {chain.family} "
            f"{chain.table} {chain.name}"
        )


# ---- deciding


def parse_chains(listing: bytes) -> tuple[Chain, ...]:
    """The chains in the way of packets, from `nft -j list chains`; without ours."""
    found = []
    for item in json.loads(listing or b"{}").get("nftables", ()):
        chain = item.get("chain", {})
        if (
            chain.get("hook") not in OPENINGS
            or chain.get("type") != "filter"
            or chain.get("table") == OURS
        ):
            continue
        if chain.get("family") in ("ip", "ip6", "inet"):
            found.append(
                Chain(
                    chain["family"],
                    chain["table"],
                    chain["name"],
                    chain["hook"],
                    chain.get("policy", "accept"),
                )
            )
    return tuple(found)


class Rules(NamedTuple):
    """What a chain holds: comments of the rules before any that stops everything, where that one
    is, and all chains' names.
    """

    comments: frozenset[str]
    end: int | None = None
    """The first rule that stops everything, by its position from 1 where iptables keeps the chain,
    else by its handle; None when there is none.
    """
    chains: frozenset[str] = frozenset()


def parse_iptables(listing: bytes, chain: str) -> Rules:
    """What `iptables -S` says of one chain."""
    lines = [
        shlex.split(line)
        for line in listing.decode(errors="replace").splitlines()
        if line.startswith("-")
    ]
    filled = {words[1] for words in lines if words[0] == "-A"}
    chains = frozenset(words[1] for words in lines if words[0] in ("-N", "-A"))
    comments: set[str] = set()
    rules = [words[2:] for words in lines if words[:2] == ["-A", chain]]
    for position, words in enumerate(rules, 1):
        if words[:1] == ["-j"] and (
            words[1] in ("DROP", "REJECT")
            or (words[1].startswith(("ufw-reject-", "ufw6-reject-")) and words[1] in filled)
        ):
            return Rules(frozenset(comments), position, chains)
        if "--comment" in words:
            comments.add(words[words.index("--comment") + 1])
    return Rules(frozenset(comments), None, chains)


def parse_nft(listing: bytes) -> tuple[Rules, dict[int, str]]:
    """What `nft -j list chain` says of a chain of nftables, and the rules of ours in it: handle and
    comment.
    """
    rules = [
        item["rule"] for item in json.loads(listing or b"{}").get("nftables", ()) if "rule" in item
    ]
    end = next(
        (number for number, rule in enumerate(rules) if _stops_all(rule.get("expr", ()))), None
    )
    before = frozenset(str(rule.get("comment", "")) for rule in rules[:end]) - {""}
    ours = {
        rule["handle"]: rule["comment"]
        for rule in rules
        if str(rule.get("comment", "")).startswith(f"{OURS}:")
    }
    return Rules(before, None if end is None else rules[end]["handle"]), ours


def _stops_all(statements: Sequence[Mapping[str, object]]) -> bool:
    """Whether a rule of nftables drops or rejects whatever comes."""
    words = [next(iter(statement), "") for statement in statements]
    return words[-1:] in (["drop"], ["reject"]) and set(words[:-1]) <= {"counter", "log"}


def is_in_the_way(chain: Chain, rules: Rules) -> bool:
    """Whether the chain stops what nobody spoke for. firewalld's chains end with a rejection, but
    for what the host sends itself.
    """
    return (
        chain.policy == "drop"
        or rules.end is not None
        or (chain.table == FIREWALLD and chain.hook != "output")
    )


def name_owner(chain: Chain, rules: Rules) -> str:
    """Whose the chain is, as people know it."""
    if chain.table == FIREWALLD:
        return "firewalld"
    if any(name.startswith(("ufw-", "ufw6-")) for name in rules.chains):
        return "ufw"
    if "DOCKER-USER" in rules.chains and chain.hook == "forward":
        return "Docker"
    return "iptables" if chain.program else "nftables"


def lacking(chain: Chain, rules: Rules, bridges: Iterable[str]) -> tuple[str, ...]:
    """The bridges for which the chain does not hold all of our rules."""
    return tuple(
        name
        for name in bridges
        if not {comment for comment, _ in _openings(chain.hook, name)} <= rules.comments
    )


def _openings(hook: Hook, bridge: str) -> Iterator[tuple[str, Opening]]:
    for number, opening in enumerate(OPENINGS[hook]):
        yield f"{OURS}:{bridge}:{number}", opening


def plan_iptables(chain: Chain, rules: Rules, bridges: Sequence[str]) -> list[list[str]]:
    """Words for iptables that let our bridges pass: at the chain's end, or before the rule that
    stops everything.
    """
    place = ["-A", chain.name] if rules.end is None else ["-I", chain.name, str(rules.end)]
    return [
        [
            *place,
            f"-{opening.way}",
            check_interface(bridge),
            *opening.iptables.split(),
            *f"-m comment --comment {comment} -j ACCEPT".split(),
        ]
        for bridge in bridges
        for comment, opening in _openings(chain.hook, bridge)
        if comment not in rules.comments
    ]


def plan_nft(chain: Chain, rules: Rules, bridges: Sequence[str]) -> str:
    """A script that lets our bridges pass: at the chain's end, or before the rule that stops
    everything.

    Raises Failed when the chain's name can't stand in a script.
    """
    if not (_PLAIN.fullmatch(chain.table) and _PLAIN.fullmatch(chain.name)):
        raise Failed(
            f"the chain {chain.table[:40]!r} {chain.name[:40]!r} drops forwarded traffic, and "
            "its name can't be written"
        )
    word, before = ("add", "") if rules.end is None else ("insert", f"handle {rules.end} ")
    if chain.table == FIREWALLD:
        word, before = "insert", ""
    lines = [
        f"{word} rule {chain.family} {chain.table} {chain.name} {before}{opening.way}ifname "
        f'"{check_interface(bridge)}" {opening.nft} '
        f'accept comment "{comment}"\n'
        for bridge in bridges
        for comment, opening in _openings(chain.hook, bridge)
        if comment not in rules.comments
    ]
    return "".join(lines)


# ---- looking and doing


async def find_obstacles(bridges: Sequence[str]) -> tuple[Obstacle, ...]:
    """Chains of others that stop traffic of these bridges; those that were cleared already are not
    among them.
    """
    found = []
    for chain in await _find_chains():
        rules, _ = await _look(chain)
        wanting = lacking(chain, rules, bridges)
        if wanting and is_in_the_way(chain, rules):
            found.append(Obstacle(chain, wanting, name_owner(chain, rules)))
    return tuple(found)


async def clear(obstacle: Obstacle) -> None:
    """Put our rules into the chain; may be repeated. Raises Failed when its owner keeps the table
    for itself.
    """
    chain = obstacle.chain
    rules, _ = await _look(chain)
    if chain.program and _has(chain.program):
        for words in plan_iptables(chain, rules, obstacle.bridges):
            await run(chain.program, "-w", "5", *words)
        return
    script = plan_nft(chain, rules, obstacle.bridges)
    try:
        await load(script)
    except Failed as error:
        names = " ".join(f"--add-interface={name}" for name in obstacle.bridges)
        hint = (
            f"firewall-cmd --permanent --zone=trusted {names} && firewall-cmd --reload"
            if obstacle.owner == "firewalld"
            else None
        )
        raise Failed(
            f"{obstacle.sentence}, and no rule can be added: {error.sentence}", hint
        ) from error


async def restore(keep: Iterable[str] = ()) -> None:
    """Take our rules out of all chains of others, except those for the bridges to `keep`; nothing
    when there are none.
    """
    kept = frozenset(keep)
    for chain in await _find_chains():
        if chain.program and _has(chain.program):
            listing = await run(chain.program, "-w", "5", "-S", chain.name)
            for line in listing.stdout.decode(errors="replace").splitlines():
                words = shlex.split(line)
                if "--comment" in words and _is_gone(words[words.index("--comment") + 1], kept):
                    await run(chain.program, "-w", "5", "-D", *words[1:])
            continue
        _, handles = await _look(chain)
        for handle, comment in handles.items():
            if _is_gone(comment, kept):
                await run(
                    "nft",
                    "delete",
                    "rule",
                    chain.family,
                    chain.table,
                    chain.name,
                    "handle",
                    str(handle),
                )


def _is_gone(comment: str, kept: frozenset[str]) -> bool:
    words = comment.split(":")
    return len(words) == 3 and words[0] == OURS and words[1] not in kept


async def _find_chains() -> tuple[Chain, ...]:
    return parse_chains((await run("nft", "-j", "list", "chains")).stdout)


async def _look(chain: Chain) -> tuple[Rules, dict[int, str]]:
    """What the chain holds, and where it is nftables' own, the handles of our rules."""
    if chain.program and _has(chain.program):
        listing = await run(chain.program, "-w", "5", "-S")
        return parse_iptables(listing.stdout, chain.name), {}
    listing = await run(
        "nft", "-j", "list", "chain", chain.family, chain.table, chain.name, check=False
    )
    return parse_nft(listing.stdout)


def _has(program: str) -> bool:
    try:
        find_program(program)
    except HostLacks:
        return False
    return True
