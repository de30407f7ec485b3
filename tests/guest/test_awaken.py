"""The program that wakes a copy: built from its source, and tried in namespaces where it can change nothing of this host's."""

from __future__ import annotations

import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

BUILD = (
    "gcc", "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none", "-Wall", "-Wno-error", "-Wl,--build-id=none,-z,noseparate-code,-n", "-s",
)  # fmt: skip


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "awaken"
    path.write_bytes((resources.files("virtuary.guest") / "awaken.bin").read_bytes())
    path.chmod(0o755)
    return path


def apart(program: Path, lines: str, after: str = "true") -> subprocess.CompletedProcess[str]:
    """Run it in namespaces of its own with these lines; then a shell command in the same ones. The last line is its exit status."""
    script = f'printf %s "$1" | {program}; status=$?; {after}; echo $status'
    command = ["unshare", "--uts", "--mount", "--net", "sh", "-c", script, "sh", lines]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)


def test_the_program_is_what_its_source_says(tmp_path: Path) -> None:
    """Compilers differ, so the text of the program is compared: what it can open and the calls it makes."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    source = Path(str(resources.files("virtuary.guest") / "awaken.c"))
    subprocess.run([*BUILD, "-o", tmp_path / "awaken", source], check=True, timeout=60, capture_output=True)
    built, kept = (tmp_path / "awaken").read_bytes(), (resources.files("virtuary.guest") / "awaken.bin").read_bytes()
    paths = [word for word in built.split(b"\0") if word.startswith((b"/proc", b"/sys", b"/dev"))]
    assert len(paths) >= 4 and all(path in kept for path in paths)
    assert abs(len(built) - len(kept)) < 512, "build it again and keep the result as awaken.bin"


@pytest.mark.host
def test_it_gives_a_hostname_and_another_hardware_address(program: Path) -> None:
    lines = "h copy-1\nm dummy0 525400abcdef\n"
    network = "ip link add dummy0 type veth peer name other && ip link set other up && ip addr add 10.9.9.9/24 dev dummy0"
    script = f"{network} && ip link set dummy0 up; printf '{lines}' | {program}; echo $?"
    done = subprocess.run(
        ["unshare", "--uts", "--net", "--mount", "sh", "-c", f"mount -t proc none /proc; {script}; hostname; ip addr show dummy0"],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    if "Unknown device type" in done.stderr or "not supported" in done.stderr:
        pytest.skip("this kernel has no veth network interfaces")
    words = done.stdout.split()
    assert words[:2] == ["0", "copy-1"] and "52:54:00:ab:cd:ef" in words
    assert "10.9.9.9/24" not in words, "the old address does not stay"
    assert any(word.startswith("fe80::5054:ff:feab:cdef") for word in words), "nor does the old link-local one"


@pytest.mark.host
def test_it_binds_one_file_over_another(program: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    done = apart(program, f"b {tmp_path}/new {tmp_path}/old\n", f"cat {tmp_path}/old; echo")
    assert done.stdout.split() == ["new", "0"] and (tmp_path / "old").read_text() == "old"


@pytest.mark.host
@pytest.mark.parametrize(
    ("lines", "failed"),
    [
        ("", 0), ("\n\n", 0), ("x\n", 1), ("m nothere 525400abcdef\n", 1), ("m lo 5254\n", 1), ("b /nothere /neither\n", 1),
        ("b /nothere /neither\nx\ny\n", 2), ("w nothere 60\n", 0), ("h " + "a" * 300 + "\n", 1), ("x" * 9000, 1),
    ],
)  # fmt: skip
def test_it_tells_how_many_lines_failed(program: Path, lines: str, failed: int) -> None:
    assert apart(program, lines).stdout.split()[-1] == str(failed)


@pytest.mark.host
def test_entropy_is_taken(program: Path) -> None:
    assert apart(program, "s " + "0123456789abcdef" * 16 + "\n").stdout.split() == ["0"]
