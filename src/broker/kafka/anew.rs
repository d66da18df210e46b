//! Topics that were deleted and made anew, known by their ids.
//!
//! The client library goes on in the new topic where it stood in the old one, so what lies before
//! that would be skipped without a word. A source asks for the ids of its topics every few seconds;
//! one whose id has changed is read from its beginning. Clusters older than 3.1 have no ids: there
//! only an offset beyond the topic's end tells.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};

use anyhow::Context as _;
use rdkafka::bindings as native;
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, sleep};
use tracing::{debug, info, warn};

use super::client::{ASK, blocking};
use super::topics::Admin;

/// Between looks at the ids.
const LOOK: Duration = Duration::from_secs(2);
/// Topics made anew and not noticed by the source yet.
const NOTICED: usize = 64;

/// What the cluster knows topics by. Those that are not there have none.
pub type Ids = BTreeMap<String, String>;

/// The ids of those of `topics` that are there.
pub async fn ids(admin: &Admin, topics: &BTreeSet<String>) -> anyhow::Result<Ids> {
    if topics.is_empty() {
        return Ok(Ids::new());
    }
    let names: Vec<_> = topics
        .iter()
        .map(|topic| CString::new(topic.as_str()))
        .collect::<Result<_, _>>()
        .context("a topic's name has a NUL")?;
    let admin = admin.clone();
    blocking(move || describe(&admin, &names)).await
}

fn describe(admin: &Admin, names: &[CString]) -> anyhow::Result<Ids> {
    let client = admin.inner().native_ptr();
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: the client is alive; names are NUL-terminated and copied; what is made here is destroyed
    // here, the event last, since the result belongs to it.
    unsafe {
        let kind = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = native::rd_kafka_AdminOptions_new(client, kind);
        let timeout_ms = ASK.as_millis() as i32;
        native::rd_kafka_AdminOptions_set_request_timeout(
            options,
            timeout_ms,
            std::ptr::null_mut(),
            0,
        );
        let queue = native::rd_kafka_queue_new(client);
        let topics =
            native::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        native::rd_kafka_DescribeTopics(client, topics, options, queue);
        // It answers for itself within its timeout.
        let event = native::rd_kafka_queue_poll(queue, 2 * timeout_ms);
        let ids = read(event);
        native::rd_kafka_event_destroy(event);
        native::rd_kafka_TopicCollection_destroy(topics);
        native::rd_kafka_queue_destroy(queue);
        native::rd_kafka_AdminOptions_destroy(options);
        ids
    }
}

/// SAFETY: `event` is null or alive.
unsafe fn read(event: *mut native::rd_kafka_event_t) -> anyhow::Result<Ids> {
    anyhow::ensure!(!event.is_null(), "no answer about topics");
    let mut ids = Ids::new();
    // SAFETY: strings are NUL-terminated and live as long as the event.
    unsafe {
        let error = native::rd_kafka_event_error(event);
        let is_error = error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
        anyhow::ensure!(!is_error, "asking about topics: {error:?}");
        let result = native::rd_kafka_event_DescribeTopics_result(event);
        anyhow::ensure!(!result.is_null(), "another answer than about topics");
        let mut count = 0;
        let topics = native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        for index in 0..count {
            let topic = *topics.add(index);
            let error = native::rd_kafka_error_code(native::rd_kafka_TopicDescription_error(topic));
            let uuid = native::rd_kafka_TopicDescription_topic_id(topic);
            match error {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR if !uuid.is_null() => {}
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART => continue,
                error => anyhow::bail!("asking about a topic: {error:?}"),
            }
            let name = CStr::from_ptr(native::rd_kafka_TopicDescription_name(topic));
            let id = CStr::from_ptr(native::rd_kafka_Uuid_base64str(uuid));
            // Where a cluster has no ids, all are zero.
            if id.to_bytes().iter().any(|byte| *byte != b'A') {
                let (name, id) = (name.to_string_lossy(), id.to_string_lossy());
                ids.insert(name.into_owned(), id.into_owned());
            }
        }
    }
    Ok(ids)
}

/// Tells of each topic that is made anew, as long as somebody listens. `known`: the ids of those that
/// were there when it was decided where to begin.
pub fn follow(
    admin: Admin,
    source: &str,
    topics: watch::Receiver<BTreeSet<String>>,
    mut known: Ids,
) -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel(NOTICED);
    let source = source.to_owned();
    tokio::spawn(async move {
        let mut missing = BTreeSet::new();
        loop {
            tokio::select! {
                () = tell.closed() => return,
                () = sleep(LOOK) => {}
            }
            let wanted = topics.borrow().clone();
            let now = match ids(&admin, &wanted).await {
                Ok(now) => now,
                Err(error) => {
                    debug!(
                        source,
                        error = format!("{error:#}"),
                        "the ids of topics are not known"
                    );
                    continue;
                }
            };
            say_missing(&source, &wanted, &now, &known, &mut missing);
            for (topic, id) in now {
                let before = known.insert(topic.clone(), id.clone());
                if before.is_some_and(|before| before != id) && tell.send(topic).await.is_err() {
                    return;
                }
            }
        }
    });
    told
}

/// Says once that a topic that was there is gone, and once that it is there again.
fn say_missing(
    source: &str,
    wanted: &BTreeSet<String>,
    now: &Ids,
    known: &Ids,
    missing: &mut BTreeSet<String>,
) {
    for topic in wanted {
        if now.contains_key(topic) {
            if missing.remove(topic) {
                info!(source, topic, "the topic is there again");
            }
        } else if known.contains_key(topic) && missing.insert(topic.clone()) {
            warn!(
                source,
                topic,
                "the topic was deleted; what is made under its name is taken from its beginning"
            );
        }
    }
}
