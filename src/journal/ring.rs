//! The ring on disk: blocks of records in the order of writing, and a head for each.
//!
//! A block is a handful of records or as many as fit 128 KiB, one row whatever it holds, so that a
//! delivery costs a copy and not a descent into trees. A head says what can be in its block: a
//! span of time, subscriptions, and four bytes of a hash of each event's and delivery's id. Whoever
//! looks for an event reads all heads, eight bytes for each record, and the blocks that may have it.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use redb::{Builder, Database, DatabaseError, ReadableTable, StorageError, TableDefinition};

use super::record;

/// The instance's name and the records, by number.
pub const BLOCKS: TableDefinition<u64, &[u8]> = TableDefinition::new("blocks");
/// What is in each block.
pub const HEADS: TableDefinition<u64, &[u8]> = TableDefinition::new("heads");

/// Memory that redb may use for pages.
const CACHE_BYTES: usize = 8 << 20;
/// Largest block, unless one record is larger. Under a power of two, which redb rounds up to.
const BLOCK_BYTES: usize = (128 << 10) - 512;
/// Blocks that one commit evicts at most; more than one that it adds, so the ring gets there.
const EVICTED_AT_ONCE: usize = 256;
/// Beyond so many subscriptions a head does not list them.
const LISTED: usize = 64;
const PAGE: usize = 4 << 10;

pub type Opener = dyn Fn(&Path) -> Result<Database, DatabaseError> + Send;

/// Why the journal cannot be read, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("attempts are not kept: `attempts.enabled` is false")]
    Off,
    #[error("there are no attempts yet: {0} does not exist")]
    Missing(String),
    #[error("{0} is in use by another process: ask the bridge that runs on it")]
    InUse(String),
    #[error("the journal of attempts is not available now; the log says why")]
    Broken,
    #[error("the journal of attempts cannot be read: {0}")]
    Storage(String),
}

impl<E: Into<redb::Error>> From<E> for Unreadable {
    fn from(error: E) -> Self {
        Self::Storage(error.into().to_string())
    }
}

/// What a block may hold.
pub struct Head {
    pub first_us: i64,
    pub last_us: i64,
    /// What the block counts for.
    pub charge: u32,
    /// Hashes of the subscriptions; `None`: too many to list.
    subscriptions: Option<Vec<u32>>,
    /// Hashes of each record's event and delivery.
    ids: Vec<(u32, u32)>,
}

impl Head {
    fn of(block: &[u8]) -> Self {
        let mut head = Self {
            first_us: i64::MAX,
            last_us: i64::MIN,
            charge: 0,
            subscriptions: Some(Vec::new()),
            ids: Vec::new(),
        };
        for key in record::split(block).filter_map(record::key) {
            head.first_us = head.first_us.min(key.at_us);
            head.last_us = head.last_us.max(key.at_us);
            head.ids.push((hash(key.event), hash(key.delivery)));
            if let Some(listed) = &mut head.subscriptions {
                let subscription = hash(key.subscription);
                if !listed.contains(&subscription) {
                    listed.push(subscription);
                }
                if listed.len() > LISTED {
                    head.subscriptions = None;
                }
            }
        }
        head.charge = charge(block.len()) + charge(8 * head.ids.len() + 32);
        head
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32 + 8 * self.ids.len());
        bytes.extend_from_slice(&self.first_us.to_le_bytes());
        bytes.extend_from_slice(&self.last_us.to_le_bytes());
        bytes.extend_from_slice(&self.charge.to_le_bytes());
        let listed = self.subscriptions.as_deref();
        let count = listed.map_or(u16::MAX, |listed| listed.len() as u16);
        bytes.extend_from_slice(&count.to_le_bytes());
        for subscription in listed.unwrap_or_default() {
            bytes.extend_from_slice(&subscription.to_le_bytes());
        }
        for (event, delivery) in &self.ids {
            bytes.extend_from_slice(&event.to_le_bytes());
            bytes.extend_from_slice(&delivery.to_le_bytes());
        }
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).ok();
        let (first_us, rest) = bytes.split_first_chunk::<8>()?;
        let (last_us, rest) = rest.split_first_chunk::<8>()?;
        let (charge, rest) = rest.split_first_chunk::<4>()?;
        let (count, rest) = rest.split_first_chunk::<2>()?;
        let count = u16::from_le_bytes(*count);
        let listed = if count == u16::MAX { 0 } else { count.into() };
        let (listed, ids) = rest.split_at_checked(4 * listed)?;
        Some(Self {
            first_us: i64::from_le_bytes(*first_us),
            last_us: i64::from_le_bytes(*last_us),
            charge: u32::from_le_bytes(*charge),
            subscriptions: (count != u16::MAX)
                .then(|| listed.chunks_exact(4).filter_map(word).collect()),
            ids: ids
                .chunks_exact(8)
                .filter_map(|pair| Some((word(&pair[..4])?, word(&pair[4..])?)))
                .collect(),
        })
    }

    pub fn may_have_event(&self, event: &str) -> bool {
        let wanted = hash(event);
        self.ids.iter().any(|(event, _)| *event == wanted)
    }

    /// An event or a delivery of this id.
    pub fn may_have(&self, id: &str) -> bool {
        let wanted = hash(id);
        let either = |(event, delivery): &(u32, u32)| *event == wanted || *delivery == wanted;
        self.ids.iter().any(either)
    }

    pub fn may_have_subscription(&self, subscription: &str) -> bool {
        let listed = self.subscriptions.as_ref();
        listed.is_none_or(|listed| listed.contains(&hash(subscription)))
    }
}

/// What redb takes for a value: a share of a page, or pages of a power of two.
fn charge(bytes: usize) -> u32 {
    let charge = if bytes <= PAGE / 4 {
        bytes + 32
    } else {
        (bytes + 128).next_multiple_of(PAGE).next_power_of_two()
    };
    u32::try_from(charge).unwrap_or(u32::MAX)
}

/// Stored, so it may not change: eight bytes at a time, multiplied and rotated.
fn hash(text: &str) -> u32 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = text.len() as u64;
    for chunk in text.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word))
            .wrapping_mul(ODD)
            .rotate_left(29);
    }
    (hash.wrapping_mul(ODD) >> 32) as u32
}

/// The ring as its writer holds it.
pub struct Ring {
    next: u64,
    pub bytes: u64,
}

impl Ring {
    /// Makes the tables, and counts what there is.
    pub fn prepare(db: &Database) -> Result<Self, redb::Error> {
        let txn = db.begin_write()?;
        let mut ring = Self { next: 1, bytes: 0 };
        {
            txn.open_table(BLOCKS)?;
            let heads = txn.open_table(HEADS)?;
            for row in heads.iter()? {
                let (number, head) = row?;
                ring.next = number.value() + 1;
                let head = Head::decode(head.value());
                ring.bytes += head.map_or(0, |head| u64::from(head.charge));
            }
        }
        txn.commit()?;
        Ok(ring)
    }

    /// Adds `batch` in blocks and takes away what is too old or too much, all in one transaction.
    pub fn write(
        &mut self,
        db: &Database,
        batch: &[u8],
        instance: &str,
        limits: &Limits,
    ) -> Result<(), redb::Error> {
        let (mut next, mut bytes) = (self.next, self.bytes);
        let txn = db.begin_write()?;
        {
            let mut blocks = txn.open_table(BLOCKS)?;
            let mut heads = txn.open_table(HEADS)?;
            let instance = &instance[..instance.floor_char_boundary(255)];
            for records in in_blocks(batch) {
                let mut block = Vec::with_capacity(1 + instance.len() + records.len());
                block.push(instance.len() as u8);
                block.extend_from_slice(instance.as_bytes());
                block.extend_from_slice(records);
                let head = Head::of(records);
                blocks.insert(next, &*block)?;
                heads.insert(next, &*head.encode())?;
                next += 1;
                bytes += u64::from(head.charge);
            }
            let too_old_us = limits.now.as_microsecond().saturating_sub(limits.keep_us);
            for _ in 0..EVICTED_AT_ONCE {
                let Some((number, charge, last_us)) = heads.first()?.map(|(number, head)| {
                    let head = Head::decode(head.value());
                    let (charge, last_us) =
                        head.map_or((0, i64::MIN), |head| (head.charge, head.last_us));
                    (number.value(), charge, last_us)
                }) else {
                    break;
                };
                if last_us >= too_old_us && bytes <= limits.max_bytes {
                    break;
                }
                heads.remove(number)?;
                blocks.remove(number)?;
                bytes = bytes.saturating_sub(u64::from(charge));
            }
        }
        txn.commit()?;
        (self.next, self.bytes) = (next, bytes);
        Ok(())
    }
}

/// What the ring is kept within.
pub struct Limits {
    pub now: Timestamp,
    pub keep_us: i64,
    pub max_bytes: u64,
}

/// `batch` cut between records.
fn in_blocks(batch: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = batch;
    std::iter::from_fn(move || {
        let mut length = 0;
        for record in record::split(rest) {
            let with = length + 4 + record.len();
            if length > 0 && with > BLOCK_BYTES {
                break;
            }
            length = with;
        }
        let (block, tail) = rest.split_at(length);
        rest = tail;
        (!block.is_empty()).then_some(block)
    })
}

/// The instance's name and the records of a block.
pub fn opened_block(block: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = block.split_first()?;
    let (instance, records) = rest.split_at_checked((*length).into())?;
    Some((std::str::from_utf8(instance).ok()?, records))
}

/// Opens or makes the file, for this user only: it holds names of events, and bodies on request.
pub fn open_private(path: &Path) -> Result<Database, DatabaseError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options
        .open(path)
        .map_err(|error| DatabaseError::Storage(StorageError::Io(error)))?;
    Builder::new().set_cache_size(CACHE_BYTES).create_file(file)
}

/// Opens what is there, and repairs it after a crash.
pub fn open_existing(path: &Path) -> Result<Database, Unreadable> {
    let shown = path.display().to_string();
    match Builder::new().set_cache_size(CACHE_BYTES).open(path) {
        Ok(db) => Ok(db),
        Err(DatabaseError::DatabaseAlreadyOpen) => Err(Unreadable::InUse(shown)),
        Err(DatabaseError::Storage(StorageError::Io(error)))
            if error.kind() == io::ErrorKind::NotFound =>
        {
            Err(Unreadable::Missing(shown))
        }
        Err(error) => Err(Unreadable::Storage(format!("{shown}: {error}"))),
    }
}
