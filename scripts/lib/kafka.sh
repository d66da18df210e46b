# shellcheck shell=bash
# Kafka: one KRaft node, broker and controller in one process, from the jars on Maven Central.

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

kafka_configure() {
    mkdir -p "$dir/data"
    [[ -f $dir/cluster-id ]] || kafka_new_cluster_id >"$dir/cluster-id"
    cat >"$dir/server.properties" <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$(port_of controller)
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
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
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
