"""The small separate program that jails itself and becomes QEMU.

Run as `python3 -I -S launcher.py` with one order on standard input, as `marshal` writes it: json alone would double the time to
start. Standard library only, because it runs before and outside of everything else. It makes, in this sequence: own cgroup, new
namespaces, an empty read-only root that holds nothing but the libraries and the named files, the machine's own uid, no new
privileges, Landlock, limits, an empty environment, exec.

It answers on standard output in the same form, {"pid": N, "gaps": [..]} once QEMU's image is running or {"error": ".."}, and
ends. The daemon, a subreaper, becomes QEMU's parent; when the daemon dies QEMU has none that matters.

Order: argv; fds [[have, want], ..]; stderr (path of a FIFO); uid, gid; own_user_namespace; namespaces (of mnt net pid ipc uts);
root (an empty folder to mount the new root on, or null); readable (paths); landlock (bool); cgroups (paths of cgroup.procs);
max_files. A control group that can't be joined is a gap; anything else that fails is an error.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Order = dict[str, Any]

NAMESPACES = {"mnt": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "pid": 0x20000000, "net": 0x40000000}
NEW_USER = 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 1 << 14, 1 << 18
MNT_DETACH = 2
NO_NEW_PRIVS = 38
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same on every 64-bit architecture
EXECUTE, WRITE, READ, READ_DIR, TRUNCATE, IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
FILE_RIGHTS = EXECUTE | WRITE | READ | TRUNCATE | IOCTL

TREES = ("/usr", "/lib", "/lib64")
FILES = ("/etc/ld.so.cache", "/dev/urandom")
WRITABLE = ("/dev/null",)

libc = ctypes.CDLL(None, use_errno=True)


def check(value: int, what: str) -> int:
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return value


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    check(libc.mount(*words, flags, data.encode() if data else None), f"mount {target}")


def join_cgroups(order: Order, gaps: list[str]) -> None:
    for path in order["cgroups"]:
        try:
            with open(path, "w", encoding="ascii") as handle:
                handle.write("0")
        except OSError as error:
            gaps.append(f"no control group of its own ({error.strerror})")


def unshare(order: Order) -> None:
    flags = sum(NAMESPACES[name] for name in order["namespaces"])
    uid, gid = os.getuid(), os.getgid()
    check(libc.unshare(flags | (NEW_USER if order["own_user_namespace"] else 0)), "unshare")
    if order["own_user_namespace"]:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as handle:
                handle.write(text)
    if "mnt" in order["namespaces"]:
        mount(None, "/", None, MS_REC | MS_PRIVATE)


def enter_empty_root(order: Order) -> None:
    """Replace / by a read-only tmpfs that holds nothing but the allowed paths."""
    os.umask(0o022)  # parents inside the new root must stay passable for the machine's uid
    root = order["root"]
    mount("none", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64k")
    for path in (*TREES, *FILES, *WRITABLE, *order["readable"]):
        if os.path.exists(path):
            bind(path, root + path, writable=path in WRITABLE)
    mount(None, root, None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(root)
    check(libc.pivot_root(b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def bind(path: str, target: str, *, writable: bool) -> None:
    source = os.path.realpath(path)
    if os.path.isdir(source):
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    mount(source, target, None, MS_BIND | MS_REC)
    if not writable:
        device = 0 if path.startswith("/dev/") else MS_NODEV
        mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | device)


def drop_identity(order: Order) -> None:
    os.umask(0o077)
    if not order["own_user_namespace"] and os.getuid() == 0:
        os.setgroups([])
    os.setresgid(order["gid"], order["gid"], order["gid"])
    os.setresuid(order["uid"], order["uid"], order["uid"])
    check(libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def landlock(order: Order) -> None:
    """Deny every path but the named ones; TCP too from ABI 4 on, abstract sockets and signals from ABI 6 on."""
    abi = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    handled = (1 << 13) - 1
    handled |= (1 << 13) if abi >= 2 else 0
    handled |= TRUNCATE if abi >= 3 else 0
    handled |= IOCTL if abi >= 5 else 0
    alone = "net" in order["namespaces"]
    fields = [handled] + ([3 if alone else 0] if abi >= 4 else []) + ([3] if abi >= 6 else [])
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    rules = check(libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock")
    resolver = () if alone else ("/etc/resolv.conf", "/etc/hosts", "/run/systemd/resolve")
    for path in TREES:
        allow(rules, path, (EXECUTE | READ | READ_DIR) & handled)
    for path in (*FILES, *resolver, *order["readable"]):
        allow(rules, path, (READ | READ_DIR) & handled)
    for path in WRITABLE:
        allow(rules, path, (READ | WRITE) & handled)
    check(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "landlock")
    os.close(rules)


def allow(rules: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    rule = struct.pack("=Qi", rights if os.path.isdir(path) else rights & FILE_RIGHTS, handle)
    check(libc.syscall(LANDLOCK_ADD, rules, 1, rule, 0), f"landlock {path}")
    os.close(handle)


def limit(order: Order) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (order["max_files"], order["max_files"]))


def place_descriptors(order: Order) -> None:
    """Put the descriptors where the command line says, through free high numbers so that none is overwritten."""
    base = 700
    for index, (have, _) in enumerate(order["fds"]):
        os.dup2(have, base + index, inheritable=False)
    for have, _ in order["fds"]:
        os.close(have)
    for index, (_, want) in enumerate(order["fds"]):
        os.dup2(base + index, want, inheritable=True)
        os.close(base + index)


def become(order: Order, report: int) -> None:
    """The child: enter the jail and become QEMU. A failure is written to `report`, which closes by itself on exec."""
    try:
        place_descriptors(order)
        # A FIFO open for both directions never blocks and never breaks: when nobody reads, what is too much is dropped.
        errors = os.open(order["stderr"], os.O_RDWR | os.O_NONBLOCK)
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        os.close(errors)
        nothing = os.open("/dev/null", os.O_RDWR)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.setsid()
        if order["root"]:
            enter_empty_root(order)
        drop_identity(order)
        if order["landlock"]:
            landlock(order)
        limit(order)
        os.execve(order["argv"][0], order["argv"], {})
    except BaseException as error:
        os.write(report, str(error).encode()[:1000])
        os._exit(1)


def answer(body: Order) -> None:
    os.write(1, marshal.dumps(body))


def main() -> None:
    order: Order = marshal.loads(sys.stdin.buffer.read())  # noqa: S302
    gaps: list[str] = []
    ours, theirs = os.pipe()
    os.dup2(theirs, 900, inheritable=False)
    os.close(theirs)
    try:
        join_cgroups(order, gaps)
        unshare(order)
        child = os.fork()
    except OSError as error:
        answer({"error": str(error)})
        return
    if child == 0:
        become(order, 900)
    os.close(900)
    failure = b""
    while chunk := os.read(ours, 4096):
        failure += chunk
    answer({"error": failure.decode(errors="replace")} if failure else {"pid": child, "gaps": gaps})


if __name__ == "__main__":
    main()
