//! Blocks, frames and slots without a store, in blocks of 256 bytes.

use super::clock::SWEEP_FRAMES_MAX;
use super::*;

const BLOCK: usize = 256;
/// Blocks of 256 bytes.
const SEGMENT_BYTES: u64 = 8 << 10;

/// The byte at `offset` of a segment: different in every segment and block.
fn byte(segment: u32, offset: u64) -> u8 {
    let word = (u64::from(segment) << 40 | offset).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (word >> 56) as u8
}

fn expected(segment: u32, offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64).map(|offset| byte(segment, offset)).collect()
}

fn new(bytes: u64, segment_bytes: u64) -> Option<BlockCache> {
    BlockCache::new(bytes, segment_bytes).expect("address space")
}

fn cache_of(frames: u64) -> BlockCache {
    let frames_bytes = frames * Frames::frame_bytes(8) + BLOCK as u64;
    // So that `frames_bytes` remain after the part of the slots.
    let bytes = (frames_bytes * SLOTS_PART).div_ceil(SLOTS_PART - 1);
    let cache = new(bytes, SEGMENT_BYTES).expect("a cache with room for a block");
    assert_eq!((u64::from(cache.frames.capacity), cache.block_shift), (frames, 8));
    BlockCache { slot_budget: SlotBudget::new(1 << 20), ..cache }
}

fn block(segment: u32, number: u32) -> BlockId {
    BlockId { segment, number }
}

/// Fills a block as the read path does. `slots` has the slots of all segments, by id.
fn fill(cache: &BlockCache, slots: &[Slots], block: BlockId) -> Option<Filled> {
    assert!(cache.make_slots(&slots[block.segment as usize], block.number, SEGMENT_BYTES));
    let filled = cache.fill(block, |bytes, offset| {
        bytes.copy_from_slice(&expected(block.segment, offset, bytes.len()));
        bytes.len()
    })?;
    if let Some(evicted) = filled.evicted {
        slots[evicted.segment as usize].clear(evicted.number, filled.frame);
    }
    slots[block.segment as usize].set(block.number, filled.frame);
    Some(filled)
}

/// The bytes as the cache has them, if it has them.
fn read(cache: &BlockCache, slots: &[Slots], segment: u32, offset: u64, len: usize) -> Option<Vec<u8>> {
    let span = cache.span(segment, offset, len, SEGMENT_BYTES)?;
    let framed = cache.find(span, &slots[segment as usize])?;
    match framed.is_in_one_block() {
        true => cache.read(&framed, <[u8]>::to_vec),
        false => cache.copy(&framed),
    }
}

fn slots(segments: usize) -> Vec<Slots> {
    (0..segments).map(|_| Slots::default()).collect()
}

#[test]
fn one_fill_inspects_a_limited_number_of_frames() {
    let frames = 1000_u32;
    let (cache, slots) = (cache_of(u64::from(frames)), (0..60).map(|_| Slots::default()).collect::<Vec<_>>());
    let all = || (0..).flat_map(|segment| (0..20).map(move |number| block(segment, number)));
    for block in all().take(frames as usize) {
        fill(&cache, &slots, block).unwrap();
    }
    // A filled frame counts as referenced. So the hand goes round once, one sweep per fill, before a frame is free.
    let hand = || u64::from(cache.frames.hand.load(Ordering::Relaxed));
    let mut refused = 0;
    for block in all().skip(frames as usize).take(20) {
        let before = hand();
        refused += u64::from(fill(&cache, &slots, block).is_none());
        assert!(hand() - before <= SWEEP_FRAMES_MAX);
    }
    assert_eq!(refused, u64::from(frames) / SWEEP_FRAMES_MAX);
}

#[test]
fn a_span_of_one_to_three_blocks_is_read_when_all_of_them_are_cached() {
    let (cache, slots) = (cache_of(8), slots(2));
    for (offset, len) in [(0, 1), (10, 200), (0, BLOCK), (255, 1), (200, 100), (255, 2), (200, 400), (0, 3 * BLOCK)] {
        assert_eq!(read(&cache, &slots, 1, offset, len), None, "{offset}+{len} before any block is cached");
    }
    for number in 0..3 {
        fill(&cache, &slots, block(1, number)).unwrap();
        for (offset, len) in [(0, 1), (10, 200), (0, BLOCK), (255, 1), (200, 100), (255, 2), (200, 400), (0, 768)] {
            let last = (offset + len as u64 - 1) / BLOCK as u64;
            let there = (last <= u64::from(number)).then(|| expected(1, offset, len));
            assert_eq!(read(&cache, &slots, 1, offset, len), there, "{offset}+{len}, blocks up to {number}");
        }
    }
}

#[test]
fn long_records_and_partial_blocks_are_not_cacheable() {
    let cache = cache_of(8);
    let is_cacheable = |offset, len, written_end| cache.span(1, offset, len, written_end).is_some();
    assert!(
        is_cacheable(0, 3 * BLOCK, 768) && !is_cacheable(0, 3 * BLOCK + 1, 4096) && !is_cacheable(1, 3 * BLOCK, 4096)
    );
    assert!(is_cacheable(0, 10, 256) && !is_cacheable(0, 10, 255), "the block must be whole");
    assert!(is_cacheable(250, 10, 512) && !is_cacheable(250, 10, 511));
    assert!(!is_cacheable(8, usize::MAX, u64::MAX) && !is_cacheable(u64::MAX - 300, 10, u64::MAX));
}

#[test]
fn a_reused_frame_serves_only_its_new_block() {
    let (cache, slots) = (cache_of(1), slots(3));
    let first = fill(&cache, &slots, block(1, 0)).unwrap();
    assert_eq!(first, Filled { frame: 0, evicted: None });
    let stale = cache.find(cache.span(1, 0, 10, SEGMENT_BYTES).unwrap(), &slots[1]).unwrap();
    // Differs in the segment, the number, or both.
    for other in [block(2, 0), block(2, 1), block(1, 1)] {
        fill(&cache, &slots, other).unwrap();
        assert_eq!(cache.read(&stale, <[u8]>::to_vec), None, "{other:?} is cached");
        assert_eq!(cache.copy(&stale), None, "{other:?} is cached");
        slots[1].set(0, 0);
        assert!(!cache.holds(block(1, 0), &slots[1]) && cache.holds(other, &slots[other.segment as usize]));
        let offset = u64::from(other.number) * BLOCK as u64;
        assert_eq!(read(&cache, &slots, other.segment, offset, 10), Some(expected(other.segment, offset, 10)));
    }
    fill(&cache, &slots, block(1, 0)).unwrap();
    assert_eq!(cache.read(&stale, <[u8]>::to_vec), Some(expected(1, 0, 10)), "it was filled again");
}

#[test]
fn the_hand_skips_frames_that_were_read() {
    let (cache, slots) = (cache_of(4), slots(2));
    for number in 0..4 {
        fill(&cache, &slots, block(1, number)).unwrap();
    }
    // All frames are referenced. The hand clears the flags in its first round, then takes the first frame.
    assert_eq!(fill(&cache, &slots, block(1, 4)).unwrap().evicted, Some(block(1, 0)));
    assert!(read(&cache, &slots, 1, 256, 10).is_some(), "block 1 is cached");
    assert_eq!(fill(&cache, &slots, block(1, 5)).unwrap().evicted, Some(block(1, 2)));
    assert!(read(&cache, &slots, 1, 256, 10).is_some());
    assert_eq!(fill(&cache, &slots, block(1, 6)).unwrap().evicted, Some(block(1, 3)));
    assert!(read(&cache, &slots, 1, 256, 10).is_some(), "and is kept");
}

#[test]
fn memory_grows_with_the_blocks_and_stays_below_the_limit() {
    let cache = new(1 << 20, 1 << 20).unwrap();
    let all: Vec<Slots> = slots(300);
    assert_eq!((cache.block_shift, cache.held_bytes()), (14, 0));
    for segment in 0..300 {
        for number in 0..4 {
            if cache.make_slots(&all[segment as usize], number, 1 << 20) {
                let block = block(segment, number);
                let filled = cache.fill(block, |bytes, _| bytes.len()).unwrap();
                all[segment as usize].set(number, filled.frame);
            }
            assert!(cache.held_bytes() + (1 << 14) <= 1 << 20, "{} bytes", cache.held_bytes());
        }
        let blocks = u64::from(segment + 1) * 4;
        assert!(cache.held_bytes() <= blocks * Frames::frame_bytes(14) + u64::from(segment + 1) * 256);
    }
    assert_eq!(cache.slot_budget.held_bytes(), (1 << 20) / SLOTS_PART, "slots of 256 segments and no more");
    drop(all);
    assert_eq!(cache.slot_budget.held_bytes(), 0, "their segments are dropped");
}

#[test]
fn a_limit_below_one_block_makes_no_cache() {
    let is_one = |bytes| new(bytes, 256 << 20).is_some();
    assert!(!is_one(0) && !is_one(16 << 10) && is_one(1 << 20));
}

#[test]
fn a_block_that_cannot_be_read_whole_takes_no_frame() {
    let (cache, slots) = (cache_of(4), slots(2));
    assert!(cache.make_slots(&slots[1], 0, SEGMENT_BYTES));
    assert_eq!(cache.fill(block(1, 0), |_, _| 100), None);
    assert_eq!(cache.held_bytes(), cache.slot_budget.held_bytes(), "the buffer is kept as the spare");
    fill(&cache, &slots, block(1, 0)).unwrap();
}

#[test]
fn hits_earn_fills_while_there_is_room_and_some_misses_always_fill() {
    let (cache, slots) = (cache_of(4), slots(2));
    let admitted = |misses| (0..misses).filter(|_| cache.admits()).count();
    assert!(cache.admits(), "the first");
    assert_eq!(admitted(640), 10);
    (0..80).for_each(|_| cache.count_hit());
    assert_eq!(admitted(10), 10);
    assert_eq!(admitted(640), 10);
    (0..1_000_000).for_each(|_| cache.count_hit());
    assert_eq!(admitted(64 + 640), 64 + 10, "unspent hits are limited");
    for number in 0..4 {
        fill(&cache, &slots, block(1, number)).unwrap();
    }
    (0..80).for_each(|_| cache.count_hit());
    assert_eq!(admitted(640), 10, "the cache is full");
}

#[test]
fn a_forgotten_block_is_missing_until_it_is_filled_again() {
    let (cache, slots) = (cache_of(4), slots(2));
    fill(&cache, &slots, block(1, 0)).unwrap();
    let framed = cache.find(cache.span(1, 0, 10, SEGMENT_BYTES).unwrap(), &slots[1]).unwrap();
    cache.forget(&framed);
    assert_eq!(read(&cache, &slots, 1, 0, 10), None);
    fill(&cache, &slots, block(1, 0)).unwrap();
    assert_eq!(read(&cache, &slots, 1, 0, 10), Some(expected(1, 0, 10)));
}

#[test]
fn concurrent_readers_never_see_another_blocks_bytes() {
    let (cache, slots) = (cache_of(5), slots(4));
    let hits = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (cache, slots, hits) = (&cache, &slots, &hits);
            scope.spawn(move || {
                let mut word = thread + 1;
                for _ in 0..20_000 {
                    word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let (segment, number) = ((word >> 40) as u32 % 4, (word >> 50) as u32 % 4);
                    let (offset, len) = (u64::from(number) * 256 + (word >> 33) % 200, 1 + (word >> 20) as usize % 400);
                    match read(cache, slots, segment, offset, len) {
                        Some(found) => {
                            assert_eq!(found, expected(segment, offset, len), "{segment} at {offset}");
                            hits.fetch_add(1, Ordering::Relaxed);
                        }
                        None => drop(fill(cache, slots, block(segment, number))),
                    }
                }
            });
        }
    });
    assert!(hits.load(Ordering::Relaxed) > 1000, "{hits:?}");
    assert!(cache.held_bytes() <= 5 * Frames::frame_bytes(8) + 4 * 32 * 4);
}

#[test]
fn concurrently_created_frames_have_memory_in_the_order_of_their_numbers() {
    let frames = 1000_u32;
    let (cache, slots) = (cache_of(u64::from(frames)), slots(40));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (cache, slots) = (&cache, &slots);
            scope.spawn(move || {
                (0..10).for_each(|segment| {
                    (0..25).for_each(|number| _ = fill(cache, slots, block(thread * 10 + segment, number)));
                });
            });
        }
    });
    assert_eq!(cache.frames.used.load(Ordering::Relaxed), frames);
    for number in 0..frames {
        let contents = cache.frames.frame(number).unwrap().contents.read().unwrap();
        assert_eq!(contents.bytes.as_ptr().addr(), cache.frames.address + number as usize * BLOCK, "frame {number}");
    }
}
