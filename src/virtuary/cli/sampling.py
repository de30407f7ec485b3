"""What other machines say about themselves becomes measurements. Pure: text of /proc and of sysstat
in, rows out.

What is counted: processor time that was used or wanted (idle and waiting for disks left out, steal
counted); memory that is not available; traffic of whole disks (no partitions, no mapped ones) and
of network interfaces that lead outside (no bridges, taps, tunnels). All of it is hostile until
parsed; anything that can't be understood raises ValueError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

SECTOR = 512
_DISK = re.compile(
    r"(sd[a-z]+|vd[a-z]+|xvd[a-z]+|hd[a-z]+|dasd[a-z]+|nvme\d+n\d+|mmcblk\d+|pmem\d+)$"
)
_INNER = re.compile(
    r"(lo|veth.*|docker.*|br\d*|br-.*|virbr.*|vnet.*|tap.*|tun.*|wg.*|bond.*|team.*|dummy.*|ifb.*|cni.*|cali.*|flannel.*|.*\.\d+|.*@.*)$"
)
MAX_SAMPLE, MAX_HISTORY = 1 << 20, 1 << 28  # characters

SCRIPT = """LC_ALL=C; export LC_ALL
PATH=$PATH:/usr/sbin:/sbin
if [ {history} = 1 ] && command -v sadf >/dev/null 2>&1; then
  found=
  for file in /var/log/sysstat/sa[0-9]* /var/log/sa/sa[0-9]*; do
    case $file in *.gz|*.xz|*.bz2|*.Z|*'*'*) continue ;; esac
    [ -r "$file" ] || continue
    text=$(sadf -j "$file" -- -u -r -b -n DEV 2>/dev/null) || continue
    found=1
    echo "@history"; grep MemTotal /proc/meminfo; echo "@sadf"; printf '%s\\n' "$text"; echo "@end"
  done
  [ -z "$found" ] || exit 0
fi
count=0
while [ $count -le {count} ]; do
  [ $count = 0 ] || sleep {every}
  echo "@sample $(date +%s)"; cat /proc/uptime
  echo "@stat"; grep '^cpu' /proc/stat
  echo "@memory"; grep -E '^(MemTotal|MemAvailable|MemFree|Buffers|Cached):' /proc/meminfo
  echo "@disks"; cat /proc/diskstats
  echo "@network"; cat /proc/net/dev
  echo "@end"
  count=$((count + 1))
done
"""


class Row(NamedTuple):
    """One measurement of one server, as a line of the CSV."""

    moment: int
    cpu: float
    memory: int
    disk: float
    iops: float
    network: float

    def cells(self, server: str) -> list[str]:
        return [
            server, stamp(self.moment), f"{self.cpu:.3f}", str(self.memory), f"{self.disk:.0f}",
            f"{self.iops:.1f}", f"{self.network:.0f}",
        ]  # fmt: skip


COLUMNS = ("server", "timestamp", "cpu", "memory", "disk", "iops", "network")


def stamp(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def script(history: bool, seconds: float, every: float) -> str:
    """What runs on the other machine, read by its `sh` from stdin; numbers are all that is filled
    in.
    """
    step = max(1, round(every))
    return SCRIPT.format(history=int(history), count=max(1, round(seconds / step)), every=step)


@dataclass
class Snapshot:
    """Counters at one moment."""

    moment: int
    uptime: float
    busy: int
    whole: int
    cpus: int
    memory: int
    disk: int
    ios: int
    network: int


@dataclass
class Reader:
    """Takes the script's lines as they come and gives a row for each interval; `rows` is what a
    whole answer says.
    """

    _part: str = ""
    _head: str = ""
    _lines: dict[str, list[str]] = field(default_factory=dict)
    _size: int = 0
    _before: Snapshot | None = None

    def take(self, line: str) -> list[Row]:
        """The rows that this line completes. Raises ValueError for what is no answer of the
        script.
        """
        if line.startswith("@"):
            return self._mark(*line[1:].split(" ", 1))
        self._size += len(line)
        if self._size > (MAX_HISTORY if self._part == "sadf" else MAX_SAMPLE):
            raise ValueError("an answer without an end")
        if self._part:
            self._lines[self._part].append(line)
        return []

    def _mark(self, part: str, rest: str = "") -> list[Row]:
        if part in ("sample", "history"):
            self._lines, self._size, self._head = {}, 0, rest
        if part != "end":
            self._part = part
            self._lines[part] = []
            return []
        self._part = ""
        if "sadf" in self._lines:
            return list(
                history_rows(
                    "\n".join(self._lines["sadf"]),
                    _fields(self._lines.get("history", [])).get("MemTotal", 0),
                )
            )
        now = snapshot(int(self._head), self._lines)
        before, self._before = self._before, now
        return [between(before, now)] if before else []


def rows(lines: Iterable[str]) -> Iterator[Row]:
    """All rows of a whole answer."""
    reader = Reader()
    for line in lines:
        yield from reader.take(line)


# ---- /proc


def snapshot(moment: int, parts: dict[str, list[str]]) -> Snapshot:
    """The counters of one sample; raises ValueError when a part is missing or is not what /proc
    says.
    """
    if not 0 <= moment < 1 << 36:
        raise ValueError("a time that is none")
    try:
        busy, whole, cpus = processors(parts["stat"])
        disk, ios = disks(parts["disks"])
        uptime = float(parts["sample"][0].split()[0])
        return Snapshot(
            moment,
            uptime,
            busy,
            whole,
            cpus,
            memory(parts["memory"]),
            disk,
            ios,
            network(parts["network"]),
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"a part of the sample is missing: {error}") from None


def between(before: Snapshot, now: Snapshot) -> Row:
    """The rates from one sample to the next; a counter that went backwards (a restart, a device
    gone) counts as standing still.
    """
    seconds = max(now.uptime - before.uptime, 0.001)
    whole = max(now.whole - before.whole, 1)
    cpu = now.cpus * min(1.0, max(0, now.busy - before.busy) / whole)
    disk, ios, sent = (max(0, new - old) / seconds for new, old in _counters(before, now))
    return Row(now.moment, cpu, now.memory, disk, ios, sent)


def _counters(before: Snapshot, now: Snapshot) -> tuple[tuple[int, int], ...]:
    return (now.disk, before.disk), (now.ios, before.ios), (now.network, before.network)


def processors(lines: Sequence[str]) -> tuple[int, int, int]:
    """Ticks that were used or wanted, all ticks, and how many processors: from /proc/stat. Guests'
    time is in user's already.
    """
    fields = [int(word) for word in lines[0].split()[1:9]]
    if len(fields) < 4 or not lines[0].startswith("cpu "):
        raise ValueError("not /proc/stat")
    whole = sum(fields)
    idle = fields[3] + (fields[4] if len(fields) > 4 else 0)
    return whole - idle, whole, max(1, len(lines) - 1)


def memory(lines: Sequence[str]) -> int:
    """Bytes that are not available; on kernels before 3.14 those neither free nor cache."""
    fields = _fields(lines)
    free = fields.get(
        "MemAvailable",
        fields.get("MemFree", 0) + fields.get("Buffers", 0) + fields.get("Cached", 0),
    )
    return max(0, fields["MemTotal"] - free)


def _fields(lines: Sequence[str]) -> dict[str, int]:
    """Lines of /proc/meminfo as bytes."""
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        found[name.strip()] = int(rest.split()[0]) * 1024
    return found


def disks(lines: Sequence[str]) -> tuple[int, int]:
    """Bytes read and written, and operations, of all whole disks: from /proc/diskstats."""
    size = count = 0
    for line in lines:
        words = line.split()
        if len(words) >= 10 and _DISK.fullmatch(words[2]):
            count += int(words[3]) + int(words[7])
            size += (int(words[5]) + int(words[9])) * SECTOR
    return size, count


def network(lines: Sequence[str]) -> int:
    """Bytes received and sent on interfaces that lead outside: from /proc/net/dev."""
    size = 0
    for line in lines:
        name, colon, rest = line.partition(":")
        words = rest.split()
        if colon and len(words) >= 9 and not _INNER.fullmatch(name.strip()):
            size += int(words[0]) + int(words[8])
    return size


# ---- sysstat


def history_rows(text: str, total: int) -> Iterator[Row]:
    """The records of `sadf -j`; `total` is the machine's memory in bytes. Raises ValueError for
    anything else.
    """
    try:
        for host in json.loads(text)["sysstat"]["hosts"]:
            for record in host.get("statistics", ()):
                if row := _record(record, int(host["number-of-cpus"]), total):
                    yield row
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"not what sadf -j says: {error!r}"[:200]) from None


def _record(record: dict[str, Any], cpus: int, total: int) -> Row | None:
    """One record; None where the processors were not recorded."""
    everything = next((item for item in record.get("cpu-load", ()) if item["cpu"] == "all"), None)
    if everything is None:
        return None
    idle = _rate(everything["idle"]) + _rate(everything.get("iowait", 0))
    storage, space = record["io"], record["memory"]
    moved = _rate(storage["io-reads"]["bread"]) + _rate(storage["io-writes"]["bwrtn"])
    used = (
        total - int(space["avail"]) * 1024
        if total and "avail" in space
        else int(space["memused"]) * 1024
    )
    faces = [face for face in record["network"]["net-dev"] if not _INNER.fullmatch(face["iface"])]
    sent = sum(_rate(face["rxkB"]) + _rate(face["txkB"]) for face in faces) * 1024
    cpu = max(0.0, cpus * (100 - idle) / 100)
    return Row(
        _moment(record["timestamp"]), cpu, max(0, used), moved * SECTOR, _rate(storage["tps"]), sent
    )


def _rate(given: Any) -> float:
    rate = float(given)
    if not 0 <= rate < 1e15:
        raise ValueError(f"a rate of {rate}")
    return rate


def _moment(when: dict[str, Any]) -> int:
    if not when.get("utc", 0):
        raise ValueError("sadf told local times")
    return int(datetime.fromisoformat(f"{when['date']}T{when['time']}+00:00").timestamp())
