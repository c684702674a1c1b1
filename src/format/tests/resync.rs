//! The search for the next record after damage.

use super::*;

/// Consecutive records of various sizes from offset 512, and their offsets.
fn segment(binding: &Binding, numbers: &mut Numbers, count: u32) -> (Vec<u8>, Vec<u64>) {
    let (mut bytes, mut offsets) = (Vec::new(), Vec::new());
    for ordinal in 0..count {
        let offset = 512 + bytes.len() as u64;
        let value_len = numbers.below(200);
        let value = numbers.bytes(value_len);
        let header = put_header(b"some key", &value, u64::from(ordinal) + 1, ordinal);
        bytes.extend_from_slice(&record(&header, binding, offset, b"some key", &value));
        offsets.push(offset);
    }
    (bytes, offsets)
}

#[test]
fn records_after_a_damaged_one_are_found() {
    let (seed, mut numbers) = (31, Numbers::new(31));
    let mut found = 0;
    for _ in 0..200 {
        let binding = Binding::new(numbers.next(), numbers.next());
        let (mut bytes, offsets) = segment(&binding, &mut numbers, 20);
        let damaged = 1 + numbers.below(18);
        let start = usize::try_from(offsets[damaged]).unwrap() - 512;
        bytes[start + numbers.below(RECORD_HEADER_LEN)] ^= 1 << numbers.below(8);
        assert!(read_record(&bytes[start..], &binding, offsets[damaged]).is_err());
        // A search from anywhere after the start of the record before the damaged one finds the record after it.
        for from in [offsets[damaged - 1] + 1, offsets[damaged], offsets[damaged] + 1] {
            assert_eq!(find_record(&bytes, &binding, 512, from), Some(offsets[damaged + 1]));
            found += 1;
        }
        // The bytes may start anywhere in the segment, aligned or not.
        for cut in 1..24 {
            assert_eq!(
                find_record(&bytes[cut..], &binding, 512 + cut as u64, 0),
                Some(offsets[if damaged == 1 { 2 } else { 1 }])
            );
        }
    }
    println!("{found} records found, seed {seed}");
    assert!(found >= 600);
}

#[test]
fn no_record_is_found_where_there_is_none() {
    let binding = binding();
    let mut numbers = Numbers::new(32);
    let (bytes, offsets) = segment(&binding, &mut numbers, 3);
    assert_eq!(find_record(&bytes, &binding, 512, offsets[2] + 1), None);
    assert_eq!(find_record(&bytes, &binding, 512, u64::MAX), None);
    assert_eq!(find_record(&bytes, &binding, u64::MAX, 0), None);
    assert_eq!(find_record(&bytes, &Binding::new(SALT + 1, SEGMENT), 512, 0), None);
    assert_eq!(find_record(&bytes[..RECORD_HEADER_LEN - 1], &binding, 512, 0), None);
    assert_eq!(find_record(&[], &binding, 512, 0), None);
    assert_eq!(find_record(&numbers.bytes(1 << 20), &binding, 512, 0), None);
    assert_eq!(find_record(&vec![0; 1 << 20], &binding, 512, 0), None);
}

/// An attacker who chooses values but cannot read the file does not know the salt. The search must not accept images of
/// records inside a value, correct except for the salt, when the record that contains them is damaged.
#[test]
fn record_image_in_a_value_is_not_accepted() {
    let (seed, mut numbers) = (33, Numbers::new(33));
    let mut planted = 0;
    for _ in 0..50 {
        let binding = Binding::new(numbers.next(), SEGMENT);
        let mut value = Vec::new();
        let value_at = 512 + RECORD_HEADER_LEN as u64 + 8;
        for guess in 0..500 {
            let offset = value_at + value.len() as u64;
            let salt = if guess % 2 == 0 { guess } else { numbers.next() };
            let header = put_header(b"admin", b"yes", MAX_SEQ, 1);
            value.extend_from_slice(&record(&header, &Binding::new(salt, SEGMENT), offset, b"admin", b"yes"));
            planted += 1;
        }
        let mut bytes = record(&put_header(b"some key", &value, 1, 0), &binding, 512, b"some key", &value);
        let next = 512 + bytes.len() as u64;
        bytes.extend_from_slice(&record(&tombstone_header(b"last", 2, 1), &binding, next, b"last", &[]));
        bytes[12] ^= 1;
        assert_eq!(find_record(&bytes, &binding, 512, 512), Some(next));
    }
    println!("{planted} record images, none accepted, seed {seed}");
    assert!(planted >= 25_000);
}
