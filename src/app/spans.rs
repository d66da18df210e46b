//! Spans: the sink, and the exporter that empties it, where the config has a collector.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::brokers;
use crate::config::Config;
use crate::meters::Meters;
use crate::spans::Spans;
use crate::store::Store;
use crate::telemetry::otlp;

/// How long the last spans may take.
const END: Duration = Duration::from_secs(5);

/// The exporter at work.
#[derive(Default)]
pub struct Exporting(Option<(JoinHandle<()>, CancellationToken)>);

/// Starts the exporter, if there is whom to send to.
pub fn start(
    config: &Config,
    store: &Store,
    meters: &Meters,
) -> anyhow::Result<(Spans, Exporting)> {
    let Some(collector) = &config.telemetry.otlp else {
        return Ok((Spans::off(), Exporting::default()));
    };
    let instance = brokers::instance(config, store).unwrap_or_else(|| store.instance_name());
    let settings = otlp::Settings {
        endpoint: collector.endpoint.clone(),
        headers: collector.headers.clone(),
        ratio: collector.sample,
        resource: vec![
            ("service.name", "hookbridge".to_owned()),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("service.namespace", config.group.to_string()),
            ("service.instance.id", instance.to_string()),
        ],
        exported: meters.spans_exported.clone(),
        lost: meters.spans_lost.clone(),
    };
    let (spans, exporter) = otlp::exporter(settings)?;
    let stop = CancellationToken::new();
    let running = tokio::spawn(exporter.run(stop.clone()));
    Ok((spans, Exporting(Some((running, stop)))))
}

impl Exporting {
    /// Sends the last spans.
    pub async fn end(self) {
        if let Some((running, stop)) = self.0 {
            stop.cancel();
            let _ = tokio::time::timeout(END, running).await;
        }
    }
}
