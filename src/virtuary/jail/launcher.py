"""The small separate program that makes jails: for each order it forks a child, which jails itself
and becomes the program.

Run as `python3 -I -S launcher.py`, one per daemon, with a socket to the daemon (SOCK_SEQPACKET) as
standard input; it ends with the daemon. Standard library only, and little of it: it is forked for
every program, and never holds anything of one. A child makes, in this sequence: new namespaces, an
empty read-only root that holds nothing but the libraries and the named files, a session keyring and
a uid of its own, no new privileges, Landlock, limits, the filter of system calls, an empty
environment, exec. The process between the two enters the control groups, makes the namespaces,
writes down who the child is, and ends at once: the daemon, a subreaper, becomes the parent; when
the daemon dies the program has none that matters. A *tied* program is not to outlive whoever waits
for it: there the process in between stays, ends it when nobody holds the answer's other end any
more, and tells its exit status.

An order is one message, as `marshal` writes it: json alone would take as long to load as everything
else. With it come descriptors: a socket for the answer, then those the program shall have. Answers
are messages too: `pid CHILD PARENT` with the gaps, parted by NUL, as soon as the child is there;
`error` with words when it fails; `status` of a tied one; and the end of the socket, which is exec
when no error came before. Nothing is executed whose pid the daemon was not told, nor for a daemon
that is gone or listens no more.

With an order in hexadecimal as its argument it becomes that program itself, where it is, in
whatever namespaces those are.

Order: argv; environment; fds (numbers wanted for the descriptors); stderr (path of a FIFO, or null
where 1 and 2 are among fds); uid, gid; groups (supplementary, kept by root only);
own_user_namespace; namespaces (of mnt net pid ipc uts); root (an empty folder to mount the new root
on, or null); readable and writable (paths); links (path: target); landlock (bool); filter (bytes);
keyring (number of keyctl, or null); cgroups (folders); limits (number of the limit: soft and hard);
record (a file that names the process, or null); tied (bool). A control group that can't be joined
is a gap; anything else that fails is an error.
"""

from __future__ import annotations

import _socket  # the socket module makes the program, and so each fork of it, larger by a fifth
import ctypes
import errno
import marshal
import os
import resource
import select
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Order = dict[str, Any]

NAMESPACES = {
    "mnt": 0x20000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
NEW_USER = 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    1 << 14,
    1 << 18,
)
MNT_DETACH = 2
NO_NEW_PRIVS, SECCOMP, FILTER, JOIN_SESSION_KEYRING, CAPBSET_DROP, DAC_READ_SEARCH = (
    38,
    22,
    2,
    1,
    24,
    2,
)
# the same on every 64-bit architecture
CLONE3, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 435, 444, 445, 446
CLONE_INTO_CGROUP = 1 << 33
EXECUTE, WRITE, READ, READ_DIR, TRUNCATE, IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
FILE_RIGHTS = EXECUTE | WRITE | READ | TRUNCATE | IOCTL

SIGCHLD, SIGXFSZ, SIG_DFL, SIG_IGN = 17, 25, 0, 1
LONGEST_ORDER, MOST_DESCRIPTORS = 1 << 18, 200
ANSWER, GATE, FAILURE, FIRST_FREE = 900, 901, 902, 700
"""Numbers out of the way of those that QEMU's command line names."""

TREES = ("/usr", "/lib", "/lib64")
FILES = ("/etc/ld.so.cache", "/dev/urandom")
NOTHING = "/dev/null"

libc = ctypes.CDLL(None, use_errno=True)


def check(value: int, what: str) -> int:
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return value


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    check(libc.mount(*words, flags, data.encode() if data else None), f"mount {target}")


def enter_groups(order: Order, gaps: list[str]) -> int | None:
    """Join the control groups of version 1; the group of version 2, where that is it, is opened for
    the child to be born in.

    Not by cgroup.procs: a process that is moved waits for a grace period of the kernel, 2 to 15 ms.
    A thread that moves itself (Linux 5.5), and a child that is born elsewhere (5.7), do not.
    """
    unified = None
    for folder in order["cgroups"]:
        try:
            if os.path.exists(f"{folder}/tasks"):
                tasks = os.open(f"{folder}/tasks", os.O_WRONLY | os.O_CLOEXEC)
                os.write(tasks, b"0")
                os.close(tasks)
            else:
                unified = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            gaps.append(f"no control group of its own ({error.strerror})")
    return unified


def fork_into(group: int | None, gaps: list[str]) -> int:
    """Fork, the child in this control group of version 2 from its first moment; by the slow way
    where the quick one is refused.
    """
    if group is not None:
        fields = struct.pack("=11Q", CLONE_INTO_CGROUP, 0, 0, 0, SIGCHLD, 0, 0, 0, 0, 0, group)
        child = int(libc.syscall(CLONE3, fields, ctypes.c_size_t(len(fields))))
        if child >= 0:  # this program has one thread and nothing that must hear of a fork
            return child
        try:
            processes = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=group)
            os.write(processes, b"0")
        except OSError as error:
            gaps.append(f"no control group of its own ({error.strerror})")
    return os.fork()


def unshare(order: Order) -> None:
    flags = sum(NAMESPACES[name] for name in order["namespaces"])
    uid, gid = os.getuid(), os.getgid()
    check(libc.unshare(flags | (NEW_USER if order["own_user_namespace"] else 0)), "unshare")
    if order["own_user_namespace"]:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as handle:
                handle.write(text)
    if "mnt" in order["namespaces"]:
        mount(None, "/", None, MS_REC | MS_PRIVATE)


def enter_empty_root(order: Order) -> None:
    """Replace / by a read-only tmpfs that holds nothing but the allowed paths."""
    os.umask(0o022)  # parents inside the new root must stay passable for the machine's uid
    root = order["root"]
    mount("none", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64k")
    writable = (NOTHING, *order["writable"])
    for path in (*TREES, *FILES, *order["readable"], *writable):
        if os.path.exists(path):
            bind(path, root + path, writable=path in writable)
    for path, target in order["links"].items():
        os.makedirs(os.path.dirname(root + path), mode=0o755, exist_ok=True)
        os.symlink(target, root + path)
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
    if path != NOTHING:
        # a user namespace may not take them away
        kept = os.statvfs(target).f_flag & (MS_RDONLY | MS_NOEXEC)
        device = 0 if path.startswith("/dev/") else MS_NODEV
        mount(
            None,
            target,
            None,
            MS_REMOUNT | MS_BIND | MS_NOSUID | device | kept | (0 if writable else MS_RDONLY),
        )


def drop_identity(order: Order) -> None:
    os.umask(0o077)
    if not order["own_user_namespace"] and os.getuid() == 0:
        os.setgroups(order["groups"])
    os.setresgid(order["gid"], order["gid"], order["gid"])
    os.setresuid(order["uid"], order["uid"], order["uid"])
    if (
        order["keyring"] is not None
        # fails where the kernel has no keys or lets nobody touch them, and then there are none to
        # see
    ):
        libc.syscall(order["keyring"], JOIN_SESSION_KEYRING, None)
    check(libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def landlock(order: Order) -> None:
    """Deny every path but the named ones; TCP too from ABI 4 on, abstract sockets and signals from
    ABI 6 on.
    """
    abi = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    handled = (1 << 13) - 1
    handled |= (1 << 13) if abi >= 2 else 0
    handled |= TRUNCATE if abi >= 3 else 0
    handled |= IOCTL if abi >= 5 else 0
    alone = "net" in order["namespaces"]
    fields = [handled] + ([3 if alone else 0] if abi >= 4 else []) + ([3] if abi >= 6 else [])
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    rules = check(
        libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock"
    )
    for path in TREES:
        allow(rules, path, (EXECUTE | READ | READ_DIR) & handled)
    for path in (*FILES, *order["readable"]):
        allow(rules, path, (READ | READ_DIR) & handled)
    for path in (NOTHING, *order["writable"]):
        allow(rules, path, (READ | WRITE | TRUNCATE) & handled)
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
    # a file that is as large as may be is an error to a program, not its end
    libc.signal(SIGXFSZ, ctypes.c_void_p(SIG_IGN))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for which, wanted in order["limits"].items():
        most = resource.getrlimit(which)[1]
        soft, hard = (
            value if most < 0 else most if value < 0 else min(value, most) for value in wanted
        )
        resource.setrlimit(which, (soft, hard))


def filter_calls(instructions: bytes) -> None:
    """Refuse system calls from here on; see syscalls.py."""
    held = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(held))
    check(libc.prctl(SECCOMP, FILTER, program, 0, 0), "seccomp")


def place_descriptors(have: list[int], want: list[int]) -> None:
    """Put the descriptors where the command line says, through free high numbers so that none is
    overwritten.
    """
    for index, number in enumerate(have):
        os.dup2(number, FIRST_FREE + index, inheritable=False)
        os.close(number)
    for index, number in enumerate(want):
        os.dup2(FIRST_FREE + index, number, inheritable=True)
        os.close(FIRST_FREE + index)


def move(number: int, there: int) -> None:
    os.dup2(number, there, inheritable=False)
    os.close(number)


def close_all_but(kept: list[int]) -> None:
    """The standard ones stay too."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number not in kept:
            try:
                os.close(number)
            except OSError:  # the listing's own
                pass


def become(order: Order, descriptors: list[int]) -> NoReturn:
    """The child: enter the jail and become QEMU. A failure is written to ANSWER, which closes by
    itself on exec.
    """
    try:
        place_descriptors(descriptors, order["fds"])
        if order["stderr"]:
            # A FIFO open for both directions never blocks and never breaks: when nobody reads, what
            # is too much is dropped.
            errors = os.open(order["stderr"], os.O_RDWR | os.O_NONBLOCK)
            os.dup2(errors, 1)
            os.dup2(errors, 2)
            os.close(errors)
        os.setsid()
        if order["root"]:
            enter_empty_root(order)
        drop_identity(order)
        if order["landlock"]:
            landlock(order)
        limit(order)
        if order["filter"]:
            filter_calls(order["filter"])
        if os.read(GATE, 1) and is_awaited():
            os.execve(order["argv"][0], order["argv"], order["environment"])
    except BaseException as error:
        tell(ANSWER, b"error " + str(error).encode()[:1000])
    tell(FAILURE, b".")
    os._exit(1)


def is_awaited() -> bool:
    """Whether the daemon lives and still waits for this machine."""
    # MSG_PEEK | MSG_DONTWAIT: it never sends anything, so there is nothing to read, or the end
    peek = 0x02 | 0x40
    read = libc.recv(ANSWER, ctypes.create_string_buffer(1), ctypes.c_size_t(1), peek)
    return int(read) < 0 and ctypes.get_errno() == errno.EAGAIN


def tell(answer: int, words: bytes) -> None:
    try:
        os.write(answer, words)
    except OSError:  # nobody waits
        pass


def open_record(path: str | None) -> tuple[int, int] | None:
    """The file that names the processes of a folder, and /proc: opened before paths mean something
    else here.
    """
    if path is None:
        return None
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600), os.open("/proc", os.O_PATH | os.O_CLOEXEC)


def write_record(record: tuple[int, int], child: int) -> None:
    """So a program is found of which the daemon never wrote anything down: the boot of the host,
    and who the child is.
    """
    file, proc = record
    words = [read(name, proc).strip() for name in ("sys/kernel/random/boot_id", f"{child}/stat")]
    os.write(file, b" ".join(words) + b"\n")
    os.close(file)
    os.close(proc)


def read(name: str, folder: int) -> bytes:
    handle = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    content = os.read(handle, 4096)
    os.close(handle)
    return content


def stay(child: int) -> None:
    """Wait for a tied program; end it when nobody waits for it."""
    handle = os.pidfd_open(child)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.register(ANSWER, 0)  # its other end was closed
    while handle not in dict(poll.poll()):
        try:
            os.kill(child, 9)
        except ProcessLookupError:
            pass
        poll.unregister(ANSWER)
    tell(ANSWER, b"status %d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0)


def launch(message: bytes, descriptors: list[int]) -> NoReturn:
    """The process in between: enter the groups, make the namespaces, and the child in them."""
    answer = descriptors[0]
    try:
        libc.signal(SIGCHLD, ctypes.c_void_p(SIG_DFL))  # what is ignored stays ignored through exec
        close_all_but(descriptors)
        order: Order = marshal.loads(message)  # noqa: S302  (nobody but the daemon holds the other end)
        move(answer, ANSWER)
        answer = ANSWER
        gaps: list[str] = []
        (gate, opener), (failed, failure) = os.pipe(), os.pipe()
        move(gate, GATE)
        move(failure, FAILURE)
        record = open_record(order["record"])
        group = enter_groups(order, gaps)
        unshare(order)
        child = fork_into(group, gaps)
        if child == 0:
            close_all_but([*descriptors[1:], ANSWER, GATE, FAILURE])
            become(order, descriptors[1:])
        if record:
            write_record(record, child)
        tell(ANSWER, "\0".join((f"pid {child} {os.getpid()}", *gaps)).encode())
        tell(opener, b".")
        os.closerange(GATE, FAILURE + 1)
        for number in descriptors[1:]:
            os.close(number)
        if order["tied"]:
            stay(child)
        # The answer ends with this process, when the daemon is QEMU's parent. Paths mean nothing
        # here: pivot_root moved us too.
        if os.read(failed, 1):
            os.waitpid(child, 0)  # what never became QEMU is nobody else's to bury
    except BaseException as error:
        tell(answer, b"error " + str(error).encode()[:1000])
    os._exit(0)


def serve(control: _socket.socket) -> None:
    """Take orders, one process for each, until the daemon is gone. Holds no descriptor of a machine
    while it waits.
    """
    space = _socket.CMSG_SPACE(MOST_DESCRIPTORS * 4)
    while True:
        message, ancillary, _, _ = control.recvmsg(LONGEST_ORDER, space, _socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        descriptors = [
            number for _, _, data in ancillary for (number,) in struct.iter_unpack("=i", data)
        ]
        try:
            if descriptors and os.fork() == 0:
                launch(message, descriptors)
        except OSError as error:
            tell(descriptors[0], b"error " + str(error).encode())
        finally:
            for number in descriptors:
                os.close(number)


def confine(order: Order) -> NoReturn:
    """Become a program here, root of its namespaces as it is, for it reads files of many owners;
    see inner.py.
    """
    for number in range(64):
        if number != DAC_READ_SEARCH:
            # fails for numbers that this kernel does not know
            libc.prctl(CAPBSET_DROP, number, 0, 0, 0)
    check(libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    close_all_but([])
    if order["landlock"]:
        landlock(order)
    limit(order)
    if order["filter"]:
        filter_calls(order["filter"])
    os.execve(order["argv"][0], order["argv"], order["environment"])


def main() -> None:
    if sys.argv[1:]:
        confine(marshal.loads(bytes.fromhex(sys.argv[1])))  # noqa: S302  (our own words)
    os.chdir("/")
    libc.signal(SIGCHLD, ctypes.c_void_p(SIG_IGN))  # the kernel buries the processes in between
    control = _socket.socket(fileno=os.dup(0))
    os.dup2(1, 0)  # nothing to read
    close_all_but([control.fileno()])
    serve(control)


if __name__ == "__main__":
    main()
