"""Figures in the text format Prometheus reads. Pure; a page of our own instead of a dependency, as
nothing but text is needed.

Counters end in `_total`, units are seconds and bytes, and a figure nobody could tell is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from virtuary.model.usage import HostUsage, Overview, Usage

MEDIA = "text/plain; version=0.0.4; charset=utf-8"


class Family(NamedTuple):
    """One metric: its name, kind, help, and its values with their labels."""

    name: str
    kind: str
    help: str
    samples: list[tuple[Mapping[str, str], float | int | None]]


def page(overview: Overview, version: str) -> str:
    """The whole page."""
    families = [
        Family(
            "virtuary_build_info", "gauge", "Version of the daemon.", [({"version": version}, 1)]
        ),
        *host_families(overview.host),
        *vm_families(overview.vms),
    ]
    return "".join(map(_text, families))


def vm_families(vms: Iterable[Usage]) -> list[Family]:
    """Each figure of every server."""
    every = [({"name": vm.name, "id": vm.id}, vm) for vm in vms]

    def family(name: str, kind: str, help: str, values: list[float | int | None]) -> Family:
        return Family(
            f"virtuary_vm_{name}",
            kind,
            help,
            list(zip([labels for labels, _ in every], values, strict=True)),
        )

    def counter(name: str, help: str, values: list[float | int | None]) -> Family:
        return family(f"{name}_total", "counter", help, values)

    def gauge(name: str, help: str, values: list[float | int | None]) -> Family:
        return family(name, "gauge", help, values)

    totals, guests = [vm.totals for _, vm in every], [vm.guest for _, vm in every]
    states = Family(
        "virtuary_vm_info",
        "gauge",
        "State of the server, as a label.",
        [({**labels, "state": vm.state}, 1) for labels, vm in every],
    )
    return [
        states,
        *_nic_families(every),
        gauge("cpus", "Virtual processors.", [vm.cpus for _, vm in every]),
        gauge("memory_bytes", "Memory the server has.", [vm.memory for _, vm in every]),
        gauge("age_seconds", "Time since the server was looked at.", [vm.age for _, vm in every]),
        counter("cpu_seconds", "Processor time of the server's process.",
        [total.cpu_seconds for total in totals]),
        counter("cpu_waiting_seconds", "Time its threads waited for a processor of the host.",
        [total.waited_seconds for total in totals]),
        counter("cpu_throttled_seconds", "Time a limit kept it from running.",
        [total.throttled_seconds for total in totals]),
        gauge("resident_memory_bytes", "Memory of the host that it occupies.", [vm.resident for _,
        vm in every]),
        gauge("guest_memory_bytes", "Memory the guest's system manages.",
        [guest.total if guest else None for guest in guests]),
        gauge("guest_memory_used_bytes", "Memory the guest can't do without.",
        [guest.used if guest else None for guest in guests]),
        gauge("guest_memory_available_bytes", "Memory the guest could give to programs.",
        [guest.available if guest else None for guest in guests]),
        counter("disk_read_bytes", "Bytes the host's storage gave.",
        [total.disk_read for total in totals]),
        counter("disk_written_bytes", "Bytes the host's storage took.",
        [total.disk_written for total in totals]),
        counter("disk_reads", "Read operations of the guest.",
        [total.disk_reads for total in totals]),
        counter("disk_writes", "Write operations of the guest.",
        [total.disk_writes for total in totals]),
        counter("disk_read_seconds", "Time read operations took.",
        [total.disk_read_seconds for total in totals]),
        counter("disk_write_seconds", "Time write operations took.",
        [total.disk_write_seconds for total in totals]),
        counter("network_receive_bytes", "Bytes the guest received.",
        [total.network_received for total in totals]),
        counter("network_transmit_bytes", "Bytes the guest sent.",
        [total.network_sent for total in totals]),
    ]  # fmt: skip


def _nic_families(every: list[tuple[dict[str, str], Usage]]) -> Iterator[Family]:
    nics = [
        ({**labels, "nic": str(nic.number), "network": nic.network}, nic)
        for labels, vm in every
        for nic in vm.nics
    ]
    for what, help in (
        ("limit", "Most that a NIC may"),
        ("floor", "What a NIC is sure that it can"),
    ):
        for word, field in (("receive", "received"), ("transmit", "sent")):
            samples = [(labels, getattr(nic, f"{what}_{field}")) for labels, nic in nics]
            yield Family(
                f"virtuary_vm_network_{word}_{what}_bytes_per_second",
                "gauge",
                f"{help} {word}.",
                list(samples),
            )


def host_families(host: HostUsage) -> list[Family]:
    """The figures of the host."""

    def one(name: str, kind: str, help: str, value: float | int | None) -> Family:
        return Family(f"virtuary_host_{name}", kind, help, [({}, value)])

    totals = host.totals
    modes = {
        "busy": totals.cpu_seconds,
        "steal": totals.steal_seconds,
        "iowait": totals.iowait_seconds,
    }
    waits = Family(
        "virtuary_host_pressure_waiting_seconds_total", "counter",
        "Time in which something waited for the resource.",
        [({"resource": name}, seconds) for name, seconds in totals.pressure_seconds.items()],
    )  # fmt: skip
    return [
        one("cpus", "gauge", "Processors.", host.cpus),
        Family("virtuary_host_cpu_seconds_total", "counter", "Processor time by mode.",
        [({"mode": mode}, value) for mode, value in modes.items()]),
        one("memory_bytes", "gauge", "Memory.", host.memory),
        one("memory_available_bytes", "gauge", "Memory that could be given to programs.",
        host.available),
        one("swap_used_bytes", "gauge", "Swap in use.", host.swap_used),
        one("disk_read_bytes_total", "counter", "Bytes all disks gave.", totals.disk_read),
        one("disk_written_bytes_total", "counter", "Bytes all disks took.", totals.disk_written),
        one("network_receive_bytes_total", "counter", "Bytes received from outside.",
        totals.network_received),
        one("network_transmit_bytes_total", "counter", "Bytes sent to outside.",
        totals.network_sent),
        waits,
        one("sampling_seconds_total", "counter", "Processor time spent on gathering these figures.",
        totals.sampling_seconds),
    ]  # fmt: skip


def _text(family: Family) -> str:
    lines = [
        f"{family.name}{_labels(labels)} {_number(value)}"
        for labels, value in family.samples
        if value is not None
    ]
    if not lines:
        return ""
    return "\n".join(
        [
            f"# HELP {family.name} {_escaped(family.help)}",
            f"# TYPE {family.name} {family.kind}",
            *lines,
            "",
        ]
    )


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return (
        "{"
        + ",".join(f'{name}="{_escaped(value, quoted=True)}"' for name, value in labels.items())
        + "}"
    )


def _escaped(text: str, quoted: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text


def _number(value: float) -> str:
    return (
        repr(value)
        if isinstance(value, int)
        else f"{value:.9g}"
        if abs(value) < 1e6
        else repr(value)
    )
