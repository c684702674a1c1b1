//! Random changes to bytes, as fuzzers make them.

use ringcask::testing::sim::Rng;

const NUMBERS: [u32; 10] = [0, 1, 7, 8, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fff8, u32::MAX];

fn byte(rng: &mut Rng) -> u8 {
    u8::try_from(rng.below(256)).unwrap_or(0)
}

/// Changes `bytes` in one to four places. A change may copy a piece of `other`, another input.
pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    for _ in 0..1 + rng.below(4) {
        if bytes.is_empty() {
            bytes.extend_from_slice(other);
            bytes.push(byte(rng));
        }
        let at = rng.below(bytes.len());
        let len = 1 + rng.below((bytes.len() - at).min(64));
        match rng.below(9) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = byte(rng),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + len)),
            4 => {
                let piece: Vec<u8> = bytes[at..at + len].to_vec();
                bytes.splice(at..at, piece);
            }
            5 => bytes[at..at + len].fill(byte(rng)),
            6 => {
                let number = NUMBERS[rng.below(NUMBERS.len())].to_le_bytes();
                bytes[at..].iter_mut().zip(number).for_each(|(old, new)| *old = new);
            }
            7 if !other.is_empty() => {
                let from = rng.below(other.len());
                let piece: Vec<u8> = other[from..].iter().take(len).copied().collect();
                bytes.splice(at..at, piece);
            }
            _ => {
                let to = rng.below(bytes.len());
                let end = at + len.min(bytes.len() - to.max(at));
                bytes.copy_within(at..end, to);
            }
        }
    }
}
