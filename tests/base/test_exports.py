"""What sysstat and RVTools write is read as it is."""

from __future__ import annotations

import io

import pytest

from virtuary.base.errors import Invalid
from virtuary.base.loads import HOURS, Load
from virtuary.base.measurements import Measurements

CPU = """# hostname;interval;timestamp;CPU;%user;%nice;%system;%iowait;%steal;%idle
db1;600;2026-11-23 09:00:01 UTC;-1;12.50;0.00;3.20;0.10;0.00;84.20
db1;600;2026-11-23 10:00:01 UTC;-1;49.90;0.00;0.00;0.10;0.00;50.00
"""
REST = """# hostname;interval;timestamp;kbmemfree;kbavail;kbmemused;%memused;kbbuffers;kbcached
db1;600;2026-11-23 09:00:01 UTC;1;2;1048576;3;4;5
# hostname;interval;timestamp;tps;rtps;wtps;dtps;bread/s;bwrtn/s;bdscd/s
db1;600;2026-11-23 09:00:01 UTC;30;10;20;0;2048;2048;0
# hostname;interval;timestamp;IFACE;rxpck/s;txpck/s;rxkB/s;txkB/s;rxcmp/s;txcmp/s;rxmcst/s;%ifutil
db1;600;2026-11-23 09:00:01 UTC;lo;1;1;500;500;0;0;0;0
db1;600;2026-11-23 09:00:01 UTC;eth0;1;1;10;20;0;0;0;0
db1;600;2026-11-23 09:00:01 UTC;eth1;1;1;1;1;0;0;0;0
# hostname;interval;timestamp;runq-sz;plist-sz
db1;600;2026-11-23 09:00:01 UTC;1;200
"""
RESTART = "db1;-1;2026-11-23 08:59:00 UTC;LINUX-RESTART\t(8 CPU)\n"
EACH = """# hostname;interval;timestamp;CPU;%user;%nice;%system;%iowait;%steal;%idle
db1;600;2026-11-23 09:00:01 UTC;-1;25.00;0.00;0.00;0.00;0.00;75.00
db1;600;2026-11-23 09:00:01 UTC;0;50.00;0.00;0.00;0.00;0.00;50.00
db1;600;2026-11-23 09:00:01 UTC;1;0.00;0.00;0.00;0.00;0.00;100.00
"""
DISKS = """# hostname;interval;timestamp;DEV;tps;rkB/s;wkB/s;dkB/s;areq-sz;aqu-sz;await;%util
db1;600;1795424401;sda;10;4;4;0;1;1;1;1
db1;600;1795424401;dm-0;10;4;4;0;1;1;1;1
db1;600;1795424401;vda;5;1;1;0;1;1;1;1
"""
VINFO = """VM,Powerstate,Template,CPUs,Memory,Provisioned MiB,Host
web1,poweredOn,False,2,"4,096",40960,esx1
web2,poweredOff,False,2,4096,40960,esx1
golden,poweredOn,True,2,4096,40960,esx1
"""


def read(*contents: str, cpus: dict[str, int] | None = None) -> tuple[list[Load], list[str]]:
    found = Measurements(cpus)
    for number, content in enumerate(contents):
        found.read(f"file{number}", io.BytesIO(content.encode()))
    return found.loads(), found.notes


@pytest.mark.parametrize("told", [{"cpus": {"db1": 8}}, {}])
def test_sysstat_tells_shares_which_become_cpus_once_their_number_is_known(
    told: dict[str, dict[str, int]],
) -> None:
    ((load,), _) = read(CPU + REST if told else RESTART + CPU + REST, **told)
    assert load.hours["cpu"][9] == pytest.approx(0.157 * 8) and load.hours["cpu"][
        10
    ] == pytest.approx(0.499 * 8)
    assert load.hours["memory"] == [2.0**30] * HOURS and load.hours["iops"][9] == 30
    assert load.hours["disk"][9] == 4096 * 512 and load.hours["network"][9] == 32 * 1024


def test_cpus_and_memory_of_a_server_may_stand_in_files_of_their_own() -> None:
    ((load,), _) = read(CPU, REST, cpus={"db1": 8})
    assert (
        load.hours["cpu"][10] == pytest.approx(0.499 * 8)
        and load.hours["memory"] == [2.0**30] * HOURS
    )


def test_sysstat_tells_of_each_cpu_and_disk() -> None:
    ((load,), _) = read(EACH)
    assert load.hours == {"cpu": [0.5] * HOURS}
    ((load,), _) = read(DISKS)
    assert load.hours["iops"][9] == 15 and load.hours["disk"][9] == 10 * 1024


def test_what_rvtools_lists_is_what_was_assigned() -> None:
    for text in (VINFO, VINFO.replace('"4,096"', "4096").replace(",", ";"), VINFO.lower()):
        ((load,), notes) = read(text)
        assert load == Load("web1", {"cpu": [2.0] * HOURS, "memory": [4.0 * 2**30] * HOURS}, 0)
        assert any("assigned" in note for note in notes) and any(
            "2 machines that are off" in note for note in notes
        )


REFUSED = {
    "shares of nobody knows how many": (CPU, "line 2: the share of its CPUs .* not how many"),
    "a line that was cut": (
        CPU + "db1;600;2026-11-23 11:00:01 UTC;-1;12\n",
        "line 4: 5 fields, expected 10",
    ),
    "no number": (RESTART + CPU.replace("84.20", "most"), "line 3: %idle is 'most'"),
    "no time": (RESTART + CPU.replace("2026-11-23 09:00:01 UTC", "nine"), "timestamp is 'nine'"),
    "the same twice": (RESTART + CPU + CPU, "line 6: db1 was measured at this time before"),
    "RVTools without what it is read for": (
        "VM,Powerstate\na,poweredOn\n",
        "line 1: the column cpus and memory is missing",
    ),
    "RVTools with odd memory": (VINFO.replace('"4,096"', "4.5 GB"), "line 2: Memory is '4.5 GB'"),
    "a machine of RVTools twice": (
        VINFO + "web1,poweredOn,False,2,4096,1,esx1\n",
        "line 5: the load of web1 was given before",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_of_them_is_refused_with_its_place(case: str) -> None:
    content, words = REFUSED[case]
    with pytest.raises(Invalid, match=words):
        read(content)
