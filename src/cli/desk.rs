//! The desk: where operations are asked for. A running bridge does them itself, over its admin API;
//! with none running this process does them, directly on the brokers.

use std::sync::Arc;

use anyhow::Context as _;

use super::admin::Admin;
use super::exit::Exit;
use crate::app;
use crate::config::Config;
use crate::operations::{Operations, Report};

/// See the module.
pub enum Desk {
    /// The bridge that listens on `admin.listen`.
    There(Admin),
    /// This process, over the brokers that were wanted.
    Here(Arc<Operations>),
}

impl Desk {
    /// The running bridge, or else this process with the brokers whose names are `wanted`. An embedded
    /// broker's file that somebody else has open is an error that says so.
    pub async fn of(config: &Config, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Self> {
        if let Some(admin) = Admin::of(config).await? {
            return Ok(Self::There(admin));
        }
        let operations = app::operations(config, wanted).map_err(Exit::failure)?;
        Ok(Self::Here(operations))
    }

    /// The running bridge, or else this process with what a replay of `source` needs.
    pub async fn on_source(config: &Config, source: &str) -> anyhow::Result<Self> {
        if let Some(admin) = Admin::of(config).await? {
            return Ok(Self::There(admin));
        }
        let operations = app::on_source(config, source).map_err(Exit::failure)?;
        Ok(Self::Here(operations))
    }

    /// How far a job is.
    pub async fn report(&self, job: &str) -> anyhow::Result<Report> {
        match self {
            Self::There(admin) => admin.get(&format!("/v1/jobs/{job}"), &[]).await,
            Self::Here(operations) => {
                let job = operations.jobs.get(job).context("the job is not known")?;
                Ok(job.report())
            }
        }
    }

    /// Asks a job to stop.
    pub async fn cancel(&self, job: &str) -> anyhow::Result<Report> {
        match self {
            Self::There(admin) => admin.delete(&format!("/v1/jobs/{job}")).await,
            Self::Here(operations) => operations.jobs.cancel(job).context("the job is not known"),
        }
    }
}
