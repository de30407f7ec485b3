"""Making warm templates: one task a template. The only writer of a template's status.

A template is made in a folder `.making-ID` and renamed into place when it is whole; then it never
changes. What a crash left behind is ended, removed and made again. A failed or cancelled making
leaves nothing but the reason.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, GuestSilent, VirtuaryError
from virtuary.base.files import sync_dir, sync_file, write_whole
from virtuary.base.log import say
from virtuary.base.paths import VmPaths
from virtuary.base.proc import run as run_program
from virtuary.guest import identity
from virtuary.guest.agent import Agent
from virtuary.guest.hostkeys import ask, known_hosts
from virtuary.guest.wake import open_port
from virtuary.model.image import Image
from virtuary.model.meta import utcnow
from virtuary.model.runtime import Runtime
from virtuary.model.template import Template
from virtuary.model.vm import Vm
from virtuary.network import passt
from virtuary.node import operations
from virtuary.node.loop import FOR_EVER, Loop
from virtuary.node.machine.keys import public_key
from virtuary.node.machine.launch import GROUP, QMP_READY, Served, clean_up, launch
from virtuary.node.machine.resolve import free_uid, ssh_forward
from virtuary.node.machine.run import Run, has_opened, open_run
from virtuary.node.making.tasks import Unwanted, carry_out
from virtuary.node.server.notes import printable
from virtuary.node.site import Site
from virtuary.node.warm import derive
from virtuary.node.warm.budget import keep_budget, standing_on
from virtuary.qemu import rtc
from virtuary.qemu import warm as engine
from virtuary.qemu.describe import describe
from virtuary.qemu.machine import Machine
from virtuary.qemu.platforms.table import PLATFORMS
from virtuary.qemu.process import read_errors
from virtuary.storage import directory, sparse
from virtuary.store import documents

logger = logging.getLogger("virtuary.templates")
AGAIN = 5.0
"""Seconds until a step that failed is tried again."""
SEALED = ("ram", "state", "disk.qcow2")
declare(
    "template.before_make", "template.after_boot", "template.before_save", "template.after_save",
    "template.before_rename",
    "template.after_rename", "template.after_record", "template.after_remove",
)  # fmt: skip


class TemplateWorker(Loop[Template]):
    def __init__(self, site: Site, template_id: str) -> None:
        super().__init__(site, Template, template_id)

    async def step(self, document: Template) -> float:
        if document.meta.purge:
            return 0 if await self._forget(document) else FOR_EVER
        if document.status.state not in ("absent", "making"):
            return FOR_EVER
        await self._make(document)
        return 0

    async def failed(self, document: Template, error: VirtuaryError | OSError) -> float:
        say(logger, "template step failed", logging.WARNING, template=document.name, error=error)
        return AGAIN

    def _operation(self) -> str | None:
        active = operations.open_operations(self.site.store, self.key)
        return active[0].key if active else None

    async def _make(self, template: Template) -> None:
        """Make it as a task of its own, so that a wish to cancel or to remove it can end it. One at
        a time on a host.
        """
        operation = self._operation()
        try:
            what = f"the template of {template.name}"
            await carry_out(
                what,
                self._make_whole(template, operation),
                self.woken,
                lambda: self._unwanted(operation),
            )
        except Unwanted:
            await self._drop(operation, None)
        except VirtuaryError as error:
            await self._drop(operation, error)

    def _unwanted(self, operation: str | None) -> bool:
        found = operations.load(self.site.store, operation) if operation else None
        template = self.load()
        return bool(found and found.spec.cancel) or template is None or template.meta.purge

    async def _make_whole(self, template: Template, operation: str | None) -> None:
        async with self.site.makings:
            final = self.site.paths.template(template.id)
            began = self.site.clock.now()
            await self.write(state="making", reason=None)
            if not final.exists():
                await self._make_folder(template, final, operation)
            crashpoint("template.after_rename")
            facts = read_manifest(final)
            self.site.verified[template.id] = stamps(final)
            changes = {
                "key": facts["key"],
                "disk_size": facts["disk_size"],
                "size": directory.allocated(final),
            }
            took = round(self.site.clock.now() - began, 1)
            await self.write(ends=operation, **changes, state="ready", made=utcnow(), took=took)
            crashpoint("template.after_record")
            say(logger, "template ready", image=template.spec.image, seconds=took)
        await keep_budget(self.site, keep=template.id)

    async def _make_folder(self, template: Template, final: Path, operation: str | None) -> None:
        folder = final.with_name(f".making-{template.id}")
        runtime = self.site.paths.run / "vms" / template.id
        await clean_up(template.id, runtime, self.site.uids.get(template.id))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(mode=0o700)
            crashpoint("template.before_make")
            image = self._image(template)
            making = Making(
                self.site, template, image, folder, runtime, _reporter(self.site, operation)
            )
            facts = await making.run()
            await asyncio.to_thread(_seal, folder, facts)
            crashpoint("template.before_rename")
            os.replace(folder, final)
            sync_dir(final.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            await clean_up(template.id, runtime, self.site.uids.get(template.id))

    def _image(self, template: Template) -> Image:
        image = documents.get(self.site.store, Image, template.spec.image_id)
        if image is None or image.status.state != "ready" or image.meta.purge:
            raise Failed(f"the image {template.spec.image} is gone")
        return image

    async def _drop(self, operation: str | None, error: VirtuaryError | None) -> None:
        """The making ended badly: the operation tells why, and so does the template, so that it is
        not tried for ever.
        """
        template = self.load()
        if template is None or template.status.state == "ready":
            return
        puts: dict[str, bytes] = {}
        found = operations.load(self.site.store, operation) if operation else None
        if found and not found.ended:
            puts[found.key] = operations.finished(found, error, cancelled=error is None).dump()
        if error is None:
            expect, gone = documents.removed(self.site.store, template)
            await self.site.store.txn(expect, puts, gone)
            return
        say(logger, "no template", logging.WARNING, image=template.spec.image, why=error.sentence)
        failed = template.seen(state="failed", reason=error.sentence)
        puts |= documents.written(self.site.store, failed)
        await self.site.store.txn({self.key: template.meta.revision}, puts)

    async def _forget(self, template: Template) -> bool:
        """Remove its memory at once, its disk when no server stands on it any more; says whether it
        is gone for good.
        """
        folder = self.site.paths.template(template.id)
        for name in ("ram", "state"):
            with contextlib.suppress(FileNotFoundError):
                (folder / name).unlink()  # a copy that runs keeps what it has mapped
        self.site.verified.pop(template.id, None)
        if standing_on(self.site, template.layer):
            if template.status.state != "retired":
                await self.write(state="retired", size=directory.allocated(folder))
            return False
        shutil.rmtree(folder, ignore_errors=True)
        crashpoint("template.after_remove")
        puts = {
            item.key: operations.finished(item).dump()
            for item in operations.open_operations(self.site.store, self.key)
        }
        current = self.load()
        if current:
            expect, gone = documents.removed(self.site.store, current)
            await self.site.store.txn(expect, puts, gone)
        return True


Report = Callable[[str], None]


class Making:
    """One template being made: a guest booted, settled, stripped of what is unique, and saved."""

    def __init__(
        self,
        site: Site,
        template: Template,
        image: Image,
        folder: Path,
        runtime: Path,
        report: Report,
    ) -> None:
        self.site, self.template, self.image = site, template, image
        self.folder, self.runtime, self.report = folder, runtime, report
        self._wake = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        """The facts of the finished template: what its manifest holds."""
        site, template = self.site, self.template
        directory.check_space(
            self.folder, template.spec.memory // 2, "a warm template", self.site.kept
        )
        key = await derive.key_of(site, template, self.image)
        qemu = await site.binary(PLATFORMS[template.spec.arch])
        machine = derive.template_machine(site, template, self.image, self.folder, qemu)
        uid = free_uid(site, template.id)
        base = site.paths.image(self.image.id) / "disk.qcow2"
        size = await directory.ensure_overlay(
            machine.root.file, base, self.image.status.virtual_size, None, self.site.kept
        )
        self._make_files(machine, uid)
        port = passt.free_port()
        launched = await launch(
            site, machine, uid, Served((ssh_forward(port),)), writable=(self.folder / "ram",)
        )
        runtime = Runtime(
            generation=1, restarts=0, boot_id=site.boot, pid=launched.started.identity.pid,
            start=launched.started.identity.start,
            uid=uid, accel=template.spec.accel, level=launched.jail.level, ssh_port=port,
            started=site.clock.wall(),
        )  # fmt: skip
        run = open_run(
            VmPaths(self.folder, self.runtime),
            runtime,
            site,
            self._wake.set,
            launched.started.errors,
        )
        if run is None:
            words = read_errors(launched.started.errors)
            os.close(launched.started.errors)
            raise Failed(f"the template's machine ended at once: {words or 'QEMU said nothing'}")
        try:
            facts = await self._settle(run, port)
            await self._save(run, machine)
        finally:
            run.kill()
            await run.wait_ended(10)
            await run.close()
        (self.folder / "console.log").unlink(missing_ok=True)
        (self.folder / "known_hosts").unlink(missing_ok=True)
        return {
            **facts,
            "key": key,
            "disk_size": size,
            "mac": machine.nics[0].mac,
            "uuid": template.id,
        }

    def _make_files(self, machine: Machine, uid: int) -> None:
        """The files the machine writes by itself, empty and its own."""
        ram, state = machine.memory.file, machine.state
        assert ram and state
        for path, size in ((ram.path, machine.memory.size), (state.file, 0)):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(handle, size)
                if os.getuid() == 0 and path == ram.path:
                    os.fchown(handle, uid, uid)
            finally:
                os.close(handle)
        if flash := machine.firmware:
            write_whole(flash.variables, flash.template.read_bytes())

    async def _settle(self, run: Run, port: int) -> dict[str, Any]:
        """Boot, wait until everything is started, and take away what is unique."""
        self.report("booting the template")
        await self._until(run, lambda: run.monitor is not None, QMP_READY, "its monitor")
        assert run.monitor
        await run.monitor.run("cont")
        run.qemu_status = "running"
        await self._until(
            run,
            lambda: "agent" in run.signals,
            self.site.settings.templates.patience,
            "the guest agent",
        )
        crashpoint("template.after_boot")
        await self._in_guest(
            run,
            identity.script(identity.Identity("template", (public_key(self.site),))),
            120,
            "take a key",
        )
        await self._until(
            run, lambda: "ssh" in run.signals, self.site.settings.templates.patience, "SSH"
        )
        self.report("waiting until the guest has settled")
        await self._in_guest(
            run, identity.settle_script(), self.site.settings.templates.patience, "settle"
        )
        assert run.agent
        await self._log_in(run.agent, port)
        dmi = await run.agent.execute(["cat", "/sys/firmware/dmi/tables/DMI"], deadline=60)
        assert run.monitor
        lag = await rtc.lag(run.monitor)
        self.report("removing what is unique")
        run.wake_port = await open_port(self.runtime / "wake")
        await self._in_guest(run, identity.strip_script(), 120, "give up its identity")
        until = self.site.clock.now() + 20
        # the guest's program is there, to be told by a copy's daemon who it is
        while not await has_opened(run.monitor, "wake"):
            if self.site.clock.now() > until:
                raise GuestSilent("the guest does not wait to be told who a copy of it is")
            await asyncio.sleep(0.05)
        return {
            "addresses": run.addresses,
            "lag": lag,
            "dmi": base64.b64encode(dmi.stdout if dmi.status == 0 else b"").decode(),
        }

    async def _until(self, run: Run, what: Callable[[], bool], limit: float, wanted: str) -> None:
        until = self.site.clock.now() + limit
        while not what():
            if run.ended:
                raise Failed(f"the template's machine ended: {run.words() or 'QEMU said nothing'}")
            if run.qemu_status in ("guest-panicked", "shutdown", "internal-error"):
                raise Failed(f"the template's guest did not stay up: {run.qemu_status}")
            if self.site.clock.now() > until:
                raise GuestSilent(
                    f"the guest never settled: {wanted} did not come within {limit:.0f} s"
                )
            await asyncio.sleep(0.1)

    async def _in_guest(self, run: Run, script: bytes, limit: float, what: str) -> None:
        assert run.agent
        outcome = await run.agent.execute(["/bin/sh"], stdin=script, deadline=limit)
        if outcome.status != 0:
            raise Failed(f"the guest could not {what}: {printable(outcome.stderr)}")

    async def _log_in(self, agent: Agent, port: int) -> None:
        """Log in once as its users will: what that needs is in memory then. It is no condition."""
        options = (
            *("-oBatchMode=yes", "-oConnectTimeout=20", "-oStrictHostKeyChecking=yes"),
            *(f"-oUserKnownHostsFile={self.folder}/known_hosts", "-oHostKeyAlias=template"),
        )
        with contextlib.suppress(VirtuaryError):
            write_whole(self.folder / "known_hosts", known_hosts("template", await ask(agent)))
            await run_program(
                "ssh", "-F", "none", "-i", str(self.site.paths.key), *options, "-p", str(port),
                "root@127.0.0.1", "true", deadline=60
            )  # fmt: skip

    async def _save(self, run: Run, machine: Machine) -> None:
        assert run.monitor
        self.report("saving the template")
        crashpoint("template.before_save")
        await engine.save(run.monitor, engine.state_address(describe(machine)))
        crashpoint("template.after_save")
        with contextlib.suppress(VirtuaryError):
            await run.monitor.run("quit")
        await run.wait_ended(20)


def find_template(site: Site, vm: Vm) -> Template:
    """The warm template a server is a copy of; raises Failed when it is gone."""
    template = documents.get(site.store, Template, vm.status.warm.template)
    if template is None or template.meta.purge or template.status.state != "ready":
        raise Failed("its warm template is gone")
    return template


def _reporter(site: Site, operation: str | None) -> Report:
    """Notes what is being done on the operation, if somebody follows."""
    tasks: set[asyncio.Task[None]] = set()

    def report(text: str) -> None:
        if operation:
            task = asyncio.get_running_loop().create_task(
                operations.note(site.store, operation, text, stage=text)
            )
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    return report


# ---- what lies on disk


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    """Make the files immutable and durable, and their digests known."""
    sparse.punch(folder / "ram")
    facts["sha256"] = {name: sparse.digest(folder / name) for name in SEALED}
    write_whole(folder / "manifest.json", json.dumps(facts, indent=1).encode())
    for path in folder.iterdir():
        os.chmod(path, 0o400)
        if os.getuid() == 0:
            os.chown(path, 0, GROUP if path.name == "ram" else 0)
            os.chmod(path, 0o440 if path.name == "ram" else 0o400)
        sync_file(path)
    sync_dir(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The facts of a finished template; raises Failed when they are gone or torn."""
    try:
        facts: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failed("the warm template's manifest can't be read") from error
    return facts


def stamps(folder: Path) -> tuple[tuple[int, ...], ...]:
    """What changes when anybody touches a template's files."""
    found = [(folder / name).stat() for name in SEALED]
    return tuple(
        (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns) for facts in found
    )


class TemplateDamaged(Failed):
    """A template's files are not what they were when it was made."""


async def verify(site: Site, template: Template) -> dict[str, Any]:
    """The manifest of a template whose files are what they were; raises TemplateDamaged, or Failed
    where they can't be read. Read through once in a daemon's life, and after a touch.
    """
    folder = site.paths.template(template.id)
    facts = read_manifest(folder)
    try:
        seen = stamps(folder)
        if site.verified.get(template.id) != seen:
            digests = await asyncio.to_thread(
                lambda: {name: sparse.digest(folder / name) for name in SEALED}
            )
            if digests != facts["sha256"]:
                raise TemplateDamaged(
                    "the warm template is damaged: its files are not what they were"
                )
            site.verified[template.id] = seen
    except OSError as error:
        raise Failed(f"the warm template can't be read: {error.strerror}") from error
    return facts


# ---- wishes of the host's own
