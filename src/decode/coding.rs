//! Content codings: what was done to a body as a whole, undone.

use std::io::{self, Read};

use flate2::bufread::MultiGzDecoder;

use super::{Coding, Why, out};

/// A coding that can be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Gzip,
    Zstd,
}

/// What else is said where nothing was done. AMQP's property has the character set as often as not.
const NONE: [&str; 7] = [
    "", "identity", "utf-8", "utf8", "us-ascii", "ascii", "binary",
];
/// One upon another.
const MOST_STEPS: usize = 4;

/// What is to be undone, in this order, of a message that says `said` about itself.
pub(super) fn steps(coding: Coding, said: Option<&str>) -> Result<Vec<Step>, Why> {
    match coding {
        Coding::None => Ok(Vec::new()),
        Coding::Gzip => Ok(vec![Step::Gzip]),
        Coding::Zstd => Ok(vec![Step::Zstd]),
        Coding::Auto => match said {
            None => Ok(Vec::new()),
            Some(said) => of_words(said),
        },
    }
}

/// The words are in the order in which the codings were applied.
fn of_words(said: &str) -> Result<Vec<Step>, Why> {
    let mut steps = Vec::new();
    for word in said.rsplit(',').map(str::trim) {
        let is = |other: &str| word.eq_ignore_ascii_case(other);
        if NONE.iter().any(|none| is(none)) {
            continue;
        }
        steps.push(match word {
            _ if is("gzip") || is("x-gzip") => Step::Gzip,
            _ if is("zstd") => Step::Zstd,
            _ => {
                let shown: String = word.chars().take(40).collect();
                return Err(format!(
                    "the content encoding {shown:?} is neither gzip nor zstd: `decode.content_encoding` can say which it is"
                )
                .into());
            }
        });
        if steps.len() > MOST_STEPS {
            return Err("its content encoding has too many steps".into());
        }
    }
    Ok(steps)
}

/// The body before these steps. None of them makes more than `limit` bytes.
pub(super) fn undo(steps: &[Step], body: &[u8], limit: usize) -> Result<Vec<u8>, Why> {
    let mut steps = steps.iter();
    let mut done = match steps.next() {
        Some(step) => step.undo(body, limit)?,
        None => body.to_vec(),
    };
    for step in steps {
        done = step.undo(&done, limit)?;
    }
    Ok(done)
}

impl Step {
    fn undo(self, body: &[u8], limit: usize) -> Result<Vec<u8>, Why> {
        let (name, read) = match self {
            Self::Gzip => ("gzip", read(MultiGzDecoder::new(body), limit)),
            Self::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(body);
                ("zstd", decoder.and_then(|decoder| read(decoder, limit)))
            }
        };
        let read = read.map_err(|error| format!("it is not valid {name}: {error}"))?;
        if read.len() > limit {
            return Err(out::too_long(limit));
        }
        Ok(read)
    }
}

/// What comes out, but one byte too many at most.
fn read(from: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut made = Vec::new();
    from.take(limit as u64 + 1).read_to_end(&mut made)?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn gzip(body: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(body: &[u8]) -> Vec<u8> {
        zstd::encode_all(body, 3).unwrap()
    }

    #[test]
    fn the_message_says_what_was_done_unless_the_config_does() {
        let auto = |said| steps(Coding::Auto, said);
        assert_eq!(auto(None), Ok(vec![]));
        assert_eq!(auto(Some("UTF-8")), Ok(vec![]));
        assert_eq!(auto(Some("identity, X-Gzip")), Ok(vec![Step::Gzip]));
        assert_eq!(auto(Some("gzip, zstd")), Ok(vec![Step::Zstd, Step::Gzip]));
        assert!(auto(Some("br")).unwrap_err().contains("\"br\""));
        assert!(auto(Some("gzip,gzip,gzip,gzip,gzip")).is_err());
        assert_eq!(steps(Coding::Zstd, Some("br")), Ok(vec![Step::Zstd]));
        assert_eq!(steps(Coding::None, Some("gzip")), Ok(vec![]));
    }

    #[test]
    fn what_was_done_is_undone() {
        let twice = gzip(&zstd(b"text"));
        assert_eq!(
            undo(&[Step::Gzip, Step::Zstd], &twice, 100).unwrap(),
            b"text"
        );
        // Several members, as log shippers append them.
        let mut members = gzip(b"one, ");
        members.extend(gzip(b"two"));
        assert_eq!(undo(&[Step::Gzip], &members, 100).unwrap(), b"one, two");
    }

    #[test]
    fn a_bomb_is_not_blown_up() {
        let zeros = vec![0; 4 << 20];
        for (step, body) in [(Step::Gzip, gzip(&zeros)), (Step::Zstd, zstd(&zeros))] {
            assert!(body.len() < 100_000);
            let why = undo(&[step], &body, 1 << 20).unwrap_err();
            assert!(why.contains("longer than 1048576 bytes"), "{why}");
        }
        assert_eq!(undo(&[Step::Gzip], &gzip(b"1234"), 4).unwrap(), b"1234");
    }

    #[test]
    fn what_is_cut_off_is_said() {
        for (step, mut body) in [(Step::Gzip, gzip(b"a text")), (Step::Zstd, zstd(b"a text"))] {
            body.truncate(body.len() - 3);
            let why = undo(&[step], &body, 100).unwrap_err();
            assert!(why.starts_with("it is not valid"), "{why}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>()) {
            for step in [Step::Gzip, Step::Zstd] {
                let _ = undo(&[step], &body, 1000);
            }
            for (step, mut whole) in [(Step::Gzip, gzip(&body)), (Step::Zstd, zstd(&body))] {
                let at = cut.index(whole.len());
                whole[at] ^= 1;
                let _ = undo(&[step], &whole, 1000);
            }
        }
    }
}
