"""Host keys as a guest tells them: whole keys of known kinds are taken, and nothing else of what it
says.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import GuestSilent, Misbehaves
from virtuary.guest import hostkeys
from virtuary.guest.agent import open_agent


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A key of each kind, as ssh-keygen writes its public half."""
    made = {}
    folder = tmp_path_factory.mktemp("keys")
    for kind, bits in (("ed25519", "256"), ("ecdsa", "521"), ("rsa", "2048")):
        words = [
            "ssh-keygen",
            "-q",
            "-t",
            kind,
            "-b",
            bits,
            "-N",
            "",
            "-C",
            "root@guest of mine",
            "-f",
            str(folder / kind),
        ]
        subprocess.run(words, check=True)
        made[kind] = (folder / f"{kind}.pub").read_text()
    return made


def plain(line: str) -> str:
    return " ".join(line.split()[:2])


def test_keys_are_taken_as_openssh_and_dropbear_print_them(keys: dict[str, str]) -> None:
    said = (
        f"Public key portion is:\n{keys['ed25519']}Fingerprint: "
        f"SHA256:abc\n{keys['ecdsa']}{keys['rsa']}"
    )
    assert hostkeys.parse(said.encode()) == tuple(
        plain(keys[kind]) for kind in ("ed25519", "ecdsa", "rsa")
    )


def test_the_lines_are_those_ssh_finds_a_server_by(tmp_path: Path, keys: dict[str, str]) -> None:
    place = tmp_path / "known"
    place.write_bytes(hostkeys.known_hosts(hostkeys.alias("1"), keys.values()))
    found = subprocess.run(
        ["ssh-keygen", "-F", "virtuary-1", "-f", str(place)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line for line in found.splitlines() if line[0] != "#"] == [
        f"virtuary-1 {plain(key)}" for key in keys.values()
    ]


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
def test_whatever_a_guest_says_makes_lines_of_this_server_alone(
    keys: dict[str, str], noise: bytes
) -> None:
    for said in (
        noise,
        noise + b"\n" + keys["ed25519"].encode(),
        keys["ed25519"].strip().encode() + noise,
    ):
        for line in hostkeys.known_hosts("virtuary-1", hostkeys.parse(said)).decode().splitlines():
            name, kind, _ = line.split(" ")
            assert name == "virtuary-1" and kind in hostkeys.KINDS


async def told(
    short: Path, answer: Callable[[dict[str, Any]], object], limit: float = 5
) -> tuple[str, ...]:
    """What is learned of a guest whose agent answers so; None: with a refusal, ...: not at all."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            request = json.loads(line.lstrip(b"\xff"))
            arguments = request["arguments"]
            value = (
                arguments["id"] if request["execute"] == "guest-sync-delimited" else answer(request)
            )
            if value is not ...:
                reply = {"return": value} if value is not None else {"error": {"desc": "no"}}
                writer.write(b"\xff" * ("id" in arguments) + json.dumps(reply).encode() + b"\n")
        writer.close()

    async with await asyncio.start_unix_server(serve, short / "agent"):
        agent = await open_agent(short / "agent")
        try:
            return await hostkeys.ask(agent, limit)
        finally:
            await agent.close()


async def test_the_keys_of_openssh_are_read_and_nothing_is_started_for_it(
    short: Path, keys: dict[str, str]
) -> None:
    def answer(request: dict[str, Any]) -> object:
        assert request["execute"].startswith("guest-file-")
        arguments = request["arguments"]
        if request["execute"] == "guest-file-open":
            return {hostkeys.PUBLIC[0]: 1000, hostkeys.PUBLIC[2]: 1001}.get(arguments["path"])
        line = keys["ed25519" if arguments["handle"] == 1000 else "rsa"]
        return {
            "count": len(line),
            "buf-b64": base64.b64encode(line.encode()).decode(),
            "eof": True,
        }

    assert await told(short, answer) == (plain(keys["ed25519"]), plain(keys["rsa"]))


async def test_the_keys_of_dropbear_are_asked_of_its_own_program(
    short: Path, keys: dict[str, str]
) -> None:
    out = base64.b64encode(f"Public key portion is:\n{keys['ed25519']}".encode()).decode()
    answers = {
        "guest-exec": {"pid": 7},
        "guest-exec-status": {"exited": True, "exitcode": 1, "out-data": out},
    }
    assert await told(short, lambda request: answers.get(request["execute"])) == (
        plain(keys["ed25519"]),
    )


@pytest.mark.parametrize(
    "value", ["x", [], {}, {"buf-b64": 7}, {"buf-b64": "!"}, {"buf-b64": ["A"]}]
)
@pytest.mark.parametrize("opened", [False, True])
async def test_a_guest_that_answers_nonsense_has_no_keys(
    short: Path, value: object, opened: bool
) -> None:
    with pytest.raises(Misbehaves):
        await told(
            short,
            lambda request: 1000 if opened and request["execute"] == "guest-file-open" else value,
        )


@pytest.mark.parametrize(
    "silent",
    ["guest-file-open", "guest-file-read", "guest-file-close", "guest-exec", "guest-exec-status"],
)
async def test_a_guest_that_says_nothing_is_not_waited_for(short: Path, silent: str) -> None:
    answers: dict[str, object] = {
        "guest-file-open": 1,
        "guest-file-read": {"buf-b64": ""},
        "guest-file-close": {},
        "guest-exec": {"pid": 1},
    }
    answers |= {"guest-exec-status": {"exited": False}, silent: ...}
    began = asyncio.get_running_loop().time()
    with pytest.raises(GuestSilent):
        await told(short, lambda request: answers[request["execute"]], limit=0.2)
    assert asyncio.get_running_loop().time() - began < 5
