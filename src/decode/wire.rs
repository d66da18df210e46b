//! Confluent's wire format: a zero, the schema's id, and for Protobuf which message of it is meant.
//!
//! See <https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format>.

use super::Why;

const MAGIC: u8 = 0;
/// The zero and the id.
pub(super) const HEADER_BYTES: usize = 5;
/// Messages inside of messages.
const DEEPEST: u64 = 64;

/// The id of the schema that `body` was written with; what it describes begins after
/// [`HEADER_BYTES`].
pub(super) fn schema_id(body: &[u8]) -> Result<u32, Why> {
    let Some((&[magic, a, b, c, d], _)) = body.split_first_chunk::<HEADER_BYTES>() else {
        return Err("it is too short to begin with a schema's id".into());
    };
    if magic != MAGIC {
        return Err(format!(
            "it begins with the byte {magic:#04x}, not with the zero of a registry's wire format"
        )
        .into());
    }
    let id = u32::from_be_bytes([a, b, c, d]);
    // Theirs are signed, and a registry does not even understand a larger one.
    match i32::try_from(id) {
        Ok(_) => Ok(id),
        Err(_) => Err(format!("{id} is not the id of a schema").into()),
    }
}

/// Which message of a `.proto` file it is, as the place of each message among those around it, and
/// where the message begins. A lone zero is short for the file's first.
pub(super) fn message_indexes(bytes: &[u8]) -> Result<(Vec<usize>, usize), Why> {
    let cut = || Why::from("the message's index in its file is cut off or too large");
    let mut at = 0;
    let mut next = || {
        let (number, length) = varint(&bytes[at..]).ok_or_else(cut)?;
        at += length;
        // Zigzag, though none is below zero.
        match number & 1 {
            0 => Ok(number >> 1),
            _ => Err(cut()),
        }
    };
    let count = next()?;
    if count > DEEPEST {
        return Err(cut());
    }
    let mut indexes = Vec::with_capacity(count.max(1) as usize);
    for _ in 0..count {
        indexes.push(usize::try_from(next()?).map_err(|_| cut())?);
    }
    if indexes.is_empty() {
        indexes.push(0);
    }
    Ok((indexes, at))
}

/// A number of 64 bits at most in groups of seven, the lowest first, and how many bytes it takes.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0_u64;
    for (place, byte) in bytes.iter().take(10).enumerate() {
        let group = u64::from(byte & 0x7f);
        // Of the tenth group one bit is left.
        if place == 9 && group > 1 {
            return None;
        }
        number |= group << (7 * place);
        if byte & 0x80 == 0 {
            return Some((number, place + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_id_is_four_bytes_in_network_order() {
        assert_eq!(schema_id(&[0, 0, 0, 1, 2, 99]), Ok(258));
        let refused = schema_id(&[0, 0xff, 0xff, 0xff, 0xff]).unwrap_err();
        assert!(refused.contains("4294967295"), "{refused}");
        assert!(schema_id(&[0, 0, 0, 1]).unwrap_err().contains("too short"));
        assert!(schema_id(b"{\"a\":1}").unwrap_err().contains("0x7b"));
    }

    #[test]
    fn indexes_are_zigzag_and_zero_is_the_first() {
        assert_eq!(message_indexes(&[0, 9]), Ok((vec![0], 1)));
        assert_eq!(message_indexes(&[2, 0, 9]), Ok((vec![0], 2)));
        assert_eq!(message_indexes(&[4, 2, 4]), Ok((vec![1, 2], 3)));
        assert_eq!(message_indexes(&[2, 0x80, 2]), Ok((vec![128], 3)));
        for bad in [
            &[][..],
            &[1],
            &[2],
            &[2, 1],
            &[0xff; 12],
            &[0xff, 0xff, 3, 0],
        ] {
            assert!(message_indexes(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn numbers_have_64_bits() {
        assert_eq!(varint(&[0xac, 2]), Some((300, 2)));
        let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(varint(&most), Some((u64::MAX, 10)));
        let more = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        assert_eq!(varint(&more), None);
        assert_eq!(varint(&[0x80]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = schema_id(&bytes);
            if let Ok((indexes, start)) = message_indexes(&bytes) {
                prop_assert!(!indexes.is_empty() && start <= bytes.len());
            }
        }
    }
}
