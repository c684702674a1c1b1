//! The format's document and the encoders say the same, and the format reaches for nothing but bytes.

use super::*;

const DOCUMENT: &str = include_str!("../mod.rs");

/// Sixteen bytes a line after their offset; `*` for lines of zeroes left out.
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

/// The example of this name in the document.
fn example(name: &str) -> String {
    let start = format!("//! example: {name}\n");
    let Some((_, after)) = DOCUMENT.split_once(&start) else { return String::new() };
    let lines = after.lines().map(|line| line.trim_start_matches("//!").trim());
    lines.take_while(|line| !line.is_empty() && !line.starts_with("```")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn examples_are_what_the_encoders_write() {
    let samples = samples();
    for sample in &samples {
        let written = dump(&sample.bytes);
        assert_eq!(example(sample.name), written, "the example of a {} should be:\n{written}", sample.name);
        assert!((sample.read)(&sample.bytes).is_ok(), "{} cannot be read", sample.name);
    }
    println!("{} examples", samples.len());
    assert!(samples.len() >= 8);
}

#[test]
fn checksum_is_the_one_the_tag_names() {
    // The check value that catalogues of CRCs give for CRC-32/ISO-HDLC.
    assert_eq!(payload_crc(b"1234", b"56789"), 0xcbf4_3926);
    let mut crc = PayloadCrc::new();
    for byte in b"123456789" {
        crc.update(&[*byte]);
    }
    assert_eq!(crc.finish(), 0xcbf4_3926);
    // Starting from all ones, zeroes have a checksum that is not zero.
    assert_ne!(payload_crc(&[0], &[0; 7]), 0);
    // The binding is a checksum that began earlier, with salt and id.
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
            assert!(line.starts_with("//") || !line.contains(forbidden), "the format is pure bytes: {line}");
        }
    }
    println!("{uses} use lines in {} files", sources.len());
    assert!(uses >= 10);
}
