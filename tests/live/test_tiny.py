"""The everyday life of a server, with a real guest, through the command line: what the manual
promises, tried.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import Instance, Json, until

from virtuary.cli.login import ssh_command
from virtuary.model.vm import Vm

pytestmark = pytest.mark.live


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    """A TCP and a UDP port of this machine for the shared server."""
    return free_port(), free_port(socket.SOCK_DGRAM)


@pytest.fixture(scope="module")
def one(instance: Instance, ports: tuple[int, int]) -> Iterator[str]:
    """A server that tests share; whoever changes it changes it back."""
    instance.ok(
        "launch",
        "tiny",
        "one",
        "-p",
        f"{ports[0]}:8080",
        "-p",
        f"{ports[1]}:7000/udp",
        "-l",
        "role=shared",
    )
    yield "one"
    instance.ok("delete", "one", "--now", "--force", "--yes")


# ---- launch and look


def test_launch_tells_its_stages_in_order_and_ends_when_a_shell_is_possible(
    instance: Instance, one: str
) -> None:
    vm = instance.json("show", one)
    stages = vm["status"]["stages"]
    assert [name for name in ("kernel", "agent", "network", "ssh") if name in stages] == [
        "kernel",
        "agent",
        "network",
        "ssh",
    ]
    assert list(stages.values()) == sorted(stages.values())
    assert vm["status"]["state"] == "running" and vm["status"]["addresses"] == ["10.0.2.15"]
    launch = next(item for item in instance.operations() if item["spec"]["target_name"] == one)
    told = [line["text"] for line in launch["status"]["log"]]
    order = ["making the disk", "the guest's system is starting", "giving the guest its identity"]
    assert [text for text in told if text in order] == order
    assert launch["status"]["phase"] == "done"


def test_list_shows_the_server_for_people_and_for_programs(instance: Instance, one: str) -> None:
    table = instance.ok("list").out
    assert re.search(r"^one +running +tiny +1 +128 MiB +10\.0\.2\.15 ", table, re.MULTILINE)
    assert [vm["meta"]["name"] for vm in instance.json("list", "--label", "role=shared")] == ["one"]
    assert instance.json("list", "--label", "role=other") == []
    assert "one" in instance.ok("list", "-o", "name").out.split()


def test_show_says_how_the_server_is_run(instance: Instance, one: str) -> None:
    said = " ".join(instance.ok("show", one).out.split())
    runtime = instance.vm(one)["status"]["runtime"]
    assert f"process {runtime['pid']}, user {runtime['uid']}" in said
    assert f"isolation level {runtime['level']}" in said


def test_logs_hold_what_the_console_printed(instance: Instance, one: str) -> None:
    assert instance.ok("logs", one).out.strip()


def test_logs_show_the_last_lines_that_were_asked_for(instance: Instance, one: str) -> None:
    instance.in_guest(one, "for i in 1 2 3; do echo line $i > /dev/console; done; sleep 0.2")
    until(
        lambda: instance.ok("logs", one, "-n", "2").out.splitlines() == ["line 2", "line 3"],
        5,
        "the last two lines",
    )


def test_events_follow_what_happens(instance: Instance, one: str) -> None:
    watcher = instance.start_cli("events", "-o", "json")
    try:
        time.sleep(1)
        instance.ok("set", one, "--label", "role=shared", "--label", "seen=yes")
        assert watcher.stdout
        ready, _, _ = select.select([watcher.stdout], [], [], 10)
        assert ready, "no event within ten seconds"
        event = json.loads(watcher.stdout.readline())
        assert event["event"] == "vm.changed" and event["data"]["meta"]["labels"]["seen"] == "yes"
    finally:
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(10) == 130
        watcher.stdout.close() if watcher.stdout else None
        watcher.stderr.close() if watcher.stderr else None


def test_operations_are_listed_and_shown(instance: Instance, one: str) -> None:
    assert instance.ok("operation", "list").err.strip() == "nothing is under way"
    every = instance.json("operation", "list", "--all")
    launch = next(
        item
        for item in every
        if item["spec"]["deed"]["kind"] == "launch" and item["spec"]["target_name"] == one
    )
    shown = instance.ok("operation", "show", launch["meta"]["id"][:8]).out
    assert re.search(r"^phase +done$", shown, re.MULTILINE) and "making the disk" in shown


# ---- go inside


def test_shell_runs_a_command_by_ssh(instance: Instance, one: str) -> None:
    said = instance.ok("shell", one, "--", "echo $(hostname) $(id -u)")
    assert said.out == "one 0\n"
    assert instance.run("shell", one, "--", "exit 7").status == 7


def test_exec_passes_everything_both_ways(instance: Instance, one: str) -> None:
    said = instance.run(
        "exec", one, "--", "sh", "-c", "cat; echo wrong >&2; exit 3", stdin=b"in\x00and out"
    )
    assert (said.status, said.out, said.err) == (3, "in\x00and out", "wrong\n")


def test_exec_of_a_missing_command_ends_with_127(instance: Instance, one: str) -> None:
    said = instance.run("exec", one, "--", "no-such-command")
    assert said.status == 127 and "No such file" in said.err


def test_a_new_name_leaves_the_guest_s_own_keys_and_one_it_can_t_take_is_told(
    instance: Instance, one: str
) -> None:
    keys = "/root/.ssh/authorized_keys"
    instance.in_guest(one, f"echo ssh-ed25519 OWN me@home >> {keys}; mkdir /etc/hosts.virtuary")
    said = instance.run("rename", one, "uno")
    assert (
        said.status == 8
        and "did not take the name, and goes on as one" in said.err
        and "hosts" in said.err
    )
    assert "its guest did not take the name uno" in instance.ok("show", "uno").out
    assert instance.ok("shell", "uno", "--", "hostname; cat /etc/hostname").out == "one\none\n"
    instance.in_guest("uno", "rmdir /etc/hosts.virtuary")
    instance.ok("rename", "uno", "eins")
    assert (
        instance.in_guest(
            "eins", f"hostname; grep -c . {keys}; ls /etc/*.virtuary 2>/dev/null || true"
        )
        == "eins\n2"
    )
    instance.ok("rename", "eins", one)
    assert (
        instance.ok("shell", one, "--", f"hostname; grep OWN {keys}; sed -i /OWN/d {keys}").out
        == "one\nssh-ed25519 OWN me@home\n"
    )


def test_user_data_that_nobody_would_read_is_refused(instance: Instance, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("#cloud-config\nruncmd: [ls]\n")
    said = instance.run("launch", "tiny", "told", "--user-data", str(tmp_path / "data"))
    assert (
        said.status == 2
        and f"{tmp_path}/data: the image tiny has no cloud-init" in said.err
        and instance.run("show", "told").status != 0
    )


def test_exec_ends_the_command_at_its_timeout_and_with_whoever_waits(
    instance: Instance, one: str
) -> None:
    said = instance.run("exec", one, "--timeout", "1s", "--", "sleep", "71")
    assert said.status == 6 and "did not end within 1.0 s" in said.err
    waiting = instance.start_cli(
        "exec", one, "--", "sleep", "72", stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    until(lambda: "sleep 72" in instance.in_guest(one, "ps"), 10, "the command runs")
    waiting.kill()
    waiting.wait(10)
    until(lambda: "sleep 7" not in instance.in_guest(one, "ps"), 10, "the commands were ended")


def test_exec_passes_on_more_than_the_agent_keeps(instance: Instance, one: str) -> None:
    data = os.urandom(2**20) * 18
    command = [sys.executable, "-m", "virtuary", "exec", one, "--", "sh", "-c", "cat; exit 5"]
    done = subprocess.run(
        command, env=instance.env, input=data, capture_output=True, timeout=90, check=False
    )
    assert (done.returncode, done.stderr) == (5, b"") and done.stdout == data


def test_exec_streams_and_leaves_input_that_nobody_read(
    instance: Instance, one: str, tmp_path: Path
) -> None:
    talking = instance.start_cli(
        "exec", one, "--", "sh", "-c", "while read x; do echo got $x; done", stdin=subprocess.PIPE
    )
    assert talking.stdin and talking.stdout
    for word in ("one", "two"):
        talking.stdin.write(f"{word}\n")
        talking.stdin.flush()
        assert talking.stdout.readline() == f"got {word}\n"
    assert talking.communicate(timeout=10) == ("", "")
    (tmp_path / "list").write_text("1\n2\n3\n")
    virtuary = f"{sys.executable} -m virtuary exec"
    loops = (
        f"while read x; do {virtuary} {one} -- echo $x; done < list; cat list | while read "
        f"x; do {virtuary} -n {one} -- cat; echo $x; done"
    )
    told = subprocess.run(
        ["sh", "-c", loops],
        env=instance.env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert told.stdout.split() == ["1", "2", "3"] * 2


@pytest.mark.parametrize(
    ("closed", "expected"),
    [
        ("<&-", (0, "")),
        (">&-", (125, "could not be written")),
        ("2>&-", (0, "")),
        ("| true", (0, "")),
    ],
)
def test_exec_with_a_closed_descriptor_says_so_or_does_without(
    instance: Instance, one: str, closed: str, expected: tuple[int, str]
) -> None:
    command = f"{sys.executable} -m virtuary exec {one} -- sh -c 'cat; echo out' {closed}"
    told = subprocess.run(
        ["sh", "-c", command],
        env=instance.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (told.returncode, expected[1] in told.stderr) == (expected[0], True)


def test_exec_gives_a_terminal_of_the_size_of_ones_own(instance: Instance, one: str) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 33, 111, 0, 0))
    viewer = instance.start_cli(
        "exec",
        "-t",
        one,
        "--",
        "sh",
        "-c",
        "stty size; read x; sleep 73",
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    try:
        read_until(master, "33 111")
        os.write(master, b"\r\x03")
        assert viewer.wait(10) == 130
    finally:
        viewer.kill()
        os.close(master)


def test_a_paused_server_lets_nobody_in_and_says_so(instance: Instance, one: str) -> None:
    running = instance.start_cli("exec", one, "--", "sh", "-c", "echo begun; sleep 4; echo done")
    began = time.monotonic()
    assert running.stdout and running.stdout.readline() == "begun\n"
    instance.ok("pause", one)
    try:
        for words in (
            ["exec", one, "--", "true"],
            ["shell", one, "--", "true"],
            ["cp", f"{one}:/etc/hosts", "-"],
        ):
            said = instance.run(*words, limit=10)
            assert (said.status, said.err) == (
                4,
                f"error: {one} is paused\nhint: virtuary resume {one}\n",
            )
    finally:
        instance.ok("resume", one)
    assert running.communicate(timeout=20) == (
        "done\n",
        f"{one} is paused: the command goes on when it is resumed\n",
    )
    assert time.monotonic() - began > 4

    def behind() -> float:
        before = time.time()
        told = float(instance.in_guest(one, "date +%s"))
        return max(0.0, before - told - 1, told - time.time())

    until(lambda: behind() < 0.5, 5, "its clock goes on where the time is", 0.5)


def test_cp_takes_files_and_folders_both_ways(instance: Instance, one: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "deep").mkdir(parents=True)
    (site / "index").write_bytes(os.urandom(100_000))
    (site / "deep/er").write_text("down here")
    instance.ok("cp", str(site / "index"), f"{one}:/root/renamed")
    instance.ok("cp", str(site), f"{one}:/root/")
    instance.ok("cp", f"{one}:/root/renamed", str(tmp_path / "back"))
    instance.ok("cp", f"{one}:/root/site", str(tmp_path / "copy"))
    assert (tmp_path / "back").read_bytes() == (site / "index").read_bytes()
    assert (tmp_path / "copy/deep/er").read_text() == "down here"
    missing = instance.run("cp", f"{one}:/nowhere", str(tmp_path))
    assert missing.status == 8 and "could not be copied" in missing.err
    assert instance.ok("cp", f"{one}:/root/site/deep/er", "-").out == "down here"


def test_cp_takes_several_patterns_and_streams(
    instance: Instance, one: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("1")
    (tmp_path / "b.txt").write_text("2")
    instance.in_guest(one, "mkdir /root/in; mkfifo /root/in/pipe")
    instance.ok("cp", "-r", f"{tmp_path}/a.txt", f"{tmp_path}/b.txt", f"{one}:in")
    instance.ok("cp", "-", f"{one}:~/in/c.log", stdin=b"streamed")
    instance.ok("cp", "/proc/cpuinfo", f"{one}:in/")
    (tmp_path / "out").mkdir()
    instance.ok(
        "cp", f"{one}:in/*.txt", f"{one}:~/in/c.log", f"{one}:/proc/version", str(tmp_path / "out")
    )
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir() if path.name != "version"} == {
        "a.txt": "1", "b.txt": "2", "c.log": "streamed",
    }  # fmt: skip
    assert "Linux" in (tmp_path / "out/version").read_text() and "processor" in instance.in_guest(
        one, "cat /root/in/cpuinfo"
    )
    for words, told in (
        ((f"{one}:in/*.no", str(tmp_path)), "nothing in the server is called in/*.no"),
        ((f"{one}:in/pipe", str(tmp_path)), "is a pipe"),
        ((f"{tmp_path}/a.txt", f"{one}:/typo/x"), "there is no folder /typo"),
        ((f"{one}:in/a.txt", f"{tmp_path}/typo/"), "there is no folder"),
    ):
        said = instance.run("cp", *words)
        assert said.status and told in said.err, said
    instance.in_guest(one, "rm -r /root/in")


def test_cp_writes_nothing_but_its_target_whatever_the_guest_sends(
    instance: Instance, one: str, tmp_path: Path
) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.mkdir()
    out.mkdir()
    (victim / "file").write_text("original")
    instance.in_guest(
        one,
        f"mkdir /root/d; ln -s {victim} /root/d/x; ln -s {victim}/file /root/d/y; mknod "
        "/root/d/null c 1 3",
    )
    said = instance.ok("cp", f"{one}:/root/d", str(out))
    assert said.err == "1 special file was left out: './null'\n" and os.readlink(
        out / "d/x"
    ) == str(victim)
    instance.in_guest(one, "cd /root/d; rm x y; mkdir x; echo evil > x/new; echo evil > y")
    said = instance.run("cp", f"{one}:/root/d", str(out))
    assert said.status == 8 and "not copied: 'd/x' is in the way" in said.err
    assert {path.name: path.read_text() for path in victim.iterdir()} == {"file": "original"}
    assert (out / "d/y").read_text() == "evil\n" and os.readlink(out / "d/x") == str(victim)
    instance.in_guest(one, "rm -r /root/d")


def test_host_keys_are_those_the_guest_says_it_has(instance: Instance, one: str) -> None:
    way = instance.call("GET", f"/v1/vms/{one}/ssh")
    assert way["known"] and way["alias"] in Path(way["known_hosts"]).read_text()
    before = Path(way["known_hosts"]).read_text()
    instance.in_guest(one, "rm /etc/dropbear/*_host_key; kill -9 $(cat /var/run/dropbear.pid)")
    until(lambda: instance.run("shell", one, "--", "true").status == 0, 30, "the new key is known")
    assert Path(way["known_hosts"]).read_text() != before


def test_another_machine_in_the_place_of_a_server_is_not_believed(
    instance: Instance, one: str
) -> None:
    instance.ok("launch", "tiny", "other")
    way, other = (instance.call("GET", f"/v1/vms/{name}/ssh") for name in (one, "other"))
    words = ssh_command(way | {"host": other["host"], "port": other["port"]}, "true")
    said = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert said.returncode == 255 and "Host key verification failed" in said.stderr
    assert subprocess.run(ssh_command(way, "true"), timeout=30, check=False).returncode == 0
    instance.ok("delete", "other", "--now", "--force", "--yes")


def test_ssh_config_lets_plain_ssh_in(instance: Instance, one: str, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(instance.ok("ssh-config", one).out)
    said = subprocess.run(
        ["ssh", "-F", str(config), "-oBatchMode=yes", one, "hostname"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert said.stdout == "one\n"


def test_console_attaches_to_a_terminal_and_ctrl_bracket_detaches(
    instance: Instance, one: str
) -> None:
    master, slave = pty.openpty()
    viewer = instance.start_cli("console", one, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    try:
        assert "Ctrl-] detaches" in read_until(master, "detaches")
        os.write(master, b"\recho dead$((40+2))beef\r")
        read_until(master, "dead42beef")
        os.write(master, b"\x1d")
        assert viewer.wait(10) == 0
    finally:
        viewer.kill()
        os.close(master)


def read_until(handle: int, wanted: str, limit: float = 15) -> str:
    seen, end = "", time.monotonic() + limit
    while wanted not in seen:
        ready, _, _ = select.select([handle], [], [], max(0, end - time.monotonic()))
        assert ready, f"{wanted!r} did not come: {seen!r}"
        seen += os.read(handle, 4096).decode(errors="replace")
    return seen


# ---- the network


def test_a_published_tcp_port_leads_to_the_guest(
    instance: Instance, one: str, ports: tuple[int, int]
) -> None:
    instance.in_guest(one, "nc -l -p 8080 -e echo hello >/dev/null 2>&1 </dev/null & sleep 0.2")
    with socket.create_connection(("127.0.0.1", ports[0]), 10) as sock:
        sock.settimeout(10)
        assert sock.recv(100) == b"hello\n"


def test_a_published_udp_port_leads_to_the_guest(
    instance: Instance, one: str, ports: tuple[int, int]
) -> None:
    def arrived() -> int:  # nobody listens there: the guest counts what it got for nobody
        names, values = (
            line.split()
            for line in instance.in_guest(one, "grep ^Udp: /proc/net/snmp").splitlines()
        )
        return int(values[names.index("NoPorts")])

    before = arrived()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"ping", ("127.0.0.1", ports[1]))
    until(lambda: arrived() > before, 10, "the datagram is there")


def test_the_guest_reaches_a_server_beside_it(instance: Instance, one: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # sends nothing: it only tells which address the host would use
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no route to anywhere")
        address = probe.getsockname()[0]

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"from the host side")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((address, 0), Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert (
            instance.in_guest(one, f"wget -qO- http://{address}:{server.server_port}/")
            == "from the host side"
        )
        server.shutdown()


def test_a_killed_network_helper_is_replaced_and_ssh_works_again(
    instance: Instance, one: str
) -> None:
    before = instance.vm(one)["status"]["runtime"]
    os.kill(before["network_pid"], signal.SIGKILL)
    until(
        lambda: instance.vm(one)["status"]["runtime"]["network_pid"] != before["network_pid"],
        10,
        "another helper",
    )
    after = instance.vm(one)["status"]["runtime"]
    assert (after["pid"], after["ssh_port"]) == (before["pid"], before["ssh_port"])
    assert instance.ok("shell", one, "--", "hostname", limit=40).out == "one\n"


# ---- power


def test_pause_makes_the_guests_clock_stand_still(instance: Instance, one: str) -> None:
    before = float(instance.in_guest(one, "cut -d' ' -f1 /proc/uptime"))
    instance.ok("pause", one)
    assert instance.state(one) == "paused"
    time.sleep(6)
    instance.ok("resume", one)
    assert instance.state(one) == "running"
    assert float(instance.in_guest(one, "cut -d' ' -f1 /proc/uptime")) - before < 5


def test_a_server_changes_and_keeps_its_data_through_its_life(instance: Instance) -> None:
    """One long story, so that each boot serves several rules."""
    instance.ok("launch", "tiny", "life", "--disk", "300MiB")
    instance.in_guest("life", "echo kept >/root/kept; sync")

    memory = int(instance.in_guest("life", "sed -n 's/MemTotal: *//p' /proc/meminfo").split()[0])
    said = instance.ok("set", "life", "--memory", "160MiB", "--cpus", "2", "--disk", "400MiB").out
    assert (
        said == "life changed: cpus, disk, memory\n" and instance.in_guest("life", "nproc") == "2"
    )
    said = instance.ok("set", "life", "--sockets", "2").out
    assert "takes effect at its next start (virtuary restart life)" in said
    assert "changes take effect at the next start" in instance.ok("show", "life").out
    instance.ok("rename", "life", "second-life")

    began = time.monotonic()
    instance.ok("restart", "second-life")
    assert time.monotonic() - began < 45
    # waits until the guest is up again
    assert instance.ok("shell", "second-life", "--", "hostname").out == "second-life\n"
    assert (
        instance.in_guest("second-life", "nproc; cat /root/kept; hostname")
        == "2\nkept\nsecond-life"
    )
    assert (
        int(instance.in_guest("second-life", "sed -n 's/MemTotal: *//p' /proc/meminfo").split()[0])
        > memory + 24 * 1024
    )
    assert int(instance.in_guest("second-life", "df -m / | tail -n1").split()[1]) > 330
    vm = instance.vm("second-life")
    assert vm["meta"]["generation"] == vm["status"]["power"]["applied"]

    began = time.monotonic()
    # by its agent: far below the 90 s after which the plug is pulled
    instance.ok("stop", "second-life")
    assert time.monotonic() - began < 30
    assert (instance.state("second-life"), instance.vm("second-life")["status"]["reason"]) == (
        "stopped",
        None,
    )
    assert not instance.machines(vm["meta"]["id"])
    assert instance.run("stop", "second-life").status == 4

    instance.ok("delete", "second-life")
    assert "second-life" not in instance.ok("list", "-o", "name").out.split()
    assert instance.ok("list", "--trash", "-o", "name").out.split() == ["second-life"]
    assert instance.run("show", "second-life").status == 3
    assert instance.run("image", "delete", "tiny").status == 4
    instance.ok("undelete", "second-life", "--as", "third-life")
    instance.ok("start", "third-life")
    assert instance.in_guest("third-life", "cat /root/kept; hostname") == "kept\nthird-life"

    began = time.monotonic()
    instance.ok("stop", "third-life", "--force")
    assert time.monotonic() - began < 5
    instance.ok("set", "third-life", "--protect")
    refused = instance.run("delete", "third-life", "--now", "--yes")
    assert refused.status == 4 and "is protected" in refused.err and "--no-protect" in refused.err
    instance.ok("set", "third-life", "--no-protect")
    instance.ok("delete", "third-life")
    unsure = instance.run("purge", "third-life")
    assert unsure.status == 2 and "--yes" in unsure.err
    instance.ok("purge", "third-life", "--yes")
    assert not instance.paths.vm(vm["meta"]["id"]).home.exists()


def test_a_server_ends_by_its_own_hand_or_by_panic_and_says_so(instance: Instance) -> None:
    instance.ok("launch", "tiny", "moody")
    instance.run("exec", "moody", "--timeout", "3s", "--", "poweroff")
    vm = instance.wait_state("moody", "stopped", limit=30)
    assert (
        vm["status"]["reason"] == "the guest shut itself down"
        and Vm.from_body(vm).wanted == "stopped"
    )

    instance.ok("start", "moody")
    instance.run(
        "exec", "moody", "--timeout", "2s", "--", "sh", "-c", "echo c >/proc/sysrq-trigger"
    )
    vm = instance.wait_state("moody", "crashed", limit=30)
    assert "kernel panicked" in vm["status"]["reason"]
    assert "kernel panicked" in instance.ok("show", "moody").out
    instance.ok("delete", "moody", "--now", "--yes")


def test_a_delete_of_a_running_server_wants_force(instance: Instance, one: str) -> None:
    refused = instance.run("delete", one, "--now", "--yes")
    assert refused.status == 4 and "--force" in refused.err
    assert instance.state(one) == "running"


# ---- crashes


def kill_machine(instance: Instance, name: str, but: int = 0) -> int:
    """End the QEMU of a server once it runs as another process than `but`; its pid."""

    def look() -> Json:
        runtime = instance.vm(name)["status"]["runtime"]
        return runtime if runtime and runtime["pid"] != but else None

    runtime = until(look, 20, f"{name} has a process other than {but}")
    with contextlib.suppress(ProcessLookupError):
        os.kill(runtime["pid"], signal.SIGKILL)
    return int(runtime["pid"])


def test_a_killed_machine_is_seen_within_a_second_and_stays_down_by_default(
    instance: Instance,
) -> None:
    instance.ok("launch", "tiny", "fragile", "--detach")
    kill_machine(instance, "fragile")
    began = time.monotonic()
    vm = instance.wait_state("fragile", "crashed", limit=5)
    assert time.monotonic() - began < 2
    assert (
        vm["status"]["reason"]
        and vm["status"]["runtime"] is None
        and Vm.from_body(vm).wanted == "stopped"
    )
    launch = next(
        item for item in instance.operations() if item["spec"]["target_name"] == "fragile"
    )
    assert (
        launch["status"]["phase"] == "failed"
        and "did not stay up" in launch["status"]["error"]["detail"]
    )
    instance.ok("delete", "fragile", "--now", "--yes")


def test_restart_policy_restarts_a_killed_machine_until_it_crashes_in_a_loop(
    instance: Instance,
) -> None:
    instance.ok("launch", "tiny", "phoenix", "--restart-policy", "on-failure", "--detach")
    pid, pids = 0, set[int]()
    for _ in range(5):
        pid = kill_machine(instance, "phoenix", pid)
        pids.add(pid)
    vm = instance.wait_state("phoenix", "crashed", limit=20)
    assert (
        len(pids) == 5
        and "not restarted, because it crashed 5 times within 10 minutes" in vm["status"]["reason"]
    )
    time.sleep(2)
    assert instance.state("phoenix") == "crashed"
    instance.ok("start", "phoenix", "--wait", "running")  # a human may still try
    assert instance.vm("phoenix")["status"]["power"]["crashes"] == []
    instance.ok("delete", "phoenix", "--now", "--force", "--yes")


def test_a_machine_that_hangs_is_unresponsive_alone(instance: Instance, one: str) -> None:
    instance.ok("launch", "tiny", "stuck", "--detach")
    pid = until(lambda: instance.vm("stuck")["status"]["runtime"], 20, "it has a process")["pid"]
    until(
        lambda: instance.vm("stuck")["status"]["state"] in ("starting", "running"), 20, "it starts"
    )
    time.sleep(1)
    os.kill(pid, signal.SIGSTOP)
    try:
        instance.wait_state("stuck", "unresponsive", limit=22)
        for _ in range(3):
            began = time.monotonic()
            assert "unresponsive" in instance.ok("list").out
            assert time.monotonic() - began < 0.5
        assert instance.in_guest(one, "echo usable") == "usable"
    finally:
        os.kill(pid, signal.SIGCONT)
    instance.wait_state("stuck", "running", limit=30)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    # a hanging machine can be got rid of
    instance.ok("delete", "stuck", "--now", "--force", "--yes")
    assert time.monotonic() - began < 15
    until(lambda: not os.path.exists(f"/proc/{pid}"), 5, "the process is gone")


# ---- wishes that can't come true


def test_of_two_creations_with_one_name_exactly_one_wins(instance: Instance) -> None:
    racers = [instance.start_cli("create", "tiny", "twin") for _ in range(3)]
    said = [(*racer.communicate(timeout=60), racer.returncode) for racer in racers]
    assert sorted(status for _, _, status in said) == [0, 4, 4], said
    assert all("there already" in err for _, err, status in said if status == 4)
    assert (
        len([name for name in instance.ok("list", "-o", "name").out.split() if name == "twin"]) == 1
    )
    instance.ok("delete", "twin", "--now", "--yes")


def test_a_dry_run_shows_the_plan_and_changes_nothing(instance: Instance) -> None:
    before = {key for key, _ in instance.documents("vm")}
    said = instance.ok("launch", "tiny", "dream", "--dry-run")
    assert (
        "make the disk" in said.out
        and "-sandbox" in said.out
        and re.search(r"isolation +L\d", said.out)
    )
    assert {key for key, _ in instance.documents("vm")} == before
    blocked = instance.run(
        "launch", "tiny", "dream", "--dry-run", "--memory", "8TiB", "--cpus", "200"
    )
    assert blocked.status == 4 and blocked.err.count("blocker:") == 2


WRONG = {
    "bad-name": (("tiny", "no_underscores"), 2, "is not a valid name", "for example web1"),
    "long-name": (("tiny", "x" * 64), 2, "is not a valid name", ""),
    "name-like-a-path": (("tiny", "../../etc"), 2, "is not a valid name", ""),
    "odd-size": (
        ("tiny", "w", "--memory", "12 parsecs"),
        2,
        "'12 parsecs' is not a size",
        "512MiB",
    ),
    "no-such-image": (("tinny", "w"), 3, "there is no image named 'tinny'", "did you mean tiny?"),
    "no-image-at-all": (("zebra", "w"), 3, "there is no image named 'zebra'", "debian:12"),
    "too-much-memory": (("tiny", "w", "--memory", "8TiB"), 4, "are missing", "--memory"),
    "too-little-memory": (("tiny", "w", "--memory", "1MiB"), 2, "memory", ""),
    "too-many-cpus": (("tiny", "w", "--cpus", "250"), 4, "virtual CPUs were asked for", "--cpus"),
    "no-cpus": (("tiny", "w", "--cpus", "0"), 2, "cpus", ""),
    "disk-below-the-image": (
        ("tiny", "w", "--disk", "100MiB"),
        2,
        "needs a disk of 256 MiB",
        "--disk 256 MiB",
    ),
    "too-large-a-disk": (("tiny", "w", "--disk", "60TiB"), 4, "are missing", ""),
    "odd-port": (("tiny", "w", "-p", "http:80"), 2, "is not HOST:GUEST", "8080:80"),
    "port-out-of-range": (("tiny", "w", "-p", "80000:80"), 2, "65535", ""),
    "port-twice": (("tiny", "w", "-p", "9999:80", "-p", "9999:81"), 2, "published twice", ""),
    "odd-label": (("tiny", "w", "-l", "novalue"), 2, "is not KEY=VALUE", "role=web"),
    "name-taken": (("tiny", "one"), 4, "a server named one is there already", "another name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_wish_is_refused_with_a_way_out_and_leaves_nothing(
    instance: Instance, one: str, case: str
) -> None:
    words, status, sentence, hint = WRONG[case]
    before = {key for key, _ in instance.documents("vm")}
    said = instance.run("launch", *words)
    assert (said.status, said.out) == (status, ""), said
    assert sentence in said.err and hint in said.err, said.err
    assert "Traceback" not in said.err
    assert {key for key, _ in instance.documents("vm")} == before
    assert {path.name for path in instance.paths.vms.iterdir()} <= {
        key.removeprefix("vm/") for key in before
    }


def test_a_port_that_is_taken_is_refused_by_the_holders_name(
    instance: Instance, one: str, ports: tuple[int, int]
) -> None:
    said = instance.run("launch", "tiny", "w", "-p", f"{ports[0]}:80")
    assert said.status == 4 and "is published by one already" in said.err
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        said = instance.run("launch", "tiny", "w", "-p", f"{sock.getsockname()[1]}:80")
    assert said.status == 4 and "is in use on this host by another program" in said.err
    assert instance.run("show", "w").status == 3


def test_an_error_is_a_problem_document_for_programs(instance: Instance) -> None:
    said = instance.run("show", "nobody", "-o", "json")
    problem = json.loads(said.err)
    assert said.status == 3 and problem["code"] == "not-found" and "nobody" in problem["detail"]


def test_an_image_in_use_is_not_deleted(instance: Instance, one: str) -> None:
    said = instance.run("image", "delete", "tiny")
    assert said.status == 4 and "used by" in said.err and "one" in said.err


def test_an_image_is_deleted_when_somebody_says_yes(instance: Instance, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(510) + b"\x55\xaa" + bytes(2**20 - 512))
    instance.ok("image", "import", str(tmp_path / "disk.raw"), "--name", "mine")
    said = instance.run("image", "delete", "mine")
    assert (
        said.status == 2
        and "repeat with --yes" in said.err
        and instance.run("image", "show", "mine").status == 0
    )
    instance.ok("image", "delete", "mine", "--yes")
    assert instance.run("image", "show", "mine").status == 3


def test_delete_answers_programs_too(instance: Instance) -> None:
    for name in ("gone-1", "gone-2"):
        instance.ok("create", "tiny", name)
    done = instance.json("delete", "gone-1", "gone-2", "--now", "--yes")
    assert [(item["spec"]["target_name"], item["status"]["phase"]) for item in done] == [
        ("gone-1", "done"),
        ("gone-2", "done"),
    ]


# ---- interruptions


def test_ctrl_c_stops_following_and_tells_how_to_go_on(instance: Instance) -> None:
    follower = instance.start_cli("launch", "tiny", "slowly")
    until(
        lambda: any(
            vm["meta"]["name"] == "slowly" for vm in instance.call("GET", "/v1/vms")["items"]
        ),
        10,
        "it was created",
    )
    time.sleep(0.7)
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=10)
    assert follower.returncode == 130, err
    told = re.search(
        r"virtuary operation wait (\w{8}) follows it, virtuary operation cancel \1 ends it", err
    )
    assert told and "the operation goes on" in err
    instance.ok("operation", "wait", told.group(1))
    assert instance.state("slowly") == "running"
    instance.ok("delete", "slowly", "--now", "--force", "--yes")


def test_a_boot_that_a_defect_of_qemus_ends_is_begun_once_more(instance: Instance) -> None:
    launching = instance.start_cli("launch", "tiny", "unlucky")
    try:
        (first,) = until(
            lambda: (
                instance.machines(instance.vm("unlucky")["meta"]["id"])
                if "unlucky" in names(instance)
                else []
            ),
            20,
            "it boots",
        )
        time.sleep(0.5)
        break_down(first)
        _, err = launching.communicate(timeout=60)
        assert launching.returncode == 0, err
    finally:
        launching.kill()
    assert instance.state("unlucky") == "running"
    (crash,) = instance.vm("unlucky")["status"]["power"]["crashes"]
    assert "it is started once more" in crash["why"]
    (second,) = instance.machines(instance.vm("unlucky")["meta"]["id"])
    break_down(second)
    instance.wait_state("unlucky", "crashed")
    instance.ok("delete", "unlucky", "--now", "--force", "--yes")


def break_down(pid: int) -> None:
    """A defect in a program: its first thread meets an instruction it may not execute. A signal
    from outside would not reach it, the first of its process namespace.
    """
    words = until(
        lambda: (
            found
            if (found := Path(f"/proc/{pid}/syscall").read_text().split())[0] != "running"
            else None
        ),
        10,
        "it waits",
        0.001,
    )
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(int(words[-1], 16))
        memory.write(b"\xf4")


def names(instance: Instance) -> set[str]:
    return {item["meta"]["name"] for item in instance.call("GET", "/v1/vms")["items"]}


@pytest.mark.parametrize("moment", [0.0, 0.3, 1.5])
def test_a_cancelled_launch_leaves_nothing(instance: Instance, moment: float) -> None:
    begun = instance.json("launch", "tiny", "regret", "--detach")
    vm_id, operation = begun["vm"]["meta"]["id"], begun["operation"]["meta"]["id"]
    time.sleep(moment)
    instance.ok("operation", "cancel", operation)
    until(lambda: instance.run("show", "regret").status == 3, 20, "the server is gone")
    assert instance.call("GET", f"/v1/operations/{operation}")["status"]["phase"] == "cancelled"
    until(lambda: not instance.machines(vm_id), 5, "its process is gone")
    assert (
        not instance.paths.vm(vm_id).home.exists() and not instance.paths.vm(vm_id).runtime.exists()
    )
    assert instance.run("operation", "cancel", operation).status == 4
