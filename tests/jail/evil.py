"""Somebody who took over a program in its jail: tries every act, and prints as JSON how each ended:
"done", or the error's name.

Started by the launcher exactly as QEMU is, but for a filter of QEMU's own: what this program can't
do no QEMU can. Acts that may succeed stand in test_evil.py, with the reason. `python3 evil.py
FACTS`, facts being JSON: what the host has that it must not reach.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
FACTS = json.loads(sys.argv[1])
CALLS = {
    "io_uring_setup": 425, "userfaultfd": 323, "keyctl": 250, "add_key": 248, "request_key": 249,
    "modify_ldt": 154, "personality": 135,
    "memfd_secret": 447, "unshare": 272, "setns": 308, "mount": 165, "ptrace": 101, "fork": 57,
    "vfork": 58, "clone": 56, "clone3": 435,
    "bpf": 321, "perf_event_open": 298, "process_vm_readv": 310, "open_by_handle_at": 304,
    "chroot": 161, "pidfd_getfd": 438, "newest": 460,
    "pivot_root": 155, "init_module": 175, "kexec_load": 246, "syslog": 103, "sethostname": 170,
    "settimeofday": 164, "iopl": 172, "reboot": 169,
}  # fmt: skip
ACTS = {}


def act(function):
    ACTS[function.__name__.replace("_", " ")] = function
    return function


def call(name, *arguments, number=None):
    """A system call by its number, whatever the C library thinks of it."""
    result = libc.syscall(ctypes.c_long(number or CALLS[name]), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def request(descriptor, number, content=b"\0" * 64):
    held = ctypes.create_string_buffer(content, 64)
    if libc.ioctl(descriptor, ctypes.c_ulong(number), held) < 0:
        raise OSError(ctypes.get_errno(), "ioctl")


# ---- system calls that nothing needs


for _name in CALLS:
    if _name not in ("keyctl", "add_key", "request_key", "fork", "vfork", "clone"):
        ACTS[f"call {_name}"] = lambda name=_name: call(name, None, None, None, None, None)


@act
def a_process_of_its_own():
    if os.fork() == 0:
        os._exit(0)


@act
def a_process_in_new_namespaces():
    if call("clone", ctypes.c_long(0x10000000 | signal.SIGCHLD), None, None, None, None) == 0:
        os._exit(0)


@act
def userfaultfd_for_its_own_faults_alone():
    call("userfaultfd", ctypes.c_long(1))


@act
def read_a_key_of_who_started_it():
    buffer = ctypes.create_string_buffer(256)
    call("keyctl", 11, ctypes.c_int(FACTS["key"]), buffer, 256)


@act
def search_its_session_for_the_key():
    call("keyctl", 10, -3, b"user", b"virtuary-test", 0)


@act
def add_a_key():
    call("add_key", b"user", b"evil", b"x", 1, -3)


@act
def request_a_key():
    call("request_key", b"user", b"virtuary-test", None, 0)


@act
def call_by_the_numbers_of_x32():
    call("x32", number=0x40000000 | 39)


# ---- sockets


def family(name, *words):
    ACTS[name] = lambda: socket.socket(*words).close()


family("a netlink socket", socket.AF_NETLINK, socket.SOCK_RAW, 0)
family("a vsock socket", 40, socket.SOCK_STREAM)
family("a packet socket", socket.AF_PACKET, socket.SOCK_RAW)
family("a crypto socket", socket.AF_ALG, socket.SOCK_SEQPACKET)
family("a unix socket", socket.AF_UNIX, socket.SOCK_STREAM)
family("a raw socket", socket.AF_INET, socket.SOCK_RAW, 1)
family("a multipath socket", socket.AF_INET, socket.SOCK_STREAM, 262)
family("an internet socket", socket.AF_INET, socket.SOCK_STREAM)
family("a datagram socket", socket.AF_INET, socket.SOCK_DGRAM)
family("a ping socket", socket.AF_INET, socket.SOCK_DGRAM, 1)


@act
def connect_to_a_service_of_the_host():
    with socket.socket() as sock:
        sock.connect(("127.0.0.1", FACTS["port"]))


@act
def a_connection_that_begins_with_data():
    with socket.socket() as sock:
        sock.sendto(b"x", 0x20000000, ("127.0.0.1", FACTS["port"]))


@act
def a_connection_that_begins_with_data_by_option():
    with socket.socket() as sock:
        sock.setsockopt(6, 30, 1)


@act
def connect_to_an_abstract_socket():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + FACTS["abstract"])


@act
def connect_to_a_socket_in_the_file_system():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(FACTS["socket"])


@act
def a_pair_of_sockets():
    for sock in socket.socketpair():
        sock.close()


# ---- requests of what it holds


def on_tap(name, number, content):
    def demand():
        if FACTS["tap"] is None:
            raise OSError(errno.ENODEV, "no tap here")
        request(FACTS["tap"], number, content)

    ACTS[name] = demand


MAC = FACTS["name"].encode().ljust(16, b"\0") + struct.pack("H6s", 1, bytes.fromhex("525400c0ffee"))
on_tap("give its tap another address", 0x8924, MAC)
on_tap("make its tap outlive it", 0x400454CB, b"\1")
on_tap("give its tap to somebody", 0x400454CC, b"\1")
on_tap("rename its tap", 0x8923, FACTS["name"].encode().ljust(16, b"\0") + b"stolen")
on_tap("make its tap another one", 0x400454CA, b"stolen".ljust(16, b"\0") + b"\2\0")
on_tap("filter its tap by a program of its own", 0x800454E1, b"\0" * 8)
on_tap("take its tap down", 0x8914, FACTS["name"].encode().ljust(16, b"\0"))
on_tap("see what its tap is", 0x800454D2, b"\0" * 64)


@act
def type_into_a_terminal():
    request(0, 0x5412, b"x")


# ---- files and processes


def opening(name, path, flags=os.O_RDONLY):
    ACTS[name] = lambda: os.close(os.open(path, flags, 0o600))


opening("a file of the host", "/etc/passwd")
opening("a file of the host that all may write", FACTS["canary"], os.O_WRONLY)
opening("the files of processes", "/proc/self/status")
opening("the terminal", "/dev/tty", os.O_RDWR)
opening("a new tap", "/dev/net/tun", os.O_RDWR)
opening("a file of its own in its root", "/evil", os.O_CREAT | os.O_WRONLY)
opening("a file of its own among temporary ones", "/tmp/evil", os.O_CREAT | os.O_WRONLY)
opening("a library to write", "/usr/lib/evil", os.O_CREAT | os.O_WRONLY)
opening("page faults of the kernel", "/dev/userfaultfd", os.O_RDWR)


def on_held(name, function):
    """What the owner of a file may do with it by any descriptor: as an ordinary user that is who
    started us.
    """
    ACTS[name] = lambda: function(FACTS["held"])


on_held("change the mode of a file that it may only read", lambda held: os.fchmod(held, 0o777))
on_held(
    "give away a file that it may only read", lambda held: os.fchown(held, os.getuid(), os.getgid())
)
on_held("change the times of a file that it may only read", lambda held: os.utime(held, (1, 1)))
on_held(
    "set an attribute of a file that it may only read",
    lambda held: os.setxattr(held, "user.evil", b"x"),
)
on_held("lock a file that it may only read", lambda held: fcntl.flock(held, fcntl.LOCK_EX))
on_held(
    "lease a file that it may only read",
    lambda held: fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK),
)
on_held("write a file that it may only read", lambda held: os.pwrite(held, b"x", 0))
ACTS["lease its own file"] = lambda: fcntl.fcntl(FACTS["file"], fcntl.F_SETLEASE, fcntl.F_WRLCK)
ACTS["take more of the processors"] = lambda: os.sched_setaffinity(0, range(os.cpu_count()))
ACTS["go before others"] = lambda: call("ioprio_set", 1, 0, 0x4000, number=251)


@act
def end_the_daemon():
    os.kill(FACTS["daemon"], signal.SIGKILL)


@act
def end_everybody():
    os.kill(-1, signal.SIGTERM)


@act
def look_up_the_host_by_a_descriptor_it_was_given():
    for number in range(3, 256):
        for way in ("../../etc/passwd", "etc/passwd"):
            with contextlib.suppress(OSError):
                os.close(os.open(way, os.O_RDONLY, dir_fd=number))
                return
    raise OSError(errno.ENOTDIR, "none")


@act
def raise_a_limit():
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard == resource.RLIM_INFINITY:
        raise OSError(errno.ENOSYS, "there is none")
    resource.setrlimit(resource.RLIMIT_NPROC, (hard + 1, hard + 1))


@act
def a_file_larger_than_may_be():
    os.pwrite(FACTS["file"], b"x", FACTS["largest"] + 1)


@act
def write_its_own_file():
    os.pwrite(FACTS["file"], b"x", 0)


@act
def five_thousand_threads():
    stop = threading.Event()
    threading.stack_size(64 * 1024)
    threads = [threading.Thread(target=stop.wait, daemon=True) for _ in range(5000)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "enough") from None
    finally:
        stop.set()
        for thread in threads:
            if thread.ident:
                thread.join()


@act
def a_thread():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def by_the_old_door():
    """A system call in the numbering of 32-bit programs, which no filter of 64-bit numbers sees:
    getpid.
    """
    code = bytes.fromhex("b814000000cd80c3")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()


def main():
    told = {}
    for name, function in ACTS.items():
        try:
            function()
            told[name] = "done"
        except OSError as error:
            told[name] = errno.errorcode.get(error.errno, str(error))
        except ValueError as error:  # what Python makes of a refused limit
            told[name] = "EPERM" if "not allowed" in str(error) else repr(error)
        except BaseException as error:
            told[name] = repr(error)
    print(json.dumps(told), file=sys.stderr, flush=True)
    # who ends before it was seen was no machine
    while not os.pread(FACTS["held"], 16, 0).endswith(b"seen"):
        time.sleep(0.01)
    by_the_old_door()
    print("the old door is open", file=sys.stderr, flush=True)


main()
