//! `gzip`: the finished body, compressed.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderValue;

use super::Formed;

pub(super) const GZIP: HeaderValue = HeaderValue::from_static("gzip");

/// A body that is encoded already, or is not there, stays as it is.
pub(super) fn compress(formed: Formed) -> Formed {
    if formed.body.is_empty() || formed.content_encoding.is_some() {
        return formed;
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let written = encoder
        .write_all(&formed.body)
        .and_then(|()| encoder.finish());
    Formed {
        body: Bytes::from(written.expect("memory takes what is written to it")),
        content_encoding: Some(GZIP),
        ..formed
    }
}
