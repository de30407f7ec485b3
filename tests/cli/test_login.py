"""What ssh does with what it is told, asked of ssh itself: nothing of the user's own configuration
reaches into a server unless asked for.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from virtuary.base.errors import Failed, Refused
from virtuary.cli.access import shell_command
from virtuary.cli.login import check_way, config_block, ssh_command, wait_for_ssh
from virtuary.client.wire import Wire

SAFE = {
    "forwardagent": "no", "forwardx11": "no", "forwardx11trusted": "no", "tunnel": "false",
    "permitlocalcommand": "no", "controlmaster": "false",
    "controlpersist": "no", "gssapiauthentication": "no", "hostbasedauthentication": "no",
    "passwordauthentication": "no", "gatewayports": "no",
    "kbdinteractiveauthentication": "no", "preferredauthentications": "publickey",
    "canonicalizehostname": "false", "identitiesonly": "yes",
    "stricthostkeychecking": "true", "userknownhostsfile": "/srv/known",
    "globalknownhostsfile": "none", "hostkeyalias": "virtuary-1",
    "verifyhostkeydns": "false", "updatehostkeys": "false", "addkeystoagent": "false",
    "hostname": "127.0.0.1", "port": "4022", "user": "root",
}  # fmt: skip
ABSENT = (
    "proxycommand",
    "proxyjump",
    "remotecommand",
    "localcommand",
    "controlpath",
    "knownhostscommand",
)
ADDED = ("sendenv", "setenv", "localforward", "remoteforward", "dynamicforward")
HABITS = """
  ForwardAgent yes
  ForwardX11 yes
  ForwardX11Trusted yes
  Tunnel yes
  PermitLocalCommand yes
  LocalCommand touch /tmp/local
  RemoteCommand touch /tmp/remote
  ProxyJump bastion
  ControlMaster auto
  ControlPath /tmp/control
  ControlPersist yes
  GSSAPIAuthentication yes
  HostbasedAuthentication yes
  PasswordAuthentication yes
  CanonicalizeHostname always
  KnownHostsCommand /bin/false
  UserKnownHostsFile /tmp/known
  StrictHostKeyChecking no
  HostName evil.example
  Port 1
  User somebody
  AddKeysToAgent yes
"""
FORWARDS = (
    "  SendEnv SECRET\n  SetEnv A=b\n  LocalForward 1 localhost:1\n  RemoteForward 2 "
    "localhost:2\n  DynamicForward 3\n"
)


@pytest.fixture
def way() -> dict[str, Any]:
    return {
        "host": "127.0.0.1", "port": 4022, "user": "root", "key": "/srv/key",
        "known_hosts": "/srv/known", "alias": "virtuary-1", "known": True,
    }  # fmt: skip


def decided(*words: str) -> dict[str, str]:
    """What ssh would do, by option."""
    done = subprocess.run(["ssh", "-G", *words], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def test_shell_and_cp_obey_no_configuration(way: dict[str, Any]) -> None:
    words = ssh_command(way, "true")
    assert words[1:3] == ["-F", "none"]
    found = decided(*words[1:])
    assert {name: found.get(name) for name in SAFE} == SAFE
    assert not set(found) & {*ABSENT, *ADDED}
    assert found["identityagent"] == "none"


def test_shell_forwards_the_agent_when_asked_to(way: dict[str, Any]) -> None:
    found = decided(*ssh_command(way, agent=True)[1:])
    assert found["forwardagent"] == "yes" and "identityagent" not in found
    assert {name: found.get(name) for name in SAFE} == SAFE | {"forwardagent": "yes"}


def test_options_of_ssh_after_the_name_are_asked_for(way: dict[str, Any]) -> None:
    assert (
        decided(*ssh_command(way, "-L", "8080:localhost:80")[1:])["localforward"]
        == "8080 [localhost]:80"
    )


@pytest.mark.parametrize("habits", ["", f"Host *{HABITS}"])
def test_ssh_config_says_itself_what_a_server_is_not_given(
    tmp_path: Path, way: dict[str, Any], habits: str
) -> None:
    (tmp_path / "config").write_text(config_block("web1", way) + habits)
    found = decided("-F", str(tmp_path / "config"), "web1")
    assert {name: found.get(name) for name in SAFE} == SAFE
    assert not set(found) & {*ABSENT, *ADDED}


def test_ssh_config_takes_back_variables_that_were_to_be_sent_before(
    tmp_path: Path, way: dict[str, Any]
) -> None:
    (tmp_path / "config").write_text("Host *\n  SendEnv SECRET\n" + config_block("web1", way))
    assert "sendenv" not in decided("-F", str(tmp_path / "config"), "web1")


def test_ssh_config_leaves_what_the_command_line_asks_for(
    tmp_path: Path, way: dict[str, Any]
) -> None:
    (tmp_path / "config").write_text(config_block("web1", way))
    found = decided("-F", str(tmp_path / "config"), "-A", "-L", "8080:localhost:80", "web1")
    assert found["forwardagent"] == "yes" and found["localforward"] == "8080 [localhost]:80"


WORDS = {
    "web1": (False, ()),
    "-A web1": (True, ()),
    "web1 -A": (True, ()),
    "web1 -A -- ls": (True, ("ls",)),
    "web1 ls -A": (False, ("ls", "-A")),
    "web1 -- ls -A": (False, ("ls", "-A")),
    "web1 --timeout 5s ls --timeout 1s": (False, ("ls", "--timeout", "1s")),
    "--timeout 5s web1 ls -A": (False, ("ls", "-A")),
    "web1 -L 1:h:1": (False, ("-L", "1:h:1")),
}


@pytest.mark.parametrize("text", WORDS)
def test_what_follows_the_command_is_the_commands(text: str) -> None:
    found = shell_command.make_context("shell", text.split()).params
    assert (found["name"], found["forward_agent"], tuple(found["command"])) == (
        "web1",
        *WORDS[text],
    )


def test_a_host_key_nobody_knows_is_asked_about_and_never_believed(
    tmp_path: Path, way: dict[str, Any]
) -> None:
    unknown = way | {"known": False, "key": str(tmp_path)}
    assert decided(*ssh_command(unknown)[1:])["stricthostkeychecking"] == "ask"
    with pytest.raises(Refused, match="host key of web1 is not known"):
        check_way("web1", unknown)  # standard input is no terminal here: there is nobody to ask
    assert check_way("web1", way | {"key": str(tmp_path)})


def test_a_server_whose_start_failed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    way = {"ready": False, "failed": "its kernel panicked", "stages": {"firmware": 1.0}}
    monkeypatch.setattr(Wire, "call", lambda *words: way)
    with pytest.raises(Failed, match="the start of web1 failed: its kernel panicked") as raised:
        wait_for_ssh(Wire("/nowhere"), "web1", 600)
    assert raised.value.hint and "restart web1 --force" in raised.value.hint
