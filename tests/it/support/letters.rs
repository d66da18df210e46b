//! Dead letters as the contract shows them.

use hookbridge::broker::{Broker, Letter, Letters, Purpose};

/// All of them, oldest first.
pub async fn listed(broker: &dyn Broker) -> Vec<Letter> {
    let mut pass = broker.open_letters(Purpose::List).await.expect("opened");
    rest(&mut *pass).await
}

/// What is left of a pass.
pub async fn rest(pass: &mut dyn Letters) -> Vec<Letter> {
    let mut letters = Vec::new();
    while let Some(letter) = pass.next().await.expect("a letter or the end") {
        letters.push(letter);
    }
    letters
}

/// Takes away those that `which` says; how many those were.
pub async fn remove(broker: &dyn Broker, which: impl Fn(&Letter) -> bool) -> usize {
    let mut pass = broker.open_letters(Purpose::Change).await.expect("opened");
    let mut removed = 0;
    while let Some(letter) = pass.next().await.expect("a letter or the end") {
        if which(&letter) {
            pass.remove().await.expect("removed");
            removed += 1;
        }
    }
    removed
}
