//! `hookbridge subscription test`: a request sent now, and what came back.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

use super::{admin, path, print};
use crate::admin::Trial;
use crate::cli::exit::Exit;
use crate::cli::settings::ConfigFile;
use crate::cli::tap;
use crate::operations::trial::Sample;
use crate::pipeline::Tried;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Its name, or its uid
    name: String,

    /// Send this event again: its id as receivers see it in `webhook-id`
    #[arg(long, value_name = "ID", conflicts_with_all = ["sample", "topic", "kind"])]
    event: Option<String>,

    /// Send what is in this file as an event's body; `-` for standard input. Without this a body is made up
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,

    /// The topic of the sample; one that the subscription matches unless said
    #[arg(long)]
    topic: Option<String>,

    /// The type of the sample; the topic unless said
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,

    /// Print the answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    config: ConfigFile,
}

/// 0 when the endpoint has accepted it, 1 when it has not.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let admin = admin(&args.config).await?;
    let order = match args.event {
        Some(id) => Trial {
            event: Some(id),
            sample: None,
        },
        None => {
            let body = args.sample.as_deref().map(bytes).transpose()?;
            let sample = Sample {
                topic: args.topic,
                r#type: args.kind,
                ..body.map(of_body).unwrap_or_default()
            };
            Trial {
                event: None,
                sample: Some(Box::new(sample)),
            }
        }
    };
    let tried: Tried = admin
        .post(&format!("{}/test", path(&args.name)), &order)
        .await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        print(&mut out, &serde_json::to_value(&tried)?)?;
    } else {
        out.write_all(tap::shown(&tried.exchange).as_bytes())?;
        let said = match tried.accepted {
            true => "accepted: a delivery with this answer counts as delivered",
            false => "not accepted: a delivery with this answer would be retried or dead-lettered",
        };
        writeln!(out, "{said}")?;
    }
    Ok(match tried.accepted {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn bytes(file: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read as _;
    let read = match file.to_str() {
        Some("-") => {
            let mut body = Vec::new();
            std::io::stdin().read_to_end(&mut body).map(|_| body)
        }
        _ => std::fs::read(file),
    };
    read.map_err(|why| Exit::io(format!("{} cannot be read: {why}", file.display())).into())
}

/// A body as it is sent over the API, so that it comes out as it went in.
fn of_body(body: Vec<u8>) -> Sample {
    let mut sample = Sample::default();
    match String::from_utf8(body) {
        Err(not_text) => sample.data_base64 = Some(STANDARD.encode(not_text.as_bytes())),
        Ok(text) => {
            let is_whole = text.trim() == text;
            match RawValue::from_string(text.clone()) {
                Ok(raw) if is_whole => sample.data = Some(raw),
                // JSON all the same, only with white space around it.
                Ok(_) => {
                    sample.content_type = Some("application/json".to_owned());
                    sample.text = Some(text);
                }
                Err(_) => sample.text = Some(text),
            }
        }
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_goes_as_what_it_is() {
        let json = of_body(b"{\"a\":  1}".to_vec());
        assert_eq!(json.data.unwrap().get(), "{\"a\":  1}");
        let lines = of_body(b"{}\n".to_vec());
        assert_eq!(lines.text.as_deref(), Some("{}\n"));
        assert_eq!(lines.content_type.as_deref(), Some("application/json"));
        let text = of_body(b"hello".to_vec());
        assert_eq!(
            (text.text.as_deref(), text.content_type),
            (Some("hello"), None)
        );
        assert_eq!(of_body(vec![0xff]).data_base64.as_deref(), Some("/w=="));
    }
}
