//! Looking through dead letters without disturbing them.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::broker::{Broker, Letter, Purpose};

/// So many letters are looked at.
const MOST: usize = 1_000_000;
/// So many that are wanted are taken.
const MOST_FOUND: usize = 1_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// The dead letters of `broker` that `wanted` says yes to, and whether all were looked at.
pub async fn matching(
    broker: &dyn Broker,
    wanted: impl Fn(&Letter) -> bool,
) -> Result<(Vec<Letter>, bool), String> {
    let deadline = Instant::now() + PATIENCE;
    let opening = timeout_at(deadline, broker.open_letters(Purpose::List)).await;
    let mut letters = match opening {
        Ok(opened) => opened.map_err(|why| why.to_string())?,
        Err(_) => return Err(format!("not opened within {} s", PATIENCE.as_secs())),
    };
    let mut found = Vec::new();
    for _ in 0..MOST {
        match timeout_at(deadline, letters.next()).await {
            Ok(Ok(Some(letter))) if wanted(&letter) => found.push(letter),
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Ok((found, true)),
            Ok(Err(refused)) => return Err(refused.to_string()),
            Err(_) => return Ok((found, false)),
        }
        if found.len() >= MOST_FOUND {
            break;
        }
    }
    Ok((found, false))
}
