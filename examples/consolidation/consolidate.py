"""Two servers that used to be two machines, on one: a mail server (postfix) and a database (PostgreSQL).

    python examples/consolidation/consolidate.py up      build the images, launch both, wait until both serve
    python examples/consolidation/consolidate.py down    remove both servers and their images

Afterwards mail for ada@example.test is taken on port 2525 of this machine, and the database answers on port 5433.
Uses the client library only; needs no root.
"""

from __future__ import annotations

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
        user_data = (HERE / f"{name}.yaml").read_text()
        virtuary.launch(f"{name}:1", name, memory=1 << 30, publish=(port,), user_data=user_data)
        wait_for_file(virtuary, name, f"/run/{name}-is-ready")
    print(f"{name}: ready", flush=True)


def wait_for_file(virtuary: Client, name: str, path: str, limit: float = 600) -> None:
    """Wait until a file shows up in the guest, which is how its user data says that it is done."""
    until = time.monotonic() + limit
    while virtuary.execute(name, ["/usr/bin/test", "-e", path]).status != 0:
        if time.monotonic() > until:
            raise GuestSilent(f"{name} did not get ready within {limit:.0f} s", f"virtuary shell {name} -- cloud-init status --long")
        time.sleep(2)


def up() -> None:
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(up_one, name) for name in SERVERS]:
            done.result()


def down() -> None:
    with Client() as virtuary:
        for name in SERVERS:
            for remove in (lambda name=name: virtuary.delete(name, now=True, force=True), lambda name=name: virtuary.delete_image(f"{name}:1")):
                try:
                    remove()
                except NotFound:
                    pass


def main() -> int:
    if sys.argv[1:] not in (["up"], ["down"]):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        up() if sys.argv[1] == "up" else down()
    except VirtuaryError as error:
        print(f"error: {error.sentence}" + (f" ({error.hint})" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
