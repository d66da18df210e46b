//! A command of the real binary that ends by itself, with a config and a data folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use tempfile::TempDir;

/// See the module.
pub struct Command {
    config: PathBuf,
    arguments: Vec<String>,
    /// Our clock is so far from the true one: `+90s`.
    clock: Option<String>,
    _folder: Option<TempDir>,
}

/// What it said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Command {
    /// `{data}` in the config stands for the data folder.
    pub fn new(config: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data").display().to_string();
        let text = config.replace("{data}", &data);
        let path = folder.path().join("hookbridge.yaml");
        std::fs::write(&path, text).expect("written");
        Self {
            _folder: Some(folder),
            ..Self::of(&path, arguments)
        }
    }

    /// With a config that is there, such as a bridge's.
    pub fn of(config: &Path, arguments: &[&str]) -> Self {
        Self {
            config: config.to_owned(),
            arguments: arguments.iter().map(|one| (*one).to_owned()).collect(),
            clock: None,
            _folder: None,
        }
    }

    /// With a clock that is so far from the true one.
    pub fn at(mut self, clock: &str) -> Self {
        self.clock = Some(clock.to_owned());
        self
    }

    pub fn run(&self) -> Said {
        let mut process = Process::new(env!("CARGO_BIN_EXE_hookbridge"));
        if let Some(clock) = &self.clock {
            process
                .env("LD_PRELOAD", faketime())
                .env("FAKETIME", clock)
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let output = process
            .args(&self.arguments)
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .output()
            .expect("the binary runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said {
            code: output.status.code().expect("an exit code"),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

/// Where Debian's package `faketime` has its library.
fn faketime() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("/usr/lib");
    let found = folders
        .filter_map(|folder| Some(folder.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|library| library.exists());
    found.expect("scripts/setup installs faketime")
}

impl Said {
    /// What was printed, with ports and these texts masked.
    pub fn text(&self, masked: &[(&str, &str)]) -> String {
        let ports = regex::Regex::new(r"(127\.0\.0\.1|localhost):\d+").expect("a pattern");
        let text = masked.iter().fold(self.stdout.clone(), |text, (from, to)| {
            text.replace(from, to)
        });
        ports.replace_all(&text, "$1:PORT").into_owned()
    }

    /// The first line with these words.
    pub fn line(&self, words: &str) -> &str {
        let found = self.stdout.lines().find(|line| line.contains(words));
        found.unwrap_or_else(|| panic!("`{words}` is not said:\n{}\n{}", self.stdout, self.stderr))
    }
}
