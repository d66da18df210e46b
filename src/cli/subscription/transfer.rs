//! `hookbridge subscription export` and `import`: those of the API, a line each, sealed as they are.
//!
//! A file of any size goes in parts. All of it is checked before anything of it is taken in.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::admin;
use crate::cli::admin::{Admin, escaped};
use crate::cli::dead::export::Unfinished;
use crate::cli::exit::Exit;
use crate::cli::settings::ConfigFile;
use crate::operations::subscriptions::{Came, Imported};

const EXPORT: &str = "/v1/subscriptions/export";
/// So much goes in one request, well below what one may have.
const PART_BYTES: usize = 4 << 20;
const PART_LINES: usize = 2_000;

#[derive(Debug, Clone, clap::Args)]
pub struct ExportArgs {
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Of this tenant only
    #[arg(long)]
    tenant: Option<String>,

    #[command(flatten)]
    config: ConfigFile,
}

#[derive(Debug, Clone, clap::Args)]
pub struct ImportArgs {
    /// What `export` has written
    file: PathBuf,

    /// As one who acts for this tenant: a line of another one is refused
    #[arg(long)]
    tenant: Option<String>,

    /// Check everything and make nothing
    #[arg(long)]
    dry_run: bool,

    /// Print what became of each, a JSON object a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: ConfigFile,
}

pub async fn export(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let admin = admin(&args.config).await?;
    let written = match &args.out {
        None => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            write(&admin, args.tenant, &mut out).await?
        }
        Some(path) => {
            let unfinished = Unfinished::beside(path)?;
            let mut out = BufWriter::new(&unfinished.file);
            let written = write(&admin, args.tenant, &mut out).await?;
            drop(out);
            unfinished.finish(path)?;
            written
        }
    };
    eprintln!("{} exported", counted(written, "subscription"));
    Ok(ExitCode::SUCCESS)
}

async fn write(
    admin: &Admin,
    tenant: Option<String>,
    out: &mut impl Write,
) -> anyhow::Result<usize> {
    let query: Vec<_> = tenant.map(|it| ("tenant", it)).into_iter().collect();
    let mut lines = admin.lines(EXPORT, &query).await?;
    let mut written = 0;
    while let Some(line) = lines.next().await? {
        out.write_all(&line)?;
        written += 1;
    }
    out.flush()?;
    Ok(written)
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

/// 0 when all of them are there now, 1 when some are not.
pub async fn import(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let admin = admin(&args.config).await?;
    let tenant = args.tenant.as_deref();
    let mut parts = Parts::of(&args.file)?;
    while let Some(part) = parts.next()? {
        each(&admin, part, true, tenant, |_| Ok(())).await?;
    }
    let mut out = std::io::stdout().lock();
    let (mut made, mut unchanged, mut left) = (0, 0, 0);
    let mut parts = Parts::of(&args.file)?;
    while let Some(part) = parts.next()? {
        each(&admin, part, args.dry_run, tenant, |imported| {
            match imported.result {
                Came::Made => made += 1,
                Came::Unchanged => unchanged += 1,
                Came::Conflict | Came::Failed => left += 1,
            }
            if args.json {
                serde_json::to_writer(&mut out, &imported)?;
                writeln!(out)?;
            } else if let Some(why) = &imported.why {
                let (line, name) = (imported.line, &imported.name);
                writeln!(out, "line {line}, `{name}`: {why}")?;
            }
            match imported.result {
                Came::Failed => Err(Exit::unavailable("the import has ended early").into()),
                _ => Ok(()),
            }
        })
        .await?;
    }
    let done = if args.dry_run {
        "would be made"
    } else {
        "made"
    };
    let made = counted(made, "subscription");
    eprintln!("{made} {done}, {unchanged} unchanged, {left} in conflict");
    Ok(match left {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

async fn each(
    admin: &Admin,
    part: Part,
    dry_run: bool,
    tenant: Option<&str>,
    mut with: impl FnMut(Imported) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Part { first_line, text } = part;
    let lines = text.split(|byte| *byte == b'\n');
    let mut left = lines.filter(|line| !line.trim_ascii().is_empty()).count();
    let tenant = tenant.map(|tenant| format!("&tenant={}", escaped(tenant)));
    let tenant = tenant.unwrap_or_default();
    let path =
        format!("/v1/subscriptions/import?dry_run={dry_run}&first_line={first_line}{tenant}");
    let mut came = admin.post_lines(&path, text).await?;
    while let Some(line) = came.next().await? {
        with(serde_json::from_slice(&line)?)?;
        left = left.saturating_sub(1);
    }
    match left {
        0 => Ok(()),
        left => Err(Exit::unavailable(format!(
            "the bridge has said nothing of the last {left} lines; take them in again"
        ))
        .into()),
    }
}

/// Lines that go in one request.
struct Part {
    first_line: usize,
    text: Vec<u8>,
}

/// A file, part by part.
struct Parts {
    file: BufReader<File>,
    path: PathBuf,
    next_line: usize,
}

impl Parts {
    fn of(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).map_err(|why| unreadable(path, &why))?;
        Ok(Self {
            file: BufReader::new(file),
            path: path.to_owned(),
            next_line: 1,
        })
    }

    fn next(&mut self) -> anyhow::Result<Option<Part>> {
        let (first_line, mut text) = (self.next_line, Vec::new());
        while text.len() < PART_BYTES && self.next_line - first_line < PART_LINES {
            let read = self.file.read_until(b'\n', &mut text);
            if read.map_err(|why| unreadable(&self.path, &why))? == 0 {
                break;
            }
            self.next_line += 1;
        }
        Ok((!text.is_empty()).then_some(Part { first_line, text }))
    }
}

fn unreadable(path: &Path, why: &std::io::Error) -> anyhow::Error {
    Exit::io(format!("{} cannot be read: {why}", path.display())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_in_parts_and_lines_are_counted_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all");
        let lines: String = (0..PART_LINES + 3).map(|at| format!("{at}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        let mut parts = Parts::of(&path).unwrap();
        let first = parts.next().unwrap().unwrap();
        let second = parts.next().unwrap().unwrap();
        assert_eq!((first.first_line, second.first_line), (1, PART_LINES + 1));
        assert_eq!(
            second.text,
            format!(
                "{0}\n{1}\n{2}\n",
                PART_LINES,
                PART_LINES + 1,
                PART_LINES + 2
            )
            .into_bytes()
        );
        assert!(parts.next().unwrap().is_none());
    }
}
