//! The cases about dead letters: gone through, taken away, given a new life.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use hookbridge::broker::{Broker, NotOpened, Publication, Purpose, Refused, Settlement, Wait};
use hookbridge::delivery::{Delivery, DeliveryId, Progress, Reason, WaitKind};
use hookbridge::meters::Meters;
use hookbridge::operations::retention;
use jiff::Timestamp;

use super::cases::{delivery, one_event};
use super::places::Place;
use super::rig::{QUIET, Rig, SOON};
use crate::support::eventually;
use crate::support::letters::{listed, remove, rest};

/// As many dead letters of one event, told apart by their ids.
async fn dead(rig: &mut Rig, place: &impl Place, count: usize) -> Vec<Delivery> {
    let publication = Publication {
        id: Some("evt_a".into()),
        ..place.publication("body")
    };
    let first = delivery(&one_event(rig, publication).await);
    let mut all = Vec::new();
    for number in 0..count {
        let dead = Delivery {
            id: DeliveryId::from_envelope(&format!("dlv_{number:05}")),
            ..first.clone()
        };
        let buried = rig.broker.dead_letter(&dead, Reason::Gone).await;
        buried.expect("dead-lettered");
        all.push(dead);
    }
    let broker = &*rig.broker;
    eventually("all letters are listed", SOON, async || {
        (listed(broker).await.len() == count).then_some(())
    })
    .await;
    all
}

async fn ids(broker: &dyn Broker) -> Vec<String> {
    let letters = listed(broker).await;
    let ids = letters.iter().map(|letter| letter.delivery.id.to_string());
    ids.collect()
}

pub async fn a_dead_letter_is_listed_fifty_times_undisturbed(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let dead = dead(&mut rig, &place, 1).await;
    for time in 0..50 {
        let letters = listed(&*rig.broker).await;
        assert_eq!(letters.len(), 1, "at listing {time}");
        assert_eq!(letters[0].delivery, dead[0]);
        assert_eq!(letters[0].reason, Reason::Gone);
    }
    rig.stop().await;
}

/// More than a chunk of any broker, so that whatever is kept apart inside is met.
pub async fn a_pass_goes_through_all_in_order_and_leaves_what_it_does_not_remove(
    place: impl Place,
) {
    let mut rig = Rig::run(place.instance()).await;
    let all = dead(&mut rig, &place, 150).await;
    let mut left: Vec<_> = all.iter().map(|dead| dead.id.to_string()).collect();
    let broker = place.beside(&rig);
    let removed = remove(&*broker, |letter| {
        letter.delivery.id.as_str().ends_with('7')
    });
    assert_eq!(removed.await, 15);
    left.retain(|id| !id.ends_with('7'));
    assert_eq!(ids(&*rig.broker).await, left, "for a fresh reader");

    // One that ends in the middle.
    let mut pass = broker.open_letters(Purpose::Change).await.expect("opened");
    assert_eq!(pass.total(), Some(135));
    for _ in 0..50 {
        pass.next().await.expect("read").expect("a letter");
    }
    pass.remove().await.expect("removed");
    let refused = pass.remove().await;
    assert!(matches!(refused, Err(Refused::Rejected { .. })));
    drop(pass);
    left.remove(49);
    let broker = &*rig.broker;
    eventually("the others are there", SOON, async || {
        (ids(broker).await == left).then_some(())
    })
    .await;
    rig.stop().await;
}

pub async fn a_listing_removes_nothing(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    dead(&mut rig, &place, 2).await;
    let mut pass = rig
        .broker
        .open_letters(Purpose::List)
        .await
        .expect("opened");
    pass.next().await.expect("read").expect("a letter");
    assert!(pass.remove().await.is_err());
    assert_eq!(rest(&mut *pass).await.len(), 1);
    assert_eq!(ids(&*rig.broker).await, ["dlv_00000", "dlv_00001"]);
    rig.stop().await;
}

pub async fn what_dies_during_a_pass_is_left_for_the_next(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let all = dead(&mut rig, &place, 3).await;
    let broker = place.beside(&rig);
    let mut pass = broker.open_letters(Purpose::Change).await.expect("opened");
    for dead in all {
        pass.next().await.expect("read").expect("a letter");
        pass.remove().await.expect("removed");
        let again = Delivery {
            generation: 1,
            ..dead
        };
        let buried = rig.broker.dead_letter(&again, Reason::Gone).await;
        buried.expect("dead-lettered");
    }
    assert!(pass.next().await.expect("read").is_none());
    drop(pass);
    let left = listed(&*rig.broker).await;
    let generations: Vec<_> = left.iter().map(|l| l.delivery.generation).collect();
    assert_eq!(generations, [1, 1, 1]);
    rig.stop().await;
}

pub async fn of_two_who_change_one_is_told_that_it_is_busy(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    dead(&mut rig, &place, 1).await;
    let other = place.beside(&rig);
    let (one, two) = tokio::join!(
        rig.broker.open_letters(Purpose::Change),
        other.open_letters(Purpose::Change)
    );
    let (mut pass, busy) = match (one, two) {
        (Ok(pass), Err(busy)) | (Err(busy), Ok(pass)) => (pass, busy),
        (Ok(_), Ok(_)) => panic!("both have it"),
        (Err(one), Err(two)) => panic!("nobody has it: {one}; {two}"),
    };
    assert!(matches!(busy, NotOpened::Busy(_)), "{busy}");
    // A third one, that comes when it is held already.
    let third = other.open_letters(Purpose::Change).await.err();
    assert!(matches!(third, Some(NotOpened::Busy(_))), "{third:?}");
    pass.next().await.expect("read").expect("a letter");
    pass.remove().await.expect("still its holder");
    drop(pass);
    let began = Instant::now();
    let again = eventually("the lock is free", SOON, async || {
        other.open_letters(Purpose::Change).await.ok()
    });
    drop(again.await);
    assert!(began.elapsed() < Duration::from_secs(10));
    rig.stop().await;
}

pub async fn a_revived_letter_comes_back_with_a_new_budget(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let dead = dead(&mut rig, &place, 1).await.remove(0);
    let letter = listed(&*rig.broker).await.remove(0);
    let before = Timestamp::now();
    rig.broker.revive(&letter).await.expect("revived");
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!((&back.id, &back.event), (&dead.id, &dead.event));
    assert_eq!((back.generation, &back.uid), (1, &dead.uid));
    assert!(back.progress.taken_at >= before);
    assert_eq!(back.progress, Progress::new(back.progress.taken_at));
    let left = listed(&*rig.broker).await;
    assert_eq!(
        left.len(),
        1,
        "the letter itself is removed by who revived it"
    );
    rig.stop().await;
}

pub async fn an_edited_letter_comes_back_as_another_event(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    let dead = dead(&mut rig, &place, 1).await.remove(0);
    let letter = listed(&*rig.broker).await.remove(0);
    let edited = letter.edited(Bytes::from_static(b"mended"), Timestamp::now());
    let edited = edited.expect("a delivery");
    let parked = rig.broker.park(&edited, Wait::AT_ONCE).await;
    parked.expect("parked");
    let (back, receipt) = rig.due(WaitKind::Retry).await;
    receipt.settle(Settlement::Ack);
    assert_eq!(back, edited);
    assert_eq!(back.replay_of, Some(dead.id));
    assert_ne!(back.event.id, dead.event.id);
    rig.stop().await;
}

pub async fn a_letter_without_its_body_is_not_revived(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    dead(&mut rig, &place, 1).await;
    let mut letter = listed(&*rig.broker).await.remove(0);
    letter.has_body = false;
    let refused = rig.broker.revive(&letter).await.expect_err("refused");
    assert!(refused.to_string().contains("its body"), "{refused}");
    let came = tokio::time::timeout(QUIET, rig.retries.recv()).await;
    assert!(came.is_err(), "{came:?}");
    rig.stop().await;
}

/// One pass, not one per letter.
pub async fn ten_thousand_letters_are_gone_through_in_seconds(place: impl Place) {
    const COUNT: usize = 10_000;
    let mut rig = Rig::run(place.instance()).await;
    let first = delivery(&one_event(&mut rig, place.publication("body")).await);
    let broker = rig.broker.clone();
    let first = &first;
    futures_util::stream::iter(0..COUNT)
        .for_each_concurrent(64, |number| {
            let broker: Arc<dyn Broker> = broker.clone();
            let dead = Delivery {
                id: DeliveryId::from_envelope(&format!("dlv_{number:05}")),
                ..first.clone()
            };
            async move { broker.dead_letter(&dead, Reason::Gone).await.expect("kept") }
        })
        .await;
    let began = Instant::now();
    let before = ids(&*rig.broker).await;
    let took = began.elapsed();
    assert_eq!(before.len(), COUNT);
    println!("{COUNT} letters listed in {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    let began = Instant::now();
    let after = ids(&*rig.broker).await;
    println!("and again in {:?}", began.elapsed());
    assert!(before == after, "the order is another one after a listing");
    rig.stop().await;
}

pub async fn a_sweep_removes_what_is_older_than_its_retention(place: impl Place) {
    let mut rig = Rig::run(place.instance()).await;
    dead(&mut rig, &place, 5).await;
    let letters = listed(&*rig.broker).await;
    let expired = Meters::new().expired("shop");
    let hour = Duration::from_secs(3_600);
    // As if it were an hour later: the first three are just over it, the others just not.
    let now = letters[3].dead_at.checked_add(hour).expect("a time");
    let died_before = letters.iter().filter(|l| l.dead_at < letters[3].dead_at);
    let old = died_before.count() as u64;
    let swept = retention::sweep(&*rig.broker, hour, now, &expired).await;
    assert_eq!(swept.expect("swept"), old);
    assert_eq!(expired.get(), old);
    assert!(old > 0);
    let left = ids(&*rig.broker).await;
    assert_eq!(left.len() as u64, 5 - old);
    assert!(left.ends_with(&["dlv_00003".into(), "dlv_00004".into()]));
    let swept = retention::sweep(&*rig.broker, hour, now, &expired).await;
    assert_eq!(swept.expect("swept"), 0);
    rig.stop().await;
}
