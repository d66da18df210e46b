//! `hookbridge verify`: whether a request that somebody has kept is believed, and why not.

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::exit::Exit;
use super::signing::{Case, Signing};
use crate::deliver::signature::{Received, TOLERANCE, VerifyError, verify};

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    signing: Signing,

    /// Judge as at this time, in seconds since 1970. Default: now
    #[arg(long, value_name = "SECONDS")]
    at: Option<i64>,

    /// How far a signed timestamp may be off, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = TOLERANCE.as_secs())]
    tolerance: u64,

    /// Print one JSON object with `verified` and `why`
    #[arg(long)]
    json: bool,
}

/// 0 when the request is believed, 1 when it is not.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args {
        signing,
        at,
        tolerance,
        json,
    } = args;
    let Case {
        scheme,
        secrets,
        method,
        url,
        headers,
        body,
    } = signing.case()?;
    let request = Received {
        method: &method,
        url: &url,
        headers: &headers,
        body: &body,
    };
    let now = at.unwrap_or_else(|| Timestamp::now().as_second());
    let tolerance = Duration::from_secs(tolerance);
    let why = match verify(&scheme, &secrets, &request, now, tolerance) {
        Ok(()) if scheme.is_signed() => None,
        Ok(()) => Some(format!("signature `{}` proves nothing", scheme.name())),
        Err(VerifyError::Secret(why)) => return Err(Exit::usage(why.to_string()).into()),
        Err(why) => Some(why.to_string()),
    };
    match (&why, json) {
        (why, true) => println!("{}", json!({ "verified": why.is_none(), "why": why })),
        (None, false) => println!("verified"),
        (Some(why), false) => println!("not verified: {why}"),
    }
    Ok(ExitCode::from(u8::from(why.is_some())))
}
