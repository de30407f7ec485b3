"""Two servers that used to be two machines, on one: a mail server (postfix) and a database
(PostgreSQL).

    python examples/consolidation/consolidate.py up      build the images, launch both, wait until
    both serve
    python examples/consolidation/consolidate.py noise   let a third server spin beside them, and
    tell what the database notices
    python examples/consolidation/consolidate.py down    remove the servers and the images of the
    first two

Afterwards mail for ada@example.test is taken on port 2525 of this machine, and the database answers
on port 5433.
Uses the client library only; needs no root.
"""

from __future__ import annotations

import socket
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from virtuary.base.errors import GuestSilent, NotFound, VirtuaryError
from virtuary.client import Client
from virtuary.model.image import ImageSource
from virtuary.model.vm import Publish

HERE = Path(__file__).parent
SERVERS = {
    "mail": ("postfix", Publish(host=2525, guest=25)),
    "database": ("postgresql", Publish(host=5433, guest=5432)),
}


def up_one(name: str) -> None:
    """Build one server's image, launch it, and wait until its user data is done."""
    package, port = SERVERS[name]
    with Client() as virtuary:
        if f"{name}:1" not in [image.name for image in virtuary.images()]:
            print(f"{name}: building an image with {package}", flush=True)
            source = ImageSource(kind="build", recipe="debian", release="12", packages=(package,))
            virtuary.make_image(f"{name}:1", source)
        print(f"{name}: launching", flush=True)
        login = {"user_data": (HERE / f"{name}.yaml").read_text()}
        virtuary.launch(f"{name}:1", name, memory=1 << 30, publish=(port,), login=login)
        wait_for_file(virtuary, name, f"/run/{name}-is-ready")
    print(f"{name}: ready", flush=True)


def wait_for_file(virtuary: Client, name: str, path: str, limit: float = 600) -> None:
    """Wait until a file shows up in the guest, which is how its user data says that it is done."""
    until = time.monotonic() + limit
    while virtuary.execute(name, ["/usr/bin/test", "-e", path]).status != 0:
        if time.monotonic() > until:
            raise GuestSilent(
                f"{name} did not get ready within {limit:.0f} s",
                f"virtuary shell {name} -- cloud-init status --long",
            )
        time.sleep(2)


def up() -> None:
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(up_one, name) for name in SERVERS]:
            done.result()


def latency(count: int = 40) -> float:
    """Milliseconds, at the median, from calling the database to its first word."""
    found = []
    for _ in range(count):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", 5433), 30) as sock:
            sock.sendall(
                b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
            )  # does the server speak TLS? It answers S or N
            sock.recv(1)
        found.append(1000 * (time.monotonic() - began))
        time.sleep(0.05)
    return statistics.median(found)


def noise() -> tuple[float, float]:
    """The database's latency without and with a neighbour that wants every processor, but has a
    small share.
    """
    quiet = latency()
    with Client() as virtuary:
        virtuary.launch("tiny", "noisy", cpu={"count": 2, "weight": 10})
        try:
            spin = (
                "for n in 1 2; do setsid sh -c 'while :; do :; done' >/dev/null 2>&1 "
                "</dev/null & done"
            )
            virtuary.execute("noisy", ["/bin/sh", "-c", spin])
            time.sleep(2)
            loud = latency()
        finally:
            virtuary.delete("noisy", now=True, force=True)
    print(
        f"the database answers in {quiet:.1f} ms, and in {loud:.1f} ms beside a neighbour that "
        "spins"
    )
    return quiet, loud


def down() -> None:
    with Client() as virtuary:
        for name in SERVERS:
            for remove in (
                lambda name=name: virtuary.delete(name, now=True, force=True),
                lambda name=name: virtuary.delete_image(f"{name}:1"),
            ):
                try:
                    remove()
                except NotFound:
                    pass


def main() -> int:
    deeds = {"up": up, "noise": noise, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in deeds:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        deeds[sys.argv[1]]()
    except VirtuaryError as error:
        print(
            f"error: {error.sentence}" + (f" ({error.hint})" if error.hint else ""), file=sys.stderr
        )
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
