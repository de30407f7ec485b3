"""What users write is one of ours or refused with a sentence: names, labels, keys, sizes, ports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from virtuary.base.units import GIB, MIB
from virtuary.model.login import Login
from virtuary.model.meta import Meta, check_image_name, check_name, invalid
from virtuary.model.publish import Publish
from virtuary.model.vm import VmSpec, VmWish

KEY = "ssh-ed25519 " + "A" * 68

GOOD_NAMES = {
    "web1": "web1",
    "WEB1": "web1",
    "  a ": "a",
    "0": "0",
    "a-b--c": "a-b--c",
    "x" * 63: "x" * 63,
}
BAD_NAMES = [
    "",
    " ",
    "-a",
    "a-",
    "a_b",
    "a.b",
    "a b",
    "x" * 64,
    "ä",
    "a/b",
    "..",
    "a\nb",
    "a\0",
    "web1;reboot",
    "$(id)",
    "a,b=c",
]
GOOD_IMAGES = {
    "debian:12": "debian:12",
    "Debian": "debian",
    "a.b-c:1.2_3": "a.b-c:1.2_3",
    "tiny": "tiny",
}
BAD_IMAGES = [
    "",
    "a:",
    ":a",
    "a:b:c",
    "a/b",
    "../a",
    ".a",
    "a_b",
    "x" * 64,
    "a:" + "1" * 33,
    "a b",
    "a\n",
]


@pytest.mark.parametrize(("text", "name"), GOOD_NAMES.items())
def test_a_good_name_is_taken_in_lower_case(text: str, name: str) -> None:
    assert check_name(text) == name


@pytest.mark.parametrize("text", BAD_NAMES)
def test_a_bad_name_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="for example web1"):
        check_name(text)


@pytest.mark.parametrize(("text", "name"), GOOD_IMAGES.items())
def test_a_good_image_name_is_taken(text: str, name: str) -> None:
    assert check_image_name(text) == name


@pytest.mark.parametrize("text", [bad for bad in BAD_IMAGES if bad != "a\n"])
def test_a_bad_image_name_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="for example debian:12"):
        check_image_name(text)


@given(st.text(max_size=70))
def test_any_text_is_a_safe_name_or_refused(text: str) -> None:
    try:
        name = check_name(text)
    except ValueError:
        return
    assert (
        set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        and name[0] != "-"
        and len(name) <= 63
    )


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"role": "web"},
        {"a.b/c_d-e": 'any printable: ü "x"'},
        {"x" * 63: "y" * 256},
        {f"k{n}": "" for n in range(64)},
    ],
    ids=len,
)
def test_good_labels_are_taken(labels: dict[str, str]) -> None:
    assert Meta(name="a", labels=labels).labels == labels


@pytest.mark.parametrize(
    "labels",
    [{"": "a"}, {"Role": "a"}, {"-a": "b"}, {"x" * 64: "b"}, {"a": "y" * 257}, {"a": "b\nc"}, {"a": "\x1b[2J"}, {f"k{n}": "" for n in range(65)}, {'a"b': "c"}],
    ids=str,
)  # fmt: skip
def test_bad_labels_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Meta(name="a", labels=labels)


GOOD_KEYS = [
    KEY,
    KEY + " ada@home",
    "ssh-rsa " + "B" * 372,
    "ecdsa-sha2-nistp256 " + "C" * 100,
    f"  {KEY}\n",
    "sk-ssh-ed25519@openssh.com " + "D" * 90,
]
BAD_KEYS = [
    "", "ssh-ed25519", "ssh-ed25519 short", KEY + "\n" + KEY, "ssh-dss " + "A" * 68,
    'command="reboot" ' + KEY,
    KEY + " a\x1b[2J", KEY + " " + "c" * 201, "-----BEGIN OPENSSH PRIVATE KEY-----", KEY + "\0",
]  # fmt: skip


@pytest.mark.parametrize("key", GOOD_KEYS)
def test_a_public_key_is_taken_as_one_line(key: str) -> None:
    (kept,) = Login(ssh_keys=(key,)).ssh_keys
    assert kept == key.strip()


@pytest.mark.parametrize("key", BAD_KEYS)
def test_what_is_no_public_key_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="SSH public key"):
        Login(ssh_keys=(key,))


SHAPES = {
    "cpu": ([1, 255], [0, 256, -1, 1.5, "two"]),
    "memory": (
        [64 * MIB, GIB, 16 * 1024 * GIB],
        [0, 63 * MIB, GIB + 1, 16 * 1024 * GIB + MIB, "1GiB"],
    ),
    "disks": (
        [[MIB], [64 * 1024 * GIB], [{"size": None}]],
        [[0], [MIB + 1], [-MIB], [64 * 1024 * GIB + MIB], [{"name": "data", "size": MIB}]],
    ),
    "policy": (
        [{"restart": word} for word in ("always", "on-failure", "no")],
        [{"restart": "sometimes"}, {"restart": None}],
    ),
    "firmware": (["auto", "bios", "uefi"], ["coreboot"]),
    "accel": (["auto", "kvm", "tcg"], ["xen"]),
    "power": (["running", "paused", "stopped"], ["on"]),
    "arch": (["x86_64"], ["../x86_64", "aarch64"]),
    "publish": (
        [[], [{"host": 1, "guest": 65535}]],
        [[{"host": 0, "guest": 1}], [{"host": 65536, "guest": 1}], [{"host": 1}]],
    ),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, (good, _) in SHAPES.items() for value in good]
)
def test_a_good_shape_is_taken(field: str, value: object) -> None:
    VmWish.model_validate({"image": "tiny", field: value})
    VmSpec.model_validate({"image": "tiny", field: value})


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, (_, bad) in SHAPES.items() for value in bad]
)
def test_a_bad_shape_is_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        VmWish.model_validate({"image": "tiny", field: value})
    assert field in invalid(caught.value).sentence


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::", "2001:db8::7"])
def test_a_port_is_published_on_an_address(address: str) -> None:
    assert Publish(host=1, guest=2, address=address).address == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost",
        "127.1",
        "1.2.3.4/8",
        "127.0.0.1,hostfwd=x",
        "fe80::1%eth0",
        "::1%a,hostfwd=x -evil",
        "::1%\n",
        "٣.1.1.1",
    ],
)
def test_what_is_no_plain_address_is_refused(address: str) -> None:
    """An IPv6 scope may hold any text, and an address ends up on a command line."""
    with pytest.raises(ValidationError):
        Publish(host=1, guest=2, address=address)


def test_a_port_is_published_once() -> None:
    port = {"host": 80, "guest": 80}
    with pytest.raises(ValidationError, match="80/tcp of the host is published twice"):
        VmSpec.model_validate({"image": "tiny", "publish": [port, {**port, "guest": 81}]})
    VmSpec.model_validate({"image": "tiny", "publish": [port, {**port, "protocol": "udp"}]})


def test_all_findings_are_told_at_once_each_with_its_pointer() -> None:
    with pytest.raises(ValidationError) as caught:
        VmWish.model_validate(
            {"image": "tiny", "cpu": 0, "publish": [{"host": 0, "guest": 1}], "colour": "red"}
        )
    error = invalid(caught.value)
    assert {item["pointer"] for item in error.details["errors"]} == {
        "/cpu/count",
        "/publish/0/host",
        "/colour",
    }
    assert "publish.0.host: " in error.sentence
