//! Tables of segments, and what the picker makes of them.

use super::*;

const SEGMENT: u64 = 1000 * 1000;

fn policy() -> Policy {
    Policy { trigger: 0.5, threshold: 0.3, budget_bytes: 4 * SEGMENT, segment_bytes: SEGMENT }
}

/// A segment with the sequence numbers `first_seq` to `first_seq + 99`, of which `live` of 1000 bytes are live.
fn segment(id: u32, first_seq: u64, live: u64) -> Candidate {
    Candidate {
        id,
        total_bytes: SEGMENT,
        live_bytes: live * (SEGMENT / 1000),
        tombstone_bytes: 0,
        first_seq,
        max_seq: first_seq + 99,
    }
}

fn with_tombstones(segment: Candidate, parts: u64) -> Candidate {
    Candidate { tombstone_bytes: parts * (SEGMENT / 1000), ..segment }
}

fn view(candidates: &[Candidate]) -> SegmentsView {
    SegmentsView { candidates: candidates.to_vec(), others_first_seq: None }
}

#[track_caller]
fn check(what: &str, candidates: &[Candidate], unread: &[u32], rewrite: &[u32]) {
    let picked = pick(&view(candidates), &policy());
    assert_eq!((picked.unread.as_slice(), picked.rewrite.as_slice()), (unread, rewrite), "{what}");
}

#[test]
fn the_trigger_says_when_and_the_threshold_what() {
    check("no segments", &[], &[], &[]);
    check("mostly live", &[segment(1, 100, 900), segment(2, 200, 600)], &[], &[]);
    check("half dead: one segment is enough", &[segment(1, 100, 700), segment(2, 200, 200)], &[], &[2]);
    check("both segments are needed", &[segment(1, 100, 300), segment(2, 200, 100)], &[], &[2, 1]);
    let below = [segment(1, 100, 200), segment(2, 200, 750), segment(3, 300, 500)];
    check("a segment below the threshold stays", &below, &[], &[1]);
}

#[test]
fn the_budget_says_how_much() {
    let many: Vec<_> = (1..=9).map(|id| segment(id, u64::from(id) * 100, 10)).collect();
    check("four segments", &many, &[], &[1, 2, 3, 4]);
    let small = Policy { budget_bytes: 1, ..policy() };
    assert_eq!(pick(&view(&many), &small).rewrite, [1], "at least one segment");
}

#[test]
fn a_segment_without_live_bytes_is_removed_unread_below_the_trigger_too() {
    check("one segment", &[segment(1, 100, 0), segment(2, 200, 1000)], &[1], &[]);
    let tombstones = with_tombstones(segment(2, 200, 0), 100);
    check("its tombstones may hide an older record: it is read", &[segment(1, 100, 990), tombstones], &[], &[2]);
    check(
        "unless the older segment is removed as well",
        &[segment(1, 100, 0), tombstones, segment(3, 300, 999)],
        &[1, 2],
        &[],
    );
    let younger = segment(1, 300, 990);
    check("a segment compacted since is not hidden", &[younger, tombstones], &[2], &[]);
    let damaged = SegmentsView { candidates: vec![tombstones], others_first_seq: Some(150) };
    assert!(pick(&damaged, &policy()).unread.is_empty(), "a damaged segment may hold a hidden record");
}

#[test]
fn tombstones_that_must_stay_are_not_reclaimable() {
    // 80 % dead, of which 70 % are tombstones that the first segment keeps. The first has nothing to free by itself.
    let blocked = with_tombstones(segment(2, 200, 200), 700);
    let fresh = with_tombstones(segment(3, 300, 200), 700);
    check("the oldest is rewritten too", &[segment(1, 100, 990), blocked, fresh], &[], &[1, 2, 3]);
    // The rewritten segment is younger than all tombstones.
    let renewed = Candidate { first_seq: 900, ..segment(4, 100, 990) };
    check("then the tombstones can be dropped", &[renewed, blocked, fresh], &[], &[2]);
}

#[test]
fn no_segment_is_rewritten_without_gain() {
    // A damaged segment keeps all tombstones, and every new segment may have some.
    let blocked = with_tombstones(segment(2, 200, 300), 690);
    let stuck = |candidates: &[Candidate], first_seq| {
        let view = SegmentsView { candidates: candidates.to_vec(), others_first_seq: Some(first_seq) };
        pick(&view, &policy()).rewrite
    };
    assert_eq!(stuck(&[blocked], 50), [0_u32; 0]);
    let renewed = Candidate { id: 3, first_seq: 1000, ..blocked };
    assert_eq!(stuck(&[renewed], 50), [0_u32; 0]);
    let newest = with_tombstones(segment(4, 1100, 300), 690);
    assert_eq!(stuck(&[renewed, newest], 50), [0_u32; 0], "younger tombstones are kept as well");
    assert_eq!(stuck(&[renewed, newest], 1200), [3], "without the damaged segment they can be dropped");
}

#[test]
fn small_segments_are_merged() {
    let tiny = |id: u32, bytes: u64| Candidate { total_bytes: bytes, live_bytes: bytes, ..segment(id, 100, 0) };
    let seven: Vec<_> = (1..=7).map(|id| tiny(id, 10_000)).collect();
    check("seven are too few", &seven, &[], &[]);
    let mut eight = seven.clone();
    eight.push(tiny(8, 10_000));
    check("eight are enough", &eight, &[], &[1, 2, 3, 4, 5, 6, 7, 8]);
    let mut grown = seven;
    grown.push(tiny(8, 200_000));
    check("a segment grown by merging waits for others of its size", &grown, &[], &[]);
}

#[test]
fn requested_jobs_take_reclaimable_segments_oldest_first() {
    let whole = Candidate { live_bytes: SEGMENT - 600, ..segment(1, 100, 0) };
    let dusty = Candidate { live_bytes: SEGMENT - 5_000, ..segment(2, 200, 0) };
    let all = [segment(9, 50, 500), whole, dusty, segment(3, 300, 900), segment(4, 400, 0)];
    let policy = Policy { budget_bytes: SEGMENT, ..policy() };
    let jobs = pick_requested(&view(&all), None, &policy);
    let expected =
        [PickedSegments { unread: vec![4], rewrite: vec![9] }, PickedSegments { unread: vec![], rewrite: vec![3] }];
    assert_eq!(jobs, expected);
    let named = pick_requested(&view(&all), Some(&[1, 2]), &policy);
    assert_eq!(
        named.iter().map(|job| job.rewrite.clone()).collect::<Vec<_>>(),
        [[1], [2]],
        "named segments are always taken"
    );
    assert!(pick_requested(&view(&[whole]), None, &policy).is_empty());
}

/// A segment that was not named stays, so the tombstone that hides its put must stay as well.
#[test]
fn unread_segments_rely_only_on_segments_of_the_same_job() {
    let hides = with_tombstones(segment(2, 200, 0), 100);
    let view = view(&[segment(1, 100, 0), hides, segment(3, 300, 999)]);
    let named = |ids: &[u32]| pick_requested(&view, Some(ids), &policy());
    assert_eq!(named(&[2]), [PickedSegments { unread: vec![], rewrite: vec![2] }]);
    assert_eq!(named(&[1, 2]), [PickedSegments { unread: vec![1, 2], rewrite: vec![] }]);
}

/// Runs the picked jobs on a model until none is due, and counts them.
fn settle(mut candidates: Vec<Candidate>, others_first_seq: Option<u64>, policy: &Policy) -> (SegmentsView, usize) {
    let mut next_id = 1000;
    for rounds in 0.. {
        let view = SegmentsView { candidates: candidates.clone(), others_first_seq };
        let picked = pick(&view, policy);
        if picked.is_empty() {
            return (view, rounds);
        }
        assert!(rounds < 10_000, "compaction does not end: {view:?}");
        let inside = [picked.unread.as_slice(), &picked.rewrite].concat();
        let removable_below = view.tombstones_removable_below(&inside);
        let taken: Vec<_> = candidates.extract_if(.., |candidate| inside.contains(&candidate.id)).collect();
        let kept =
            |candidate: &Candidate| if candidate.max_seq < removable_below { 0 } else { candidate.tombstone_bytes };
        for candidate in taken.iter().filter(|candidate| picked.unread.contains(&candidate.id)) {
            assert_eq!((candidate.live_bytes, kept(candidate)), (0, 0), "an unread segment held something to keep");
        }
        let (live, tombstones) = taken
            .iter()
            .fold((0, 0), |(live, tombstones), candidate| (live + candidate.live_bytes, tombstones + kept(candidate)));
        let bytes = live + tombstones;
        let outputs = bytes.div_ceil(policy.segment_bytes);
        for _ in 0..outputs {
            next_id += 1;
            candidates.push(Candidate {
                id: next_id,
                total_bytes: bytes / outputs + EMPTY_SEGMENT_BYTES,
                live_bytes: live / outputs,
                tombstone_bytes: tombstones / outputs,
                first_seq: 1_000_000 + rounds as u64,
                max_seq: taken.iter().map(|candidate| candidate.max_seq).max().unwrap_or(0),
            });
        }
    }
    unreachable!("the loop returns")
}

#[test]
fn compaction_ends_below_the_trigger() {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    let (mut views, mut rounds) = (0, 0);
    for _ in 0..3000 {
        let policy = Policy {
            trigger: 0.2 + below(60) as f64 / 100.0,
            threshold: 0.05 + below(15) as f64 / 100.0,
            budget_bytes: SEGMENT * (1 + below(6)),
            segment_bytes: SEGMENT,
        };
        let count = u32::try_from(below(30)).unwrap();
        let candidates: Vec<_> = (1..=count)
            .map(|id| {
                let (live, dead) = (below(1001), below(1001));
                let live = if live + dead > 1000 { 1000 - dead } else { live };
                let tombstones = below(1001 - live);
                let size = if below(4) == 0 { 1 + below(SEGMENT) } else { SEGMENT };
                let scale = |parts: u64| parts * size / 1000;
                Candidate {
                    id,
                    total_bytes: size + EMPTY_SEGMENT_BYTES,
                    live_bytes: scale(live),
                    tombstone_bytes: if below(2) == 0 { scale(tombstones) } else { 0 },
                    ..segment(id, u64::from(id) * 100, 0)
                }
            })
            .collect();
        // Sometimes a damaged segment keeps tombstones.
        let others = (below(5) == 0).then(|| below(u64::from(count) * 100 + 1));
        let (settled, took) = settle(candidates, others, &policy);
        if others.is_none() {
            let dead = settled.dead_fraction();
            assert!(dead < policy.trigger, "dead fraction {dead} after {took} jobs: {settled:?}, {policy:?}");
        }
        views += 1;
        rounds += took;
    }
    println!("picker: {views} stores settled in {rounds} jobs");
    assert!(rounds > 3000, "the stores did not need compaction");
}
