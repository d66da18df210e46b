//! Looking through dead letters without disturbing them.

use std::time::Duration;

use tokio::time::timeout;

use crate::broker::{Broker, Letter};

/// So many letters are looked at.
const MOST: usize = 100_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// The dead letters of `broker` that `wanted` says yes to, and whether all were looked at.
pub async fn matching(
    broker: &dyn Broker,
    wanted: impl Fn(&Letter) -> bool,
) -> Result<(Vec<Letter>, bool), String> {
    let letters = match timeout(PATIENCE, broker.letters(MOST)).await {
        Ok(Ok(letters)) => letters,
        Ok(Err(refused)) => return Err(refused.to_string()),
        Err(_) => return Err(format!("not listed within {} s", PATIENCE.as_secs())),
    };
    let all = letters.len() < MOST;
    Ok((letters.into_iter().filter(wanted).collect(), all))
}
