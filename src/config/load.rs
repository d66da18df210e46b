//! Loading a config file, and the config that `run` uses without one.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::problems::{Format, Problems};
use super::substitute::Env;
use super::{Case, Config, whole};

/// The config for trying out, as YAML: what `run` uses without a file.
pub const TRY: &str = include_str!("../../config/try.yaml");

/// A larger file is no config.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// A config and the file that it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub config: Config,
    pub path: PathBuf,
    /// The first 12 hex digits of the file's SHA-256: which version of it is running.
    pub hash: String,
}

/// Reads the config file at `path`. All problems are returned at once, each with its place;
/// relative paths in the file start at its folder.
pub fn load(path: &Path, env: Env<'_>) -> Result<Loaded, Problems> {
    let name = path.display().to_string();
    let text = text(path)?;
    let base_dir = path.parent().unwrap_or(Path::new(""));
    let config = whole::parse(&text, &name, base_dir, env)?;
    let mut hash = hex::encode(Sha256::digest(text.as_bytes()));
    hash.truncate(12);
    Ok(Loaded {
        config,
        path: path.to_owned(),
        hash,
    })
}

/// Reads the tests of the file at `path`, which are about `config`; relative paths in it start at its
/// folder.
pub fn load_tests(path: &Path, env: Env<'_>, config: &Config) -> Result<Vec<Case>, Problems> {
    let name = path.display().to_string();
    let text = text(path)?;
    let base_dir = path.parent().unwrap_or(Path::new(""));
    whole::parse_tests(&text, &name, base_dir, env, config)
}

/// The config file's text; that it cannot be read is a problem too.
pub fn text(path: &Path) -> Result<String, Problems> {
    let name = path.display().to_string();
    read(path).map_err(|(message, help)| Problems::of_file(&name, message, help))
}

/// What `hookbridge validate` prints, and whether the config is good.
pub fn validate(path: &Path, format: Format, colour: bool, env: Env<'_>) -> (String, bool) {
    match load(path, env) {
        Ok(loaded) => {
            let config = &loaded.config;
            let said = match format {
                Format::Human => format!(
                    "{} is valid: {}, {}, {}\n",
                    path.display(),
                    counted(config.brokers.len(), "broker"),
                    counted(config.sources.len(), "source"),
                    counted(config.subscriptions.len(), "subscription"),
                ),
                Format::Json | Format::Github => String::new(),
            };
            (said, true)
        }
        Err(problems) => (problems.render(format, colour), false),
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn read(path: &Path) -> Result<String, (String, &'static str)> {
    let help = "name a config file with `--config`; `hookbridge init` writes one to start from";
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => ("there is no such file".to_owned(), help),
        _ => (format!("the file cannot be read: {error}"), help),
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(("the file is larger than 8 MiB".to_owned(), help));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        (
            format!("the file is not UTF-8 (at byte {at})"),
            "save it as UTF-8",
        )
    })
}

impl Config {
    /// The config for trying out: an embedded broker in `./data` and one example subscription to
    /// the address where `hookbridge listen` waits.
    pub fn default_for_trying() -> Self {
        whole::parse(TRY, "config/try.yaml", Path::new(""), &|_| None)
            .expect("a config of ours, parsed by a test")
    }
}
