# shellcheck shell=bash
# What is missing on this machine: installed where that is allowed, else named with its command.

# need COMMAND PACKAGE: notes the Debian package when the command is not there.
need() {
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}

# Installs what `need` noted in the array `missing`.
need_install() {
    ((${#missing[@]})) || return 0
    local install=(apt-get install -y --no-install-recommends "${missing[@]}") as_root=()
    if ((EUID != 0)); then
        as_root=(sudo)
        if ! sudo -n true 2>/dev/null; then
            die "missing here; run: sudo apt-get update && sudo ${install[*]}"
        fi
    fi
    command -v apt-get >/dev/null || die "missing here: ${missing[*]} (the names of Debian's packages)"

    say "installing ${missing[*]}"
    mkdir -p "$state/locks" "$state/logs"
    (
        flock 9
        guard_services
        trap unguard_services EXIT
        "${as_root[@]}" apt-get update -qq &&
            "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}"
    ) 9>"$state/locks/install" >"$state/logs/install.log" 2>&1 || {
        tail -n 20 "$state/logs/install.log" >&2
        die "could not install; run: ${as_root[*]:+sudo }apt-get update && ${as_root[*]:+sudo }${install[*]}"
    }
}

# Debian starts a service as soon as its package is installed. We bring servers of our own, so
# the package's is told to wait, and is not left enabled for the next boot.
guard_services() {
    guarded=no
    if [[ ! -e /usr/sbin/policy-rc.d ]]; then
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee /usr/sbin/policy-rc.d >/dev/null
        "${as_root[@]}" chmod +x /usr/sbin/policy-rc.d
        guarded=yes
    fi
}

unguard_services() {
    if [[ $guarded == yes ]]; then
        "${as_root[@]}" rm -f /usr/sbin/policy-rc.d
    fi
    if [[ " ${missing[*]} " == *" rabbitmq-server "* && -d /run/systemd/system ]]; then
        "${as_root[@]}" systemctl disable rabbitmq-server.service || true
    fi
}
