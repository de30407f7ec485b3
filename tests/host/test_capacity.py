"""What the physical machine has, read from folders that look like /sys and /proc, and from the real
ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.host import capacity


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        place = root / name.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


@given(st.lists(st.integers(0, 4095), max_size=30, unique=True))
def test_a_list_of_cpus_is_read_as_the_kernel_writes_it(numbers: list[int]) -> None:
    assert capacity.parse_cpus(",".join(map(str, numbers))) == tuple(numbers)


def test_ranges_are_read() -> None:
    assert capacity.parse_cpus("0-2,5\n") == (0, 1, 2, 5)
    assert capacity.parse_cpus("\n") == ()
    with pytest.raises(ValueError):
        capacity.parse_cpus("many")


def test_threads_of_a_core_are_one_core(tmp_path: Path) -> None:
    for number, core in enumerate("0011"):
        write(
            tmp_path / f"devices/system/cpu/cpu{number}/topology",
            physical_package_id="0",
            core_id=core,
        )
    assert capacity.find_cores(tmp_path) == 2


def test_nodes_and_huge_pages_are_found(tmp_path: Path) -> None:
    nodes = tmp_path / "devices/system/node"
    write(nodes / "node1", cpulist="2-3", meminfo="Node 1 MemTotal:  1024 kB")
    write(nodes / "node0", cpulist="0-1", meminfo="Node 0 MemTotal:  2048 kB")
    found = capacity.find_numa(tmp_path)
    assert [(node.number, node.cpus, node.memory) for node in found] == [
        (0, (0, 1), 2 << 20),
        (1, (2, 3), 1 << 20),
    ]
    pages = tmp_path / "kernel/mm/hugepages"
    write(pages / "hugepages-2048kB", nr_hugepages="8", free_hugepages="3")
    write(pages / "hugepages-1048576kB", nr_hugepages="0", free_hugepages="0")
    write(tmp_path, meminfo="Hugepagesize:       2048 kB")
    (page,) = capacity.find_huge_pages(tmp_path, tmp_path)
    assert (page.size, page.total, page.free, page.default) == (2 << 20, 8, 3, True)
    write(tmp_path, meminfo="Hugepagesize:    1048576 kB")
    assert not capacity.find_huge_pages(tmp_path, tmp_path)[0].default, (
        "servers get those of the kernel's default size"
    )


def test_merging_is_on_or_off(tmp_path: Path) -> None:
    assert not capacity.merges_pages(tmp_path)
    write(tmp_path / "kernel/mm/ksm", run="1\n")
    assert capacity.merges_pages(tmp_path)


def test_links_are_those_with_a_device(tmp_path: Path) -> None:
    (tmp_path / "class/net/lo").mkdir(parents=True)
    (tmp_path / "class/net/eth0/device").mkdir(parents=True)
    (tmp_path / "class/net/eth1/device").mkdir(parents=True)
    write(tmp_path / "class/net/eth0", speed="10000")
    write(tmp_path / "class/net/eth1", speed="-1")
    assert [(link.name, link.speed) for link in capacity.find_links(tmp_path)] == [
        ("eth0", 10**10),
        ("eth1", None),
    ]


def test_pressure_is_that_of_the_last_ten_seconds(tmp_path: Path) -> None:
    write(
        tmp_path / "pressure",
        memory="some avg10=12.50 avg60=1.00 avg300=0.00 total=9\nfull avg10=0.00 total=1\n",
        cpu="nonsense",
    )
    assert capacity.find_pressure(tmp_path) == {"memory": 12.5}


def test_a_kernel_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    assert capacity.find_cores(tmp_path) == 0
    assert (
        capacity.find_numa(tmp_path)
        == capacity.find_huge_pages(tmp_path)
        == capacity.find_links(tmp_path)
        == ()
    )
    assert capacity.find_pressure(tmp_path) == {}


def test_this_machine_has_cores() -> None:
    assert capacity.find_cores() >= 0 and all(node.cpus for node in capacity.find_numa())
