# shellcheck shell=bash
# Kafka: KRaft nodes, broker and controller in one process each, from the jars on Maven Central. One is
# enough for most; those of a cluster know each other's names by the file `cluster`.

kafka_version=4.3.1
kafka_user=bridge
kafka_password=bridge-secret
kafka_jars=$tools/kafka-$kafka_version

kafka_port_names() {
    echo main sasl controller
}

kafka_needs() {
    need openssl openssl
    if docker_available; then return; fi
    need java openjdk-17-jre-headless
    [[ -f $kafka_jars/complete ]] || need mvn maven
}

kafka_fetch() {
    if docker_available; then return; fi
    (
        mkdir -p "$tools"
        flock 9
        [[ ! -f $kafka_jars/complete ]] || exit 0
        say "fetching Kafka $kafka_version from Maven Central"
        rm -rf "$kafka_jars"
        mvn -q -B -f "$root/scripts/kafka/pom.xml" dependency:copy-dependencies \
            -Dkafka.version="$kafka_version" -DoutputDirectory="$kafka_jars" >"$state/logs/maven.log" 2>&1 &&
            touch "$kafka_jars/complete"
    ) 9>"$tools.kafka.lock" || {
        grep -m 5 ERROR "$state/logs/maven.log" >&2 || true
        die "could not fetch Kafka; see $state/logs/maven.log"
    }
}

# kafka_cluster NAME COUNT: folders and ports of all its nodes, which have to be known before the first
# one is started. Prints them, as KIND/NAME.
kafka_cluster() {
    local nodes=("$1") node number id
    for ((number = 2; number <= $2; number++)); do nodes+=("$1-$number"); done
    id=$(kafka_new_cluster_id)
    for node in "${nodes[@]}"; do
        (
            use_instance kafka "$node"
            mkdir -p "$dir" "$state/logs"
            hold_instance
            assign_ports
            if [[ ! -f $dir/cluster-id ]]; then
                printf '%s\n' "${nodes[@]}" >"$dir/cluster"
                printf '%s\n' "$id" >"$dir/cluster-id"
            fi
        )
        printf 'kafka/%s\n' "$node"
    done
}

kafka_configure() {
    local nodes=("$name") node number=0 mine=1 voters='' copies in_sync=1
    mkdir -p "$dir/data"
    [[ -f $dir/cluster-id ]] || kafka_new_cluster_id >"$dir/cluster-id"
    [[ ! -f $dir/cluster ]] || mapfile -t nodes <"$dir/cluster"
    for node in "${nodes[@]}"; do
        ((++number))
        [[ $node != "$name" ]] || mine=$number
        voters+=${voters:+,}$number@127.0.0.1:$(dir=$state/kafka/$node port_of controller)
    done
    copies=$((number < 3 ? number : 3))
    ((copies < 3)) || in_sync=2
    cat >"$dir/server.properties" <<CONF
process.roles=broker,controller
node.id=$mine
controller.quorum.voters=$voters
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$(port_of main),SASL_SSL://127.0.0.1:$(port_of sasl),CONTROLLER://127.0.0.1:$(port_of controller)
advertised.listeners=PLAINTEXT://127.0.0.1:$(port_of main),SASL_SSL://127.0.0.1:$(port_of sasl)
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs=$dir/data

ssl.keystore.type=PEM
ssl.keystore.location=$state/tls/server-bundle.pem
ssl.truststore.type=PEM
ssl.truststore.location=$state/tls/ca.pem
listener.name.sasl_ssl.ssl.client.auth=requested
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_$kafka_user="$kafka_password";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;

# The plain listener may do everything; the user of the other one too, until a test adds ACLs.
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=true

# After a kill -9 the controller refuses the new process until the session of the old one is over
# (9 s by default).
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
default.replication.factor=$copies
min.insync.replicas=$in_sync
offsets.topic.replication.factor=$copies
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=$copies
transaction.state.log.min.isr=$in_sync
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=$copies
share.coordinator.state.topic.min.isr=$in_sync
share.coordinator.state.topic.num.partitions=4
CONF
}

kafka_launch() {
    if docker_used; then
        docker_launch
        return
    fi
    if [[ ! -f $dir/data/meta.properties ]]; then
        kafka_java kafka.tools.StorageTool format --cluster-id "$(cat "$dir/cluster-id")" \
            --config "$dir/server.properties" \
            --add-scram "SCRAM-SHA-256=[name=$kafka_user,password=$kafka_password]" \
            --add-scram "SCRAM-SHA-512=[name=$kafka_user,password=$kafka_password]" >>"$log" 2>&1 ||
            startup_failed "could not be formatted"
    fi
    launch java -Xms256m -Xmx512m -cp "$kafka_jars/*" \
        -Dlog4j2.configurationFile="$root/scripts/kafka/log4j2.xml" \
        kafka.Kafka "$dir/server.properties"
}

# 16 random bytes in URL-safe base64, which must not look like an option.
kafka_new_cluster_id() {
    printf 'h%s' "$(head -c 16 /dev/urandom | base64 | tr '+/' 'AB' | cut -c 2-22)"
}

kafka_java() {
    java -Xmx256m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "$kafka_jars/*" \
        -Dlog4j2.configurationFile="$root/scripts/kafka/log4j2-tools.xml" "$@"
}

kafka_ready() {
    grep -q 'Kafka Server started' "$log"
}

kafka_stopped() { :; }

kafka_ctl() {
    local tool=${1:-} address class
    shift || true
    address=127.0.0.1:$(port_of main)
    case $tool in
        topics) class=org.apache.kafka.tools.TopicCommand ;;
        configs) class=kafka.admin.ConfigCommand ;;
        consumer-groups) class=org.apache.kafka.tools.consumer.group.ConsumerGroupCommand ;;
        acls) class=org.apache.kafka.tools.AclCommand ;;
        get-offsets) class=org.apache.kafka.tools.GetOffsetShell ;;
        delete-records) class=org.apache.kafka.tools.DeleteRecordsCommand ;;
        *) die "unknown tool '$tool' (topics, configs, consumer-groups, acls, get-offsets, delete-records)" ;;
    esac
    if docker_used; then
        docker_compose exec -T kafka "/opt/kafka/bin/kafka-$tool.sh" --bootstrap-server "$address" "$@"
        return
    fi
    kafka_java "$class" --bootstrap-server "$address" "$@"
}

kafka_env() {
    export_line HOOKBRIDGE_TEST_KAFKA "127.0.0.1:$(port_of main)"
    export_line HOOKBRIDGE_TEST_KAFKA_SASL "127.0.0.1:$(port_of sasl)"
    export_line HOOKBRIDGE_TEST_KAFKA_USER "$kafka_user"
    export_line HOOKBRIDGE_TEST_KAFKA_PASSWORD "$kafka_password"
    export_line HOOKBRIDGE_TEST_KAFKA_CTL "$(ctl_script)"
}
