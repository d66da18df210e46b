//! Subscriptions made over the API, read page by page, so that however many there are, few are in hand.

use std::ops::Bound;

use super::{Registered, Store, StoreError, Tree, codec};
use crate::subscription::Uid;

impl Store {
    /// At most `most` subscriptions made over the API, ordered by uid, from behind `after` on.
    pub fn registered_after(
        &self,
        after: Option<&Uid>,
        most: usize,
    ) -> Result<Vec<Registered>, StoreError> {
        let prefix = super::registered::OF_UID;
        let first = match after {
            Some(uid) => Bound::Excluded(format!("{prefix}{uid}").into_bytes()),
            None => Bound::Included(prefix.as_bytes().to_vec()),
        };
        let page: Vec<_> = self.read(|kept| {
            let all = kept.registered.range((first, Bound::<Vec<u8>>::Unbounded));
            let is_one = |entry: &sled::Result<(sled::IVec, sled::IVec)>| match entry {
                Ok((key, _)) => key.starts_with(prefix.as_bytes()),
                Err(_) => true,
            };
            all.take_while(is_one).take(most).collect()
        })?;
        page.iter()
            .map(|(key, bytes)| Ok(codec::decode(Tree::Registered.name(), key, bytes)?))
            .collect()
    }
}
