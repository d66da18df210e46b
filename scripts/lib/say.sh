# shellcheck shell=bash
# Messages go to stderr, so that stdout can be evaluated.

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die() {
    say "$*"
    exit 1
}
