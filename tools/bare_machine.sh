#!/usr/bin/env bash
# Prove a README command on a bare machine: Debian 12 with git and python3-venv, and nothing else.
#
#   sudo tools/bare_machine.sh [--user] DIRECTORY demo|tests
#
# Makes the bare machine in DIRECTORY (kept, and used again if it is there), clones HEAD into it and
# runs the command there: as root, or with --user as an ordinary user after root has put the system
# libraries there. pip and apt are set up in it as they are here. Needs debootstrap.
set -euo pipefail

user=root
[ "${1:-}" = --user ] && { user=someone; shift; }
[ $# -eq 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "$0 needs root, for debootstrap and chroot" >&2; exit 2; }
case $2 in
    demo) tox=".venv/bin/tox -e demo" ;;
    tests) tox=".venv/bin/tox" ;;
    *) echo "what to run is 'demo' or 'tests', not '$2'" >&2; exit 2 ;;
esac

# In a mount namespace of its own, so that all mounts are gone at the end, however it ends.
[ -n "${IN_NAMESPACE:-}" ] || IN_NAMESPACE=1 exec unshare --mount "$0" $([ $user = root ] || echo --user) "$@"

repository=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
root=$(cd "$1" && pwd)
home=/root
[ $user = root ] || home=/home/$user

[ -e "$root/etc/debian_version" ] ||
    debootstrap --variant=minbase --include=ca-certificates,git,python3-venv bookworm "$root" ${MIRROR:-}

# A file or folder of this machine, read-only at the same place in there.
lend() {
    if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root$(dirname "$1")"; [ -e "$root$1" ] || : > "$root$1"; fi
    mount --bind "$1" "$root$1"
    mount -o remount,bind,ro "$root$1"
}

mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
for file in /etc/apt/apt.conf.d/*; do
    grep -q '^Acquire' "$file" && cp "$file" "$root/etc/apt/apt.conf.d/"
done
[ ! -e /etc/ssl/certs/ca-certificates.crt ] || lend /etc/ssl/certs/ca-certificates.crt

inside() {
    chroot "$root" env -i HOME="$1" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        LANG=C.UTF-8 "${passed[@]}" "${@:2}"
}
mapfile -t passed < <(env | grep -E '^(PIP_[A-Z_]+|https?_proxy|no_proxy|HTTPS?_PROXY|NO_PROXY)=' || true)

[ $user = root ] || inside /root sh -c "id $user >/dev/null 2>&1 || useradd --create-home --shell /bin/bash $user"
[ ! -e /etc/pip.conf ] || cp -L /etc/pip.conf "$root/etc/pip.conf"
for file in .config/pip/pip.conf .pip/pip.conf; do
    [ ! -e "$HOME/$file" ] || install -D -m 644 "$HOME/$file" "$root$home/$file"
done
# The local folders that pip's settings name; an index of files keeps those beside its pages.
settings=$(cat /etc/pip.conf "$HOME"/.config/pip/pip.conf "$HOME"/.pip/pip.conf 2>/dev/null; printf '%s\n' "${passed[@]}")
for path in $(tr ' =' '\n\n' <<<"$settings" | sed -nE 's,^file://,,; \,^/,{s,/simple/?$,,; p}' | sort -u); do
    [ ! -d "$path" ] || lend "$path"
done

place=$home/napari-seamless
rm -rf "${root:?}$place"
git -c safe.directory='*' clone --quiet --no-local "$repository" "$root$place"
readme="cd $place && python3 -m venv .venv && .venv/bin/pip install tox && $tox"
if [ $user = root ]; then
    time inside "$home" bash -c "$readme"
else
    inside /root python3 "$place/tools/system_libraries.py"
    inside /root chown -R $user: "$home"
    time inside "$home" setpriv --reuid=$user --regid=$user --init-groups bash -c "$readme"
fi
