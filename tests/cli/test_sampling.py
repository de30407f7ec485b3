"""What /proc and sysstat say, recorded on a real machine, becomes measurements; what nobody would
say is refused.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.cli.sampling import (
    MAX_SAMPLE,
    Row,
    disks,
    history_rows,
    memory,
    network,
    processors,
    rows,
    script,
)

STAT = """cpu  2110179 26714 566436 2605719 65790 0 9508 26965 2 0
cpu0 1013006 12188 264479 1379168 20371 0 1109 13435 2 0
cpu1 1097173 14525 301957 1226550 45418 0 8398 13530 0 0"""
MEMORY = """MemTotal:       24684084 kB
MemFree:        21651108 kB
MemAvailable:   22821672 kB
Buffers:           16860 kB
Cached:          1155700 kB"""
DISKS = """   7       0 loop0 11 0 99 0 0 0 0 0 0 0 0 0 0 0 0 0 0
 254       0 vda 3337832 294805 170176530 9672340 3009085 928041 456013504 4838894 0 1219600 14809080 1489045 60 371266632 251279
 254       1 vda1 3337000 294805 170176000 9672340 3009085 928041 456013504 4838894 0 1219600 14809080
 259       0 nvme0n1 100 0 2000 4 50 0 1000 6 0 8 10
 259       1 nvme0n1p1 100 0 2000 4 50 0 1000 6 0 8 10
 252       0 dm-0 100 0 2000 4 50 0 1000 6 0 8 10
 253       0 zram0 5 0 5 0 5 0 5 0 0 0 0 0 0 0 0 0 0"""
NETWORK = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 3120293291  215073    0    0    0     0          0         0 3120293291  215073    0    0    0     0       0          0
  ifb0:       1       0    0    0    0     0          0         0        1       0    0    0    0     0       0          0
  eth0: 4258322024  101930    0    0    0     0          0         0  5185053   57793    0    0    0     0       0          0
docker0:      5       0    0    0    0     0          0         0        5       0    0    0    0     0       0          0
eth0.7:       5       0    0    0    0     0          0         0        5       0    0    0    0     0       0          0
enp3s0:1000 1 0 0 0 0 0 0 24 1 0 0 0 0 0 0"""

RECORD = """{"timestamp": {"date": "2026-11-23", "time": "22:42:25", "utc": 1, "interval": 1},
"cpu-load": [{"cpu": "all", "user": 40.50, "nice": 0.00, "system": 18.00, "iowait": 1.00, "steal": 0.50, "idle": 40.00}],
"io": {"tps": 14.00, "io-reads": {"rtps": 3.00, "bread": 392.00}, "io-writes": {"wtps": 11.00, "bwrtn": 808.00}},
"memory": {"memfree": 21650580, "avail": 22821012, "memused": 1460908, "memused-percent": 5.92, "buffers": 16856, "cached": 1155572},
"network": {"net-dev": [
 {"iface": "lo", "rxpck": 0.00, "txpck": 0.00, "rxkB": 7.00, "txkB": 7.00, "ifutil-percent": 0.00},
 {"iface": "eth0", "rxpck": 0.00, "txpck": 0.00, "rxkB": 2.50, "txkB": 0.50, "ifutil-percent": 0.00}]}}"""
SADF = (
    '{"sysstat": {"hosts": [{"nodename": "vm", "sysname": "Linux", "machine": "x86_64", '
    '"number-of-cpus": 2, "file-date": "2026-11-23",'
    f' "timezone": "UTC", "statistics": [{RECORD}], "restarts": []}}]}}}}'
)


def sample(
    moment: int, uptime: float, stat: str = STAT, disk: str = DISKS, net: str = NETWORK
) -> list[str]:
    text = (
        f"@sample {moment}\n{uptime} "
        f"26057.19\n@stat\n{stat}\n@memory\n{MEMORY}\n@disks\n{disk}\n@network\n{net}\n@end"
    )
    return text.split("\n")


def test_processor_time_counts_steal_and_neither_idling_nor_waiting() -> None:
    assert processors(STAT.split("\n")) == (2110179 + 26714 + 566436 + 9508 + 26965, 5411311, 2)


def test_memory_that_is_not_available_counts() -> None:
    assert memory(MEMORY.split("\n")) == (24684084 - 22821672) * 1024
    old = [line for line in MEMORY.split("\n") if "Available" not in line]
    assert memory(old) == (24684084 - 21651108 - 16860 - 1155700) * 1024


def test_whole_disks_count_and_nothing_inside_them() -> None:
    assert disks(DISKS.split("\n")) == (
        (170176530 + 456013504 + 3000) * 512,
        3337832 + 3009085 + 150,
    )


def test_interfaces_that_lead_outside_count() -> None:
    assert network(NETWORK.split("\n")) == 4258322024 + 5185053 + 1024


def test_two_samples_make_a_row() -> None:
    later = STAT.replace("cpu  2110179 26714 566436 2605719", "cpu  2110279 26714 566436 2606019")
    moved = DISKS.replace("nvme0n1 100 0 2000 4 50 0 1000", "nvme0n1 110 0 4000 4 50 0 1000")
    sent = NETWORK.replace("enp3s0:1000", "enp3s0:6000")
    (row,) = rows([*sample(1000, 50.0), *sample(1010, 60.0, later, moved, sent)])
    assert row == Row(
        1010, 2 * 100 / 400, (24684084 - 22821672) * 1024, 2000 * 512 / 10, 1.0, 500.0
    )
    assert row.cells("web1") == [
        "web1",
        "1970-01-01T00:16:50Z",
        "0.500",
        "1907109888",
        "102400",
        "1.0",
        "500",
    ]


def test_a_restart_between_two_samples_makes_no_negative_rate() -> None:
    first, second = (list(rows([*sample(1, 90.0), *sample(2, up)])) for up in (100.0, 5.0))
    assert first[0].cpu == 0 and second[0].network == 0


def test_the_history_of_sysstat_becomes_rows() -> None:
    (row,) = history_rows(SADF, 24684084 * 1024)
    assert row.moment == 1795473745 and row.cpu == pytest.approx(1.18)
    assert row.memory == (24684084 - 22821012) * 1024
    assert (row.disk, row.iops, row.network) == (1200 * 512, 14, 3072)
    (older,) = history_rows(SADF.replace('"avail": 22821012, ', ""), 0)
    assert older.memory == 1460908 * 1024
    text = ["@history", "MemTotal:       24684084 kB", "@sadf", *SADF.split("\n"), "@end"]
    assert list(rows(text)) == [row] and list(rows(text * 2)) == [row, row]


def test_records_without_processors_are_left_out() -> None:
    assert list(history_rows(SADF.replace('"cpu": "all"', '"cpu": "0"'), 1)) == []


HOSTILE: dict[str, list[str]] = {
    "no number": [*sample(1, 1.0), "@sample soon", "@end"],
    "a part is missing": ["@sample 5", "1.0 2.0", "@stat", STAT.split("\n")[0], "@end"],
    "an end without a beginning": ["@end"],
    "words for processors": sample(1, 1.0, stat="cpu a b c d e f g h"),
    "no processors": sample(1, 1.0, stat=""),
    "a sample without an end": ["@sample 5", *["x" * 1000] * (MAX_SAMPLE // 1000 + 1)],
    "half a history": ["@history", "@sadf", '{"sysstat": {', "@end"],
    "another history": [
        "@history",
        "@sadf",
        '{"sysstat": {"hosts": [{"statistics": [{}]}]}}',
        "@end",
    ],
    "a list for a history": ["@history", "@sadf", "[]", "@end"],
    "local times": ["@history", "@sadf", *SADF.replace('"utc": 1', '"utc": 0').split("\n"), "@end"],
    "a deep history": ["@history", "@sadf", "[" * 100_000, "@end"],
    "not a number": [
        "@history",
        "@sadf",
        *SADF.replace('"rxkB": 2.50', '"rxkB": NaN').split("\n"),
        "@end",
    ],
    "less than nothing": [
        "@history",
        "@sadf",
        *SADF.replace('"bread": 392.00', '"bread": -392e9').split("\n"),
        "@end",
    ],
    "no time": ["@history", "@sadf", *SADF.replace("22:42:25", "late").split("\n"), "@end"],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_machine_would_say_is_refused(case: str) -> None:
    with pytest.raises(ValueError):
        list(rows(HOSTILE[case]))


@given(
    st.lists(
        st.one_of(
            st.sampled_from([*sample(7, 3.0), "@sadf", "@history", "@end", RECORD]),
            st.text(max_size=20),
        ),
        max_size=30,
    )
)
def test_no_answer_meets_a_defect(lines: list[str]) -> None:
    try:
        for row in rows(lines):
            assert row.cpu >= 0 and row.network >= 0
    except ValueError:
        pass


@given(
    st.recursive(
        st.none() | st.floats() | st.text(max_size=4),
        lambda inner: st.dictionaries(st.sampled_from(["cpu", "idle"]), inner),
    )
)
@pytest.mark.slow
def test_no_history_meets_a_defect(value: Any) -> None:
    for key in ("timestamp", "cpu-load", "io", "memory", "network"):
        record = json.loads(RECORD)
        record[key] = value
        with contextlib.suppress(ValueError):
            list(
                history_rows(
                    json.dumps(
                        {"sysstat": {"hosts": [{"number-of-cpus": 2, "statistics": [record]}]}}
                    ),
                    1,
                )
            )


def test_the_script_holds_numbers_only() -> None:
    text = script(True, 3600, 10)
    assert (
        "-le 360 ]" in text
        and "sleep 10" in text
        and "[ 1 = 1 ]" in text
        and "{" not in text.replace("'{", "")
    )
    assert "[ 0 = 1 ]" in script(False, 1, 1)
