"""User data as cloud-init takes it: every kind is told apart and looked through, what can't go well
is refused with the reason, and quickly.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost import cost
from virtuary.base.errors import Invalid
from virtuary.cli.options import read_user_data
from virtuary.guest.userdata import (
    LONGEST,
    check_user_data,
    has_host_keys,
    login_lines,
    normalise,
    parts,
)

CONFIG = "#cloud-config\nruncmd: [ls]\n"


def mime(*texts: tuple[str, str], first: str = "") -> str:
    message = MIMEMultipart()
    for kind, text in texts:
        message.attach(MIMEText(text, kind))
    return first + message.as_string()


def squeezed(text: str) -> str:
    """As the command line sends what is compressed."""
    return base64.b64encode(gzip.compress(text.encode())).decode()


GOOD = {
    "an archive": ("#cloud-config-archive\n- type: text/cloud-config\n  content: |\n    runcmd: [ls]\n- |\n  #!/bin/sh\n  ls\n", ["archive"]),
    "a patch": ('#cloud-config-jsonp\n[{"op":"add","path":"/runcmd","value":["ls"]}]\n', ["jsonp"]),
    "a patch in capitals, after a line": ('\n#CLOUD-CONFIG-JSONP\n[]\n', ["jsonp"]),
    "a config after an empty line": (f"\n{CONFIG}", ["cloud-config"]),
    "a template": ("## template: jinja\n#cloud-config\nruncmd: [echo {{ v1.x }}]\n", ["jinja"]),
    "an include": ("#include-once\nhttps://example.org/x\n", ["include"]),
    "a boothook": ("#cloud-boothook\n#!/bin/sh\nls\n", ["boothook"]),
    "a part handler": ("#part-handler\ndef list_types(): return ['text/x']\n", ["part-handler"]),
    "a config with a byte order mark": (f"\ufeff{CONFIG}", ["cloud-config"]),
    "a message": (mime(("cloud-config", CONFIG), ("x-shellscript", "#!/bin/sh\n"), ("plain",
    CONFIG)), ["cloud-config", "script", "cloud-config"]),
    "a message whose first header is another one": (mime(("cloud-boothook", "x"),
    first="Subject: hello\nX-Mine: 1\n"), ["boothook"]),
    "a message in small letters": (mime(("x-shellscript", "#!/bin/sh\n")).replace("MIME-Version",
    "mime-version"), ["script"]),
    "a message with a part of one's own kind": (mime(("part-handler", "#part-handler\n"), ("x-mine",
    "?")), ["part-handler", ""]),
    "a compressed script": (squeezed("#!/bin/sh\nls\n"), ["script"]),
    "a compressed message": (squeezed(mime(("cloud-config", CONFIG))), ["cloud-config"]),
    "a script in base64": (base64.encodebytes(b"#!/bin/sh\necho " + b"x" * 100).decode(),
    ["script"]),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_what_cloud_init_takes_is_taken(case: str) -> None:
    text, kinds = GOOD[case]
    assert check_user_data(text) is text
    assert [part.kind for part in parts(normalise(text))] == kinds


def test_user_data_is_counted_in_bytes() -> None:
    check_user_data("#!/bin/sh\n" + "a" * (LONGEST - 10))
    with pytest.raises(Invalid, match="256 KiB are the most"):
        check_user_data("#!/bin/sh\n" + "ä" * (LONGEST // 2))


def test_what_only_carries_user_data_is_taken_off() -> None:
    script = b"#!/bin/sh\necho hello\n"
    assert (
        normalise(base64.b64encode(script).decode())
        == normalise("\ufeff" + script.decode())
        == script
    )
    assert normalise(squeezed(CONFIG)).startswith(b"\x1f\x8b")
    assert normalise("IyEvYmluL3No is no base64") == b"IyEvYmluL3No is no base64"


BAD = {
    "words": ("hello", "must begin with"),
    "a space in the header": ("# cloud-config\nruncmd: [ls]\n", "must begin with"),
    "a script with carriage returns": ("#!/bin/sh\r\nls\r\n", "carriage return"),
    "a tab": ("#cloud-config\nruncmd:\n\t- ls\n", "not valid YAML: .*line 3"),
    "a wrong indentation": ("#cloud-config\npackages:\n- curl\n packages_update: true\n",
    "not valid YAML: .*line 4"),
    "an archive that is a mapping": ("#cloud-config-archive\na: b\n", "must be a list"),
    "an archive of numbers": ("#cloud-config-archive\n- 5\n", "part 1 of the archive must be"),
    "an archive with a broken part": ("#cloud-config-archive\n- 'ls'\n- type: text/cloud-config\n  content: 'a: ['\n", "part 1 of the archive"),
    "an archive in an archive": ("#cloud-config-archive\n- |\n  #cloud-config-archive\n  - x\n",
    "part 1"),
    "a patch that is none": ("#cloud-config-jsonp\nhello\n", "not valid JSON"),
    "a patch without steps": ('#cloud-config-jsonp\n[{"op":"add"}]\n', "op and path"),
    "a patch that is deep": ("#cloud-config-jsonp\n" + "[" * 5000, "nested"),
    "a message with a broken part": (mime(("x-shellscript", "#!/bin/sh\n"), ("cloud-config",
    "a: [")), "part 2 of the user data is not valid YAML"),
    "a message of nothing known": (mime(("html", "<p>")), "no part"),
    "a message of many multiparts": ("MIME-Version: 1.0\n" + "Content-Type: multipart/mixed; boundary=x\n" * 50, "too many multiparts"),
    "a damaged file": (base64.b64encode(gzip.compress(b"x" * 50)[:-10] + b"y" * 10).decode(),
    "damaged"),
    "a cut file": (base64.b64encode(gzip.compress(b"x" * 5000)[:-12]).decode(), "cut"),
    "a bomb": (base64.b64encode(gzip.compress(b"#!" + b" " * 2**22)).decode(), "unpacks to more"),
    "compressed bytes that are no text": (base64.b64encode(gzip.compress(b"#!/bin/sh\n\xff")).decode(), "byte 0xff in line 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_can_t_go_well_is_refused_with_the_reason(case: str) -> None:
    text, words = BAD[case]
    with pytest.raises(Invalid, match=words):
        check_user_data(text)


@pytest.mark.parametrize("case", [*GOOD, *BAD])
def test_no_user_data_takes_long(case: str) -> None:
    text = (GOOD | BAD)[case][0]

    def check() -> None:
        with contextlib.suppress(Invalid):
            check_user_data(text)

    assert cost(check, 0.05) < 0.05


@given(
    st.sampled_from(
        [
            "#cloud-config-archive\n",
            "#cloud-config-jsonp\n",
            "MIME-Version: 1.0\nContent-Type: multipart/x; boundary=b\n\n--b\n",
        ]
    ),
    st.text(max_size=80),
)
def test_any_user_data_is_taken_or_refused(begin: str, text: str) -> None:
    with contextlib.suppress(Invalid):
        check_user_data(begin + text)
    login_lines(begin + text)


def test_a_file_that_is_no_text_is_named_with_the_byte(tmp_path: Path) -> None:
    place = tmp_path / "latin1.yaml"
    place.write_bytes(b"#cloud-config\nwrite_files:\n- content: caf\xe9\n")
    with pytest.raises(
        Invalid, match=r"latin1\.yaml is not UTF-8, nor compressed by gzip: byte 0xe9 in line 3"
    ):
        read_user_data(str(place))
    place.write_bytes(gzip.compress(CONFIG.encode()))
    assert normalise(read_user_data(str(place))) == place.read_bytes()
    place.write_bytes(b"#" * (256 * 1024 + 1))
    with pytest.raises(Invalid, match="more than 256 KiB"):
        read_user_data(str(place))


def test_host_keys_and_lines_about_the_login_are_found_in_every_kind() -> None:
    keys = "#cloud-config\nssh_keys: {rsa_private: x}\n"
    assert all(
        has_host_keys(text) for text in (keys, squeezed(keys), mime(("cloud-config", keys)))
    ) and not has_host_keys(CONFIG)
    hard = (
        "#cloud-config\nusers: [ada]\nwrite_files:\n- path: /etc/ssh/sshd_config.d/x\n  "
        "content: PermitRootLogin no\nruncmd:\n- systemctl disable --now ssh\n"
    )
    assert login_lines(hard) == [
        "line 2: users: [ada]",
        "line 5: content: PermitRootLogin no",
        "line 7: - systemctl disable --now ssh",
    ]
    assert (
        login_lines(mime(("cloud-config", hard)))[1]
        == "part 1 of the user data, line 5: content: PermitRootLogin no"
    )
    assert (
        login_lines(
            "#cloud-config\nssh_authorized_keys: [x]\nssh_pwauth: false\ndisable_root: "
            "true\nhostname: other\n"
        )
        == []
    )
