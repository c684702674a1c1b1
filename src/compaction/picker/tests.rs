//! Tables of segments, and what is to be done about them.

use super::*;

const SEGMENT: u64 = 1000 * 1000;

fn policy() -> Policy {
    Policy { trigger: 0.5, threshold: 0.3, budget_bytes: 4 * SEGMENT, segment_bytes: SEGMENT }
}

/// A segment that holds numbers `first_seq` to `first_seq + 99`, of which `live` of 1000 parts are alive.
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

fn view(candidates: &[Candidate]) -> View {
    View { candidates: candidates.to_vec(), others_first_seq: None }
}

#[track_caller]
fn check(what: &str, candidates: &[Candidate], unread: &[u32], rewrite: &[u32]) {
    let picked = pick(&view(candidates), &policy());
    assert_eq!((picked.unread.as_slice(), picked.rewrite.as_slice()), (unread, rewrite), "{what}");
}

#[test]
fn the_trigger_says_when_and_the_threshold_what() {
    check("nothing at all", &[], &[], &[]);
    check("mostly alive", &[segment(1, 100, 900), segment(2, 200, 600)], &[], &[]);
    check("half dead: the deader one is enough", &[segment(1, 100, 700), segment(2, 200, 200)], &[], &[2]);
    check("both are needed", &[segment(1, 100, 300), segment(2, 200, 100)], &[], &[2, 1]);
    let below = [segment(1, 100, 200), segment(2, 200, 750), segment(3, 300, 500)];
    check("what frees less than the threshold is left", &below, &[], &[1]);
}

#[test]
fn the_budget_says_how_much() {
    let many: Vec<_> = (1..=9).map(|id| segment(id, u64::from(id) * 100, 10)).collect();
    check("four segments' worth", &many, &[], &[1, 2, 3, 4]);
    let small = Policy { budget_bytes: 1, ..policy() };
    assert_eq!(pick(&view(&many), &small).rewrite, [1], "one at the least, or nothing would ever happen");
}

#[test]
fn a_segment_without_a_live_byte_goes_unread_whatever_the_trigger() {
    check("one", &[segment(1, 100, 0), segment(2, 200, 1000)], &[1], &[]);
    let tombstones = with_tombstones(segment(2, 200, 0), 100);
    check("its tombstones hide something older: it is read", &[segment(1, 100, 990), tombstones], &[], &[2]);
    check("unless that goes too", &[segment(1, 100, 0), tombstones, segment(3, 300, 999)], &[1, 2], &[]);
    let younger = segment(1, 300, 990);
    check("what was compacted since is not hidden", &[younger, tombstones], &[2], &[]);
    let damaged = View { candidates: vec![tombstones], others_first_seq: Some(150) };
    assert!(pick(&damaged, &policy()).unread.is_empty(), "a damaged segment may hold what they hide");
}

#[test]
fn tombstones_that_must_stay_free_nothing() {
    // 80 % dead, but 70 % of it tombstones that the first one holds back; the first has nothing to free by itself.
    let held = with_tombstones(segment(2, 200, 200), 700);
    let fresh = with_tombstones(segment(3, 300, 200), 700);
    check("the age is what is mended", &[segment(1, 100, 990), held, fresh], &[], &[1, 2, 3]);
    // Written again they are younger than every tombstone.
    let renewed = Candidate { first_seq: 900, ..segment(4, 100, 990) };
    check("then they go, as many as it takes", &[renewed, held, fresh], &[], &[2]);
}

#[test]
fn the_same_bytes_are_not_written_again_for_nothing() {
    // A damaged segment holds the tombstones back for ever, and every new segment may have some.
    let held = with_tombstones(segment(2, 200, 300), 690);
    let stuck = |candidates: &[Candidate], first_seq| {
        let view = View { candidates: candidates.to_vec(), others_first_seq: Some(first_seq) };
        pick(&view, &policy()).rewrite
    };
    assert_eq!(stuck(&[held], 50), [0_u32; 0]);
    let renewed = Candidate { id: 3, first_seq: 1000, ..held };
    assert_eq!(stuck(&[renewed], 50), [0_u32; 0]);
    let newest = with_tombstones(segment(4, 1100, 300), 690);
    assert_eq!(stuck(&[renewed, newest], 50), [0_u32; 0], "younger tombstones are held back as well");
    assert_eq!(stuck(&[renewed, newest], 1200), [3], "the damage gone, they go");
}

#[test]
fn small_segments_become_one() {
    let tiny = |id: u32, bytes: u64| Candidate { total_bytes: bytes, live_bytes: bytes, ..segment(id, 100, 0) };
    let seven: Vec<_> = (1..=7).map(|id| tiny(id, 10_000)).collect();
    check("seven are not worth it", &seven, &[], &[]);
    let mut eight = seven.clone();
    eight.push(tiny(8, 10_000));
    check("eight are", &eight, &[], &[1, 2, 3, 4, 5, 6, 7, 8]);
    let mut grown = seven;
    grown.push(tiny(8, 200_000));
    check("one that has grown waits for its like", &grown, &[], &[]);
}

#[test]
fn forced_jobs_take_what_frees_something_oldest_first() {
    let whole = Candidate { live_bytes: SEGMENT - 600, ..segment(1, 100, 0) };
    let dusty = Candidate { live_bytes: SEGMENT - 5_000, ..segment(2, 200, 0) };
    let all = [segment(9, 50, 500), whole, dusty, segment(3, 300, 900), segment(4, 400, 0)];
    let policy = Policy { budget_bytes: SEGMENT, ..policy() };
    let jobs = pick_forced(&view(&all), None, &policy);
    let expected = [Pick { unread: vec![4], rewrite: vec![9] }, Pick { unread: vec![], rewrite: vec![3] }];
    assert_eq!(jobs, expected);
    let named = pick_forced(&view(&all), Some(&[1, 2]), &policy);
    assert_eq!(named.iter().map(|job| job.rewrite.clone()).collect::<Vec<_>>(), [[1], [2]], "named is named");
    assert!(pick_forced(&view(&[whole]), None, &policy).is_empty());
}

/// A segment that was not named stays, so its put must not lose the tombstone that hides it.
#[test]
fn unread_segments_rely_only_on_those_that_go_with_them() {
    let hides = with_tombstones(segment(2, 200, 0), 100);
    let view = view(&[segment(1, 100, 0), hides, segment(3, 300, 999)]);
    let named = |ids: &[u32]| pick_forced(&view, Some(ids), &policy());
    assert_eq!(named(&[2]), [Pick { unread: vec![], rewrite: vec![2] }]);
    assert_eq!(named(&[1, 2]), [Pick { unread: vec![1, 2], rewrite: vec![] }]);
}

/// Compacts as picked until nothing is due, in a model of what compaction does, and counts how often.
fn settle(mut candidates: Vec<Candidate>, others_first_seq: Option<u64>, policy: &Policy) -> (View, usize) {
    let mut next_id = 1000;
    for rounds in 0.. {
        let view = View { candidates: candidates.clone(), others_first_seq };
        let picked = pick(&view, policy);
        if picked.is_empty() {
            return (view, rounds);
        }
        assert!(rounds < 10_000, "no end: {view:?}");
        let inside = [picked.unread.as_slice(), &picked.rewrite].concat();
        let go_below = view.tombstones_go_below(&inside);
        let taken: Vec<_> = candidates.extract_if(.., |candidate| inside.contains(&candidate.id)).collect();
        let kept = |candidate: &Candidate| if candidate.max_seq < go_below { 0 } else { candidate.tombstone_bytes };
        for candidate in taken.iter().filter(|candidate| picked.unread.contains(&candidate.id)) {
            assert_eq!((candidate.live_bytes, kept(candidate)), (0, 0), "unread, and something was in it");
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
fn compaction_comes_to_an_end_within_the_bound() {
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
        // Now and then a damaged one holds back what it can.
        let others = (below(5) == 0).then(|| below(u64::from(count) * 100 + 1));
        let (settled, took) = settle(candidates, others, &policy);
        if others.is_none() {
            let dead = settled.dead_part();
            assert!(dead < policy.trigger, "{dead} of it is dead after {took} rounds: {settled:?}, {policy:?}");
        }
        views += 1;
        rounds += took;
    }
    println!("picker: {views} stores settled in {rounds} jobs");
    assert!(rounds > 3000, "the stores were not in need of compaction");
}
