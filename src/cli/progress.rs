//! Progress: a job is followed until it has ended, by whoever does it ([`Desk`]).
//!
//! On a terminal there is a bar, elsewhere a line now and then, both on standard error. Ctrl-C asks
//! the job to stop, which it does between two items, and waits for it; a second one does not wait.
//! The summary at the end says what was done, what was left, and why.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::desk::Desk;
use super::exit::Exit;
use crate::operations::{Report, State};

const ASK_EVERY: Duration = Duration::from_millis(200);
/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How a command speaks of its job.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    /// What is done with, when it is one: `letter`.
    pub thing: &'static str,
    /// `letters`.
    pub things: &'static str,
    /// `sent again`.
    pub done: &'static str,
    /// `would be sent again`, of a dry run.
    pub would: &'static str,
}

impl Words {
    /// `1 letter`, `2 letters`.
    fn count(&self, count: u64) -> String {
        match count {
            1 => format!("1 {}", self.thing),
            _ => format!("{count} {}", self.things),
        }
    }
}

/// Follows a job that was just started until it has ended, showing how far it is, and returns its
/// last report. Cancels it on Ctrl-C; then the report's state is [`State::Cancelled`].
///
/// An error means that the job cannot be asked after any more: the bridge has ended, for instance.
pub async fn follow(desk: &Desk, started: Report, words: Words) -> anyhow::Result<Report> {
    // One listener for the whole time: with one for each turn, what comes between two is lost.
    let mut interrupts = signal(SignalKind::interrupt())?;
    let shown = Shown::new(&started, words);
    let mut report = started;
    let mut asked_to_stop = false;
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one comes at once, when nothing is to be seen yet.
    ticks.tick().await;
    let mut soon = Duration::from_millis(10);
    let mut line_at = Instant::now() + LINE_EVERY;
    while report.state == State::Running {
        let pause = async {
            if soon < ASK_EVERY {
                tokio::time::sleep(soon).await;
                soon *= 2;
            } else {
                ticks.tick().await;
            }
        };
        let told = async {
            pause.await;
            desk.report(&report.id).await
        };
        let told = tokio::select! {
            told = told => Some(told),
            _ = interrupts.recv() => None,
        };
        let told = match told {
            Some(told) => Some(told),
            None if asked_to_stop => None,
            None => {
                asked_to_stop = true;
                shown.say("stopping after the one in hand; Ctrl-C again to leave at once");
                // A bridge that hangs answers neither this nor the question how far it is.
                tokio::select! {
                    told = desk.cancel(&report.id) => Some(told),
                    _ = interrupts.recv() => None,
                }
            }
        };
        let Some(told) = told else {
            shown.clear();
            return Err(Exit::interrupted().into());
        };
        report = told.inspect_err(|_| {
            shown.clear();
            eprintln!("what was done until now stays done: run it again to go on");
        })?;
        shown.update(&report);
        if Instant::now() >= line_at && report.state == State::Running {
            shown.line(&report);
            line_at = Instant::now() + LINE_EVERY;
        }
    }
    shown.clear();
    Ok(report)
}

/// Prints the summary, or the report as JSON, and says how the command ends: 0 when all was done, 1
/// when nothing was, or something was left or failed, 130 when it was interrupted.
pub fn conclude(report: &Report, words: Words, json: bool) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match json {
        true => writeln!(out, "{}", serde_json::to_string(report)?)?,
        false => write!(out, "{}", summary(report, words))?,
    }
    match report.state {
        State::Cancelled => Err(Exit::interrupted().into()),
        State::Done if report.done > 0 && report.skipped.is_empty() => Ok(ExitCode::SUCCESS),
        State::Running | State::Done | State::Failed => Ok(ExitCode::FAILURE),
    }
}

/// What was done and what was left, in a few lines.
pub fn summary(report: &Report, words: Words) -> String {
    let done = verb(report, words);
    let mut text = String::new();
    let (did, seen) = (words.count(report.done), words.count(report.seen));
    match report.state {
        State::Cancelled => text += &format!("cancelled: {did} {done}, the rest is as it was\n"),
        State::Failed => {
            let why = report.why.as_deref().unwrap_or("for no known reason");
            text += &format!("failed: {why}\n{did} {done}, the rest is as it was\n");
        }
        State::Running | State::Done => text += &format!("{did} {done}\n"),
    }
    let left: u64 = report.skipped.values().sum();
    if left > 0 {
        text += &format!("{left} left as they were:\n");
    }
    for (why, count) in &report.skipped {
        text += &format!("  {count}  {why}\n");
    }
    if report.done + left == 0 && report.state == State::Done {
        text += &format!("none of {seen} is meant\n");
    }
    if matches!(report.state, State::Cancelled | State::Failed) {
        text += "run it again to go on\n";
    }
    text
}

fn verb(report: &Report, words: Words) -> &'static str {
    match report.operation.ends_with("_dry_run") {
        true => words.would,
        false => words.done,
    }
}

/// A bar on a terminal, lines elsewhere.
struct Shown {
    bar: Option<ProgressBar>,
    words: Words,
}

impl Shown {
    fn new(report: &Report, words: Words) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(report.total, ProgressDrawTarget::stderr());
            let template = "{bar:30} {pos}/{len} looked at, {msg}  {elapsed}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Self { bar, words }
    }

    fn update(&self, report: &Report) {
        if let Some(bar) = &self.bar {
            if let Some(total) = report.total {
                bar.set_length(total.max(report.seen));
            }
            bar.set_position(report.seen);
            bar.set_message(format!("{} {}", report.done, verb(report, self.words)));
        }
    }

    fn line(&self, report: &Report) {
        if self.bar.is_none() {
            let of = report.total.map(|total| format!(" of {total}"));
            eprintln!(
                "{}{} {} looked at, {} {}",
                report.seen,
                of.unwrap_or_default(),
                self.words.things,
                report.done,
                verb(report, self.words)
            );
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use insta::assert_snapshot;

    use super::*;

    const WORDS: Words = Words {
        thing: "letter",
        things: "letters",
        done: "sent again",
        would: "would be sent again",
    };

    fn report(state: State) -> Report {
        Report {
            id: "1".into(),
            operation: "dead_retry".into(),
            state,
            why: None,
            started_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            ended_at: None,
            total: Some(12),
            seen: 12,
            matched: 0,
            done: 9,
            skipped: BTreeMap::new(),
            notes: Vec::new(),
            reached: None,
        }
    }

    #[test]
    fn the_summary_says_what_was_done_and_what_was_left() {
        let mut one = report(State::Done);
        one.skipped.insert("subscription `crm` is gone".into(), 2);
        assert_snapshot!(summary(&one, WORDS), @r"
        9 letters sent again
        2 left as they were:
          2  subscription `crm` is gone
        ");
        one.operation = "dead_retry_dry_run".into();
        one.skipped.clear();
        assert_snapshot!(summary(&one, WORDS), @"9 letters would be sent again");
        one.done = 1;
        assert_snapshot!(summary(&one, WORDS), @"1 letter would be sent again");
        one.done = 0;
        assert_snapshot!(summary(&one, WORDS), @r"
        0 letters would be sent again
        none of 12 letters is meant
        ");
    }

    #[test]
    fn a_job_that_did_not_come_to_its_end_says_how_to_go_on() {
        assert_snapshot!(summary(&report(State::Cancelled), WORDS), @r"
        cancelled: 9 letters sent again, the rest is as it was
        run it again to go on
        ");
        let mut failed = report(State::Failed);
        failed.why = Some("broker `shop` is not available: gone".into());
        assert_snapshot!(summary(&failed, WORDS), @r"
        failed: broker `shop` is not available: gone
        9 letters sent again, the rest is as it was
        run it again to go on
        ");
    }
}
