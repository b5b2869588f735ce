#!/bin/sh
# Puts Hallmark on a Debian machine: programs in /opt/hallmark, users, folders, sockets, services, udev rules.
# docs/set-up.md goes through it; what belongs to one factory (/etc/hallmark) is never touched.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
prefix=/opt/hallmark

usage() {
    cat >&2 <<'HELP'
usage: install.sh wheels DIR     all packages into DIR, checked against the locked hashes and built (needs a network)
       install.sh programs DIR   /opt/hallmark from DIR, without a network; as root
       install.sh units          users, folders, sockets, services, udev rules; as root
HELP
    exit 2
}

wheels() { # a throw-away environment builds; what builds never comes near a station
    checkout=$(dirname -- "$here")
    mkdir -p "$1"
    builder=$(mktemp -d)
    trap 'rm -rf -- "$builder"' EXIT
    python3 -m venv "$builder"
    pip="$builder/bin/python -m pip --disable-pip-version-check"
    $pip install -q --require-hashes --only-binary :all: -r "$checkout/requirements/build.txt"
    $pip wheel -q --require-hashes --no-build-isolation -r "$checkout/requirements/run.txt" -w "$1"
    $pip wheel -q --no-deps --no-index --no-build-isolation -w "$1" "$checkout"
}

programs() { # whole or not at all; what was there before stays as .old
    rm -rf -- "$prefix.new"
    python3 -m venv "$prefix.new"
    "$prefix.new/bin/python" -m pip --disable-pip-version-check install -q --no-index --no-deps --no-compile "$1"/*.whl
    # A virtual environment knows its own place: its scripts are told the one they move to.
    find "$prefix.new/bin" -type f -exec sed -i "s|$prefix.new|$prefix|g" {} +
    sed -i "s|$prefix.new|$prefix|g" "$prefix.new/pyvenv.cfg"
    "$prefix.new/bin/python" -m compileall -q -s "$prefix.new" -p "$prefix" "$prefix.new/lib"
    rm -rf -- "$prefix.old"
    if [ -e "$prefix" ]; then mv -- "$prefix" "$prefix.old"; fi
    mv -- "$prefix.new" "$prefix"
    mkdir -p /usr/local/bin
    ln -sfn "$prefix/bin/hallmark" /usr/local/bin/hallmark
}

units() {
    for kind in system:/etc/systemd/system sysusers.d:/etc/sysusers.d tmpfiles.d:/etc/tmpfiles.d \
        modules-load.d:/etc/modules-load.d udev:/etc/udev/rules.d; do
        mkdir -p "${kind#*:}"
        cp -- "$here/${kind%%:*}"/* "${kind#*:}/"
    done
    systemd-sysusers hallmark.conf
    systemd-tmpfiles --create hallmark.conf
    systemctl daemon-reload
    systemctl enable -q hallmark.target hallmark-signer.service hallmark-station.service hallmark-uploader.service \
        hallmark-signer.socket hallmark-status.socket hallmark-outbox.socket
    if [ -S /run/udev/control ]; then udevadm control --reload && udevadm trigger --subsystem-match=tty; fi
    if [ -w /sys/module ]; then systemctl restart systemd-modules-load.service; fi
}

case ${1:-} in
    wheels | programs) [ $# -eq 2 ] || usage ;;
    units) [ $# -eq 1 ] || usage ;;
    *) usage ;;
esac
"$@"
