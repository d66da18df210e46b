# shellcheck shell=bash
# One broker process: its folder, its ports, its pid, and how it is started and ended.
#
#   $state/<kind>/<name>/   ports, pid, configuration and data; removed by `down`
#   $state/logs/            logs, kept by `down` so that a failed run can be looked at

start_deadline=90
stop_deadline=30

use_instance() {
    kind=$1 name=$2
    dir=$state/$kind/$name
    log=$state/logs/$kind-$name.log
}

must_exist() {
    [[ -f $dir/ports ]] || die "there is no $kind '$name'; make it with: scripts/brokers up $kind --name $name"
}

# ---- what one can do with it -------------------------------------------------------------

start_instance() {
    use_instance "$@"
    mkdir -p "$dir" "$state/logs"
    hold_instance
    assign_ports
    if is_running; then
        return
    fi
    # The line that says "ready" is looked for in the log, so it must be of this start only.
    [[ ! -s $log ]] || mv "$log" "$log.old"
    : >"$log"
    local started=$SECONDS
    "${kind}_configure"
    "${kind}_launch"
    wait_until_ready
    say "$kind '$name' is up on 127.0.0.1:$(port_of main) after $((SECONDS - started)) s"
}

stop_instance() {
    use_instance "$@"
    [[ -d $dir ]] || return 0
    hold_instance
    end_server TERM
    "${kind}_stopped"
}

remove_instance() {
    stop_instance "$@"
    [[ -d $dir ]] || return 0
    docker_remove
    rm -rf "${dir:?}"
}

restart_instance() {
    use_instance "$@"
    must_exist
    (stop_instance "$kind" "$name")
    (start_instance "$kind" "$name")
}

kill9_instance() {
    use_instance "$@"
    must_exist
    hold_instance
    end_server KILL
}

pause_instance() {
    use_instance "$@"
    must_exist
    if docker_used; then docker_compose pause "$kind"; else kill -STOP "$(live_pid server)"; fi
}

resume_instance() {
    use_instance "$@"
    must_exist
    if docker_used; then docker_compose unpause "$kind"; else kill -CONT "$(live_pid server)"; fi
}

# Tests start and stop instances from many threads; each instance is changed by one at a time.
# The lock is held until the (sub)shell ends, and is never handed to the server.
hold_instance() {
    mkdir -p "$state/locks"
    exec 8>"$state/locks/$kind-$name"
    flock 8
}

# ---- processes ---------------------------------------------------------------------------

# launch COMMAND...: runs it detached, with nothing of ours open but the log, and notes its pid.
launch() {
    (
        local fd
        for fd in /proc/"$BASHPID"/fd/*; do
            fd=${fd##*/}
            if ((fd > 2 && fd != 255)); then exec {fd}>&-; fi
        done
        cd "$dir"
        exec setsid "$@" </dev/null >>"$log" 2>&1
    ) &
    note_pid server "$!"
}

# A pid alone may be somebody else's by now; together with its start time it is not.
note_pid() {
    printf '%s %s\n' "$2" "$(start_time "$2")" >"$dir/$1.pid"
}

start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    # The second field is the command's name in parentheses and may hold spaces.
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    printf '%s' "${20}"
}

# live_pid WHAT: prints the pid noted for it if that process is still the one and not a zombie.
live_pid() {
    local pid begun
    read -r pid begun 2>/dev/null <"$dir/$1.pid" || return 1
    [[ -n $begun && $(start_time "$pid") == "$begun" ]] || return 1
    [[ $(sed 's/.*) //; s/ .*//' "/proc/$pid/stat" 2>/dev/null) != Z ]] || return 1
    printf '%s' "$pid"
}

server_pid() {
    if docker_used; then docker_pid; else live_pid server; fi
}

is_running() {
    server_pid >/dev/null
}

# end_server SIGNAL: sends it and waits; what does not end in time is killed.
end_server() {
    if docker_used; then
        docker_end "$1"
        return
    fi
    end_process server "$1"
}

end_process() {
    local pid waited=0
    if pid=$(live_pid "$1"); then
        kill "-$2" "$pid" 2>/dev/null || true
        # A paused process does not even see SIGTERM.
        kill -CONT "$pid" 2>/dev/null || true
        while live_pid "$1" >/dev/null; do
            sleep 0.1
            if ((++waited == stop_deadline * 10)); then
                say "$kind '$name' did not stop within $stop_deadline s and is killed"
                kill -KILL "$pid" 2>/dev/null || true
            fi
        done
    fi
    rm -f "$dir/$1.pid"
}

wait_until_ready() {
    local deadline=$((SECONDS + start_deadline))
    until "${kind}_ready"; do
        if ! is_running; then
            startup_failed "ended while it was starting"
        elif ((SECONDS >= deadline)); then
            end_server KILL
            startup_failed "was not ready after $start_deadline s"
        fi
        sleep 0.1
    done
}

startup_failed() {
    "${kind}_stopped"
    say "$kind '$name' $1; the end of $log:"
    tail -n 30 "$log" >&2
    exit 1
}

# ---- ports -------------------------------------------------------------------------------

# port_of USE: a port of this instance; "main" is the one that plain clients use.
port_of() {
    local line
    line=$(grep "^$1=" "$dir/ports") || die "$kind '$name' has no port '$1'"
    printf '%s' "${line#*=}"
}

# Writes the ports once. They are kept over restarts, since clients come back to them.
assign_ports() {
    local use port
    if [[ -f $dir/ports ]]; then
        [[ -z ${wanted_port:-} || $(port_of main) == "$wanted_port" ]] ||
            die "$kind '$name' has port $(port_of main) already; remove it first: scripts/brokers down $kind --name $name"
        return
    fi
    exec 7>"$state/locks/ports"
    flock 7
    rm -f "$dir/ports.new"
    for use in $("${kind}_port_names"); do
        port=${wanted_port:-}
        [[ $use == main && -n $port ]] || port=$(free_port)
        if port_taken "$port"; then die "port $port is taken by somebody else"; fi
        printf '%s=%s\n' "$use" "$port" >>"$dir/ports.new"
    done
    if docker_available; then touch "$dir/docker"; fi
    mv "$dir/ports.new" "$dir/ports"
    exec 7>&-
}

# A port that nobody listens on or was promised, from below those that the kernel lends to
# outgoing connections: otherwise one of these could sit on it while the broker is down.
free_port() {
    local lowest=10000 highest port tries
    read -r highest _ </proc/sys/net/ipv4/ip_local_port_range
    ((highest > lowest + 5000)) || highest=32768
    for ((tries = 0; tries < 1000; tries++)); do
        port=$((lowest + (RANDOM * 32768 + RANDOM) % (highest - lowest)))
        if ! port_taken "$port"; then
            printf '%s' "$port"
            return
        fi
    done
    die "found no free port"
}

# Whether somebody listens on the port (0A) or another instance of ours has it, be it up or not.
port_taken() {
    grep -qsE "^ *[0-9]+: [0-9A-F]+:$(printf '%04X' "$1") [0-9A-F]+:0000 0A " /proc/net/tcp /proc/net/tcp6 ||
        grep -qsE "=$1$" "$state"/*/*/ports "$state"/*/*/ports.new
}

# answers PORT BYTES: whether the server there answers anything to these bytes (printf escapes).
answers() {
    local reply=''
    # The subshell keeps a refused connection from ending the script.
    # shellcheck disable=SC2059
    reply=$(
        exec 2>/dev/null 6<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf "$2" >&6
        timeout 2 head -c 8 <&6 | od -An -tx1
    ) || return 1
    [[ -n $reply ]]
}

# Writes a program that runs the broker's own tool against this instance, and prints its path.
ctl_script() {
    cat >"$dir/ctl" <<SCRIPT
#!/bin/sh
HOOKBRIDGE_TEST_DIR='$state' exec '$root/scripts/brokers' ctl $kind --name $name -- "\$@"
SCRIPT
    chmod +x "$dir/ctl"
    printf '%s' "$dir/ctl"
}
