"""The program that wakes a copy: built from its source, and tried in namespaces where it can change
nothing of this host's.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from importlib import resources
from pathlib import Path

import pytest

from freestanding import BUILD


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "awaken"
    path.write_bytes((resources.files("virtuary.guest") / "awaken.bin").read_bytes())
    path.chmod(0o755)
    return path


def apart(program: Path, lines: str, after: str = "true") -> subprocess.CompletedProcess[str]:
    """Run it in namespaces of its own with these lines; then a shell command in the same ones. The
    last line is its exit status.

    Files are not apart: what it writes, it writes.
    """
    script = f'printf %s "$1" | {program}; status=$?; {after}; echo $status'
    command = ["unshare", "--uts", "--mount", "--net", "sh", "-c", script, "sh", lines]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)


def test_the_program_is_what_its_source_says(tmp_path: Path) -> None:
    """Compilers differ, so the text of the program is compared: what it can open and the calls it
    makes.
    """
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    source = Path(str(resources.files("virtuary.guest") / "awaken.c"))
    subprocess.run(
        [*BUILD, "-o", tmp_path / "awaken", source], check=True, timeout=60, capture_output=True
    )
    built, kept = (
        (tmp_path / "awaken").read_bytes(),
        (resources.files("virtuary.guest") / "awaken.bin").read_bytes(),
    )
    paths = [word for word in built.split(b"\0") if word.startswith((b"/proc", b"/sys", b"/dev"))]
    assert len(paths) >= 4 and all(path in kept for path in paths)
    assert abs(len(built) - len(kept)) < 512, "build it again and keep the result as awaken.bin"


@pytest.mark.host
def test_it_gives_a_hostname_and_another_hardware_address(program: Path) -> None:
    words = with_card(program, "h copy-1\nm 525400abcdef\n", "hostname").stdout.split()
    assert words[:4] == ["awake", "0", "0", "copy-1"] and "52:54:00:ab:cd:ef" in words
    assert "10.9.9.9/24" not in words, "the old address does not stay"
    assert any(word.startswith("fe80::5054:ff:feab:cdef") for word in words), (
        "nor does the old link-local one"
    )
    assert "fd00::1/64" not in words, "nor what another network gave"


def with_card(program: Path, lines: str, after: str) -> subprocess.CompletedProcess[str]:
    """The same beside a network card 52:54:00:00:00:01 with addresses, which is shown at the
    end.
    """
    card = """set -e; mount -t proc none /proc
        ip link add dummy0 type veth peer name other; ip link set dummy0 address 52:54:00:00:00:01
        echo 0 > /proc/sys/net/ipv6/conf/dummy0/accept_dad; ip link set other up; ip link set dummy0 up
        ip addr add 10.9.9.9/24 dev dummy0; ip addr add fd00::1/64 dev dummy0
        ip addr add fd00::5054:ff:fe00:1/64 dev dummy0 valid_lft 900 preferred_lft 900
        i=0; until ip addr show dummy0 | grep -q fe80:; do i=$((i + 1)); [ $i -lt 100 ]; sleep 0.05; done"""
    script = f"printf 'n 525400000001\n{lines}' | {program}; {after}; ip addr show dummy0"
    command = ["unshare", "--uts", "--net", "--mount", "sh", "-c", f"{card}\n{script}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if "Unknown device type" in done.stderr or "not supported" in done.stderr:
        pytest.skip("this kernel has no veth network interfaces")
    return done


@pytest.mark.host
def test_on_the_same_network_only_what_comes_from_the_hardware_address_changes(
    program: Path,
) -> None:
    words = with_card(program, "M 525400abcdef\n", "ip -6 route").stdout.split()
    assert words[:3] == ["awake", "0", "0"] and "52:54:00:ab:cd:ef" in words
    assert "10.9.9.9/24" in words and "fd00::1/64" in words, "what somebody gave it stays"
    assert "fe80::5054:ff:feab:cdef/64" in words
    assert not [
        word for word in words if word.startswith(("fe80::5054:ff:fe00:1", "fd00::5054:ff:fe00:1"))
    ]
    assert "fe80::/64" in words, "the others of its network are reached"


@pytest.mark.host
def test_an_address_and_a_way_out_are_given_and_waited_for(program: Path) -> None:
    words = with_card(
        program, "m 525400abcdef\na 0a000005 ffffff00 0a000001\nw 1000\n", "ip route"
    ).stdout.split()
    assert words[:6] == ["awake", "0", "0", "default", "via", "10.0.0.1"] and "10.0.0.5/24" in words


@pytest.mark.host
def test_a_machine_without_that_network_card_is_left_alone(program: Path, tmp_path: Path) -> None:
    done = apart(program, f"n 525400000009\nf 644 1 {tmp_path}/file\nx\nh web2\n", "hostname")
    words = done.stdout.splitlines()
    assert words[0] == "it has no network interface 525400000009, 1" and words[1] == "awake 1 0"
    assert words[-1] == "1" and words[-2] != "web2" and not (tmp_path / "file").exists()


@pytest.mark.host
def test_files_are_written_where_they_are_wanted(program: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("longer than before")
    lines = [
        f"d 700 {tmp_path}/folder", f"d 700 {tmp_path}/folder", f"f 600 4 {tmp_path}/folder/file",
        "a\nb\n",
        f"o 644 1 {tmp_path}/nothere/file", "x", f"e 644 1 {tmp_path}/notthere", "x",
        f"e 644 3 {tmp_path}/there", "new",
    ]  # fmt: skip
    assert apart(program, "\n".join(lines) + "\n").stdout.split() == ["awake", "0", "0", "0"]
    assert (tmp_path / "folder/file").read_text() == "a\nb\n" and (
        tmp_path / "folder/file"
    ).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "there").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["awaken", "folder", "there"]


@pytest.mark.host
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("127.0.0.1 localhost\n127.0.1.1 old old.lan\n", "127.0.1.1 web2\n127.0.0.1 localhost\n"),
        ("127.0.1.1\told\n::1 localhost", "127.0.1.1 web2\n::1 localhost\n"),
        ("127.0.1.10 other\n# 127.0.1.1 old\n\n", "127.0.1.1 web2\n127.0.1.10 other\n# 127.0.1.1 old\n\n"),
        ("", "127.0.1.1 web2\n"),
        ("0.0.0.0 advertisements\n" * 50_000, "127.0.1.1 web2\n" + "0.0.0.0 advertisements\n" * 50_000),
        (None, "127.0.1.1 web2\n"),
    ],
)  # fmt: skip
def test_its_name_stands_in_the_hosts_file_once(
    program: Path, tmp_path: Path, before: str | None, after: str
) -> None:
    hosts = tmp_path / "hosts"
    if before is not None:
        hosts.write_text(before)
    for _ in range(2):
        assert apart(program, f"H web2 {hosts}\n").stdout.split() == ["awake", "0", "0", "0"]
    assert hosts.read_text() == after


@pytest.mark.host
def test_scripts_run_where_they_are_wanted_and_what_they_say_is_told(
    program: Path, tmp_path: Path
) -> None:
    def line(kind: str, path: str, script: str) -> str:
        return f"{kind} {len(script)} {'0 ' if kind == 'z' else ''}{path}\n{script}\n"

    lines = (
        line("x", "/", "echo why $HOME >&2; exit 3")
        + line("x", "/nothere", "exit 1")
        + line("z", "/nothere", f"touch {tmp_path}/no")
    )
    lines += line("z", "/", f"sleep 0.2; touch {tmp_path}/later") + line("x", "/", "exit 0")
    done = apart(program, lines, f"[ ! -e {tmp_path}/later ] && echo 'at once'")
    assert done.stdout.splitlines()[0] == "why /root" and "awake 1 0\nat once" in done.stdout
    for _ in range(100):
        if (tmp_path / "later").exists():
            break
        time.sleep(0.05)
    assert (tmp_path / "later").exists() and not (tmp_path / "no").exists()


@pytest.mark.host
def test_a_journal_moves_to_its_new_name_and_processes_end(program: Path, tmp_path: Path) -> None:
    (tmp_path / "journal/old").mkdir(parents=True)
    (tmp_path / "id").write_text("old\n")
    sleeper = subprocess.Popen(["sleep", "60"])
    (tmp_path / "pids").write_text(f"{sleeper.pid}\n\n0\n1\n4194304\n")
    lines = (
        f"j {tmp_path}/id new {tmp_path}/journal\nj {tmp_path}/id new {tmp_path}/nothere\nk "
        f"{tmp_path}/pids\n"
    )
    assert apart(program, lines).stdout.split() == ["awake", "0", "0", "0"]
    assert [path.name for path in (tmp_path / "journal").iterdir()] == ["new"]
    assert sleeper.wait(10) == -9


@pytest.mark.host
def test_it_tells_whether_ssh_listens(program: Path) -> None:
    server = (
        'python3 -c \'import socket, time; s = socket.create_server(("127.0.0.1", 22)); '
        "time.sleep(20)'"
    )
    serve, late = f"{server} & server=$!", f"(sleep 0.3; exec {server}) & server=$!"
    wait = (
        "i=0; until grep -q ':0016 00000000:0000 0A' /proc/net/tcp; do i=$((i + 1)); [ $i -lt "
        "200 ]; sleep 0.05; done"
    )
    script = f"""set -e; mount -t proc none /proc; ip link set lo up
        {serve}
        {wait}
        {program} < /dev/null; kill $server; wait; {program} < /dev/null
        {late}
        echo l 15000 / | {program}; kill $server"""
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.splitlines() == ["awake 0 1", "awake 0 0", "awake 0 1"], done.stderr


@pytest.mark.host
def test_a_length_beyond_the_end_is_a_failure_and_writes_nothing(
    program: Path, tmp_path: Path
) -> None:
    assert apart(program, f"f 644 99 {tmp_path}/file\nabc\n").stdout.splitlines()[-2:] == [
        "awake 1 0",
        "1",
    ]
    assert not (tmp_path / "file").exists()


@pytest.mark.host
def test_it_binds_one_file_over_another(program: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    done = apart(program, f"b {tmp_path}/new {tmp_path}/old\n", f"cat {tmp_path}/old; echo")
    assert (
        done.stdout.split() == ["awake", "0", "0", "new", "0"]
        and (tmp_path / "old").read_text() == "old"
    )


@pytest.mark.host
@pytest.mark.parametrize(
    ("lines", "failed"),
    [
        ("", 0), ("\n\n", 0), ("q\n", 1), ("m 525400abcdef\n", 1), ("m 5254\n", 1), ("b /nothere /neither\n", 1), ("B /nothere /neither\n", 0),
        ("b /nothere /neither\nq\ny\n", 2), ("w 60\n", 0), ("l 60 /\n", 0), ("l 60000 /nothere\n", 0),
        ("h " + "a" * 300 + "\n", 1), ("x" * 9000, 1), ("q\n" * 20, 20), ("q\n" * 256, 99),
        ("n 5254\n", 1), ("f\n", 1), ("d 755\n", 1), ("k /nothere\n", 1), ("j /nothere new /\n", 0), ("a 1 2 3\n", 1),
    ],
)  # fmt: skip
def test_it_tells_how_many_lines_failed(program: Path, lines: str, failed: int) -> None:
    assert apart(program, lines).stdout.split()[-1] == str(failed)


@pytest.mark.host
def test_entropy_is_taken(program: Path) -> None:
    assert apart(program, "s " + "0123456789abcdef" * 16 + "\n").stdout.split() == [
        "awake",
        "0",
        "0",
        "0",
    ]
