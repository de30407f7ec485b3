"""The example: two servers on one machine, each doing its work, neither seeing the other."""

from __future__ import annotations

import os
import re
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import copy_template

from virtuary.client import Client

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.alone]
ROOT = Path(f"/tmp/vc-{os.getpid()}")
SCRIPT = Path(__file__).parents[2] / "examples/consolidation/consolidate.py"


@pytest.fixture(scope="module")
def virtuary(template: Path) -> Iterator[Client]:
    root = ROOT
    copy_template(template, root)  # the neighbour's image
    environment = {**os.environ, "VIRTUARY_ROOT": str(root)}
    environment.pop("VIRTUARY_HOST", None)
    (root / "config").mkdir()
    (root / "config/virtuary.toml").write_text(
        "[templates]\nauto = false\n[network]\ndefault = 'user'\n"
    )  # nothing is launched a second time here
    subprocess.run([sys.executable, str(SCRIPT), "up"], env=environment, check=True, timeout=900)
    yield Client(str(root / "run/virtuary.sock"))
    subprocess.run([sys.executable, str(SCRIPT), "down"], env=environment, check=True, timeout=120)
    stop_daemon(root)


def stop_daemon(root: Path) -> None:
    """End the daemon of this instance, found by who holds its lock, and remove the instance."""
    import shutil
    import signal

    inode = os.stat(root / "state/daemon.lock").st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
            os.kill(int(words[4]), signal.SIGTERM)
    time.sleep(1)
    shutil.rmtree(root, ignore_errors=True)


def said(virtuary: Client, name: str, command: str) -> str:
    outcome = virtuary.execute(name, ["/bin/sh", "-c", command], timeout=60)
    return (outcome.stdout + outcome.stderr).decode()


def test_mail_sent_to_the_one_arrives_there(virtuary: Client) -> None:
    with smtplib.SMTP("127.0.0.1", 2525, timeout=60) as smtp:
        smtp.sendmail(
            "bob@example.test", ["ada@example.test"], "Subject: greetings\r\n\r\nfrom the host\r\n"
        )
    for _ in range(60):
        if "from the host" in said(virtuary, "mail", "cat /var/mail/ada"):
            return
        time.sleep(1)
    pytest.fail(said(virtuary, "mail", "mailq; cat /var/mail/ada; tail -20 /var/log/mail.log"))


def test_sql_run_on_the_other_is_answered(virtuary: Client) -> None:
    query = (
        'PGPASSWORD=not-a-secret psql -h 127.0.0.1 -U shop shop -Atc "select sum(stock) from goods"'
    )
    assert said(virtuary, "database", query).strip() == "15"
    with socket.create_connection(("127.0.0.1", 5433), 30) as sock:
        # does the server speak TLS? It answers S or N
        sock.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")
        assert sock.recv(1) in (b"S", b"N")


def test_a_noisy_neighbour_is_hardly_noticed(virtuary: Client) -> None:
    """It wants every processor; by its weight it gets what the others leave."""
    environment = {**os.environ, "VIRTUARY_ROOT": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "noise"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    quiet, loud = (float(text) for text in re.findall(r"([0-9.]+) ms", done.stdout))
    assert loud <= 2 * max(quiet, 5), done.stdout
    assert "noisy" not in {vm.name for vm in virtuary.vms()}


def test_neither_sees_the_others_files_or_processes(virtuary: Client) -> None:
    mail, database = (
        said(virtuary, "mail", "ps ax; ls /etc /var/lib"),
        said(virtuary, "database", "ps ax; ls /etc /var/lib"),
    )
    assert "postgres" not in mail and "postfix" not in database
    assert "master" in mail and "postgres" in database
    assert said(virtuary, "mail", "cat /etc/machine-id") != said(
        virtuary, "database", "cat /etc/machine-id"
    )
