//! A bridge process: the real binary, with a config, a data folder and an admin port of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::eventually;

/// See the module. Killed when it is dropped.
pub struct Bridge {
    child: Child,
    folder: TempDir,
    env: Vec<(&'static str, String)>,
    /// What runs the binary, when it is not run by itself.
    through: Vec<String>,
    pub admin: String,
}

impl Bridge {
    /// Starts the binary with `config`, in which `{admin}` stands for the admin address and `{data}`
    /// for the data folder, and waits until it is alive.
    pub async fn start(config: &str) -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder"), config, Vec::new()).await
    }

    /// Like [`Bridge::start`], with this in its environment, also after a restart.
    pub async fn start_with(config: &str, name: &'static str, value: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::start_in(folder, config, vec![(name, value.to_owned())]).await
    }

    /// Starts it on the same data, after it has ended, with this in its environment alone, and does
    /// not wait for it.
    pub fn launch_with(&mut self, name: &'static str, value: &str) {
        self.env = vec![(name, value.to_owned())];
        self.launch();
    }

    /// Starts it on the same data, after it has ended, and does not wait for it.
    pub fn launch(&mut self) {
        self.child = spawn(self.folder.path(), &self.env, &self.through);
    }

    /// Starts it on the same data if it has ended, and does not wait for it.
    pub fn revive(&mut self) -> bool {
        let ended = self.exited().is_some();
        if ended {
            self.launch();
        }
        ended
    }

    /// Like [`Bridge::start`], in this folder and with these variables besides.
    pub async fn start_in(folder: TempDir, config: &str, env: Vec<(&'static str, String)>) -> Self {
        let mut bridge = Self::spawn_in(folder, config, env, Vec::new());
        bridge.wait_until_alive().await;
        bridge
    }

    /// Like [`Bridge::start`], by a command that ends up as the binary with the arguments after it.
    pub async fn start_through(config: &str, through: Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut bridge = Self::spawn_in(folder, config, Vec::new(), through);
        bridge.wait_until_alive().await;
        bridge
    }

    /// Starts one that is expected to end by itself.
    pub fn spawn(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::spawn_in(folder, config, Vec::new(), Vec::new())
    }

    fn spawn_in(
        folder: TempDir,
        config: &str,
        env: Vec<(&'static str, String)>,
        through: Vec<String>,
    ) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a free port")
            .port();
        let admin = format!("127.0.0.1:{port}");
        let data = folder.path().join("data");
        let text = config
            .replace("{admin}", &admin)
            .replace("{data}", &data.display().to_string());
        std::fs::write(folder.path().join("hookbridge.yaml"), text).expect("the config is written");
        let child = spawn(folder.path(), &env, &through);
        Self {
            child,
            folder,
            env,
            through,
            admin,
        }
    }

    async fn wait_until_alive(&mut self) {
        let url = format!("http://{}/healthz", self.admin);
        eventually("the bridge is alive", Duration::from_secs(15), async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the bridge exited with {status}:\n{}", self.log());
            }
            reqwest::get(&url)
                .await
                .ok()
                .filter(|answer| answer.status().is_success())
                .map(|_| ())
        })
        .await;
    }

    /// Line and column, from 1, of `text` in its config.
    pub fn config_place(&self, text: &str) -> (usize, usize) {
        let config = std::fs::read_to_string(self.config_path()).expect("the config");
        let lines = config.lines().enumerate();
        let mut places = lines.filter_map(|(line, it)| it.find(text).map(|at| (line + 1, at + 1)));
        places.next().expect("it is in the config")
    }

    /// Waits until every component is ready.
    pub async fn ready(self) -> Self {
        self.wait_ready(Duration::from_secs(40)).await;
        self
    }

    pub async fn wait_ready(&self, within: Duration) {
        let url = format!("http://{}/readyz", self.admin);
        let log = self.log_path();
        eventually(
            &format!("readiness (log: {})", log.display()),
            within,
            async || {
                reqwest::get(&url)
                    .await
                    .ok()
                    .filter(|answer| answer.status().is_success())
                    .map(|_| ())
            },
        )
        .await;
    }

    /// Kills it without warning and starts it again on the same data.
    pub async fn kill9_and_restart(&mut self) {
        self.kill9();
        self.start_again().await;
    }

    /// Starts it on the same data, after it has ended.
    pub async fn start_again(&mut self) {
        self.child = spawn(self.folder.path(), &self.env, &self.through);
        self.wait_until_alive().await;
    }

    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// SIGHUP, after `config` was written where the first one was.
    pub fn reload(&self, config: &str) {
        self.write_config(config);
        self.signal("HUP");
    }

    /// Writes `config` where the first one was.
    pub fn write_config(&self, config: &str) {
        let text = config.replace("{admin}", &self.admin).replace(
            "{data}",
            &self.folder.path().join("data").display().to_string(),
        );
        std::fs::write(self.folder.path().join("hookbridge.yaml"), text)
            .expect("the config is written");
    }

    /// Any signal, by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for it to exit by itself.
    pub async fn exit_code(&mut self, within: Duration) -> Option<i32> {
        eventually("the bridge exits", within, async || self.exited()).await
    }

    /// Whether it has ended by itself, and with which code.
    pub fn exited(&mut self) -> Option<Option<i32>> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(status.code())
    }

    /// The status and the body of a POST to the admin API.
    pub async fn post(&self, path: &str, body: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.admin);
        let request = reqwest::Client::new().post(url).body(body.to_owned());
        let answer = request.send().await.expect("the admin answers");
        let status = answer.status().as_u16();
        (status, answer.text().await.expect("text"))
    }

    /// The status and the body of a GET from the admin API.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("http://{}{path}", self.admin)).await;
        let answer = answer.expect("the admin answers");
        let status = answer.status().as_u16();
        (status, answer.text().await.expect("text"))
    }

    pub async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.admin);
        reqwest::get(&url)
            .await
            .expect("metrics")
            .text()
            .await
            .expect("text")
    }

    /// The value of one metric line, `0` when it is not there.
    pub async fn metric(&self, line: &str) -> f64 {
        let metrics = self.metrics().await;
        metrics
            .lines()
            .find_map(|l| l.strip_prefix(line))
            .and_then(|v| v.trim().parse().ok())
            .unwrap_or(0.0)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Prints the end of its log, and where all of it is.
    pub fn tell_log(&self) {
        let log = self.log();
        let of_one_event =
            |line: &&str| line.contains("pipeline::attempt") || line.contains(" dead-lettered ");
        let lines = log.lines().filter(|line| !of_one_event(line));
        let tail: Vec<_> = lines.rev().take(40).collect();
        let whole = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("log-{}", self.pid()));
        let _ = std::fs::write(&whole, &log);
        eprintln!(
            "the bridge's last log lines, those of single events left out (all: {}):\n{}",
            whole.display(),
            tail.into_iter().rev().collect::<Vec<_>>().join("\n")
        );
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("hookbridge.yaml")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

fn spawn(folder: &Path, env: &[(&'static str, String)], through: &[String]) -> Child {
    let binary = env!("CARGO_BIN_EXE_hookbridge").to_owned();
    let mut words = through.iter().chain([&binary]);
    let mut command = Command::new(words.next().expect("the binary, if nothing else"));
    command.args(words);
    let log = std::fs::File::options()
        .append(true)
        .create(true)
        .open(folder.join("log"))
        .expect("a log file");
    command
        .args(["run", "--config", "hookbridge.yaml"])
        .current_dir(folder)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a handle"))
        .stderr(log)
        .spawn()
        .expect("the binary starts")
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            self.tell_log();
        }
    }
}
