"""What every row shares: interleaved runs, medians with a bootstrap interval of the ratio, the
machine, results as JSON and Markdown.

A row is a script that fills a `Row` and calls `finish`. Baselines run in the same row, interleaved
A B B A; one that is missing is skipped with its reason. Nothing here asserts a time: a figure is
printed beside its target, for a reader to judge.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    name: str
    title: str
    unit: str = "s"
    samples: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)

    def interleave(self, subjects: dict[str, Callable[[], float]], rounds: int) -> None:
        """Run the subjects `rounds` times each, forwards and backwards in turn. Each returns its
        own measurement.
        """
        for number in range(rounds):
            names = list(subjects) if number % 2 == 0 else list(reversed(subjects))
            for name in names:
                self.samples.setdefault(name, []).append(subjects[name]())
                print(
                    f"\r{self.name}: round {number + 1}/{rounds} {name:20}",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
        print(file=sys.stderr)

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def ratio(self, name: str, base: str) -> tuple[float, float, float]:
        """Ratio of medians with its 95 % bootstrap interval."""
        chosen = random.Random(1)
        ours, theirs = self.samples[name], self.samples[base]
        draws = sorted(
            statistics.median(chosen.choices(ours, k=len(ours)))
            / statistics.median(chosen.choices(theirs, k=len(theirs)))
            for _ in range(2000)
        )
        return self.median(name) / self.median(base), draws[50], draws[1949]

    def markdown(self) -> str:
        lines = [
            f"### {self.name} {self.title}",
            "",
            f"| subject | n | median {self.unit} | 99th % | ratio to raw (95 %) |",
            "|---|---|---|---|---|",
        ]
        for name, values in self.samples.items():
            high = sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]
            ratio = "-"
            if "raw" in self.samples and name != "raw":
                middle, low, top = self.ratio(name, "raw")
                ratio = f"{middle:.2f} ({low:.2f} to {top:.2f})"
            lines.append(
                f"| {name} | {len(values)} | {statistics.median(values):.3f} | {high:.3f} | "
                f"{ratio} |"
            )
        lines += [f"| {name} | - | skipped: {why} | | |" for name, why in self.skipped.items()]
        lines += [
            "",
            *(f"- {key}: {value}" for key, value in self.facts.items()),
            *(f"- target: {text}" for text in self.targets),
            "",
        ]
        return "\n".join(lines)

    def finish(self) -> None:
        """Print the row and keep it with its date."""
        RESULTS.mkdir(exist_ok=True)
        stamp = datetime.date.today().isoformat()
        body = {**self.__dict__, "machine": machine()}
        (RESULTS / f"{stamp}-{self.name}.json").write_text(json.dumps(body, indent=1))
        (RESULTS / f"{stamp}-{self.name}.md").write_text(self.markdown())
        print(self.markdown())


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), ""
    )
    qemu = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    return {
        "cpus": os.cpu_count(),
        "model": model,
        "kernel": os.uname().release,
        "qemu": qemu,
        "load": os.getloadavg()[0],
    }


def pss(pid: int) -> float:
    """Proportional memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
