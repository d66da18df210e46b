//! Failpoints: places on the path where a test can have the bridge fail. Only with the feature
//! `failpoints`; a release has none.
//!
//! `HOOKBRIDGE_FAILPOINTS=render=panic:poisonous` fails in step `render` of events whose body
//! contains `poisonous`; `abort` ends the process instead. Several are separated by `;`.

use crate::event::Event;

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reach(_step: &str, _event: &Event) {}

#[cfg(feature = "failpoints")]
pub fn reach(step: &str, event: &Event) {
    use std::sync::LazyLock;

    static POINTS: LazyLock<String> =
        LazyLock::new(|| std::env::var("HOOKBRIDGE_FAILPOINTS").unwrap_or_default());
    for point in POINTS.split(';') {
        let Some((at, (action, marker))) = point
            .split_once('=')
            .and_then(|(at, what)| Some((at, what.split_once(':')?)))
        else {
            continue;
        };
        let marked = event
            .body
            .windows(marker.len().max(1))
            .any(|window| window == marker.as_bytes());
        if at == step && marked {
            match action {
                "abort" => std::process::abort(),
                _ => panic!("failpoint {step}"),
            }
        }
    }
}
