//! Compression with zstd.

use bytes::Bytes;
use zstd::{
    bulk::{Compressor, Decompressor},
    zstd_safe::CParameter,
};

use super::{COMPRESSED, Undecodable};

/// Less is not worth the time.
const FROM: usize = 1024;
/// More is never compressed, so that nothing which claims to be more has to be decompressed: a
/// damaged payload can't exhaust the memory.
const UP_TO: usize = 64 << 20;
/// The answers of services shrink to about the same with every level. This is the fastest.
const LEVEL: i32 = 1;

/// The payload, marked and compressed; `None` if it is to be kept as it is.
pub(super) fn compress(payload: &[u8]) -> Option<Bytes> {
    if !(FROM..=UP_TO).contains(&payload.len()) {
        return None;
    }
    let mut compressor = Compressor::new(LEVEL).ok()?;
    compressor.set_parameter(CParameter::ChecksumFlag(true)).ok()?;
    // One byte short of the payload: what does not shrink does not fit.
    let mut marked = vec![COMPRESSED; payload.len() - 1];
    let length = compressor.compress_to_buffer(payload, &mut marked[1..]).ok()?;
    marked.truncate(1 + length);
    // A store in memory keeps the buffer.
    marked.shrink_to_fit();
    Some(marked.into())
}

pub(super) fn decompress(frame: &[u8]) -> Result<Bytes, Undecodable> {
    // No frame at all is nothing to zstd; here it is what was cut off.
    Decompressor::upper_bound(frame)
        .filter(|length| (FROM..=UP_TO).contains(length))
        .and_then(|length| zstd::bulk::decompress(frame, length).ok())
        .map(Bytes::from)
        .ok_or(Undecodable::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compresses_from_1_kib_what_shrinks() {
        assert!(compress(&[7; FROM - 1]).is_none());
        let kept = compress(&[7; FROM]).unwrap();
        assert!(kept.len() < 64, "{}", kept.len());
        assert_eq!(decompress(&kept[1..]).unwrap(), [7; FROM][..]);

        let noise: Vec<u8> = (0..FROM as u64)
            .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) % 251) as u8)
            .collect();
        assert!(compress(&noise).is_none());
    }

    #[test]
    fn st10_what_would_exhaust_the_memory_is_unreadable() {
        // A genuine frame of one byte more than is ever compressed.
        let bomb = zstd::bulk::compress(&vec![0; UP_TO + 1], LEVEL).unwrap();
        assert!(bomb.len() < UP_TO / 1000);
        assert!(matches!(decompress(&bomb), Err(Undecodable::Damaged)));

        // A header that lies: a single segment of 2^56 bytes.
        let lie = [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..], &[0, 0, 0, 0, 0, 0, 0, 1], &[1, 0, 0]];
        assert!(matches!(decompress(&lie.concat()), Err(Undecodable::Damaged)));
    }

    #[test]
    fn st10_a_frame_that_hides_its_size_is_unreadable() {
        let mut compressor = Compressor::new(LEVEL).unwrap();
        compressor.set_parameter(CParameter::ContentSizeFlag(false)).unwrap();
        let frame = compressor.compress(&[7; 4096]).unwrap();
        assert!(matches!(decompress(&frame), Err(Undecodable::Damaged)));
    }
}
