//! What befalls the machine: its clock jumps, its disk is full.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::judge::Report;
use crate::support::SECRET;
use crate::support::bridge::Bridge;
use crate::support::receiver::Request;
use crate::world::{Plan, Setting, World};

const RATE: usize = 50;
const WITHIN: Duration = Duration::from_secs(30);

/// Where Debian's package `faketime` has its library.
fn faketime() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("there is /usr/lib");
    let found = folders
        .filter_map(|folder| Some(folder.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|library| library.exists());
    found.expect("scripts/setup installs faketime")
}

/// The wall clock of the bridge goes an hour on, an hour back and to 1970, while it runs and across
/// a restart. Timers are by another clock, and a signature carries the sender's time.
///
/// Timed waits of the Kafka library end at a time of the wall clock: a wait that was begun before the
/// clock went back lasts until that time comes again, unless something happens. The bridge has to leave all
/// the same.
pub async fn clock_jumps(setting: Setting) -> Report {
    let clock = Wall::new();
    let set = |offset: i64| clock.set(offset);
    let plan = Plan {
        env: clock.env(),
        ..Plan::default()
    };
    let mut world = World::start(setting, plan).await;
    world.producer.go(RATE);
    world.part(200).await;
    let to_1970 = 86_400 - unix_now();
    let offsets = [3_600, -3_600, to_1970, 0];
    let mut left_after = Duration::ZERO;
    for offset in offsets {
        set(offset);
        world.part(250).await;
        if offset == to_1970 {
            let began = Instant::now();
            world.bridge.terminate();
            world.bridge.exit_code(WITHIN * 2).await;
            left_after = began.elapsed();
            world.bridge.start_again().await;
            world.part(250).await;
        }
    }
    let mut evidence = world.evidence().await;
    let good = &mut evidence.subscribed[0];
    good.not_before = Some(Duration::from_secs(1));
    let strange = signed_at_other_times(&mut good.requests, &offsets);
    let (requests, owed) = (good.requests.len(), evidence.events.confirmed.len());
    let mut report = Report::of(&evidence);
    report.note(format!(
        "in 1970 it had left {:.1} s after SIGTERM",
        left_after.as_secs_f64()
    ));
    report.must(
        left_after < WITHIN / 2,
        "it does not leave while the clock is behind",
    );
    report.must(
        strange == 0,
        &format!("{strange} signatures of another time than the sender's"),
    );
    report.must(
        requests <= owed * 3 / 2 + 50,
        &format!("{requests} requests for {owed} events"),
    );
    report
}

/// The clocks of two instances are half a minute apart: what one has parked the other sends, never early
/// and signed with its own time.
pub async fn clocks_apart(setting: Setting) -> Report {
    const APART: i64 = -30;
    let behind = Wall::new();
    behind.set(APART);
    let env = behind.env();
    let mut world = World::start(setting, Plan::default()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let second = Bridge::start_in(folder, &world.config, env).await;
    second.wait_ready(WITHIN * 2).await;
    world.producer.go(RATE * 2);
    world.part(1_000).await;
    world.goes_on_without(second).await;
    world.part(300).await;
    let mut evidence = world.evidence().await;
    let good = &mut evidence.subscribed[0];
    good.not_before = Some(Duration::from_secs(1));
    let strange = signed_at_other_times(&mut good.requests, &[0, APART]);
    let is_behind = |request: &&Request| {
        let came = unix_now() - request.at.elapsed().as_secs() as i64;
        signed(request).is_some_and(|(signed_at, _)| signed_at - came < APART / 2)
    };
    let by_second = good.requests.iter().filter(is_behind).count();
    let by_first = good.requests.len() - by_second;
    let mut report = Report::of(&evidence);
    report.note(format!(
        "{by_first} requests of the one, {by_second} of the other, whose clock was {} s behind",
        -APART
    ));
    report.must(
        strange == 0,
        &format!("{strange} signatures of another time than the sender's"),
    );
    report.must(by_first > 0 && by_second > 0, "one of them sent nothing");
    report
}

/// A wall clock that is set as the test likes, while the other clocks are left alone.
struct Wall(tempfile::TempDir);

impl Wall {
    fn new() -> Self {
        let wall = Self(tempfile::tempdir().expect("a folder"));
        wall.set(0);
        wall
    }

    /// So many seconds ahead of the true time.
    fn set(&self, offset: i64) {
        // In one step, so that a half-written one is never read.
        let next = self.0.path().join("next");
        std::fs::write(&next, format!("{offset:+}\n")).expect("written");
        std::fs::rename(&next, self.0.path().join("clock")).expect("renamed");
    }

    /// Also for timed waits of the Kafka library, which faketime lets end by the true clock: where the clock
    /// is behind they would not wait at all, and where it is ahead for as long as it is.
    fn env(&self) -> Vec<(&'static str, String)> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torture/cnd_timedwait.c");
        let waits = self.0.path().join("cnd_timedwait.so");
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]);
        let compiled = compile.arg(&waits).arg(source).arg("-ldl").status();
        assert!(compiled.expect("there is cc").success());
        let clock = self.0.path().join("clock");
        let preload = format!("{}:{}", waits.display(), faketime().display());
        vec![
            ("LD_PRELOAD", preload),
            ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}

/// Looks at signatures again, by the time that they name themselves; how many of these times are those
/// of no clock that was so far ahead.
fn signed_at_other_times(requests: &mut [Request], offsets: &[i64]) -> usize {
    let mut strange = 0;
    for request in requests {
        let Some((signed_at, is_signed)) = signed(request) else {
            continue;
        };
        request.verified = is_signed;
        let came = unix_now() - request.at.elapsed().as_secs() as i64;
        let is_now = |offset: &i64| (came + offset - signed_at).abs() <= 5;
        strange += usize::from(!offsets.iter().any(is_now));
    }
    strange
}

fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs() as i64
}

/// When a request was signed by its own account, and whether its signature is right for then.
fn signed(request: &Request) -> Option<(i64, bool)> {
    let text = |name: &str| request.headers.get(name)?.to_str().ok();
    let at = text("webhook-timestamp")?.parse().ok()?;
    let signer = standardwebhooks::Webhook::new(SECRET).expect("a good secret");
    let signature = signer.sign(&request.id, at, &request.body).ok()?;
    Some((at, text("webhook-signature")? == signature))
}

/// A small disk of its own, gone when it is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
        let mounted = mount.arg(folder.path()).output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then(|| Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

/// The disk of store and embedded broker is full for a while.
pub async fn disk_full(setting: Setting) -> Report {
    let disk = SmallDisk::mount("48m").expect("root may mount a tmpfs");
    let plan = Plan {
        folder: Some(disk.path().to_owned()),
        ..Plan::default()
    };
    let mut world = World::start(setting, plan).await;
    world.producer.go(RATE * 2);
    world.part(300).await;
    let ballast = disk.path().join("ballast");
    let filled = Command::new("dd")
        .args(["if=/dev/zero", "bs=64k"])
        .arg(format!("of={}", ballast.display()))
        .output();
    assert!(!filled.expect("dd runs").status.success(), "it is full");
    let (began, mut said) = (Instant::now(), None);
    while began.elapsed() < WITHIN && said.is_none() {
        said = match world.bridge.exited() {
            Some(code) => Some(format!("exited with {code:?}")),
            None if world.turns_unready(Duration::from_millis(300)).await => {
                Some("unready".to_owned())
            }
            None => None,
        };
    }
    world.part(300).await;
    let code = world.bridge.exited();
    std::fs::remove_file(&ballast).expect("removed");
    if code.is_some() {
        world.bridge.start_again().await;
    }
    world.bridge.wait_ready(WITHIN).await;
    let issued = world.producer.issued();
    world.part(300).await;
    let mut report = world.judged().await;
    report.note(format!(
        "{} after {:.1} s of a full disk, exit code {code:?}",
        said.as_deref().unwrap_or("nothing was said"),
        began.elapsed().as_secs_f64()
    ));
    report.must(code != Some(Some(0)), "it ended as if nothing had been");
    report.must(issued > 0, "nothing was published");
    report
}
