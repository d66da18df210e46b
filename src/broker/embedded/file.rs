//! The file: opened exclusively, repaired after a crash, opened again after an I/O error.
//!
//! redb refuses everything after an I/O error until the file is opened anew, so the writer does
//! that with [`File::reopen`] until it works. Nothing is ever wiped: a file that cannot be read
//! stays as it is, and the error says what to do.

use std::fs::OpenOptions;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{Builder, Database, DatabaseError, StorageError};

use super::clock::Clock;
use super::tables::{self, Contents, Unusable};

/// Memory that redb may use for pages. Its default of 1 GiB is more than a whole bridge may use.
const CACHE_BYTES: usize = 32 << 20;

/// Why the embedded broker's file cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "{path} is in use by another process: stop that one, or give this one a `data_dir` of its own"
    )]
    InUse { path: PathBuf },
    #[error(
        "{path} is damaged ({why}) and was left as it is: restore it from a backup, or move it away to start with an empty broker"
    )]
    Corrupt { path: PathBuf, why: String },
    #[error(
        "{path} was made by another version ({why}) and was left as it is: run the version that made it"
    )]
    Version { path: PathBuf, why: String },
    #[error("cannot use {path}: check its permissions and the space on its disk")]
    Io { path: PathBuf, source: io::Error },
}

type Opener = dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync;

/// The database while it is open.
pub struct File {
    path: PathBuf,
    opener: Box<Opener>,
    db: RwLock<Option<Arc<Database>>>,
}

impl File {
    pub fn open(path: PathBuf) -> Result<Self, OpenError> {
        Self::open_with(path, Box::new(open_private))
    }

    pub fn open_with(path: PathBuf, opener: Box<Opener>) -> Result<Self, OpenError> {
        let db = opened(&path, &*opener)?;
        Ok(Self {
            path,
            opener,
            db: RwLock::new(Some(Arc::new(db))),
        })
    }

    /// Makes the tables and reads what is needed to start.
    pub fn prepare(&self, sources: &[&str], clock: &Clock) -> Result<Contents, OpenError> {
        let path = self.path.clone();
        let Some(db) = self.get() else {
            let source = io::ErrorKind::NotConnected.into();
            return Err(OpenError::Io { path, source });
        };
        let prepared = catch_unwind(AssertUnwindSafe(|| tables::prepare(&db, sources, clock)));
        match prepared {
            Ok(Ok(contents)) => Ok(contents),
            Ok(Err(Unusable::Storage(error))) => match *error {
                redb::Error::Io(source) => Err(OpenError::Io { path, source }),
                other => Err(OpenError::Corrupt {
                    path,
                    why: other.to_string(),
                }),
            },
            Ok(Err(format @ Unusable::Format(_))) => Err(OpenError::Version {
                path,
                why: format.to_string(),
            }),
            Err(_) => Err(OpenError::Corrupt {
                path,
                why: "reading it panicked".into(),
            }),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database, if it is open. Kept only as long as one transaction takes.
    pub fn get(&self) -> Option<Arc<Database>> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        db.clone()
    }

    pub fn close(&self) {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        let _ = catch_unwind(AssertUnwindSafe(|| drop(db.take())));
    }

    /// Closes the file and opens it again. In use means that a reader has not let go of it yet.
    pub fn reopen(&self) -> Result<(), OpenError> {
        self.close();
        let fresh = opened(&self.path, &*self.opener)?;
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        *db = Some(Arc::new(fresh));
        Ok(())
    }
}

fn opened(path: &Path, opener: &Opener) -> Result<Database, OpenError> {
    // A damaged page can make the repair panic; that is damage, not a reason to go down.
    match catch_unwind(AssertUnwindSafe(|| opener(path))) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) => Err(explained(path, error)),
        Err(_) => Err(OpenError::Corrupt {
            path: path.to_owned(),
            why: "reading it panicked".into(),
        }),
    }
}

fn explained(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path },
        DatabaseError::UpgradeRequired(version) => OpenError::Version {
            path,
            why: format!("file format {version}"),
        },
        DatabaseError::Storage(StorageError::Io(error))
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            OpenError::Corrupt {
                path,
                why: error.to_string(),
            }
        }
        DatabaseError::Storage(StorageError::Io(source)) => OpenError::Io { path, source },
        other => OpenError::Corrupt {
            path,
            why: other.to_string(),
        },
    }
}

/// Opens or makes the file, for this user only: it holds events.
fn open_private(path: &Path) -> Result<Database, DatabaseError> {
    let io = |error| DatabaseError::Storage(StorageError::Io(error));
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let fresh = !path.exists();
    let file = options.open(path).map_err(io)?;
    let db = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_file(file)?;
    if fresh {
        // A new file's name is durable only when its folder is synced.
        let folder = std::fs::File::open(folder.unwrap_or(Path::new(".")));
        folder.and_then(|folder| folder.sync_all()).map_err(io)?;
    }
    Ok(db)
}
