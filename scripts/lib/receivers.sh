# shellcheck shell=bash
# The official verifiers that tests/it/receivers.rs asks, as tests/receivers locks them, and the
# languages that docs/receivers has code in.

receivers_need() {
    need node nodejs
    need npm npm
    need php php-cli
    need ruby ruby
    need go golang-go
}

# Installs them into $tools/receivers, anew when a lock file has changed.
receivers_install() {
    local from=$root/tests/receivers into=$tools/receivers
    if ! cmp -s "$from/requirements.txt" "$into/python.lock"; then
        say "fetching the verifiers for Python"
        rm -rf "$into/python"
        mkdir -p "$into"
        python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
            --target "$into/python" --requirement "$from/requirements.txt" >"$into/python.log" 2>&1 ||
            die "could not fetch the verifiers for Python, see $into/python.log"
        cp "$from/requirements.txt" "$into/python.lock"
    fi
    if ! cmp -s "$from/package-lock.json" "$into/node.lock"; then
        say "fetching the verifiers for Node"
        mkdir -p "$into/node"
        cp "$from/package.json" "$from/package-lock.json" "$into/node/"
        npm_ci "$into/node" >"$into/node.log" 2>&1 || npm_ci "$into/node" >>"$into/node.log" 2>&1 ||
            die "could not fetch the verifiers for Node, see $into/node.log"
        cp "$from/package-lock.json" "$into/node.lock"
    fi
}

# npm has been seen to wait for ever after its last download; what it has fetched is kept.
npm_ci() {
    # Node trusts its own list of authorities only, unless it is told to trust the machine's too.
    local authorities=/etc/ssl/certs/ca-certificates.crt
    if [[ -r $authorities ]]; then
        export NODE_EXTRA_CA_CERTS=${NODE_EXTRA_CA_CERTS:-$authorities}
    fi
    timeout 180 npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund --prefer-offline
}
