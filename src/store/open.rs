//! Opening the store: one process per folder, a torn snapshot repaired, damage reported and never
//! wiped.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::seal::{self, Sum};
use super::{Kept, Store, Tree, codec};
use crate::failpoint;

/// sled's default of 1 GiB is more than the process may use in all.
const CACHE_BYTES: u64 = 64 << 20;

/// The tree that is there in every store of sled.
const SLEDS_OWN: &str = "__sled__default";

/// How long a lock of somebody else is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// Why the store could not be opened. Nothing is ever wiped.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by another process; stop it, or give this one a `data_dir` of its own", dir.display())]
    InUse { dir: PathBuf },
    #[error(
        "the store in {} is damaged ({detail}); it was not emptied or rebuilt. Put a backup of that folder in its place, or move it away: \
         a new one is then made from the config, without subscriptions made over the API and without what was paused or disabled",
        store.display()
    )]
    Damaged { store: PathBuf, detail: String },
    #[error("the store in {} was made by another version of its library ({detail}); start the release that made it", store.display())]
    OtherVersion { store: PathBuf, detail: String },
    #[error(
        "the store in {} was written by a newer release ({detail}; hookbridge {} knows neither): start that release again. Nothing was changed",
        store.display(), env!("CARGO_PKG_VERSION")
    )]
    Newer { store: PathBuf, detail: String },
    #[error("{} does not hold an instance name of 1 to 64 letters, digits, `-`, `_` or `.`", path.display())]
    BadInstanceName { path: PathBuf },
    #[error("cannot use {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Store {
    /// Whether there is a store in `dir`.
    pub fn is_in(dir: &Path) -> bool {
        dir.join("store").exists()
    }

    /// Opens the store in `dir`, which is made if it is missing, and locks `dir`. `disk_bytes` and
    /// `flush_seconds` are kept up to date. Blocks while a crashed store is recovered.
    pub fn open(
        dir: &Path,
        disk_bytes: Gauge,
        flush_seconds: Histogram,
    ) -> Result<Self, OpenError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let lock = patiently(|| lock(dir))?;
        let instance = instance_name(dir)?;
        let store = dir.join("store");
        repair(&store)?;
        failpoint::reach("store", &[]);
        // sled reports some kinds of damage by panicking.
        let kept = patiently(|| {
            catch_unwind(|| open(&store))
                .map_err(|_| OpenError::Damaged {
                    store: store.clone(),
                    detail: "sled panicked while opening it".to_owned(),
                })?
                .map_err(|error| explain(error, dir, &store))
        })?;
        let kept = match kept {
            Opened::Whole(kept) => *kept,
            Opened::Newer(kept, detail) => {
                std::mem::forget(kept);
                return Err(OpenError::Newer { store, detail });
            }
            Opened::Missing(kept) => {
                // Dropping it would let sled write over what somebody may still want to rescue.
                std::mem::forget(kept);
                let detail = "its records are not those that were last written".to_owned();
                return Err(OpenError::Damaged { store, detail });
            }
        };
        failpoint::reach("stored", &[]);
        disk_bytes.set(kept.size_bytes());
        Ok(Self {
            kept: Arc::new(kept),
            instance,
            news: tokio::sync::Notify::new(),
            writing: tokio::sync::Mutex::new(()),
            flush_seconds,
            disk_bytes,
            _lock: lock,
        })
    }
}

enum Opened {
    Whole(Box<Kept>),
    /// sled is content, but records are missing or changed.
    Missing(Box<Kept>),
    /// There is something that only a later release knows.
    Newer(Box<Kept>, String),
}

fn open(store: &Path) -> sled::Result<Opened> {
    let db = sled::Config::new()
        .path(store)
        .cache_capacity(CACHE_BYTES)
        // sled's own flusher stops silently at the first error.
        .flush_every_ms(None)
        .open()?;
    let log = File::open(store.join("db")).map_err(sled::Error::Io)?;
    let mut kept = Box::new(Kept {
        folder: store.to_owned(),
        subscriptions: db.open_tree(Tree::Subscriptions.name())?,
        subscription_standings: db.open_tree(Tree::SubscriptionStandings.name())?,
        endpoint_standings: db.open_tree(Tree::EndpointStandings.name())?,
        suspects: db.open_tree(Tree::Suspects.name())?,
        registered: db.open_tree(Tree::Registered.name())?,
        db,
        sum: Mutex::default(),
        log,
        failed: OnceLock::new(),
    });
    let (mut sum, mut newer) = (Sum::default(), None);
    for tree in Tree::ALL {
        for entry in kept.tree(tree) {
            let (key, value) = entry?;
            if let Some(version) = codec::newer(&value) {
                let key = String::from_utf8_lossy(&key);
                newer = Some(format!(
                    "{} {key} has record version {version}",
                    tree.name()
                ));
            }
            sum = sum.add(tree.name(), &key, &value);
        }
    }
    kept.sum = Mutex::new(sum);
    let mut with_unknown = sum;
    for name in unknown_trees(&kept.db) {
        for entry in &kept.db.open_tree(&name)? {
            let (key, value) = entry?;
            with_unknown = with_unknown.add(&name, &key, &value);
        }
        newer = Some(format!("it has a part `{name}`"));
    }
    // What is damaged may look like anything.
    let sealed = seal::read(store)?;
    let is_whole = sealed.contains(&sum) || sealed.contains(&with_unknown);
    Ok(match newer {
        _ if !is_whole => Opened::Missing(kept),
        Some(detail) => Opened::Newer(kept, detail),
        None => Opened::Whole(kept),
    })
}

/// Those that only a later release knows.
fn unknown_trees(db: &sled::Db) -> Vec<String> {
    let names = db.tree_names().into_iter();
    let names = names.map(|name| String::from_utf8_lossy(&name).into_owned());
    let is_ours = |name: &str| Tree::ALL.iter().any(|known| known.name() == name);
    names
        .filter(|name| name != SLEDS_OWN && !is_ours(name))
        .collect()
}

/// Tries again for a moment what somebody else has locked: a process that is just ending, or a
/// child of ours that was forked and has not yet become the program it is to be.
fn patiently<T>(mut open: impl FnMut() -> Result<T, OpenError>) -> Result<T, OpenError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match open() {
            Err(OpenError::InUse { .. }) if Instant::now() < until => sleep(LOOK_AGAIN),
            other => return other,
        }
    }
}

/// Locks `dir` for as long as the file lives.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse {
            dir: dir.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// The name in `dir`, made if there is none. It is a file beside the store, so that the name (and
/// with it the Kafka membership) outlives a store that has to be replaced.
fn instance_name(dir: &Path) -> Result<Arc<str>, OpenError> {
    let path = dir.join("instance");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let name = text.trim();
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
                return Err(OpenError::BadInstanceName { path });
            }
            Ok(name.into())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = format!("hookbridge-{:012x}", rand::random::<u64>() >> 16);
            // Whole or not at all: a torn name would be refused at the next start.
            let new = dir.join("instance.new");
            let written = File::create(&new)
                .and_then(|mut file| {
                    writeln!(file, "{name}")?;
                    file.sync_all()
                })
                .and_then(|()| fs::rename(&new, &path))
                .and_then(|()| File::open(dir)?.sync_all());
            written.map_err(at(&path))?;
            Ok(name.into())
        }
        Err(source) => Err(OpenError::Io { path, source }),
    }
}

/// Deletes what a kill during an earlier recovery may have left: a half-written snapshot, with
/// which sled would never open again, and which it can always do without.
fn repair(store: &Path) -> Result<(), OpenError> {
    let entries = match fs::read_dir(store) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(store)(error)),
    };
    for entry in entries {
        let path = entry.map_err(at(store))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(&path).map_err(at(&path))?;
            tracing::info!(file = %path.display(), "removed a half-written snapshot of the store");
        }
    }
    Ok(())
}

fn explain(error: sled::Error, dir: &Path, store: &Path) -> OpenError {
    let store = store.to_owned();
    match error {
        sled::Error::Io(source) => match source.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => OpenError::Damaged {
                store,
                detail: source.to_string(),
            },
            // sled has no kind of its own for a lock that somebody else holds.
            _ if source.to_string().contains("could not acquire lock") => OpenError::InUse {
                dir: dir.to_owned(),
            },
            _ => OpenError::Io {
                path: store,
                source,
            },
        },
        sled::Error::Unsupported(detail) => OpenError::OtherVersion { store, detail },
        other => OpenError::Damaged {
            store,
            detail: other.to_string(),
        },
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> OpenError + use<> {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}
