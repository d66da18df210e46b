//! The tiers: parked deliveries are read ahead, wait here for their time, and are handed over.
//!
//! One consumer in a group of its own takes every topic named like a tier, whatever the config
//! says now. Records of a partition become due in their order, so a partition needs only its next
//! ones in memory: it is read up to a high mark, paused, and resumed at half, because a pause
//! costs a second and a refetch. A record keeps its partition's offset back until what became of
//! it is durable: settled by the pipeline, on its next tier, or among the dead letters.
//!
//! An order picks records out of a backlog, and what is settled ahead of the offset has to fit into
//! a commit's metadata. So nothing leaves memory that would not fit when it is settled, and where it
//! gets crowded, what only waits in between is parked anew, at the end, so that the offset moves on;
//! meanwhile nothing more is picked out.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use futures_util::StreamExt as _;
use rdkafka::consumer::Consumer as _;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::ahead::{Behind, Found, LookAhead, Met, next_met};
use super::client::Reset;
use super::lane::Lane;
use super::leaders;
use super::member::{Begin, Member};
use super::moves::{Ordered, hop_on, put_away};
use super::source::{finish, more, ticks};
use super::waiting::{Parked, Waiting};
use super::watchdog::{self, Ended, Watchdog};
use super::{BACKOFF, Kafka, names, topics};
use crate::broker::{Admission, Intakes};
use crate::delivery::WaitKind;

/// Records held in memory, of all partitions together.
const READ_AHEAD: usize = 8_192;
const READ_AHEAD_BYTES: usize = 32 << 20;
/// What a partition may hold however many there are.
const LEAST_AHEAD: usize = 8;
/// How long moves that are under way may take at the end.
const MOVED_WITHIN: Duration = Duration::from_secs(2);
/// Moves to another topic under way at once.
const MOVES: usize = 128;
/// Between two looks at what has become due.
const TURN: Duration = Duration::from_millis(10);
/// Records that an order has brought forward are looked for further ahead while fewer wait here.
const ORDERED_AHEAD: usize = 1_024;
/// The same, in bytes.
const ORDERED_AHEAD_BYTES: usize = READ_AHEAD_BYTES / 2;
/// How long orders given before the start may take to be read; then it goes on without.
const ORDERS_WITHIN: Duration = Duration::from_secs(15);
const AFTER_ERROR: Duration = Duration::from_millis(200);
/// Before it is looked ahead again after an early end.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// Between trims of what is done with.
const TRIM_EVERY: Duration = Duration::from_secs(60);

type Room = Pin<Box<dyn Future<Output = Admission> + Send>>;

/// What the pipeline has room for: asked again, or answered and not used yet.
#[derive(Default)]
struct Door {
    asked: Option<Room>,
    open: Option<Admission>,
}

pub struct Due {
    kafka: Arc<Kafka>,
    intakes: Intakes,
    lanes: BTreeMap<(Arc<str>, i32), Lane>,
    moves: JoinSet<Option<Ordered>>,
    retries: Door,
    holds: Door,
    begun: Instant,
    /// The orders that have been carried out for what is in memory.
    obeyed: u64,
    /// Dropped as ordered, and not logged yet.
    dropped: u64,
    look_ahead: Option<LookAhead>,
    look_again_at: Option<Instant>,
    /// Some partition has not much room left to say what of it is settled out of order.
    crowded: bool,
}

impl Due {
    pub fn new(kafka: Arc<Kafka>, intakes: Intakes) -> Self {
        Self {
            kafka,
            intakes,
            lanes: BTreeMap::new(),
            moves: JoinSet::new(),
            retries: Door::default(),
            holds: Door::default(),
            begun: Instant::now(),
            obeyed: 0,
            dropped: 0,
            look_ahead: None,
            look_again_at: None,
            crowded: false,
        }
    }

    /// Hands over what is due until `stop`, then commits until all is answered or `drain`.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        drain: CancellationToken,
    ) -> anyhow::Result<()> {
        let kafka = self.kafka.clone();
        let mut watchdog = Watchdog::new(&kafka, "retries");
        loop {
            let Some(mut member) = Self::member(&kafka, &stop).await? else {
                return Ok(());
            };
            let every = names::every_tier(&kafka.settings.group);
            member.consumer.subscribe(&[&every])?;
            let consumer = member.consumer.clone();
            let work = self.take_all(&mut member, &mut watchdog, &stop);
            let ended = leaders::watched(&kafka, "retries", consumer, work).await;
            // What was written and is not settled comes twice.
            let moved = async { while self.moves.join_next().await.is_some() {} };
            let _ = timeout(MOVED_WITHIN, moved).await;
            self.moves.shutdown().await;
            self.look_ahead = None;
            // What only waits here is nobody's: it is read again by whoever comes next.
            for lane in std::mem::take(&mut self.lanes).into_values() {
                for waiting in lane.waiting.iter().chain(&lane.ordered) {
                    lane.partition.give_back(waiting.offset);
                }
            }
            match ended {
                Ok(Ended::Stopped) => finish(&mut member, &drain).await,
                Ok(Ended::Unanswered) => {
                    // Nobody hears that it leaves.
                    tokio::spawn(member.close());
                    continue;
                }
                Err(_) => {}
            }
            member.close().await;
            return ended.map(|_| ());
        }
    }

    /// A member of the group of the tiers; `None` on `stop`.
    async fn member(
        kafka: &Arc<Kafka>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Member>> {
        let settings = &kafka.settings;
        let group = names::tier_group(&settings.group);
        // The name has to be the same each time, so the tiers have to be known.
        let mut tiers = loop {
            match topics::catalogue(&kafka.admin).await {
                Ok(topics) => break topics,
                Err(error) => kafka.status.down("retries", format!("{error:#}")),
            }
            if stop.run_until_cancelled(sleep(BACKOFF)).await.is_none() {
                return Ok(None);
            }
        };
        tiers.retain(|topic, _| names::read_tier(&settings.group, topic).is_some());
        let instance = settings
            .instance
            .as_ref()
            .map(|i| format!("{i}.{}", settings.name))
            .map(|name| names::member(&name, &tiers));
        let config = kafka
            .connection
            .member(&group, instance.as_deref(), Reset::Earliest);
        let begin: Begin = Arc::new(|_, _| Offset::Beginning);
        let lost = kafka.lost.clone();
        Member::new(group.as_str().into(), &config, begin, lost, None).map(Some)
    }

    async fn take_all(
        &mut self,
        member: &mut Member,
        watchdog: &mut Watchdog,
        stop: &CancellationToken,
    ) -> anyhow::Result<Ended> {
        let consumer = member.consumer.clone();
        let pulse = member.pulse.clone();
        let mut stream = consumer.stream();
        let mut turn = ticks(TURN);
        let mut trim = ticks(TRIM_EVERY);
        let mut look = ticks(watchdog::LOOK_EVERY);
        loop {
            // Finished work goes before new work.
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(Ended::Stopped),
                () = pulse.wake.notified() => self.turn(member),
                Some(ended) = self.moves.join_next(), if !self.moves.is_empty() => match ended {
                    Ok(Some(ordered)) => self.ordered_meanwhile(ordered),
                    Err(error) if error.is_panic() => {
                        warn!(%error, "moving a parked delivery failed");
                    }
                    Ok(None) | Err(_) => {}
                },
                admission = opened(&mut self.retries) => self.retries.open = Some(admission),
                admission = opened(&mut self.holds) => self.holds.open = Some(admission),
                _ = turn.tick() => self.turn(member),
                _ = trim.tick() => self.trim(),
                _ = look.tick() => if watchdog.gives_up(member, None).await {
                    return Ok(Ended::Unanswered);
                },
                met = next_met(&mut self.look_ahead), if self.may_pick() => self.met(met),
                message = stream.next() => {
                    let (mut next, mut taken) = (message, 0);
                    while let Some(message) = next {
                        match message {
                            Ok(message) => self.receive(member, &message),
                            Err(error) => {
                                if let Some(reason) = member.fatal() {
                                    bail!("the tiers of broker `{}` cannot be read: {reason}", self.kafka.settings.name);
                                }
                                debug!(%error, "the tiers' client reports");
                                sleep(AFTER_ERROR).await;
                            }
                        }
                        taken += 1;
                        next = more(&mut stream, taken);
                    }
                    tokio::task::yield_now().await;
                }
            }
            self.hand_over();
            self.mark(member);
        }
    }

    fn turn(&mut self, member: &mut Member) {
        if member.turn() {
            self.lanes.retain(|_, lane| !lane.partition.is_closed());
        }
        self.obey();
        self.lanes.values_mut().for_each(Lane::measure_room);
        self.make_way();
        self.begin_to_look_ahead();
        if self.dropped > 0 && self.look_ahead.is_none() {
            let count = std::mem::take(&mut self.dropped);
            info!(broker = %self.kafka.settings.name, count, "parked deliveries were dropped as ordered");
        }
    }

    /// Carries out new orders for what is in memory.
    fn obey(&mut self) {
        let version = self.kafka.orders.version();
        if self.obeyed == version {
            return;
        }
        self.obeyed = version;
        for lane in self.lanes.values_mut() {
            for waiting in std::mem::take(&mut lane.waiting) {
                match waiting.ordered(&self.kafka.orders, lane.kind) {
                    None => lane.waiting.push_back(waiting),
                    Some(deed) => {
                        lane.bytes -= waiting.bytes;
                        self.dropped += u64::from(!lane.obey(deed, waiting, &self.intakes.obeyed));
                    }
                }
            }
        }
    }

    /// Where more lies than is in memory, what an order is about may be far behind.
    fn begin_to_look_ahead(&mut self) {
        if self.look_ahead.is_some() || self.kafka.orders.version() == 0 {
            return;
        }
        if self.look_again_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.look_again_at = None;
        let mut from = Vec::new();
        for kind in [WaitKind::Retry, WaitKind::Hold] {
            let Some(given_ms) = self.kafka.orders.last_about(kind) else {
                continue;
            };
            for (place, lane) in &mut self.lanes {
                let last_ms = lane.waiting.back().map_or(i64::MAX, |last| last.stamp_ms);
                let is_behind = lane.kind == kind && lane.paused && last_ms <= given_ms;
                if is_behind && lane.looked_for_ms < given_ms {
                    lane.looked_for_ms = given_ms;
                    from.push(Behind {
                        place: place.clone(),
                        offset: lane.partition.next(),
                        given_ms,
                    });
                }
            }
        }
        if !from.is_empty() {
            self.look_ahead = Some(LookAhead::begin(&self.kafka, from));
        }
    }

    /// Whether more may be looked for further ahead: of what was found, not much is still in memory,
    /// and no partition is short of room in its commits.
    fn may_pick(&self) -> bool {
        let of_lane = |lane: &Lane| (lane.ordered.len(), lane.ordered_bytes);
        let all = self.lanes.values().map(of_lane);
        let (count, bytes) = all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        !self.crowded && count < ORDERED_AHEAD && bytes < ORDERED_AHEAD_BYTES
    }

    /// Parks anew what only waits in front of much that an order has picked out.
    fn make_way(&mut self) {
        let now_ms = self.kafka.clock.reached_ms();
        self.crowded = false;
        for lane in self.lanes.values_mut().filter(|lane| lane.picked) {
            let Some(last) = lane.partition.crowded_to() else {
                continue;
            };
            self.crowded = true;
            while let Some(now_ms) = now_ms
                && self.moves.len() < MOVES
                && let Some(waiting) = lane.pop_before(last)
            {
                let place = (lane.partition.clone(), lane.kind);
                self.moves
                    .spawn(hop_on(self.kafka.clone(), waiting, Some(now_ms), place));
            }
        }
    }

    /// What looking ahead has met; `None`: it came to an early end.
    fn met(&mut self, met: Option<Met>) {
        match met {
            Some(Met::Found(found)) => self.found(*found),
            Some(Met::End) => self.look_ahead = None,
            None => {
                let places = self.look_ahead.take().map_or_else(Vec::new, |it| it.places);
                for place in places {
                    if let Some(lane) = self.lanes.get_mut(&place) {
                        lane.looked_for_ms = 0;
                    }
                }
                self.look_again_at = Some(Instant::now() + LOOK_AGAIN);
            }
        }
    }

    /// Something that an order is about was found beyond what is in memory.
    fn found(&mut self, found: Found) {
        let Found {
            place,
            waiting,
            deed,
        } = found;
        if let Some(lane) = self.lanes.get_mut(&place)
            && lane.partition.take_ahead(waiting.offset)
        {
            self.dropped += u64::from(!lane.obey(deed, waiting, &self.intakes.obeyed));
        }
    }

    /// An order about a record was given while that was on its way to another tier.
    fn ordered_meanwhile(&mut self, ordered: Ordered) {
        let partition = ordered.partition();
        let place = (partition.topic.clone(), partition.number);
        if let Some(lane) = self.lanes.get_mut(&place)
            && Arc::ptr_eq(&lane.partition, partition)
        {
            let (waiting, deed) = ordered.taken();
            self.dropped += u64::from(!lane.obey(deed, waiting, &self.intakes.obeyed));
        }
    }

    fn receive(&mut self, member: &Member, message: &BorrowedMessage<'_>) {
        let Some(partition) = member.partition(message.topic(), message.partition()) else {
            return;
        };
        if !partition.receive(message.offset()) {
            return;
        }
        let place = (partition.topic.clone(), partition.number);
        let group = &self.kafka.settings.group;
        let Some((kind, delay)) = names::read_tier(group, message.topic()) else {
            partition.give_back(message.offset());
            return;
        };
        let lane = self
            .lanes
            .entry(place)
            .or_insert_with(|| Lane::new(partition.clone(), kind, delay));
        if !Arc::ptr_eq(&lane.partition, partition) {
            // The same partition, assigned anew.
            lane.partition = partition.clone();
            lane.forget();
        }
        let waiting = Waiting::new(message, &partition.topic, lane.delay);
        self.kafka.clock.observe(waiting.stamp_ms, Instant::now());
        if let Some(deed) = waiting.ordered(&self.kafka.orders, kind) {
            self.dropped += u64::from(!lane.obey(deed, waiting, &self.intakes.obeyed));
            return;
        }
        lane.bytes += waiting.bytes;
        // Fetched again after being given back: it goes where it was.
        let position = lane
            .waiting
            .partition_point(|other| other.offset < waiting.offset);
        lane.waiting.insert(position, waiting);
    }

    /// Hands over whatever is due and finds room.
    fn hand_over(&mut self) {
        // An order given before the start comes before what would be handed over without it.
        if !self.kafka.orders.known() && self.begun.elapsed() < ORDERS_WITHIN {
            return;
        }
        let Some(now_ms) = self.kafka.clock.reached_ms() else {
            return;
        };
        for kind in [WaitKind::Retry, WaitKind::Hold] {
            while let Some(place) = self.first_due(kind, now_ms) {
                if !self.pass_on(&place, kind, now_ms) {
                    break;
                }
            }
        }
    }

    /// The partition whose next record has been due for longest.
    fn first_due(&self, kind: WaitKind, now_ms: i64) -> Option<(Arc<str>, i32)> {
        self.lanes
            .iter()
            .filter(|(_, lane)| lane.kind == kind)
            .filter_map(|(place, lane)| Some((lane.next_due(now_ms)?.0, place)))
            .min_by_key(|(due_ms, _)| *due_ms)
            .map(|(_, place)| place.clone())
    }

    /// Passes on the next record of a partition; `false` when there is no room for it now.
    fn pass_on(&mut self, place: &(Arc<str>, i32), kind: WaitKind, now_ms: i64) -> bool {
        let lane = self.lanes.get_mut(place).expect("found a moment ago");
        let Some((_, is_ordered)) = lane.next_due(now_ms) else {
            return false;
        };
        let queue = match is_ordered {
            true => &lane.ordered,
            false => &lane.waiting,
        };
        let Some(head) = queue.front() else {
            return false;
        };
        let hop = match &head.parked {
            Parked::Marker => false,
            Parked::Unreadable(_) => true,
            Parked::Delivery(_) => !is_ordered && !head.remaining().is_zero(),
        };
        if hop && self.moves.len() >= MOVES {
            return false;
        }
        let (door, intake) = match kind {
            WaitKind::Retry => (&mut self.retries, &self.intakes.retries),
            WaitKind::Hold => (&mut self.holds, &self.intakes.holds),
        };
        let mut admission = None;
        if let Parked::Delivery(envelope) = &head.parked
            && !hop
        {
            let size = envelope.delivery.event.size_bytes();
            admission = door.open.take().or_else(|| intake.try_admit(size));
            if admission.is_none() {
                if door.asked.is_none() {
                    let intake = intake.clone();
                    door.asked = Some(Box::pin(async move { intake.admit(size).await }));
                }
                return false;
            }
        }
        let Some(head) = lane.pop(is_ordered) else {
            return false;
        };
        let partition = lane.partition.clone();
        if hop && matches!(head.parked, Parked::Delivery(_)) {
            self.moves
                .spawn(hop_on(self.kafka.clone(), head, None, (partition, kind)));
            return true;
        }
        match (head.parked, admission) {
            (Parked::Delivery(envelope), Some(admission)) => {
                self.kafka.loop_seen();
                let token = partition.token(head.offset);
                intake.due(envelope.delivery, kind, partition, token, admission);
            }
            // Nothing is popped for the pipeline without its room.
            (Parked::Delivery(_), None) => partition.give_back(head.offset),
            (Parked::Marker, _) => {
                self.kafka.loop_seen();
                partition.settle(head.offset);
            }
            (Parked::Unreadable(raw), _) => {
                let kafka = self.kafka.clone();
                self.moves.spawn(async move {
                    put_away(kafka, *raw, partition).await;
                    None
                });
            }
        }
        true
    }

    /// Pauses partitions that hold enough and resumes those that hold little.
    fn mark(&mut self, member: &Member) {
        let share = self.lanes.len().max(1);
        let most = (READ_AHEAD / share).max(LEAST_AHEAD);
        let most_bytes = READ_AHEAD_BYTES / share;
        let mut pause = TopicPartitionList::new();
        let mut resume = TopicPartitionList::new();
        for lane in self.lanes.values_mut() {
            let (count, bytes) = (lane.waiting.len() + lane.ordered.len(), lane.bytes);
            let is_stuck = lane.is_stuck();
            if !lane.paused && !is_stuck && (count >= most || bytes >= most_bytes) {
                lane.paused = true;
                pause.add_partition(&lane.partition.topic, lane.partition.number);
            } else if lane.paused && (is_stuck || count <= most / 2 && bytes <= most_bytes / 2) {
                lane.paused = false;
                resume.add_partition(&lane.partition.topic, lane.partition.number);
            }
        }
        if pause.count() > 0
            && let Err(error) = member.consumer.pause(&pause)
        {
            debug!(%error, "could not pause tiers");
        }
        if resume.count() > 0
            && let Err(error) = member.consumer.resume(&resume)
        {
            debug!(%error, "could not resume tiers");
        }
    }

    /// Deletes what lies below the committed offsets: nobody needs it any more.
    fn trim(&mut self) {
        let mut list = TopicPartitionList::new();
        for lane in self.lanes.values_mut() {
            if let Some(offset) = lane.partition.committed()
                && offset > lane.trimmed
            {
                lane.trimmed = offset;
                let _ = list.add_partition_offset(
                    &lane.partition.topic,
                    lane.partition.number,
                    Offset::Offset(offset),
                );
            }
        }
        if list.count() == 0 {
            return;
        }
        let kafka = self.kafka.clone();
        self.moves.spawn(async move {
            let options = rdkafka::admin::AdminOptions::new();
            match kafka.admin.delete_records(&list, &options).await {
                Ok(done) => {
                    let refused = done.elements().iter().find_map(|e| e.error().err());
                    if let Some(error) = refused {
                        debug!(%error, "a tier was not trimmed");
                    }
                }
                Err(error) => debug!(%error, "tiers were not trimmed"),
            }
            None
        });
    }
}

/// Resolves when the pipeline has room that was asked for.
async fn opened(door: &mut Door) -> Admission {
    match door.asked.as_mut() {
        Some(asked) => {
            let admission = asked.await;
            door.asked = None;
            admission
        }
        None => std::future::pending().await,
    }
}
