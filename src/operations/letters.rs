//! Looking through dead letters without disturbing them.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::broker::{Broker, Letter, Letters, Purpose};

/// So many letters are looked at.
const MOST: usize = 1_000_000;
/// So many that are wanted are taken.
const MOST_FOUND: usize = 1_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// What `pick` makes of the dead letters of `broker`, and whether all were looked at. What is not
/// picked is let go of at once.
pub async fn matching<T>(
    broker: &dyn Broker,
    pick: impl Fn(&Letter) -> Option<T>,
) -> Result<(Vec<T>, bool), String> {
    up_to(MOST_FOUND, broker, pick).await
}

/// The first one that `pick` makes something of; nothing behind it is looked at.
pub async fn first<T>(
    broker: &dyn Broker,
    pick: impl Fn(&Letter) -> Option<T>,
) -> Result<Option<T>, String> {
    let (found, _) = up_to(1, broker, pick).await?;
    Ok(found.into_iter().next())
}

async fn up_to<T>(
    most: usize,
    broker: &dyn Broker,
    pick: impl Fn(&Letter) -> Option<T>,
) -> Result<(Vec<T>, bool), String> {
    let deadline = Instant::now() + PATIENCE;
    let opening = timeout_at(deadline, broker.open_letters(Purpose::List)).await;
    let mut letters = match opening {
        Ok(opened) => opened.map_err(|why| why.to_string())?,
        Err(_) => return Err(format!("not opened within {} s", PATIENCE.as_secs())),
    };
    let found = look(&mut *letters, most, pick, deadline).await;
    letters.close().await;
    found
}

async fn look<T>(
    letters: &mut dyn Letters,
    most: usize,
    pick: impl Fn(&Letter) -> Option<T>,
    deadline: Instant,
) -> Result<(Vec<T>, bool), String> {
    let mut found = Vec::new();
    for _ in 0..MOST {
        match timeout_at(deadline, letters.next()).await {
            Ok(Ok(Some(letter))) => found.extend(pick(&letter)),
            Ok(Ok(None)) => return Ok((found, true)),
            Ok(Err(refused)) => return Err(refused.to_string()),
            Err(_) => return Ok((found, false)),
        }
        if found.len() >= most {
            break;
        }
    }
    Ok((found, false))
}
