//! `dead retry --edit`: a letter's body in an editor.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use bytes::Bytes;

use crate::cli::exit::Exit;
use crate::operations::dead::Shown;

/// An edited body, and the file that it is kept in until it is sent.
pub struct Edited {
    pub body: Bytes,
    pub file: PathBuf,
}

/// Opens the letter's body in `$VISUAL` or `$EDITOR` and returns what became of it. JSON has to stay
/// JSON, unless `any` is allowed. Where nothing is sent the edited text is kept, and its file named.
pub fn edited(letter: &Shown, any: bool) -> anyhow::Result<Edited> {
    let before = letter.body().unwrap_or_default();
    let is_json = |bytes: &[u8]| serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok();
    let extension = if is_json(&before) { "json" } else { "txt" };
    let name = format!("hookbridge-{}.{extension}", uuid::Uuid::now_v7().simple());
    let path = std::env::temp_dir().join(name);
    let write = || private_file(&path)?.write_all(&before);
    write().map_err(|error| Exit::io(format!("{} cannot be written: {error}", path.display())))?;
    let edited = in_editor(&path)?;
    if edited == before {
        let _ = std::fs::remove_file(&path);
        bail!("nothing was changed, so nothing is sent");
    }
    if is_json(&before) && !is_json(&edited) && !any {
        bail!(
            "it is no JSON any more, so nothing is sent (--yes sends it all the same); it is kept in {}",
            path.display()
        );
    }
    Ok(Edited {
        body: edited,
        file: path,
    })
}

/// What becomes of the file at `path` in `$VISUAL` or `$EDITOR`. It stays there, unless that fails.
pub fn in_editor(path: &Path) -> anyhow::Result<Bytes> {
    let named = |name| {
        std::env::var(name)
            .ok()
            .filter(|value: &String| !value.is_empty())
    };
    let editor = named("VISUAL").or_else(|| named("EDITOR"));
    let editor = editor.unwrap_or_else(|| "vi".to_owned());
    // By a shell, since it may have arguments: `code --wait`.
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(path)
        .status()
        .with_context(|| format!("`{editor}` cannot be started: set VISUAL or EDITOR"))?;
    if !status.success() {
        let _ = std::fs::remove_file(path);
        bail!("the editor ended with {status}, so nothing is sent");
    }
    let edited = std::fs::read(path)
        .map_err(|error| Exit::io(format!("{} cannot be read: {error}", path.display())))?;
    Ok(edited.into())
}

/// A new file that only its owner may read: bodies hold what customers have written.
pub fn private_file(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
