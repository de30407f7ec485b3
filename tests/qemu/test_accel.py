"""An accelerator is proven by a guest that runs, and judged by a table."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from virtuary.base.errors import HostLacks
from virtuary.qemu.accel import (
    PASSED,
    STAGES,
    Verdict,
    choose,
    device_fault,
    image,
    judge,
    prove,
    run_probe,
)
from virtuary.qemu.platforms.table import USUAL
from virtuary.qemu.probe import find_binary

ENDS = {
    "all stages": (PASSED, STAGES, "", True, "a test guest passed all 9 stages"),
    "noise between the stages": (
        PASSED,
        "R?P\nLIAUFCS",
        "",
        True,
        "a test guest passed all 9 stages",
    ),
    "nothing at all": (None, "", "", False, "a test guest hung before its first instruction"),
    "hung in paging": (None, "RP", "", False, "a test guest hung at long mode with paging"),
    "hung at the end": (None, STAGES, "", False, "a test guest hung"),
    "exception": (
        33,
        "RPLIAU!",
        "",
        False,
        "a test guest met an unexpected CPU exception at a page fault",
    ),
    "triple fault": (
        0,
        "RPL",
        "",
        False,
        "a test guest reset itself (triple fault) at a timer interrupt",
    ),
    "killed": (
        -11,
        "RPLI",
        "",
        False,
        "a test guest made QEMU die of SIGSEGV at an APIC timer interrupt",
    ),
    "bad start": (
        1,
        "",
        "no such CPU",
        False,
        "a test guest could not be started (no such CPU) before its first instruction",
    ),
    "bad start without words": (
        1,
        "",
        "",
        False,
        "a test guest could not be started (exit status 1) before its first instruction",
    ),
    "right end, stage missing": (
        PASSED,
        "RPLIAUFC",
        "",
        False,
        "a test guest could not be started (exit status 85) at SSE2",
    ),
    "stages out of order": (
        PASSED,
        "PRLIAUFCS",
        "",
        False,
        "a test guest could not be started (exit status 85) before its first instruction",
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_end_of_the_probe_is_judged_by_the_table(case: str) -> None:
    status, said, words, works, reason = ENDS[case]
    verdict = judge("kvm", "host", status, said, words, 0.1)
    assert (verdict.works, verdict.reason) == (works, reason)


GOOD, BAD = Verdict(True, "kvm", "host", "proven"), Verdict(False, "kvm", "host", "it hung")


@pytest.mark.parametrize(
    ("wanted", "kvm", "accel"),
    [
        ("auto", GOOD, "kvm"),
        ("kvm", GOOD, "kvm"),
        ("tcg", GOOD, "tcg"),
        ("auto", BAD, "tcg"),
        ("tcg", BAD, "tcg"),
    ],
)
def test_the_accelerator_is_chosen_by_wish_and_verdict(
    wanted: str, kvm: Verdict, accel: str
) -> None:
    choice = choose(wanted, kvm)
    assert choice.accel == accel
    assert accel == "kvm" or "not isolated by hardware" in choice.why


def test_insisting_on_a_kvm_that_does_not_work_is_refused_with_the_reason() -> None:
    with pytest.raises(HostLacks, match="it hung") as caught:
        choose("kvm", BAD)
    assert caught.value.hint == "leave out --accel kvm to run emulated"


def test_a_missing_device_is_told_in_words(tmp_path: Path) -> None:
    assert "does not exist" in (device_fault(tmp_path / "kvm") or "")
    (tmp_path / "kvm").touch()
    assert device_fault(tmp_path / "kvm") is None


def test_the_probe_starts_at_the_reset_vector() -> None:
    rom = image()
    assert len(rom) == 0x10000
    target = (0xFFF0 + 3 + int.from_bytes(rom[0xFFF1:0xFFF3], "little")) & 0xFFFF
    assert rom[0xFFF0] == 0xE9 and target == 0, "a near jump to the first byte"


@pytest.mark.skipif(
    not (shutil.which("as") and shutil.which("objcopy")), reason="needs as and objcopy"
)
def test_the_probe_is_what_its_source_says(tmp_path: Path) -> None:
    source = tmp_path / "probe.S"
    source.write_bytes((files("virtuary.qemu") / "accel_probe.S").read_bytes())
    subprocess.run(["as", "-o", tmp_path / "probe.o", source], check=True)
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", tmp_path / "probe.o", tmp_path / "probe"],
        check=True,
    )
    code = (files("virtuary.qemu") / "accel_probe.bin").read_bytes()
    assembled = (tmp_path / "probe").read_bytes()
    assert assembled[: len(code)] == code and set(assembled[len(code) : 0xFFF0]) <= {0xF4, 0x00}
    assert assembled[0xFFF0:0xFFF3] == image()[0xFFF0:0xFFF3]


@pytest.fixture(scope="module")
def program() -> Path:
    found = shutil.which("qemu-system-x86_64")
    assert found
    return Path(found)


@pytest.mark.qemu
async def test_emulation_passes_all_stages(program: Path) -> None:
    verdict = await run_probe(program, USUAL, "tcg", "max", limit=20)
    assert (verdict.works, verdict.stages) == (True, STAGES), verdict.reason


@pytest.mark.qemu
async def test_a_probe_that_is_cut_off_proves_nothing(program: Path) -> None:
    verdict = await run_probe(program, USUAL, "tcg", "max", limit=0.01)
    assert not verdict.works and "hung" in verdict.reason and verdict.seconds < 2


@pytest.mark.qemu
async def test_a_probe_qemu_refuses_is_told_in_its_words(program: Path) -> None:
    verdict = await run_probe(program, USUAL, "tcg", "no-such-cpu")
    assert not verdict.works and "no-such-cpu" in verdict.reason


@pytest.mark.qemu
async def test_a_verdict_is_remembered_until_something_changes(
    program: Path, tmp_path: Path
) -> None:
    first = await prove(program, USUAL, "tcg", "max", tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "reason": "remembered"}))
    assert (await prove(program, USUAL, "tcg", "max", tmp_path)).reason == "remembered"
    assert not (await prove(program, USUAL, "tcg", "no-such-cpu", tmp_path)).works
    kept.write_text("broken")
    assert (await prove(program, USUAL, "tcg", "max", tmp_path)).works == first.works, (
        "a broken note is asked again"
    )


@pytest.mark.qemu
async def test_the_binary_is_asked_once_what_it_can_do(tmp_path: Path) -> None:
    binary = await find_binary(USUAL, tmp_path)
    assert binary.machine.startswith("pc-q35-") and binary.version.count(".") == 2
    (kept,) = tmp_path.iterdir()
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "version": "99.0.0"}))
    assert (await find_binary(USUAL, tmp_path)).version == "99.0.0"
