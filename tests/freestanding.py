"""How the programs that are put into guests are built: no library, and no more than they need."""

BUILD = (
    "gcc", "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none", "-Wall", "-Wno-error", "-Wl,--build-id=none,-z,noseparate-code,-n",
    "-s",
)  # fmt: skip
