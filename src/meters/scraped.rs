//! What is kept elsewhere, and asked for on each scrape.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::labels::ByBroker;

/// A counter.
#[derive(Debug)]
pub struct Elsewhere {
    pub name: &'static str,
    pub help: &'static str,
    pub count: fn() -> u64,
}

impl Collector for Elsewhere {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counter = ConstCounter::new((self.count)());
        let metric =
            encoder.encode_descriptor(self.name, self.help, None, counter.metric_type())?;
        counter.encode(metric)
    }
}

/// Brokers by name, and whether each works.
pub struct Brokers(pub Box<dyn Fn() -> Vec<(String, bool)> + Send + Sync>);

impl std::fmt::Debug for Brokers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Brokers")
    }
}

impl Collector for Brokers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "1 while the broker is connected and works";
        let kind = MetricType::Gauge;
        let mut metric = encoder.encode_descriptor("broker_up", help, None, kind)?;
        for (broker, up) in (self.0)() {
            let labels = ByBroker { broker };
            let gauge = ConstGauge::new(i64::from(up));
            gauge.encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
