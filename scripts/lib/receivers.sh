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
    python_install "$from" "$into" "the verifiers for Python"
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

# python_install FROM INTO WHAT: what FROM/requirements.txt locks, into INTO/python, anew when it has changed.
python_install() {
    if cmp -s "$1/requirements.txt" "$2/python.lock"; then return; fi
    say "fetching $3"
    rm -rf "$2/python"
    mkdir -p "$2"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --target "$2/python" --requirement "$1/requirements.txt" >"$2/python.log" 2>&1 ||
        die "could not fetch $3, see $2/python.log"
    cp "$1/requirements.txt" "$2/python.lock"
}

# The client that tests/it/openapi_client.rs has make requests of the API's description.
openapi_install() {
    python_install "$root/tests/openapi" "$tools/openapi" "the client of the API's description"
}
