//! The demo's bridge: this program once more, as `hookbridge run` with a config of its own.
//!
//! A process apart shows the real thing, keeps its log out of what is shown, and can be ended at
//! any moment: dropped, it is killed, and its folder is removed.

use std::fs::{DirBuilder, File};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

use super::receiver::{BILLING, CRM, Receiver, WAREHOUSE};
use super::steps::Not;
use crate::cli::exit::Exit;

/// What would make this bridge another than the one that is shown.
const NOT_FOR_IT: [&str; 5] = [
    "HOOKBRIDGE_CONFIG",
    "HOOKBRIDGE_INSTANCE",
    "HOOKBRIDGE_LOG_FORMAT",
    "HOOKBRIDGE_TOKEN",
    "RUST_LOG",
];
/// Lines of its log that are shown when something has gone wrong.
const LAST_LINES: usize = 15;

/// See the module.
pub struct Bridge {
    child: Child,
    folder: Folder,
}

impl Bridge {
    pub fn start(receiver: &Receiver) -> anyhow::Result<Self> {
        let folder = Folder::create().with_context(|| {
            Exit::io(format!("no folder in {}", std::env::temp_dir().display()))
        })?;
        let config = folder.0.join("hookbridge.yaml");
        std::fs::write(&config, self::config(receiver))
            .with_context(|| Exit::io(format!("{} cannot be written", config.display())))?;
        let program = std::env::current_exe().context("this program does not know where it is")?;
        let log = File::create(folder.log()).context(Exit::io("no log file"))?;
        let mut command = Command::new(&program);
        command
            .args(["run", "--log-format", "json", "--config"])
            .arg(&config)
            .env("HOOKBRIDGE_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the demo, which ends this process itself.
            .process_group(0);
        for name in NOT_FOR_IT {
            command.env_remove(name);
        }
        let child = command
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        Ok(Self { child, folder })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its admin API listens: the system has chosen the port, and its log says which.
    pub fn address(&mut self) -> Result<SocketAddr, Not> {
        self.is_running()?;
        let log = std::fs::read_to_string(self.folder.log()).unwrap_or_default();
        address_in(&log).ok_or_else(|| Not::Yet("it has not said where it listens".to_owned()))
    }

    /// A bridge that has ended by itself makes all further waiting vain.
    pub fn is_running(&mut self) -> Result<(), Not> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(Not::Ever(format!("the bridge has ended with {status}"))),
            Err(error) => Err(Not::Ever(format!("the bridge is out of sight: {error}"))),
        }
    }

    /// The end of its log.
    pub fn last_lines(&self) -> String {
        let log = std::fs::read_to_string(self.folder.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The line that says that it runs has the address.
fn address_in(log: &str) -> Option<SocketAddr> {
    log.lines().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line.get("admin")?.as_str()?.parse().ok()
    })
}

/// A folder of our own, for this user only; removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn create() -> std::io::Result<Self> {
        let name = format!("hookbridge-demo-{}", uuid::Uuid::now_v7().simple());
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all::<&Path>(&self.0);
    }
}

/// JSON is YAML, and needs no care for what is in a path.
fn config(receiver: &Receiver) -> String {
    let to = |endpoint: &str| {
        serde_json::json!({
            "url": format!("http://{}/{endpoint}", receiver.address),
            "secret": receiver.secret(endpoint),
        })
    };
    let retry = |schedule: &[&str]| serde_json::json!({ "schedule": schedule, "jitter": 0 });
    let config = serde_json::json!({
        "data_dir": "data",
        "admin": { "listen": "127.0.0.1:0" },
        "delivery": { "allow_http": true, "allow_networks": ["127.0.0.0/8"] },
        "brokers": { "here": { "embedded": {} } },
        "sources": { "local": { "broker": "here", "topics": ["#"] } },
        "subscriptions": {
            WAREHOUSE: { "topics": ["orders.#"], "endpoint": to(WAREHOUSE) },
            CRM: {
                "topics": ["orders.created"],
                "endpoint": to(CRM),
                "retry": retry(&["500ms", "500ms"]),
            },
            BILLING: {
                "topics": ["orders.paid"],
                "endpoint": to(BILLING),
                "retry": retry(&["500ms"]),
            },
        },
    });
    config.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn its_config_is_valid() {
        let receiver = Receiver::start().await.unwrap();
        let text = config(&receiver);
        let read = crate::config::parse(&text, "demo", Path::new("."), &|_| None);
        let config = read.unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(config.subscriptions[BILLING].retry.max_attempts, 2);
        assert_eq!(config.subscriptions[CRM].retry.max_attempts, 3);
    }

    #[test]
    fn the_address_is_found_in_the_log() {
        let log = "no json\n{\"message\":\"x\"}\n{\"message\":\"hookbridge is running\",\"admin\":\"127.0.0.1:40123\"}\n";
        assert_eq!(address_in(log), "127.0.0.1:40123".parse().ok());
        assert_eq!(address_in("{\"message\":\"x\"}"), None);
    }

    #[test]
    fn nothing_is_left_behind() {
        let folder = Folder::create().unwrap();
        let path = folder.0.clone();
        std::fs::write(folder.log(), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
