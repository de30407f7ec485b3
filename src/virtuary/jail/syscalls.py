"""The system calls that nothing in a jail needs and whoever takes it over would, as a seccomp
filter. Pure: tables in, bytes out.

The launcher installs it right before exec, so it holds from the program's first instruction on,
besides any filter of the program's own. Refused: calls that make namespaces, processes, mounts,
keys, rings or page-fault handlers, that look into other processes or load code into the kernel;
sockets of all families but those granted; all requests of `ioctl` but those listed; calls newer
than this table; and those of another architecture's numbering. A refused call fails as if the
kernel did not have it.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux;
classic BPF as in seccomp(2).
"""

from __future__ import annotations

import errno
import functools
import os
import struct
from typing import Literal, NamedTuple

LOAD, EQUAL, ABOVE, AT_LEAST, ANY_OF, AND, RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
NEWEST = 450
"""The last number that this table was made with; calls behind it are unknown here."""
X32 = 0x40000000
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: (x86_64, aarch64); None where the architecture never had it
REFUSED: dict[str, tuple[int | None, int | None]] = {
    **{
        "fork": (57, None),
        "vfork": (58, None),
        "ptrace": (101, 117),
        "syslog": (103, 116),
        "uselib": (134, None),
    },
    **{
        "personality": (135, 92),
        "ustat": (136, None),
        "sysfs": (139, None),
        "vhangup": (153, 58),
        "modify_ldt": (154, None),
    },
    **{
        "pivot_root": (155, 41),
        "_sysctl": (156, None),
        "adjtimex": (159, 171),
        "chroot": (161, 51),
        "acct": (163, 89),
    },
    **{
        "settimeofday": (164, 170),
        "mount": (165, 40),
        "umount2": (166, 39),
        "swapon": (167, 224),
        "swapoff": (168, 225),
    },
    **{
        "reboot": (169, 142),
        "sethostname": (170, 161),
        "setdomainname": (171, 162),
        "iopl": (172, None),
        "ioperm": (173, None),
    },
    **{
        "create_module": (174, None),
        "init_module": (175, 105),
        "delete_module": (176, 106),
        "quotactl": (179, 60),
    },
    **{
        "nfsservctl": (180, 42),
        "lookup_dcookie": (212, 18),
        "clock_settime": (227, 112),
        "kexec_load": (246, 104),
    },
    **{
        "add_key": (248, 217),
        "request_key": (249, 218),
        "keyctl": (250, 219),
        "migrate_pages": (256, 238),
        "unshare": (272, 97),
    },
    **{
        "move_pages": (279, 239),
        "perf_event_open": (298, 241),
        "fanotify_init": (300, 262),
        "name_to_handle_at": (303, 264),
    },
    **{
        "open_by_handle_at": (304, 265),
        "clock_adjtime": (305, 266),
        "setns": (308, 268),
        "process_vm_readv": (310, 270),
    },
    **{
        "process_vm_writev": (311, 271),
        "kcmp": (312, 272),
        "finit_module": (313, 273),
        "kexec_file_load": (320, 294),
    },
    **{
        "bpf": (321, 280),
        "userfaultfd": (323, 282),
        "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426),
    },
    **{
        "io_uring_register": (427, 427),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
    },
    **{
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "clone3": (435, 435),
        "pidfd_getfd": (438, 438),
    },
    **{
        "process_madvise": (440, 440),
        "mount_setattr": (442, 442),
        "quotactl_fd": (443, 443),
        "memfd_secret": (447, 447),
    },
    "process_mrelease": (448, 448),
    # what its owner may do with a file that it holds for reading alone
    **{
        "chmod": (90, None),
        "fchmod": (91, 52),
        "chown": (92, None),
        "fchown": (93, 55),
        "lchown": (94, None),
        "utime": (132, None),
    },
    **{
        "setxattr": (188, 5),
        "lsetxattr": (189, 6),
        "fsetxattr": (190, 7),
        "removexattr": (197, 14),
        "lremovexattr": (198, 15),
    },
    **{
        "fremovexattr": (199, 16),
        "utimes": (235, None),
        "fchownat": (260, 54),
        "futimesat": (261, None),
        "fchmodat": (268, 53),
    },
    **{"utimensat": (280, 88), "flock": (73, 32)},
    # what it has of the processors is others' to say
    **{
        "setpriority": (141, 140),
        "sched_setparam": (142, 118),
        "sched_setscheduler": (144, 119),
        "sched_setaffinity": (203, 122),
    },
    **{"ioprio_set": (251, 30), "sched_setattr": (314, 274)},
}
JUDGED = {
    **{
        "ioctl": (16, 29),
        "socket": (41, 198),
        "clone": (56, 220),
        "sendto": (44, 206),
        "sendmsg": (46, 211),
    },
    **{"sendmmsg": (307, 269), "setsockopt": (54, 208), "fcntl": (72, 25)},
}
"""Calls that depend on their arguments."""

KVM, USERFAULT = 0xAE, 0xAA
"""Groups of requests: of virtual machines and their CPUs, the most frequent call there is; and of
handled page faults.
"""
REQUESTS = (
    # terminals' facts, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    *(0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451),
    # FIGETBSZ, FIEMAP, GETFLAGS, FSGETXATTR, XFS_IOC_DIOINFO
    *(2, 0xC020660B, 0x80086601, 0x801C581F, 0x800C581E),
    # sizes of disks, discard
    *(0x125E, 0x1260, 0x1268, 0x1277, 0x1278, 0x1279, 0x127A, 0x127B, 0x127C, 0x127F, 0x80081272),
    *(0x800454CF, 0x800454D2, 0x800454D3, 0x800454D7, 0x800454DD, 0x800454DF),  # what a tap is
    # its offloads, buffer, header and byte order
    *(0x400454D0, 0x400454D4, 0x400454D8, 0x400454DC, 0x400454DE),
    # TUNSETSTEERINGEBPF: QEMU takes a program away that was never there; none can be made here
    0x800454E0,
)
"""All other requests fail: those by which a tap takes another address, name or owner, or outlives
its descriptor, among them.
"""
UNFIT = (1024, 1026)
"""Commands of fcntl: F_SETLEASE, F_NOTIFY."""
INET, INET6, DATAGRAMS, RAW, UDP, MPTCP = 2, 10, 2, 3, 17, 262
TCP, TCP_FASTOPEN_CONNECT, TCP_ULP, MSG_FASTOPEN = 6, 30, 31, 0x20000000
THREAD, NAMESPACES = 0x10000, 0x7E020000
"""Flags of clone: what is no thread is a process."""


Reach = Literal["nothing", "names", "internet"]
"""What a jail may open sockets for: none; UDP, by which names are looked up; IPv4 and IPv6, but raw
ones.
"""


class Grants(NamedTuple):
    """What a jail may do beyond the ordinary. Features ask for it, and `show` tells."""

    reach: Reach = "nothing"
    userfaults: bool = False
    """Requests of a /dev/userfaultfd that it was given."""


class Step(NamedTuple):
    """One instruction; jumps are counted from the next one."""

    code: int
    value: int
    hit: int = 0
    miss: int = 0


@functools.cache
def program(grants: Grants = Grants(), machine: str = os.uname().machine) -> bytes:  # noqa: B008  (immutable)
    """The filter for this architecture, as `struct sock_filter`s; empty for one that the table does
    not know.
    """
    if machine not in AUDIT:
        return b""
    column = list(AUDIT).index(machine)
    numbers = {name: row[column] for name, row in JUDGED.items()}
    steps = [
        Step(LOAD, ARCHITECTURE),
        Step(EQUAL, AUDIT[machine], 1),
        Step(RETURN, KILL),
        Step(LOAD, NUMBER),
    ]
    for name, judge in (
        ("ioctl", _ioctl(grants)),
        ("clone", _clone()),
        ("socket", _socket(grants)),
        ("fcntl", _fcntl()),
        *_sending(),
    ):
        steps += [Step(EQUAL, numbers[name] or 0, 0, len(judge)), *judge]
    for first, last in _ranges([row[column] for row in REFUSED.values()]):
        steps += [
            Step(AT_LEAST, first, 0, 2),
            Step(ABOVE, last, 1),
            Step(RETURN, FAIL | errno.ENOSYS),
        ]
    # x32's numbers lie above too
    steps += [Step(ABOVE, NEWEST, 0, 1), Step(RETURN, FAIL | errno.ENOSYS)]
    return b"".join(
        struct.pack("=HBBI", step.code, step.hit, step.miss, step.value)
        for step in (*steps, Step(RETURN, ALLOW))
    )


def _ranges(numbers: list[int | None]) -> list[tuple[int, int]]:
    """Numbers that follow each other as one range, so that a filter is short."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(number for number in numbers if number is not None):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _argument(index: int) -> Step:
    """The lower half of an argument, in which all that is judged here lies."""
    return Step(LOAD, ARGUMENTS + 8 * index)


def _refuse(number: int) -> Step:
    return Step(RETURN, FAIL | number)


def _ioctl(grants: Grants) -> list[Step]:
    groups = (KVM, USERFAULT) if grants.userfaults else (KVM,)
    steps = [_argument(1), Step(AND, 0xFF00)]
    for group in groups:
        steps += [Step(EQUAL, group << 8, 0, 1), Step(RETURN, ALLOW)]
    steps.append(_argument(1))
    steps += [Step(EQUAL, request, len(REQUESTS) - place) for place, request in enumerate(REQUESTS)]
    return [*steps, _refuse(errno.ENOTTY), Step(RETURN, ALLOW)]


def _clone() -> list[Step]:
    """Threads only."""
    threads = [Step(AND, THREAD), Step(EQUAL, THREAD, 1), _refuse(errno.EPERM), Step(RETURN, ALLOW)]
    return [_argument(0), Step(ANY_OF, NAMESPACES, 0, 1), _refuse(errno.EPERM), *threads]


def _socket(grants: Grants) -> list[Step]:
    if grants.reach == "nothing":
        return [_refuse(errno.EAFNOSUPPORT)]
    families = (
        _argument(0),
        Step(EQUAL, INET, 2),
        Step(EQUAL, INET6, 1),
        _refuse(errno.EAFNOSUPPORT),
    )
    if grants.reach == "names":
        kinds = (_argument(1), Step(AND, 0xF), Step(EQUAL, DATAGRAMS, 1), _refuse(errno.EPERM))
        protocols = (
            _argument(2),
            Step(EQUAL, 0, 2),
            Step(EQUAL, UDP, 1),
            _refuse(errno.EPROTONOSUPPORT),
        )
        return [*families, *kinds, *protocols, Step(RETURN, ALLOW)]
    return [
        *families,
        *(_argument(1), Step(AND, 0xF), Step(EQUAL, RAW, 0, 1), _refuse(errno.EPERM)),
        *(
            _argument(2),
            Step(EQUAL, MPTCP, 0, 1),
            _refuse(errno.EPROTONOSUPPORT),
            Step(RETURN, ALLOW),
        ),
    ]


def _fcntl() -> list[Step]:
    """No leases: who has one makes others wait that open the file. Nor signals about it."""
    refused = [Step(EQUAL, command, len(UNFIT) - place) for place, command in enumerate(UNFIT)]
    return [_argument(1), *refused, Step(RETURN, ALLOW), _refuse(errno.EINVAL)]


def _sending() -> list[tuple[str, list[Step]]]:
    """A connection that begins with data, or by an option, is one that Landlock does not see."""
    found = []
    for name, index in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        flags = [
            _argument(index),
            Step(ANY_OF, MSG_FASTOPEN, 0, 1),
            _refuse(errno.EOPNOTSUPP),
            Step(RETURN, ALLOW),
        ]
        found.append((name, flags))
    options = [
        *(_argument(1), Step(EQUAL, TCP, 1), Step(RETURN, ALLOW), _argument(2)),
        *(
            Step(EQUAL, TCP_FASTOPEN_CONNECT, 2),
            Step(EQUAL, TCP_ULP, 1),
            Step(RETURN, ALLOW),
            _refuse(errno.ENOPROTOOPT),
        ),
    ]
    return [*found, ("setsockopt", options)]
