"""What `list` and `show` make of a document."""

from __future__ import annotations

from virtuary.base.units import GIB
from virtuary.cli.look import facts_of, ports_of
from virtuary.model.cpu import Cpu
from virtuary.model.disk import Disk, DiskIo
from virtuary.model.memory import Memory
from virtuary.model.meta import Meta
from virtuary.model.policy import Policy
from virtuary.model.publish import Publish
from virtuary.model.vm import Vm, VmSpec


def test_a_published_port_tells_where_but_for_everywhere() -> None:
    ports = [
        Publish(host=8080, guest=80),
        Publish(host=8081, guest=81, address="0.0.0.0"),
        Publish(host=53, guest=53, address="::", protocol="udp"),
    ]
    vm = {"spec": {"publish": [port.model_dump() for port in ports]}}
    assert ports_of(vm) == "127.0.0.1:8080→80, 8081→81, [::]:53→53/udp"
    assert ports_of({"spec": {"publish": []}}) == ""


def test_a_document_is_told_with_what_it_is_given() -> None:
    vm = Vm(
        meta=Meta(name="web1", labels={"role": "web"}),
        spec=VmSpec(
            image="tiny",
            cpu=Cpu(count=4, limit=150, weight=200, pin=(0, 1), node=1, sockets=2),
            memory=Memory(size=2 * GIB, min=GIB, max=4 * GIB, pages="huge", priority=70),
            disks=(Disk(size=GIB, io=DiskIo(iops=500, weight=300)),),
            policy=Policy(autostart=True, boot_order=3, on_host_shutdown="off", restart="always"),
        ),
    )
    told = dict(facts_of(vm.body()))
    assert told["size"].startswith("4 CPU, 2 GiB memory")
    assert told["policy"] == "autostart, restart always, boot order 3, power off with the host"
    given = " ".join(told.values())
    for words in ("CPU limit 150 %", "memory floor 1 GiB", "memory at most 4 GiB", "huge pages",
                  "iops 500", "disk weight 300", "priority 70"):  # fmt: skip
        assert words in given
