//! `dead export`: all letters that are meant, one a line.
//!
//! A file is written beside its place and renamed when it is whole, so that there is never half of
//! one. On standard output whoever has had enough closes it, and that is no error.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::{PATH, Which, desk, not_done};
use crate::cli::desk::Desk;
use crate::cli::exit::Exit;
use crate::operations::dead::{self, Choice};

#[derive(Debug, clap::Args)]
pub struct Export {
    #[command(flatten)]
    which: Which,

    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub async fn run(args: Export) -> anyhow::Result<ExitCode> {
    let choice = args.which.choice()?;
    let config = args.which.config.load()?;
    let desk = desk(&config, &choice).await?;
    let written = match &args.output {
        None => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            write(&desk, &args.which, &choice, &mut out).await?
        }
        Some(path) => {
            let unfinished = Unfinished::beside(path)?;
            let mut out = BufWriter::new(&unfinished.file);
            let written = write(&desk, &args.which, &choice, &mut out).await?;
            drop(out);
            unfinished.finish(path)?;
            written
        }
    };
    let letters = if written == 1 { "letter" } else { "letters" };
    eprintln!("{written} {letters} exported");
    Ok(ExitCode::SUCCESS)
}

/// Writes until the end, or until Ctrl-C.
async fn write(
    desk: &Desk,
    which: &Which,
    choice: &Choice,
    out: &mut impl Write,
) -> anyhow::Result<u64> {
    let mut written = 0;
    tokio::select! {
        result = write_all(desk, which, choice, out, &mut written) => result?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            eprintln!("interrupted after {written} letters");
            return Err(Exit::interrupted().into());
        }
    }
    out.flush()?;
    Ok(written)
}

async fn write_all(
    desk: &Desk,
    which: &Which,
    choice: &Choice,
    out: &mut impl Write,
    written: &mut u64,
) -> anyhow::Result<()> {
    match desk {
        Desk::There(admin) => {
            let path = format!("{PATH}/export");
            let mut lines = admin.lines(&path, &which.query()).await?;
            while let Some(line) = lines.next().await? {
                out.write_all(&line)?;
                *written += 1;
            }
        }
        Desk::Here(operations) => {
            let mut letters = dead::export(operations, choice).await.map_err(not_done)?;
            while let Some(letter) = letters.recv().await {
                let letter = letter.map_err(|refused| not_done(refused.into()))?;
                serde_json::to_writer(&mut *out, &letter).map_err(std::io::Error::from)?;
                out.write_all(b"\n")?;
                *written += 1;
            }
        }
    }
    Ok(())
}

/// A file that has not got its name yet. Dropped, it is removed.
pub struct Unfinished {
    pub file: File,
    path: PathBuf,
    is_finished: bool,
}

impl Unfinished {
    /// For the file at `path`.
    pub fn beside(path: &Path) -> anyhow::Result<Self> {
        let name = path
            .file_name()
            .context(Exit::usage("the output is not a file"))?;
        let mut unfinished = name.to_owned();
        unfinished.push(format!(".{}.unfinished", std::process::id()));
        let unfinished = path.with_file_name(unfinished);
        let file = super::edit::private_file(&unfinished).map_err(|error| {
            let path = unfinished.display();
            Exit::io(format!("{path} cannot be written: {error}"))
        })?;
        Ok(Self {
            file,
            path: unfinished,
            is_finished: false,
        })
    }

    /// Gives it its name.
    pub fn finish(mut self, path: &Path) -> anyhow::Result<()> {
        let failed = |error| Exit::io(format!("{} cannot be written: {error}", path.display()));
        self.file.sync_all().map_err(failed)?;
        std::fs::rename(&self.path, path).map_err(failed)?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_finished {
            // It is left behind only where even this is not allowed.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
