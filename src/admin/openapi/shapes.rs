//! Shapes of answers that handlers put together on the spot, for the description alone.

#![allow(
    dead_code,
    reason = "they are described and never made; the client that tries every operation holds them to what is sent"
)]

use jiff::Timestamp;
use serde_json::Value;
use utoipa::ToSchema;

use crate::admin::health::Component;
use crate::journal::Entry;
use crate::operations::settings::Intake;
use crate::operations::subscriptions::Listed;
use crate::operations::{Report, sources};

/// Whether everything works, and what does not.
#[derive(ToSchema)]
pub struct ReadinessShown {
    ready: bool,
    components: Vec<Component>,
}

#[derive(ToSchema)]
pub struct VersionShown {
    name: String,
    version: String,
}

#[derive(ToSchema)]
pub struct AttemptsPage {
    attempts: Vec<Entry>,
    /// To be given as `cursor` for the next page.
    next: Option<String>,
}

#[derive(ToSchema)]
pub struct EventsFound {
    /// Ids.
    events: Vec<String>,
    /// What could not be looked at.
    notes: Vec<String>,
}

#[derive(ToSchema)]
pub struct SubscriptionsPage {
    subscriptions: Vec<Listed>,
    /// To be given as `cursor` for the next page; absent on the last one.
    #[schema(required = false, nullable = false)]
    next: Option<String>,
}

/// A subscription as the config file has it, as JSON, with its `name`.
#[derive(ToSchema)]
#[schema(value_type = Object)]
pub struct SubscriptionWanted(Value);

/// What is to be different, as a merge patch (RFC 7396): `null` removes.
#[derive(ToSchema)]
#[schema(value_type = Object)]
pub struct SubscriptionPatch(Value);

/// A line of an export.
#[derive(ToSchema)]
pub struct ExportedLine {
    /// Of what a line looks like: 1.
    #[schema(minimum = 1)]
    format: u64,
    /// The id of the key of `store_key` that opens it, where something in it is sealed.
    #[schema(required = false)]
    key: Option<String>,
    #[schema(required = false)]
    paused: bool,
    subscription: ExportedSubscription,
}

/// A subscription as it is kept.
#[derive(ToSchema)]
pub struct ExportedSubscription {
    #[schema(pattern = "^api:[0-9a-f-]{1,64}$")]
    uid: String,
    name: String,
    #[schema(minimum = 1)]
    revision: u64,
    made_at: Timestamp,
    changed_at: Timestamp,
    /// As it was written, without what is sealed.
    #[schema(value_type = Object)]
    document: Value,
    /// Its `endpoint`, where that was written in it.
    #[schema(required = false)]
    endpoint: Option<SealedEndpoint>,
    /// Until when its second secret signs, its third, and so on.
    #[schema(required = false)]
    old_until: Vec<Timestamp>,
}

/// What only a key of the operator makes readable.
#[derive(ToSchema)]
pub struct SealedEndpoint {
    /// The id of the key.
    key: String,
    /// In base64.
    data: String,
}

#[derive(ToSchema)]
pub struct ReplaysShown {
    replays: Vec<Report>,
}

#[derive(ToSchema)]
pub struct JobsShown {
    jobs: Vec<Report>,
}

#[derive(ToSchema)]
pub struct SourcesShown {
    sources: Vec<sources::Listed>,
}

#[derive(ToSchema)]
pub struct IntakesShown {
    sources: Vec<Intake>,
}

/// An event, as it is.
#[derive(ToSchema)]
#[schema(value_type = Value)]
pub struct EventBody(Value);

/// Of one event its `id` and how many sources take it; of many `count`, `ids` and how many no source
/// takes.
#[derive(ToSchema)]
pub struct Published {
    #[schema(required = false, nullable = false)]
    id: Option<String>,
    #[schema(required = false, nullable = false)]
    sources: Option<u64>,
    #[schema(required = false, nullable = false)]
    count: Option<u64>,
    #[schema(required = false, nullable = false)]
    ids: Option<Vec<String>>,
    #[schema(required = false, nullable = false)]
    untaken: Option<u64>,
}
