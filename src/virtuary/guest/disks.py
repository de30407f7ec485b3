"""What a guest makes of a disk of its own."""

from __future__ import annotations

from virtuary.guest.agent import Agent

# Of a block device with this serial: what of it is mounted, swapped to, part of something else,
# behind a loop device, or open in a program. SERIAL stands for what no quote is in (model/disk.py).
_SCRIPT = rb"""
for d in /sys/block/*; do
  s=
  [ -r "$d/serial" ] && s=$(cat "$d/serial")
  [ "$s" = "SERIAL" ] || continue
  for p in "$d" "$d"/"${d##*/}"*; do
    [ -d "$p" ] || continue
    n=/dev/${p##*/}
    while read -r from at rest; do [ "$from" = "$n" ] && echo "mounted on $at"; done </proc/mounts
    while read -r from rest; do [ "$from" = "$n" ] && echo "used as swap"; done </proc/swaps
    for h in "$p"/holders/*; do [ -e "$h" ] && echo "part of ${h##*/}"; done
    for l in /sys/block/*/loop/backing_file; do
      [ -r "$l" ] && [ "$(cat "$l")" = "$n" ] && l=${l#/sys/block/} && echo "behind ${l%%/*}"
    done
    ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q -e "-> $n\$" && echo "open in a program"
  done
done
exit 0
"""


async def uses_of(agent: Agent, serial: str) -> list[str]:
    """For what a guest uses the disk with this serial; empty where it does not. Raises GuestSilent
    where the guest does not answer, and Failed where it has no shell.
    """
    outcome = await agent.execute(
        ["/bin/sh"], stdin=_SCRIPT.replace(b"SERIAL", serial.encode()), deadline=5, poll=0.05
    )
    text = outcome.stdout.decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()][:8]
