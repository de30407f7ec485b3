"""A guest that booted is told who it is, through its agent. A guest that does not take its name
goes on as who it is.
"""

from __future__ import annotations

import logging

from virtuary.base.crash import crashpoint, declare
from virtuary.base.log import say
from virtuary.guest import identity
from virtuary.model.status import Refusal
from virtuary.node.identity.plan import GiveIdentity
from virtuary.node.machine.keys import keys_of
from virtuary.node.server.notes import note_on, printable
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.step import capability, does_with
from virtuary.node.server.world import World

logger = logging.getLogger("virtuary.identity")
declare("identity.before", "identity.after")


async def give_identity(server: Server, process: Process, world: World, step: GiveIdentity) -> None:
    """Make the guest a machine of its own: hostname, hosts, keys; one round trip through the
    agent.
    """
    await note_on(server, world, "giving the guest its identity", stage="agent")
    text = identity.script(identity.Identity(world.vm.name, keys_of(server.site, world.vm)))
    crashpoint("identity.before")
    outcome = await process.agent.execute(["/bin/sh"], stdin=text, deadline=60)
    if outcome.status != 0:
        return await _refused(server, process, world, printable(outcome.stderr))
    crashpoint("identity.after")
    await server.write(identity={"given": world.vm.name, "refused": None})


async def _refused(server: Server, process: Process, world: World, why: str) -> None:
    """It goes on as who it is: whoever waits is told, and the guest is asked again after a while,
    or at its next start.
    """
    say(logger, "identity refused", logging.WARNING, vm=world.vm.name, why=why)
    await note_on(server, world, f"the guest did not take its name and keys: {why}")
    process.refuse("identity", world.vm.name, server.site.clock.now())
    await server.write(identity={"refused": Refusal(name=world.vm.name, why=why)})


CAPABILITY = capability(
    does_with(GiveIdentity, give_identity),
)
