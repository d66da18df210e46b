//! Failures that end the process, and the exit code of each (sysexits).

use std::process::ExitCode;

use crate::operations::subscriptions::NotLoaded;
use crate::store::{OpenError, StoreError};

/// Why `run` ended by itself.
#[derive(Debug)]
pub enum Failure {
    /// The config cannot be used.
    Config(anyhow::Error),
    /// A file, a socket.
    Io(anyhow::Error),
    /// The store or the embedded broker's file: in use, corrupt, or failing.
    Storage(anyhow::Error),
    /// What only a restart mends (a fenced member).
    Broker(anyhow::Error),
}

impl Failure {
    pub fn store(error: StoreError) -> Self {
        Self::Storage(error.into())
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code() as u8)
    }

    /// 78 config, 74 I/O, 70 storage, 69 unavailable.
    pub fn code(&self) -> i32 {
        match self {
            Self::Config(_) => 78,
            Self::Io(_) => 74,
            Self::Storage(_) => 70,
            Self::Broker(_) => 69,
        }
    }

    pub fn into_error(self) -> anyhow::Error {
        match self {
            Self::Config(error) | Self::Io(error) | Self::Storage(error) | Self::Broker(error) => {
                error
            }
        }
    }
}

impl From<NotLoaded> for Failure {
    fn from(error: NotLoaded) -> Self {
        match error {
            NotLoaded::Store(error) => Self::store(error),
            other => Self::Config(other.into()),
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::Storage(error.into())
    }
}
