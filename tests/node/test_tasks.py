"""Work that takes minutes ends when nobody wants it any more, and tells how it ended."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from virtuary.base.errors import Bug, Failed, NoRoom
from virtuary.node.making.tasks import Unwanted, carry_out
from virtuary.node.server.process import Process
from virtuary.node.warm.derive import make_host_key


class Silent:
    """The live side of a process of which nothing is heard."""

    async def close(self) -> None: ...


class Work:
    def __init__(self, fault: Exception | None = None) -> None:
        self.began, self.go, self.ended = asyncio.Event(), asyncio.Event(), ""
        self.fault = fault

    async def run(self) -> None:
        try:
            self.began.set()
            await self.go.wait()
            if self.fault:
                raise self.fault
            self.ended = "done"
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # it cleans up
            self.ended = "cancelled"
            raise


async def begin(work: Work, woken: asyncio.Event, unwanted: list[bool]) -> asyncio.Task[None]:
    task = asyncio.create_task(carry_out("the thing", work.run(), woken, lambda: bool(unwanted)))
    await work.began.wait()
    return task


async def test_it_is_done_and_looks_do_not_disturb_it() -> None:
    work, woken = Work(), asyncio.Event()
    task = await begin(work, woken, [])
    for _ in range(3):
        woken.set()
        await asyncio.sleep(0)
    work.go.set()
    await task
    assert work.ended == "done"


async def test_unwanted_it_is_ended_when_somebody_says_so() -> None:
    work, woken, unwanted = Work(), asyncio.Event(), list[bool]()
    task = await begin(work, woken, unwanted)
    unwanted.append(True)
    await asyncio.sleep(0.02)
    assert not task.done(), "nobody has said so yet"
    woken.set()
    with pytest.raises(Unwanted):
        await task
    assert work.ended == "cancelled"


async def test_with_its_worker_it_is_ended_first() -> None:
    work = Work()
    task = await begin(work, asyncio.Event(), [])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended == "cancelled", "nothing of it goes on behind the worker's back"


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Failed("it broke"), Failed, "it broke"),
        (OSError(errno.ENOSPC, "No space left on device"), NoRoom, "the disk is full"),
        (KeyError("x"), Bug, "making the thing met a defect: KeyError('x')"),
    ],
)
async def test_what_goes_wrong_is_of_a_kind(
    fault: Exception, kind: type[Exception], words: str
) -> None:
    work = Work(fault)
    task = await begin(work, asyncio.Event(), [])
    work.go.set()
    with pytest.raises(kind, match=words.replace("(", r"\(").replace(")", r"\)")):
        await task


async def test_a_host_key_that_nobody_needs_is_not_written_into_a_folder_that_goes(
    tmp_path: Path,
) -> None:
    for pause in (0, 0.002, 0.005, 0.01):
        folder = tmp_path / f"after-{pause}"
        folder.mkdir()
        making = asyncio.create_task(make_host_key(folder))
        await asyncio.sleep(pause)
        process = Process(Silent(), host_key=making)  # type: ignore[arg-type]
        await process.close()
        assert making.done() and process.host_key is None
        folder.rmdir()
        await asyncio.sleep(0.02)
        assert not folder.exists()
    await Process(Silent()).close()  # type: ignore[arg-type]
