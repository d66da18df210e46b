//! Failpoints: steps of the path at which a test can have the bridge fail. Only with the feature
//! `failpoints`; without it they are nothing, and no variable is read.
//!
//! `HOOKBRIDGE_FAILPOINTS` lists them, separated by `;`: `<step>=<how>:<when>`. How: `panic`; `abort`,
//! with which the process ends at once and without a word, as with kill -9; `soon`, with which it does so
//! a moment later, while the step goes on; `stall`, with which the step takes half a second. When: a
//! number counts how often the step is reached, anything else is a text in the event's body.

/// Here `step` begins, for an event with this body.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reach(_step: &str, _body: &[u8]) {}

#[cfg(feature = "failpoints")]
pub use self::armed::reach;

#[cfg(feature = "failpoints")]
mod armed {
    use std::process::abort;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    /// How long a step goes on with `soon`.
    const MOMENT: Duration = Duration::from_millis(1);
    /// How long a step takes with `stall`.
    const STALL: Duration = Duration::from_millis(500);

    struct Point {
        step: String,
        how: How,
        when: When,
        reached: AtomicUsize,
    }

    enum How {
        Panic,
        Abort,
        Soon,
        Stall,
    }

    enum When {
        Nth(usize),
        Marked(String),
    }

    static POINTS: LazyLock<Vec<Point>> = LazyLock::new(|| {
        let listed = std::env::var("HOOKBRIDGE_FAILPOINTS").unwrap_or_default();
        let points = listed.split(';').filter(|point| !point.is_empty());
        points
            .map(|point| parse(point).unwrap_or_else(|| panic!("no failpoint: {point}")))
            .collect()
    });

    fn parse(point: &str) -> Option<Point> {
        let (step, rest) = point.split_once('=')?;
        let (how, when) = rest.split_once(':')?;
        Some(Point {
            step: step.to_owned(),
            how: match how {
                "panic" => How::Panic,
                "abort" => How::Abort,
                "soon" => How::Soon,
                "stall" => How::Stall,
                _ => return None,
            },
            when: match when.parse() {
                Ok(nth) => When::Nth(nth),
                Err(_) => When::Marked(when.to_owned()),
            },
            reached: AtomicUsize::new(0),
        })
    }

    /// Here `step` begins, for an event with this body.
    pub fn reach(step: &str, body: &[u8]) {
        for point in POINTS.iter().filter(|point| point.step == step) {
            let hit = match &point.when {
                When::Nth(nth) => point.reached.fetch_add(1, Ordering::Relaxed) + 1 == *nth,
                When::Marked(mark) => body.windows(mark.len()).any(|it| it == mark.as_bytes()),
            };
            match point.how {
                _ if !hit => {}
                How::Panic => panic!("failpoint {step}"),
                How::Abort => abort(),
                How::Soon => drop(thread::spawn(|| {
                    thread::sleep(MOMENT);
                    abort()
                })),
                How::Stall => thread::sleep(STALL),
            }
        }
    }
}
