//! `envelope`: `{ "type", "timestamp", "data" }`, as Standard Webhooks recommends.

use super::raw::JSON;
use super::{Formed, Piece, RenderError, json};

/// The body stays as it was written, down to its spaces, as `data`.
pub(super) fn form(piece: &Piece<'_>) -> Result<Formed, RenderError> {
    let data = piece.data().json_text()?;
    let mut out = String::with_capacity(data.len() + 128);
    out.push_str("{\"type\":");
    json::write_text(&piece.event.kind, &mut out);
    out.push_str(",\"timestamp\":");
    json::write_text(&piece.at.to_string(), &mut out);
    out.push_str(",\"data\":");
    out.push_str(data);
    out.push('}');
    Ok(Formed::of(out, JSON))
}
