# Read by ./run: what the system must have, and the Python environment. POSIX shell.

say() { printf '%s\n' "virtuary: $*" >&2; }

packages="python3-venv qemu-system-x86 ovmf passt mmdebstrap uidmap mtools dosfstools fdisk e2fsprogs
openssh-client gpgv iproute2 iputils-ping nftables dnsmasq-base debian-archive-keyring ca-certificates"
test_packages="qemu-utils binutils gnupg psmisc busybox iptables"
unpacked_packages="openssh-server libwrap0 prometheus" # tests need their programs, and nobody wants what they would start

# A QEMU of at least 8.2 is there.
qemu_fits() {
    command -v qemu-system-x86_64 >/dev/null 2>&1 || return 1
    version_fits "$(qemu-system-x86_64 --version | sed -n 's/.*version \([0-9]*\.[0-9]*\).*/\1/p')"
}

version_fits() {
    major=${1%%.*} minor=${1#*.} minor=${minor%%.*}
    [ "${major:-0}" -gt 8 ] || { [ "${major:-0}" -eq 8 ] && [ "${minor:-0}" -ge 2 ]; }
}

# The packages that are still missing.
missing_packages() {
    for package in $packages ${1:+$test_packages}; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || printf '%s ' "$package"
    done
}

# Runs a command as root: as it is, or by sudo; returns 1 where neither can be had.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; return; fi
    sudo -n true 2>/dev/null || { [ -t 0 ] && command -v sudo >/dev/null; } || return 1
    sudo "$@"
}

can_be_root() { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null || { [ -t 0 ] && command -v sudo >/dev/null 2>&1 && sudo -v; }; }

# Debian's official backports suite of this release, from the mirror this machine uses already.
backports_line() {
    . /etc/os-release
    uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2>/dev/null |
        awk -v suite="$VERSION_CODENAME" '$2 == suite || $2 == "oldstable" || $2 == "stable" { print $1; exit }')
    [ -n "$uri" ] && printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s-backports main\n' \
        "${uri%/}/" "$VERSION_CODENAME"
}

# Of what the package manager says, the names of what is being set up.
progress() { sed -n 's/^Setting up \([^ :]*\).*/virtuary:   \1/p' >&2; }

prepare_system() {
    command -v apt-get >/dev/null 2>&1 || {
        qemu_fits || say "this system has no apt-get: install QEMU 8.2 or later and passt by its own means"
        return 0
    }
    wanted=$(missing_packages "${1#none}")
    qemu_fits && [ -z "$wanted" ] && return 0
    if ! can_be_root; then
        say "some system packages are missing. An administrator can install them with this one command:"
        say "  sudo $here/run --prepare"
        say "(it installs: $wanted)"
        exit 1
    fi
    say "installing system packages: $wanted"
    as_root apt-get update -qq
    suite=
    candidate=$(apt-cache policy qemu-system-x86 | sed -n 's/.*Candidate: \([0-9]*:\)\{0,1\}\([0-9]*\.[0-9]*\).*/\2/p')
    if ! qemu_fits && ! version_fits "$candidate"; then
        . /etc/os-release
        suite=$VERSION_CODENAME-backports
        if ! apt-cache policy qemu-system-x86 | grep -q -- "$suite"; then
            line=$(backports_line) || { say "QEMU $candidate is too old and no backports suite is known here"; exit 1; }
            say "QEMU $candidate is too old (8.2 is needed): enabling the official suite $suite"
            printf '# made by Virtuary, for QEMU 8.2 or later\n%s\n' "$line" |
                as_root tee /etc/apt/sources.list.d/virtuary-backports.list >/dev/null
            as_root apt-get update -qq
        fi
    fi
    # shellcheck disable=SC2086
    if [ -n "$suite" ]; then
        tools=${1#none} # the tests look at disks with QEMU's own tools, of the same version
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends -t "$suite" \
            qemu-system-x86 ${tools:+qemu-utils} | progress
    fi
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $wanted | progress
    [ -z "$(missing_packages "${1#none}")" ] || { say "some packages could not be installed: $(missing_packages "${1#none}")"; exit 1; }
    qemu_fits || { say "QEMU 8.2 or later could not be installed"; exit 1; }
}

# Programs of packages that are not installed, below folder $1.
unpack_packages() {
    command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || return 0
    say "fetching programs for tests: $unpacked_packages"
    place=$(mktemp -d /tmp/vi-packages-XXXXXX)
    # shellcheck disable=SC2086
    (cd "$place" && { apt-get download -qq $unpacked_packages || { as_root apt-get update -qq && apt-get download -qq $unpacked_packages; }; }) >&2 2>/dev/null ||
        say "they can't be fetched: what needs them is skipped"
    for package in "$place"/*.deb; do
        [ ! -e "$package" ] || dpkg-deb -x "$package" "$1"
    done
    rm -rf "$place"
}

# The newest Python from 3.11 on that can make an environment.
find_python() {
    for name in python3.11 python3.12 python3.13 python3.14 python3; do
        for path in "/usr/bin/$name" "$(command -v "$name" || true)"; do
            [ -x "$path" ] && "$path" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
                { printf '%s\n' "$path"; return 0; }
        done
    done
    say "Python 3.11 or later with its venv module is needed"
    exit 1
}

prepare_python() {
    say "making the Python environment in $1"
    python=$(find_python)
    mkdir -p "$(dirname "$1")"
    [ -x "$1/bin/python" ] && "$1/bin/python" -c '' 2>/dev/null || { rm -rf "$1"; "$python" -m venv "$1"; }
    "$1/bin/python" -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all: -r "$2" >&2
    "$1/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e "$here" >&2
    [ "${2##*/}" != requirements-test.lock ] || unpack_packages "$1/packages"
    rm -f "$1"/.ready-"${2##*/}"-*
    touch "$3"
}
