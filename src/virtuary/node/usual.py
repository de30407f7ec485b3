"""How long the stages of a start usually take, learned from the starts of servers of the same
image.
"""

from __future__ import annotations

from collections.abc import Mapping

from virtuary.model.vm import Vm

FIRST = {
    "tcg": {"firmware": 10.0, "kernel": 40.0, "agent": 10.0, "network": 10.0, "ssh": 10.0},
    "kvm": {"firmware": 4.0, "kernel": 12.0, "agent": 4.0, "network": 4.0, "ssh": 4.0},
}
"""Seconds that stages are taken to need where nobody has seen them, by accelerator."""
LEAST = 3.0
"""Seconds below which nothing is usual: hosts are busy now and then."""
WAITED = {"firmware": "kernel", "kernel": "agent", "network": "network", "ssh": "ssh"}
"""The signal that ends a stage."""


class Usual:
    """How long stages took in starts that went well, by image, accelerator and kind of start."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str, bool], dict[str, float]] = {}

    def learn(self, vm: Vm) -> None:
        """Take a start of a server that can be used now."""
        if key := _kind(vm):
            seen = self._seen.setdefault(key, {})
            for stage, seconds in durations(vm.status.stages).items():
                seen[stage] = max(seconds, (seen.get(stage, seconds) + seconds) / 2)

    def of(self, vm: Vm) -> Mapping[str, float]:
        """Seconds by stage."""
        runtime, key = vm.status.runtime, _kind(vm)
        first = FIRST["kvm" if runtime and runtime.accel == "kvm" else "tcg"]
        seen = self._seen.get(key, {}) if key else {}
        return {stage: max(seen.get(stage, seconds), LEAST) for stage, seconds in first.items()}


def _kind(vm: Vm) -> tuple[str, str, bool] | None:
    runtime = vm.status.runtime
    return (vm.spec.image_id, runtime.accel, runtime.template is not None) if runtime else None


def durations(stages: Mapping[str, float]) -> dict[str, float]:
    """How long each stage took, from the times at which what it waits for was heard. Pure."""
    before, found = 0.0, {}
    for stage, signal in WAITED.items():
        if signal in stages:
            found[stage] = max(stages[signal] - before, 0.0)
            before = max(stages[signal], before)
    return found
