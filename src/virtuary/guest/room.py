"""What a guest does when its machine becomes larger or smaller while it runs: shell for its agent,
short, safe to repeat.
"""

from __future__ import annotations

READY_FOR_MEMORY = """modprobe virtio_mem 2>/dev/null || true
policy=/sys/module/memory_hotplug/parameters/online_policy
[ ! -w $policy ] || echo auto-movable > $policy
[ ! -e /sys/devices/system/memory/auto_online_blocks ] || echo online > /sys/devices/system/memory/auto_online_blocks
"""
"""Before memory is plugged: it is taken at once, and so that most of it can be given back."""

_GROW = """while read -r _ _ device _ place _; do
    [ "$place" != / ] || root=/sys/dev/block/$device
done < /proc/self/mountinfo
whole=$(readlink -f "$root")
disk=$whole
[ ! -e "$root/partition" ] || disk=${whole%/*}
tries=0
until read -r size < "$disk/size" && [ "$size" -ge {sectors} ]; do
    tries=$((tries + 1))
    [ $tries -lt {tries} ]
    sleep 0.05
done
if [ -e "$root/partition" ]; then
    read -r part < "$root/partition"
    TMPDIR=/run growpart "/dev/${disk##*/}" "$part" || [ $? = 1 ] # it fills the disk already
fi
case $(stat -f -c %T / 2>/dev/null) in
xfs) xfs_growfs / ;;
btrfs) btrfs filesystem resize max / ;;
*) resize2fs "/dev/${whole##*/}" 2>/dev/null ;;
esac
"""

TRIES = 1200
"""Looks at what is to come, 50 ms apart and longer: a guest on a busy host, its processor emulated,
may get little of that time itself.
"""

_USE_CPUS = """number=1
while [ $number -lt {cpus} ]; do
    place=/sys/devices/system/cpu/cpu$number/online
    tries=0
    until [ -e $place ]; do
        tries=$((tries + 1))
        [ $tries -lt {tries} ]
        sleep 0.05
    done
    read -r online < $place
    [ "$online" = 1 ] || echo 1 > $place
    number=$((number + 1))
done
"""


def use_cpus(cpus: int) -> str:
    """Have the guest use so many CPUs, waiting until it has seen them."""
    return _USE_CPUS.format(cpus=int(cpus), tries=TRIES)


def grow(size: int) -> str:
    """Have the root partition and its filesystem fill the disk, once the guest has seen that it is
    of so many bytes.
    """
    return _GROW.replace("{sectors}", str(size // 512)).replace("{tries}", str(TRIES))


def before_memory() -> bytes:
    """The script for a guest that is about to be given memory."""
    return READY_FOR_MEMORY.encode()


def after_cpus(cpus: int) -> bytes:
    """The script for a guest that was given CPUs."""
    return ("set -e\n" + use_cpus(cpus)).encode()


def after_disk(size: int) -> bytes:
    """The script for a guest whose disk has become larger, of so many bytes."""
    return ("set -e\n" + grow(size)).encode()
