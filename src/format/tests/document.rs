//! The specification agrees with the encoders, and the format module does no I/O.

use super::*;

const DOCUMENT: &str = include_str!("../mod.rs");

/// A hex dump with an offset and sixteen bytes per line. `*` replaces lines of zeros.
fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut skipping = false;
    for (index, line) in bytes.chunks(16).enumerate() {
        if index > 0 && line.len() == 16 && line.iter().all(|&byte| byte == 0) {
            if !skipping {
                out.push_str("*\n");
            }
            skipping = true;
            continue;
        }
        skipping = false;
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        out.push_str(&format!("{:04x}  {}\n", index * 16, hex.join(" ")));
    }
    out
}

/// The example of this name in the specification.
fn example(name: &str) -> String {
    let start = format!("//! example: {name}\n");
    let Some((_, after)) = DOCUMENT.split_once(&start) else { return String::new() };
    let lines = after.lines().map(|line| line.trim_start_matches("//!").trim());
    lines.take_while(|line| !line.is_empty() && !line.starts_with("```")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn encoders_write_the_documented_examples() {
    let samples = samples();
    for sample in &samples {
        let written = dump(&sample.bytes);
        assert_eq!(example(sample.name), written, "the example of a {} should be:\n{written}", sample.name);
        assert!((sample.read)(&sample.bytes).is_ok(), "{} cannot be decoded", sample.name);
    }
    println!("{} examples", samples.len());
    assert!(samples.len() >= 8);
}

#[test]
fn checksum_is_crc_32() {
    // The published check value of CRC-32/ISO-HDLC.
    assert_eq!(payload_crc(b"1234", b"56789"), 0xcbf4_3926);
    let mut crc = PayloadCrc::new();
    for byte in b"123456789" {
        crc.update(&[*byte]);
    }
    assert_eq!(crc.finish(), 0xcbf4_3926);
    // The initial value of all ones gives zero bytes a checksum other than zero.
    assert_ne!(payload_crc(&[0], &[0; 7]), 0);
    // A binding is the state of a checksum over salt and id.
    let mut whole = PayloadCrc::new();
    whole.update(&SALT.to_le_bytes());
    whole.update(&SEGMENT.to_le_bytes());
    whole.update(&4096_u64.to_le_bytes());
    whole.update(b"fields");
    assert_eq!(binding().header_crc(4096, b"fields"), whole.finish());
}

#[test]
fn format_does_no_io() {
    let sources = [
        include_str!("../bytes.rs"),
        include_str!("../constants.rs"),
        include_str!("../crc.rs"),
        include_str!("../error.rs"),
        include_str!("../frames.rs"),
        include_str!("../hint.rs"),
        include_str!("../manifest.rs"),
        include_str!("../mod.rs"),
        include_str!("../prelude.rs"),
        include_str!("../record.rs"),
        include_str!("../segment_header.rs"),
    ];
    let mut uses = 0;
    for line in sources.iter().flat_map(|source| source.lines()).map(str::trim) {
        uses += usize::from(line.starts_with("use "));
        for forbidden in ["std::fs", "std::io", "std::time", "std::thread", "use crate::", "unsafe "] {
            assert!(
                line.starts_with("//") || !line.contains(forbidden),
                "the format module must only handle bytes: {line}"
            );
        }
    }
    println!("{uses} use lines in {} files", sources.len());
    assert!(uses >= 10);
}
