"""Paths in a server, and what `cp` has a shell there do: POSIX shell, the same for coreutils and
busybox, whatever the login shell is. Pure.
"""

from __future__ import annotations

import re
import shlex


def remote(path: str) -> str:
    """The path as a word of a shell in the guest, with ~ for home folders. Pure."""
    home = HOME.match(path)
    rest = path[home.end() :] if home else path
    if home:
        start = '"$HOME"' if home[0] == "~" else home[0]
        return start + (shlex.quote(rest) if rest else "")
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def is_pattern(path: str) -> bool:
    """Whether a path stands for the files that it fits; a backslash takes the letter after it as it
    is. Pure.
    """
    return any(letter in _ESCAPED.sub("", path) for letter in "*?[")


def literal(path: str) -> str:
    """The path that a user means who wrote no pattern. Pure."""
    apart = "./" if path.startswith("\\~") else ""
    return apart + _ESCAPED.sub(r"\1", path)


def as_pattern(path: str) -> str:
    """The same pattern without backslashes, which shells and `fnmatch` read differently. Pure."""

    def plain(found: re.Match[str]) -> str:
        letter = found[1]
        return f"[{letter}]" if letter in "*?[" else r"[\\]" if letter == "\\" else letter

    apart = "./" if path.startswith("\\~") else ""
    return apart + _ESCAPED.sub(plain, path)


_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
HOME = re.compile(r"~(?:[a-z_][a-z0-9_-]*)?(?=/|\Z)")

# Runs in the guest: where the target is a folder, unpack into it; else what came gets its name.
PUT = """set -e
t={target} many={many} folder={folder}
place() {{ # the folder that this is to lie in
    [ -d "$1" ] || {{ echo "there is no folder $1 in the server" >&2; exit 1; }}
}}
if [ -d "$t" ]; then exec tar -xof - -C "$t"; fi
[ $many = 0 ] || place "$t"
case $t in */) [ $folder = 1 ] || place "$t"; while [ "${{t%/}}" != "$t" ]; do t=${{t%/}}; done ;; esac
d=$(dirname -- "$t")
place "$d"
w=$(mktemp -d "$d/.virtuary-XXXXXX")
trap 'rm -rf "$w"' EXIT
tar -xof - -C "$w"
if [ {base} = . ]; then chmod 755 "$w" && mv -- "$w" "$t"; else mv -- "$w"/{base} "$t"; fi
"""
# Runs in the guest: standard input becomes a file, whole or not at all.
PUT_STREAM = """set -e
t={target}
[ ! -d "$t" ] || {{ echo "$t is a folder: name a file" >&2; exit 1; }}
if [ -e "$t" ] && [ ! -f "$t" ]; then exec cat > "$t"; fi
d=$(dirname -- "$t")
[ -d "$d" ] || {{ echo "there is no folder $d in the server" >&2; exit 1; }}
w=$(mktemp "$d/.virtuary-XXXXXX")
trap 'rm -f "$w"' EXIT
cat > "$w"
chmod 644 "$w"
mv -f -- "$w" "$t"
"""
# Runs in the guest: what was named is followed if it is a link; links in a folder are sent as
# links. Files of the kernel's show no size, or another one.
GET = """p={source}
if [ -d "$p" ]; then CDPATH= cd -- "$p" && exec tar -cf - .; fi
if [ -f "$p" ]; then case $(readlink -f -- "$p" || :) in /proc/* | /sys/*)
    w=$(mktemp -d) || exit 1
    trap 'rm -rf "$w"' EXIT
    cat -- "$p" > "$w/file" && tar -cf - -C "$w" file
    exit ;;
esac; fi
[ ! -p "$p" ] || {{ echo "$p is a pipe" >&2; exit 1; }}
[ ! -S "$p" ] || {{ echo "$p is a socket" >&2; exit 1; }}
exec tar -chf - -C "$(dirname -- "$p")" -- "$(basename -- "$p")"
"""
# Runs in the guest: each path that a pattern stands for, and a zero.
LIST = """IFS=
p={source}
if [ -e "$p" ] || [ -L "$p" ]; then printf '%s\\0' "$p"; exit; fi
for each in $p; do if [ -e "$each" ] || [ -L "$each" ]; then printf '%s\\0' "$each"; fi; done
"""
