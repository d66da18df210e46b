# shellcheck shell=bash
# The same instances as containers, where a Docker daemon answers.
#
# Containers share the host's network and the instance's folder, so that ports, configuration
# and data are the same as those of a native process.

docker_available() {
    if [[ -z ${docker_answers:-} ]]; then
        docker_answers=no
        if [[ ${HOOKBRIDGE_TEST_NATIVE:-} != 1 ]] && docker compose version >/dev/null 2>&1 &&
            docker info >/dev/null 2>&1; then
            docker_answers=yes
        fi
    fi
    [[ $docker_answers == yes ]]
}

# Whether this instance is a container; decided when it is made.
docker_used() {
    [[ -f $dir/docker ]]
}

docker_compose() {
    HOOKBRIDGE_STATE=$state HOOKBRIDGE_INSTANCE=$dir HOOKBRIDGE_LOG=$log HOOKBRIDGE_USER="$(id -u):$(id -g)" \
        HOOKBRIDGE_KAFKA_CLUSTER=$(cat "$dir/cluster-id" 2>/dev/null) \
        HOOKBRIDGE_KAFKA_USER=$kafka_user HOOKBRIDGE_KAFKA_PASSWORD=$kafka_password \
        docker compose --project-name "hookbridge-test-$kind-$name" --file "$root/scripts/brokers.compose.yaml" "$@"
}

docker_launch() {
    docker_compose up --detach "$kind" >>"$log" 2>&1
}

docker_pid() {
    local id pid
    id=$(docker_compose ps --quiet "$kind" 2>/dev/null) && [[ -n $id ]] || return 1
    pid=$(docker inspect --format '{{.State.Pid}}' "$id" 2>/dev/null) || return 1
    [[ $pid != 0 ]] && printf '%s' "$pid"
}

docker_end() {
    if [[ $1 == KILL ]]; then
        docker_compose kill --signal KILL "$kind" >/dev/null 2>&1 || true
    else
        docker_compose stop --timeout "$stop_deadline" "$kind" >/dev/null 2>&1
    fi
}

docker_remove() {
    if docker_used; then docker_compose down --volumes >/dev/null 2>&1; fi
}
