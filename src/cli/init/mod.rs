//! `hookbridge init`: a commented config to start from, and the schema for editors beside it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::exit::Exit;

const SCHEMA: &str = "hookbridge.schema.json";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file to write; one that is there is left alone
    #[arg(value_name = "FILE", default_value = "hookbridge.yaml")]
    file: PathBuf,

    /// Where the events come from
    #[arg(long, value_enum, default_value = "embedded")]
    broker: Broker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Broker {
    Rabbitmq,
    Kafka,
    /// A broker within hookbridge: nothing else has to run
    Embedded,
}

impl Broker {
    fn config(self) -> &'static str {
        match self {
            Self::Rabbitmq => include_str!("rabbitmq.yaml"),
            Self::Kafka => include_str!("kafka.yaml"),
            Self::Embedded => include_str!("embedded.yaml"),
        }
    }

    /// What has to be set before the config is valid.
    fn to_set(self) -> &'static str {
        match self {
            Self::Rabbitmq => {
                "export RABBITMQ_PASSWORD=...\nexport CRM_SECRET=\"whsec_$(openssl rand -base64 32)\"\n"
            }
            Self::Kafka => "export CRM_SECRET=\"whsec_$(openssl rand -base64 32)\"\n",
            Self::Embedded => "",
        }
    }
}

/// 0, or 74 when the file is there already or cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let file = args.file.display();
    match create(&args.file, args.broker.config()) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let message =
                format!("{file} is there already, and is left as it is: name another file");
            return Err(Exit::io(message).into());
        }
        other => other.with_context(|| Exit::io(format!("{file} cannot be written")))?,
    }
    let schema = args.file.with_file_name(SCHEMA);
    let said = match create(&schema, &super::schema::text()?) {
        Ok(()) => format!(
            "{} is for editors: they complete and check the keys",
            schema.display()
        ),
        // It belongs to a config that was made before, perhaps by another version.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => format!(
            "{} is there already; `hookbridge schema` prints the one of this version",
            schema.display()
        ),
        Err(error) => {
            let message = format!("{} cannot be written", schema.display());
            return Err(anyhow::Error::from(error).context(Exit::io(message)));
        }
    };
    let to_set = args.broker.to_set();
    let next = format!(
        "{file} is written: change its names and URLs to yours.\n{said}\n\nThen:\n\n{to_set}\
         hookbridge validate --config {file}\nhookbridge run --config {file}\n"
    );
    std::io::stdout().write_all(next.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Never one that is there.
fn create(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn what_is_written_is_valid_once_the_secrets_are_there() {
        let env = |name: &str| match name {
            "RABBITMQ_PASSWORD" => Some("p".to_owned()),
            "CRM_SECRET" => Some(super::super::listen::DEMO_SECRET.to_owned()),
            _ => None,
        };
        for broker in Broker::value_variants() {
            let text = broker.config();
            let modeline = format!("# yaml-language-server: $schema=./{SCHEMA}\n");
            assert!(text.starts_with(&modeline), "{broker:?}");
            if let Err(problems) = crate::config::parse(text, "init", Path::new("."), &env) {
                panic!("{broker:?}\n{problems}");
            }
            for name in ["RABBITMQ_PASSWORD", "CRM_SECRET"] {
                let used = text.contains(&format!("${{env:{name}}}"));
                assert_eq!(used, broker.to_set().contains(name), "{broker:?} {name}");
            }
        }
    }
}
