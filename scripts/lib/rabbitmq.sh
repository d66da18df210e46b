# shellcheck shell=bash
# RabbitMQ: Debian's package, run as the present user on a node, ports and folders of its own.

rabbitmq_user=hookbridge
rabbitmq_password=hookbridge
rabbitmq_bin=/usr/lib/rabbitmq/bin

rabbitmq_port_names() {
    echo main tls dist epmd
}

rabbitmq_needs() {
    need openssl openssl
    docker_available || [[ -x $rabbitmq_bin/rabbitmq-server ]] || missing+=(rabbitmq-server)
}

rabbitmq_fetch() { :; }

rabbitmq_configure() {
    mkdir -p "$dir/home" "$dir/data"
    printf '[].\n' >"$dir/enabled_plugins"
    cat >"$dir/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$(port_of main)
listeners.ssl.1 = 127.0.0.1:$(port_of tls)
ssl_options.cacertfile = $state/tls/ca.pem
ssl_options.certfile = $state/tls/server.pem
ssl_options.keyfile = $state/tls/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
default_user = $rabbitmq_user
default_pass = $rabbitmq_password
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = info
CONF
    # The environment of the server and of rabbitmqctl. A conf-env file that does not exist keeps
    # the machine's own /etc/rabbitmq out of it.
    cat >"$dir/environment" <<ENV
HOME=$dir/home
RABBITMQ_NODENAME=hookbridge-$name@localhost
RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
RABBITMQ_NODE_PORT=$(port_of main)
RABBITMQ_DIST_PORT=$(port_of dist)
RABBITMQ_MNESIA_BASE=$dir/data
RABBITMQ_LOG_BASE=$dir
RABBITMQ_LOGS=-
RABBITMQ_ENABLED_PLUGINS_FILE=$dir/enabled_plugins
RABBITMQ_CONFIG_FILE=$dir/rabbitmq.conf
RABBITMQ_ADVANCED_CONFIG_FILE=$dir/advanced.config
RABBITMQ_GENERATED_CONFIG_DIR=$dir/generated
RABBITMQ_CONF_ENV_FILE=$dir/none
RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}
RABBITMQ_CTL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}
ERL_EPMD_PORT=$(port_of epmd)
ERL_EPMD_ADDRESS=127.0.0.1
ERL_CRASH_DUMP=$dir/erl_crash.dump
ENV
}

rabbitmq_launch() {
    if docker_used; then
        docker_launch
        return
    fi
    local environment
    mapfile -t environment <"$dir/environment"
    if ! live_pid epmd >/dev/null; then
        launch env "${environment[@]}" epmd -address 127.0.0.1 -port "$(port_of epmd)"
        mv "$dir/server.pid" "$dir/epmd.pid"
    fi
    # With this set the start script becomes the server instead of waiting for it, so that the
    # pid noted is the server's.
    launch env "${environment[@]}" RUNNING_UNDER_SYSTEMD=true "$rabbitmq_bin/rabbitmq-server"
}

# The listeners open last, so an answer to the protocol header means that all is up.
rabbitmq_ready() {
    answers "$(port_of main)" 'AMQP\x00\x00\x09\x01'
}

rabbitmq_stopped() {
    end_process epmd TERM
}

rabbitmq_ctl() {
    local environment
    mapfile -t environment <"$dir/environment"
    if docker_used; then
        docker_compose exec -T rabbitmq rabbitmqctl "$@"
    else
        env "${environment[@]}" "$rabbitmq_bin/rabbitmqctl" --quiet "$@"
    fi
}

rabbitmq_env() {
    local login=$rabbitmq_user:$rabbitmq_password
    export_line HOOKBRIDGE_TEST_AMQP "amqp://$login@127.0.0.1:$(port_of main)/%2f"
    export_line HOOKBRIDGE_TEST_AMQPS "amqps://$login@127.0.0.1:$(port_of tls)/%2f"
    export_line HOOKBRIDGE_TEST_RABBITMQ_CTL "$(ctl_script)"
}
