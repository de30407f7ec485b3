"""Host keys as a guest tells them: whole keys of known kinds are taken, and nothing else of what it says."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import GuestSilent
from virtuary.guest import hostkeys
from virtuary.guest.agent import open_agent


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A key of each kind, as ssh-keygen writes its public half."""
    made = {}
    folder = tmp_path_factory.mktemp("keys")
    for kind, bits in (("ed25519", "256"), ("ecdsa", "521"), ("rsa", "2048")):
        words = ["ssh-keygen", "-q", "-t", kind, "-b", bits, "-N", "", "-C", "root@guest of mine", "-f", str(folder / kind)]
        subprocess.run(words, check=True)
        made[kind] = (folder / f"{kind}.pub").read_text()
    return made


def plain(line: str) -> str:
    return " ".join(line.split()[:2])


def test_keys_are_taken_as_openssh_and_dropbear_print_them(keys: dict[str, str]) -> None:
    said = f"Public key portion is:\n{keys['ed25519']}Fingerprint: SHA256:abc\n{keys['ecdsa']}{keys['rsa']}"
    assert hostkeys.parse(said.encode()) == tuple(plain(keys[kind]) for kind in ("ed25519", "ecdsa", "rsa"))


def test_the_lines_are_those_ssh_finds_a_server_by(tmp_path: Path, keys: dict[str, str]) -> None:
    place = tmp_path / "known"
    place.write_bytes(hostkeys.known_hosts(hostkeys.alias("1"), keys.values()))
    found = subprocess.run(
        ["ssh-keygen", "-F", "virtuary-1", "-f", str(place)], capture_output=True, text=True, check=True
    ).stdout
    assert [line for line in found.splitlines() if line[0] != "#"] == [f"virtuary-1 {plain(key)}" for key in keys.values()]


BAD = {
    "another kind": "ssh-dss AAAAB3NzaC1kc3MAAAAB",
    "no base64": "ssh-ed25519 AAAA!",
    "a kind that is not that of the key": "ssh-rsa {ed25519}",
    "a kind alone": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5",
    "options before it": "cert-authority ssh-ed25519 {ed25519}",
    "another host's line": "github.com ssh-ed25519 {ed25519}",
    "a space before": " ssh-ed25519 {ed25519}",
    "nothing": "",
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_key_is_left_out(keys: dict[str, str], case: str) -> None:
    said = BAD[case].format(ed25519=keys["ed25519"].split()[1])
    assert hostkeys.parse(said.encode()) == ()


def test_one_key_of_a_kind_is_taken_from_however_many(keys: dict[str, str]) -> None:
    assert hostkeys.parse((keys["ed25519"] * 1000).encode()) == (plain(keys["ed25519"]),)


@given(st.binary(max_size=300))
def test_whatever_a_guest_says_makes_lines_of_this_server_alone(keys: dict[str, str], noise: bytes) -> None:
    for said in (noise, noise + b"\n" + keys["ed25519"].encode(), keys["ed25519"].strip().encode() + noise):
        for line in hostkeys.known_hosts("virtuary-1", hostkeys.parse(said)).decode().splitlines():
            name, kind, _ = line.split(" ")
            assert name == "virtuary-1" and kind in hostkeys.KINDS


async def test_a_guest_that_says_nothing_is_not_waited_for(short: Path) -> None:
    """An agent that takes the command, and never says that it ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            request = json.loads(line.lstrip(b"\xff"))
            if request["execute"] == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n")
            elif request["execute"] == "guest-exec":
                writer.write(b'{"return": {"pid": 1}}\n')

    async with await asyncio.start_unix_server(serve, short / "agent"):
        agent = await open_agent(short / "agent")
        began = asyncio.get_running_loop().time()
        with pytest.raises(GuestSilent):
            await hostkeys.ask(agent, limit=0.2)
        assert asyncio.get_running_loop().time() - began < 5
        await agent.close()
