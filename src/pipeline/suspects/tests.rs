use std::path::Path;

use prometheus_client::metrics::gauge::Gauge;
use tempfile::TempDir;

use super::*;

/// A process. The next one after its death begins with what is on the disk now.
struct Life {
    folder: TempDir,
    suspects: Arc<Suspects>,
    meters: Arc<Meters>,
}

impl Life {
    async fn first() -> Self {
        Self::on(tempfile::tempdir().unwrap()).await
    }

    async fn on(folder: TempDir) -> Self {
        let meters = Meters::new();
        let flush = meters.store_flush.clone();
        let store = Store::open(folder.path(), Gauge::default(), flush).unwrap();
        let suspects = Suspects::new(Arc::new(store), meters.clone());
        suspects.begin().await.unwrap();
        Self {
            folder,
            suspects,
            meters,
        }
    }

    /// What a process finds that is started after this one was killed just now.
    async fn killed(&self) -> Self {
        self.suspects.write().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        copy(self.folder.path(), folder.path());
        Self::on(folder).await
    }

    fn is_careful(&self) -> bool {
        self.meters.careful.get() == 1
    }

    fn is_poison(&self, key: &str) -> bool {
        self.suspects.is_poison(|| key.to_owned())
    }

    async fn enter(&self, key: &str) -> Option<Box<Pass>> {
        self.suspects.enter(|| key.to_owned()).await
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[tokio::test]
async fn panics_are_counted_across_a_kill() {
    let life = Life::first().await;
    assert!(life.enter("evt").await.is_none(), "normal running");
    life.suspects.panicked("evt/config:crm".into());
    life.suspects.panicked("evt/config:crm".into());
    let next = life.killed().await;
    assert!(!next.is_poison("evt/config:crm"));
    next.suspects.panicked("evt/config:crm".into());
    assert!(next.is_poison("evt/config:crm"));
    assert!(!next.is_poison("evt/config:stock"));
}

#[tokio::test]
async fn what_is_in_hand_at_three_deaths_is_poison() {
    let mut life = Life::first().await.killed().await;
    for tries in 0..3 {
        assert!(life.is_careful() && !life.is_poison("evt"), "{tries}");
        let innocent = life.enter("innocent").await.expect("a pass");
        innocent.resolved();
        let _in_hand = life.enter("evt").await.expect("a pass");
        life = life.killed().await;
    }
    assert!(life.is_poison("evt"));
    assert!(!life.is_poison("innocent"));
    // Buried and so resolved, it is forgotten.
    life.enter("evt").await.expect("a pass").resolved();
    assert!(!life.killed().await.is_poison("evt"));
}

#[tokio::test]
async fn a_success_clears_the_tries() {
    let mut life = Life::first().await.killed().await;
    for _ in 0..2 {
        let _in_hand = life.enter("evt").await.expect("a pass");
        life = life.killed().await;
    }
    life.enter("evt").await.expect("a pass").resolved();
    let _in_hand = life.enter("evt").await.expect("a pass");
    assert!(!life.killed().await.is_poison("evt"));
}

#[tokio::test]
async fn a_suspect_goes_alone_and_a_slow_one_holds_nobody_up() {
    let life = Life::first().await.killed().await;
    for number in 0..4 {
        life.enter(&number.to_string()).await.unwrap().resolved();
    }
    assert_eq!(*life.suspects.pace().borrow(), 4);
    life.suspects.panicked("suspect".into());
    let slow = life.enter("slow").await;
    let began = tokio::time::Instant::now();
    let _suspect = life.enter("suspect").await;
    assert!(began.elapsed() >= TURN / 2, "beside another");
    assert_eq!(*life.suspects.pace().borrow(), 16);
    drop(slow);
}

#[tokio::test]
async fn care_ends_when_enough_went_well_and_leaves_no_notes() {
    let life = Life::first().await.killed().await;
    for number in 0..WELL {
        assert!(life.is_careful());
        life.enter(&number.to_string()).await.unwrap().resolved();
    }
    assert!(!life.is_careful());
    assert_eq!(*life.suspects.pace().borrow(), usize::MAX);
    assert!(life.enter("another").await.is_none());
    life.suspects.end().await.unwrap();
    let next = life.killed().await;
    assert!(!next.is_careful(), "a stop in order");
    assert!(next.suspects.lock().against.is_empty());
}

#[tokio::test]
async fn care_ends_after_a_while_however_few_have_gone_well() {
    let life = Life::first().await.killed().await;
    let first = life.enter("first").await.expect("a pass");
    tokio::time::pause();
    tokio::time::advance(LONGEST).await;
    first.resolved();
    assert!(!life.is_careful());
    assert!(life.enter("another").await.is_none());
}

#[tokio::test]
async fn tries_are_forgotten_after_a_day() {
    let life = Life::first().await;
    for _ in 0..3 {
        life.suspects.panicked("evt".into());
    }
    let hours = |hours| Timestamp::now() + SignedDuration::from_hours(hours);
    life.suspects.forget(hours(23));
    assert!(life.is_poison("evt"));
    life.suspects.forget(hours(25));
    assert!(!life.is_poison("evt"));
    assert!(life.enter("evt").await.is_none(), "normal running");
    assert!(life.killed().await.suspects.lock().against.is_empty());
}

#[tokio::test]
async fn suspects_are_bounded_and_the_worst_are_kept() {
    let life = Life::first().await;
    for _ in 0..2 {
        life.suspects.panicked("worst".into());
    }
    for number in 0..2 * MOST {
        life.suspects.panicked(number.to_string());
    }
    assert_eq!(life.suspects.lock().against.len(), MOST);
    life.suspects.panicked("worst".into());
    assert!(life.is_poison("worst"));
    let next = life.killed().await;
    assert_eq!(next.suspects.lock().against.len(), MOST);
    assert!(next.is_poison("worst"));
}
