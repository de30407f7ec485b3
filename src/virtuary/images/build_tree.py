"""A tree of Debian files, made by mmdebstrap inside namespaces of our own.

As root and as an ordinary user alike: mmdebstrap's root mode runs in a fresh mount and pid
namespace (for an ordinary user in a user namespace too, where the user is root and the subordinate
ids are everybody else). The pid namespace takes every process and every mount with it when its
first process ends, so no failure leaves any. Because the user is root there, files of the guest's
root belong to the caller outside and can be read and written by plain Python.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from virtuary.base import proc
from virtuary.base.errors import Failed, HostLacks
from virtuary.base.units import GIB
from virtuary.images import build_sources
from virtuary.jail.inner import inner
from virtuary.jail.walls import Bounds

Report = Callable[[str, float | None], None]
DEADLINE = 1800.0
BOUNDS = Bounds(memory=2 * GIB, cpu=600, processes=16, files=256, file_size=64 * GIB)
_PACKAGE_LINE = re.compile(r"^(Get:\d+|Preparing|Unpacking|Selecting|Setting up|Processing)\b")


def as_root() -> bool:
    return os.geteuid() == 0


def namespace(*more: str) -> list[str]:
    """Words that start a program as root of its own namespaces, to be followed by the program.
    `more`: of them, as unshare calls them.
    """
    users = [] if as_root() else ["--user", "--map-root-user", "--map-auto"]
    return [
        "unshare",
        *users,
        *more,
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--",
    ]


def missing_programs(names: Sequence[str]) -> list[str]:
    """Which of the programs the host lacks; for an ordinary user also what user namespaces need."""
    wanted = [*names, "unshare", "mmdebstrap", "mke2fs", "gpgv"]
    missing = []
    for name in wanted if as_root() else [*wanted, "newuidmap", "newgidmap"]:
        if not shutil.which(name, path=proc.PATH):
            missing.append(name)
    if not as_root():
        missing += [
            path for path in ("/etc/subuid", "/etc/subgid") if not has_subordinate_ids(Path(path))
        ]
    return missing


def has_subordinate_ids(path: Path) -> bool:
    """Whether the caller owns at least 65535 ids in `path` (/etc/subuid or /etc/subgid)."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    try:
        names = {str(os.geteuid()), getpass.getuser()}
    except (KeyError, OSError):
        names = {str(os.geteuid())}
    owned = [line.split(":") for line in lines]
    return (
        sum(
            int(words[2])
            for words in owned
            if len(words) == 3 and words[0] in names and words[2].isdigit()
        )
        >= 65535
    )


class Progress:
    """Turns mmdebstrap's lines into a text and a fraction that only grows; says something at least
    every two seconds.
    """

    def __init__(self, report: Report, expected_lines: int, start: float, end: float) -> None:
        self.report, self.expected, self.start, self.end = report, expected_lines, start, end
        self.seen = 0
        self.text = "reading package lists"
        self.last = 0.0

    def line(self, line: str) -> None:
        if line.startswith("I: "):
            self.text = _plain(line)
        elif line.startswith("Get:"):
            self.text = "downloading packages"
        elif line.startswith(("Unpacking", "Preparing", "Selecting")):
            self.text = "unpacking packages"
        elif line.startswith(("Setting up", "Processing")):
            self.text = (
                f"setting up {line.split()[2]}"
                if line.startswith("Setting")
                else "setting up packages"
            )
        if _PACKAGE_LINE.match(line):
            self.seen += 1
        if time.monotonic() - self.last > 0.5:
            self.last = time.monotonic()
            self.report(
                self.text,
                self.start + (self.end - self.start) * min(1.0, self.seen / self.expected),
            )


def _plain(line: str) -> str:
    known = {
        "update": "reading package lists",
        "download": "downloading packages",
        "install": "installing packages",
    }
    return next((text for word, text in known.items() if word in line), "installing packages")


def cache_folder() -> Path:
    """Where downloaded packages stay between builds: the user's cache, or the system's for root."""
    if as_root():
        return Path("/var/cache/virtuary/packages")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~").expanduser() / ".cache")
    return Path(base) / "virtuary/packages"


def ensure_cache(release: str, arch: str) -> Path | None:
    """The cache of one release, made if need be; None when it can't be had: then nothing is
    cached.
    """
    folder = cache_folder() / f"debian-{release}-{arch}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def keep_downloads(cache: Path | None) -> list[str]:
    """mmdebstrap's words that take packages from the cache first and put new ones there.

    The hooks run as root of the namespace, which is the caller; `$1` is the tree, and the cache
    comes by environment, so no path is ever part of a command's text. Signatures are checked at the
    download; the cache is as safe as the caller's files.
    """
    if cache is None:
        return []
    folder = '"$1/var/cache/apt/archives"'
    save = f'cp -n {folder}/*.deb "$VIRTUARY_CACHE/" 2>/dev/null || true'
    return [
        f'--setup-hook=mkdir -p {folder} && cp -f "$VIRTUARY_CACHE"/*.deb {folder}/ 2>/dev/null '
        "|| true",
        "--skip=essential/unlink,download/empty",
        f"--extract-hook={save}",
        f"--essential-hook={save}",
        f"--customize-hook={save}",
    ]


async def bootstrap(
    scratch: Path,
    release: str,
    arch: str,
    words: Sequence[str],
    report: Report,
    lines: int,
    span: tuple[float, float],
) -> Path:
    """Make `scratch/tree` by mmdebstrap with `words` (relative paths in them start at `scratch`);
    returns it.

    `lines` is how many lines about packages are to be expected, `span` the fractions of the whole
    between which this is.
    """
    tree = scratch / "tree"
    cache = ensure_cache(release, arch)
    env = {"TMPDIR": str(scratch), "VIRTUARY_CACHE": str(cache or "")}
    entries = build_sources.host_entries(release)
    keyring = build_sources.keyring_of(entries)
    progress = Progress(report, lines, *span)
    command = [
        *namespace(),
        "mmdebstrap",
        "--verbose",
        "--mode=root",
        "--format=directory",
        f"--architectures={arch}",
    ]
    command += [*keep_downloads(cache), *words]
    if keyring:
        command.append(f"--keyring={keyring}")
    command += [build_sources.CODENAMES[release], str(tree)]
    command += [build_sources.one_line(entry, keyring) for entry in entries]
    problems: list[str] = []
    try:
        async for line in proc.lines_of(*command, deadline=DEADLINE, env=env, cwd=scratch):
            progress.line(line)
            if line.startswith("E: "):
                problems.append(line[3:])
    except Failed as failure:
        raise explain(problems, failure) from failure
    return tree


def explain(problems: Sequence[str], failure: Failed) -> Failed:
    """The failure of mmdebstrap as a sentence: apt's own first complaint says most."""
    for problem in problems:
        if "Unable to locate package" in problem:
            return Failed(
                f"the archive has no package {problem.split()[-1]}",
                "check the names given as packages",
            )
        if "resolve" in problem or "connect" in problem.lower():
            return Failed(
                f"the package archive can't be reached: {problem[:300]}",
                "check the network and the host's apt sources",
            )
    return Failed(f"the packages can't be installed: {problems[0][:300]}") if problems else failure


MKE2FS_CONFIG = """[defaults]
base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
default_mntopts = acl,user_xattr
blocksize = 4096
inode_size = 256
inode_ratio = 16384
[fs_types]
ext4 = {
features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
}
"""  # what every kernel and every GRUB in question reads; a newer host's defaults are not


async def fill_filesystem(
    tree: Path,
    image: Path,
    size: int,
    offset: int = 0,
    label: str = "root",
    uuid: str | None = None,
) -> None:
    """Write an ext4 file system with the content of `tree` at `offset` of the file `image`, owners
    as inside the namespace.
    """
    config = image.with_name("mke2fs.conf")
    config.write_text(MKE2FS_CONFIG, encoding="ascii")
    options = f"offset={offset},lazy_itable_init=1,lazy_journal_init=1,nodiscard"
    words = (
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-L",
        label,
        "-U",
        uuid or "random",
        "-m",
        "1",
        "-E",
        options,
        "-d",
        str(tree),
    )
    await in_jail(
        (*words, str(image), f"{size // 1024}k"),
        BOUNDS, readable=[tree, config], writable=[image],
        environment={"MKE2FS_CONFIG": str(config)},
    )  # fmt: skip


async def in_jail(
    argv: Sequence[str],
    bounds: Bounds,
    *,
    readable: Sequence[Path],
    writable: Sequence[Path],
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a tool that reads or makes a file system: root of namespaces of its own, with a right to
    read and no other.
    """
    words = inner(argv, bounds, readable=readable, writable=writable, environment=environment)
    await proc.run(*namespace("--net", "--ipc", "--uts"), *words, deadline=300)


async def remove_tree(scratch: Path) -> None:
    """Remove `scratch` with everything below it, files of subordinate ids too; repeatable."""
    with suppress(OSError):
        shutil.rmtree(scratch)
    if scratch.exists():
        await proc.run(
            *namespace(),
            "rm",
            "-rf",
            "--one-file-system",
            "--",
            str(scratch),
            deadline=120,
            check=False,
        )
    if scratch.exists():
        raise Failed(f"the scratch folder {scratch} can't be removed", "remove it by hand")


def require(missing: Sequence[str]) -> None:
    """Raise HostLacks when something is missing, with one command that mends it where there is
    one.
    """
    if not missing:
        return
    packages = sorted(
        {
            proc.PACKAGES.get(
                name, {"newgidmap": "uidmap", "unshare": "util-linux"}.get(name, name)
            )
            for name in missing
            if name[0] != "/"
        }
    )
    hint = (
        f"apt install {' '.join(packages)}"
        if packages
        else "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER, as root"
    )
    raise HostLacks(
        f"building an image needs what this host lacks: {', '.join(missing)}",
        hint,
        missing=list(missing),
    )
