//! telemetry.
#[derive(Debug, Clone, Copy)]
pub enum Format { Human, Json }
impl Format {
    pub fn from_name(name: &str) -> Result<Self, String> { match name { "human" => Ok(Self::Human), "json" => Ok(Self::Json), _ => Err("one of human, json".into()) } }
}
pub fn init(_format: Format, _filter: Option<&str>) {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(tracing_subscriber::EnvFilter::new("info,lapin=off")).init();
}
