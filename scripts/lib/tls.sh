# shellcheck shell=bash
# A test authority with one certificate for the brokers and one for clients, all in $state/tls.

make_certificates() {
    mkdir -p "$state/tls" "$state/locks" "$state/logs"
    (
        flock 9
        [[ ! -f $state/tls/complete ]] || exit 0
        cd "$state/tls" &&
            new_key ca &&
            openssl req -x509 -new -key ca.key -days 3650 -subj '/CN=hookbridge test authority' \
                -addext 'basicConstraints=critical,CA:TRUE' \
                -addext 'keyUsage=critical,keyCertSign,cRLSign' -out ca.pem &&
            issue server localhost $'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth' &&
            issue client hookbridge-test-client 'extendedKeyUsage=clientAuth' &&
            # Kafka wants key and chain in one file.
            cat server.key server.pem ca.pem >server-bundle.pem &&
            touch complete
    ) 9>"$state/locks/tls" 2>"$state/logs/tls.log" || {
        tail -n 5 "$state/logs/tls.log" >&2
        die "could not make the test certificates"
    }
}

new_key() {
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$1.key"
}

# issue FILE COMMON_NAME EXTENSIONS
issue() {
    new_key "$1" &&
        openssl req -new -key "$1.key" -subj "/CN=$2" -out "$1.csr" &&
        printf 'basicConstraints=CA:FALSE\n%s\n' "$3" >"$1.ext" &&
        openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 \
            -extfile "$1.ext" -out "$1.pem"
}
