//! What a crash, a failed sync and a full disk leave, and the images that hold it.

use super::*;

#[test]
fn unsynced_data_may_be_lost_kept_or_reordered() {
    let lab = seeded(1);
    lab.write(0, [[1; 512], [2; 512], [3; 512]].concat());
    let contents = lab.contents();
    assert!(contents.contains(&vec![]), "nothing persisted");
    assert!(contents.contains(&[[1; 512], [2; 512], [3; 512]].concat()), "all persisted");
    assert!(contents.contains(&[[0; 512], [0; 512], [3; 512]].concat()), "the last sector alone, zeros before it");
    assert!(contents.contains(&[[1; 512], [0xff; 512], [3; 512]].concat()), "a hole of ones");
    assert!(contents.contains(&[[1; 512], [0; 512], [0; 512]].concat()), "the length and one sector");
    assert!(contents.iter().all(|bytes| bytes.len() <= 1536));
    println!("{} contents", contents.len());
}

#[test]
fn synced_data_is_never_lost() {
    let lab = seeded(2);
    lab.write(0, vec![1; 1000]);
    lab.sync();
    lab.write(1000, vec![2; 1000]);
    let contents = lab.contents();
    assert!(contents.len() > 4, "the second write is undecided");
    for bytes in contents {
        assert_eq!(bytes.get(..1000), Some(&[1; 1000][..]));
    }
    lab.sync();
    assert_eq!(lab.contents(), BTreeSet::from([[[1; 1000], [2; 1000]].concat()]));
}

#[test]
fn an_overwrite_is_old_or_new_by_sector() {
    let lab = seeded(3);
    lab.write(0, vec![1; 1024]);
    lab.sync();
    lab.write(256, vec![2; 512]);
    let (old, new) = ([1; 256], [2; 256]);
    let expected = [[old, old, old, old], [old, new, old, old], [old, old, new, old], [old, new, new, old]];
    assert_eq!(lab.contents(), expected.iter().map(|parts| parts.concat()).collect());
}

#[test]
fn a_new_name_is_lost_unless_its_directory_was_synced() {
    let lab = seeded(4);
    let file = lab.dir.open("g", OpenMode::CreateNew).unwrap();
    lab.world.run_until(async {
        util::write_all(&*file, vec![Bytes::from_static(b"data")], 0).await.unwrap();
        file.sync(SyncKind::All).await.unwrap();
    });
    assert_eq!(lab.name_sets(), BTreeSet::from([names(&["f"]), names(&["f", "g"])]), "syncing a file is not enough");
    lab.dir.sync().unwrap();
    assert_eq!(lab.name_sets(), BTreeSet::from([names(&["f", "g"])]));
    assert!(lab.crash().iter().all(|image| image.bytes("g") == Some(b"data")));
}

#[test]
fn syncing_a_directory_does_not_sync_its_files() {
    let lab = seeded(5);
    lab.write(0, *b"data");
    lab.dir.sync().unwrap();
    assert!(lab.contents().contains(&vec![]));
}

#[test]
fn a_rename_is_old_or_new_and_never_both_or_neither() {
    let lab = seeded(6);
    lab.write(0, *b"old");
    lab.sync();
    let tmp = lab.dir.open("tmp", OpenMode::CreateNew).unwrap();
    lab.world.run_until(async {
        util::write_all(&*tmp, vec![Bytes::from_static(b"new")], 0).await.unwrap();
        tmp.sync(SyncKind::All).await.unwrap();
    });
    lab.dir.sync().unwrap();
    lab.dir.rename("tmp", "f").unwrap();
    let outcomes: BTreeSet<_> =
        lab.crash().iter().map(|image| (image.bytes("f").map(<[u8]>::to_vec), image.bytes("tmp").is_some())).collect();
    assert_eq!(outcomes, BTreeSet::from([(Some(b"old".to_vec()), true), (Some(b"new".to_vec()), false)]));
    lab.dir.sync().unwrap();
    assert!(lab.crash().iter().all(|image| image.bytes("f") == Some(b"new")));
}

#[test]
fn directory_operations_survive_independently_or_in_order() {
    let of = |dir_order| {
        let lab = lab(SimConfig { dir_order, ..SimConfig::default() });
        lab.dir.open("g", OpenMode::CreateNew).unwrap();
        lab.dir.unlink("f").unwrap();
        lab.name_sets()
    };
    let ordered = [names(&["f"]), names(&["f", "g"]), names(&["g"])];
    assert_eq!(of(DirOrder::Ext4Ordered), ordered.iter().cloned().collect());
    assert_eq!(of(DirOrder::Posix), ordered.into_iter().chain([names(&[])]).collect());
}

#[test]
fn a_sync_does_not_cover_writes_in_flight() {
    let mut lost_after_sync = 0;
    for seed in 0..40 {
        let lab = seeded(seed);
        let (write, sync) = (lab.file.write_at(vec![Bytes::from_static(b"late")], 0), lab.file.sync(SyncKind::All));
        lab.world.run_until(sync).unwrap();
        assert_eq!(lab.world.run_until(write).unwrap(), 4);
        lost_after_sync += usize::from(lab.contents().contains(&vec![]));
        lab.sync();
        assert_eq!(lab.contents(), BTreeSet::from([b"late".to_vec()]), "a sync after the completion covers it");
    }
    assert_eq!(lost_after_sync, 40);
}

#[test]
fn a_sync_covers_only_completions_that_were_delivered() {
    let lab = seeded(7);
    let write = lab.file.write_at(vec![Bytes::from_static(b"done")], 0);
    lab.world.run_to_idle(Duration::ZERO);
    assert_eq!(lab.read(10), b"done", "completed but not delivered");
    lab.sync();
    assert!(lab.contents().contains(&vec![]));
    lab.world.run_until(write).unwrap();
    lab.sync();
    assert_eq!(lab.contents(), BTreeSet::from([b"done".to_vec()]));
}

#[test]
fn a_write_in_flight_may_be_torn_at_any_byte() {
    let lab = seeded(8);
    let _write = lab.file.write_at(vec![Bytes::from(vec![7; 300])], 0);
    let contents = lab.contents();
    let torn = contents.iter().filter(|bytes| !bytes.is_empty() && bytes.len() < 300).count();
    assert!(torn > 5, "{torn} torn contents");
    assert!(contents.contains(&vec![]) && contents.contains(&vec![7; 300]));
}

#[test]
fn a_failed_sync_loses_what_reads_still_see() {
    let lab = seeded(9);
    lab.write(0, *b"safe");
    lab.sync();
    lab.world.inject(Fault::once(OpClass::Sync, 1, FaultKind::SyncLost));
    lab.write(2, *b"LOST");
    assert_eq!(lab.world.run_until(lab.file.sync(SyncKind::Data)).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(lab.read(10), b"saLOST", "the pages are clean and still in memory");
    lab.write(6, *b"next");
    lab.sync();
    for bytes in lab.contents() {
        assert_eq!(bytes.get(..4), Some(&b"safe"[..]), "no later sync persists it");
        assert_eq!(bytes.get(6..), Some(&b"next"[..]));
    }
    lab.file.evict();
    assert_eq!(lab.read(10), b"safe\0\0next", "reads see the disk again");
}

#[test]
fn a_failed_sync_may_have_persisted_everything_or_some_sectors() {
    let fates = |kind| {
        let mut contents = BTreeSet::new();
        for seed in 0..60 {
            let lab = seeded(seed);
            lab.write(0, vec![0; 1024]);
            lab.sync();
            lab.world.inject(Fault::once(OpClass::Sync, 1, kind));
            lab.write(0, [[1; 512], [2; 512]].concat());
            lab.world.run_until(lab.file.sync(SyncKind::Data)).unwrap_err();
            let now = lab.contents();
            assert_eq!(now.len(), 1, "the failure decides it");
            contents.extend(now);
        }
        contents
    };
    let (all, none) = ([[1; 512], [2; 512]].concat(), vec![0; 1024]);
    let some = [[[0; 512], [2; 512]].concat(), [[1; 512], [0; 512]].concat()];
    assert_eq!(fates(FaultKind::SyncKept), BTreeSet::from([all.clone()]));
    let every: BTreeSet<_> = some.into_iter().chain([all, none]).collect();
    assert_eq!(fates(FaultKind::SyncPartial), every);
    assert_eq!(fates(FaultKind::EIO), every);
}

#[test]
fn a_lying_sync_persists_nothing() {
    let lab = seeded(10);
    lab.world.inject(Fault::once(OpClass::Sync, 0, FaultKind::SyncLie));
    lab.write(0, *b"data");
    lab.sync();
    assert!(lab.contents().contains(&vec![]));
    lab.sync();
    assert_eq!(lab.contents(), BTreeSet::from([b"data".to_vec()]));
}

#[test]
fn a_truncation_may_be_undone_unless_all_was_synced() {
    let lab = seeded(11);
    lab.write(0, *b"longer");
    lab.sync();
    lab.file.truncate(4).unwrap();
    let both = BTreeSet::from([b"long".to_vec(), b"longer".to_vec()]);
    assert_eq!(lab.contents(), both);
    lab.sync();
    assert_eq!(lab.contents(), both, "a data sync need not persist a shorter length");
    lab.world.run_until(lab.file.sync(SyncKind::All)).unwrap();
    assert_eq!(lab.contents(), BTreeSet::from([b"long".to_vec()]));
}

#[test]
fn bytes_cut_off_may_come_back_in_a_hole() {
    let lab = seeded(12);
    lab.write(0, [[1; 512], [2; 512]].concat());
    lab.sync();
    lab.file.truncate(512).unwrap();
    lab.world.run_until(lab.file.sync(SyncKind::All)).unwrap();
    lab.write(512, vec![3; 1024]);
    let contents = lab.contents();
    assert!(contents.contains(&[[1; 512], [2; 512], [3; 512]].concat()), "the old second sector before the new third");
    assert!(contents.iter().all(|bytes| bytes.starts_with(&[1; 512])));
}

#[test]
fn blocks_of_an_unlinked_file_may_come_back_in_a_hole() {
    let lab = seeded(13);
    lab.write(0, vec![5; 1024]);
    lab.dir.unlink("f").unwrap();
    let next = lab.dir.open("g", OpenMode::CreateNew).unwrap();
    lab.dir.sync().unwrap();
    lab.world.run_until(util::write_all(&*next, vec![vec![6; 1024].into()], 0)).unwrap();
    let found = lab.crash().iter().any(|image| image.bytes("g") == Some(&[[5; 512], [6; 512]].concat()[..]));
    assert!(found, "the old file's first sector before the new one's second");
}

#[test]
fn the_length_may_lag_behind_the_data() {
    let lab = seeded(14);
    lab.write(0, vec![1; 512]);
    let lengths: BTreeSet<_> = lab.contents().iter().map(Vec::len).collect();
    assert!(lengths.len() > 3, "{lengths:?}");
}

#[test]
fn a_kill_keeps_what_the_kernel_has() {
    let lab = seeded(15);
    lab.write(0, *b"unsynced");
    lab.dir.open("g", OpenMode::CreateNew).unwrap();
    let _write = lab.file.write_at(vec![Bytes::from_static(b" in flight")], 8);
    let mut lengths = BTreeSet::new();
    for seed in 0..50 {
        let image = lab.world.kill_image(&mut Rng::new(seed));
        assert_eq!(image.names().collect::<Vec<_>>(), ["f", "g"]);
        let bytes = image.bytes("f").unwrap();
        assert!(b"unsynced in flight".starts_with(bytes) && bytes.len() >= 8);
        lengths.insert(bytes.len());
        let journal = lab.world.journal();
        assert_eq!(journal.kill_image(journal.len(), &mut Rng::new(seed)), image);
    }
    assert!(lengths.len() > 3, "{lengths:?}");
}

#[test]
fn every_crash_point_can_be_visited_and_reproduced() {
    let lab = seeded(16);
    for round in 0..9_u8 {
        lab.write(u64::from(round) * 700, vec![round; 700]);
        if round % 3 == 2 {
            lab.sync();
        }
        lab.dir.open(&format!("file-{round}"), OpenMode::CreateNew).unwrap();
    }
    let journal = lab.world.journal();
    let (mut replay, mut images, mut large) = (journal.replay(), 0, 0);
    loop {
        let point = replay.crash_point();
        large += usize::from(point.undecided() > 10);
        let all: Vec<u64> = point.sample(usize::MAX, &mut Rng::new(1)).collect();
        assert!(all.iter().copied().eq(0..point.image_count()));
        let few: Vec<u64> = point.sample(5, &mut Rng::new(1)).collect();
        let distinct: BTreeSet<u64> = few.iter().copied().collect();
        assert_eq!(distinct.len() as u64, point.image_count().min(5), "{few:?} of {}", point.image_count());
        assert!(few.iter().all(|number| *number < point.image_count()));
        for number in all {
            let image = point.image(number, 9);
            assert_eq!(image.hash(), point.image(number, 9).hash());
            assert!(image.names().is_sorted());
            images += 1;
        }
        if !replay.advance() {
            break;
        }
    }
    assert_eq!(replay.step(), journal.len());
    assert!(images > 5_000 && large > 4, "{images} images, {large} large crash points");
    println!("{} crash points, {images} images", journal.len() + 1);
}

#[test]
fn a_full_disk_writes_what_fits_and_recovers() {
    let lab = seeded(17);
    lab.world.set_capacity(Some(1000));
    assert_eq!(lab.world.run_until(lab.file.write_at(vec![vec![1; 700].into()], 0)).unwrap(), 700);
    assert_eq!(lab.world.run_until(lab.file.write_at(vec![vec![1; 700].into()], 700)).unwrap(), 300);
    let full = lab.world.run_until(lab.file.write_at(vec![vec![1; 700].into()], 1000)).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(lab.dir.open("g", OpenMode::CreateNew).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(lab.world.run_until(lab.file.write_at(vec![vec![2; 700].into()], 0)).unwrap(), 700, "in place");
    lab.file.truncate(100).unwrap();
    assert_eq!(lab.world.used_bytes(), 100);
    lab.file.allocate(100, 800).unwrap();
    assert_eq!(lab.file.len().unwrap(), 100, "preallocation keeps the length");
    let other = lab.dir.open("g", OpenMode::CreateNew).unwrap();
    assert_eq!(lab.world.run_until(other.write_at(vec![vec![3; 700].into()], 0)).unwrap(), 100);
    assert_eq!(
        lab.world.run_until(lab.file.write_at(vec![vec![4; 800].into()], 100)).unwrap(),
        800,
        "the space was preallocated"
    );
    assert_eq!(lab.file.allocate(0, 2000).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    lab.dir.unlink("f").unwrap();
    assert_eq!(lab.world.used_bytes(), 100);
}

#[test]
fn editing_an_image_keeps_its_copies() {
    let mut image = Image::new();
    image.insert(DB, "a", *b"\x01\x02");
    let (copy, hash) = (image.clone(), image.hash());
    assert!(image.flip_bit("a", 9) && !image.flip_bit("a", 16) && !image.flip_bit("b", 0));
    assert_eq!((image.bytes("a"), copy.bytes("a")), (Some(&[1, 0][..]), Some(&[1, 2][..])));
    assert_ne!(image.hash(), hash);
    assert!(image.flip_bit("a", 9) && image.hash() == hash && image == copy);
    assert!(image.duplicate("a", "b") && image.rename("a", "c") && image.truncate("c", 1));
    assert_eq!(image.names().collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!((image.bytes("b"), image.bytes("c"), image.total_bytes()), (Some(&[1, 2][..]), Some(&[1][..]), 3));
    assert!(image.remove("b") && !image.remove("b"));
}

#[test]
fn images_are_cheap() {
    let lab = seeded(23);
    for name in ["1.seg", "2.seg", "1.hint", "LOCK"] {
        let file = lab.dir.open(name, OpenMode::CreateNew).unwrap();
        lab.world.run_until(util::write_all(&*file, vec![vec![9; 3_000].into()], 0)).unwrap();
        lab.world.run_until(file.sync(SyncKind::All)).unwrap();
    }
    lab.dir.sync().unwrap();
    lab.write(0, vec![1; 4_000]);
    let journal = lab.world.journal();
    let mut replay = journal.replay();
    replay.advance_to(journal.len());
    let start = std::time::Instant::now();
    let mut hashes = BTreeSet::new();
    for seed in 0..200 {
        let point = replay.crash_point();
        hashes.extend((0..point.image_count()).map(|number| point.image(number, seed).hash()));
    }
    let made = 200 * replay.crash_point().image_count();
    println!("{made} images, {} distinct, {:.0}/s", hashes.len(), made as f64 / start.elapsed().as_secs_f64());
    assert!(hashes.len() > 1_000, "{} distinct images", hashes.len());
}
