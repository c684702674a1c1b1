//! The system calls of each durability level, counted outside the process. `strace` counts them for threads; for the
//! ring, whose requests `strace` does not see, the kernel's trace events do.
//!
//! A counter inside the store could have the same error as the code that it counts; the kernel's counts are
//! independent.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use ringcask::testing::io::{Io, OpenMode};
use ringcask::{ActiveEngine, Durability, Engine, Store};

use crate::helpers::{
    Env, block_on, child_env, close, expect_success, files_with, for_each_engine, get, is_child, open, put, put_at,
    rerun, rerun_traced, skip, uring_refused,
};

const MARK: &str = "ringcask-mark/";

/// Marks the end of a phase in the trace: by opening a path that does not exist, or by a line in the kernel's trace.
fn mark(phase: &str) {
    match std::env::var_os("RINGCASK_TEST_MARKER") {
        Some(marker) => fs::OpenOptions::new()
            .write(true)
            .open(marker)
            .and_then(|mut marker| marker.write_all(format!("{MARK}{phase}").as_bytes()))
            .expect("write a trace marker"),
        None => drop(fs::File::open(format!("/{MARK}{phase}"))),
    }
}

/// Runs the phases of a traced child, and prints the store's own counts for each.
fn phases() {
    let (engine, path) = child_env();
    let long = Duration::from_secs(60);
    let store = open(Store::builder(&path).engine(engine).flush_interval(long).sync_interval(long));
    let mut before = store.stats();
    let mut end = |phase: &str| {
        let now = store.stats();
        println!("PHASE {phase} {} {}", now.groups - before.groups, now.syncs - before.syncs);
        before = now;
        mark(phase);
    };
    end("opened");
    put(&store, "first", "creates the segment");
    end("created");
    for index in 0..1000_u32 {
        put_at(&store, Durability::Buffered, index.to_le_bytes(), "value");
    }
    end("buffered");
    for index in 0..50_u32 {
        put_at(&store, Durability::Written, index.to_le_bytes(), "value");
    }
    end("written");
    for index in 0..50_u32 {
        put(&store, index.to_le_bytes(), "value");
    }
    end("synced");
    thread::scope(|scope| {
        for writer in 0..8_u32 {
            let store = &store;
            scope.spawn(move || {
                for index in 0..25_u32 {
                    put(store, [writer, index].map(u32::to_le_bytes).concat(), "v");
                }
            });
        }
    });
    end("shared");
    for index in 0..200_u32 {
        assert!(block_on(store.get(index.to_le_bytes())).unwrap().is_some());
    }
    end("read");
    close(store);
    mark("closed");
}

/// The store's own counts for a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StoreCounts {
    groups: usize,
    syncs: usize,
}

fn store_counts(output: &str) -> BTreeMap<String, StoreCounts> {
    let lines = output.lines().filter_map(|line| line.split_once("PHASE ")).map(|(_, rest)| rest);
    let parse = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words[0].to_owned(), StoreCounts { groups: words[1].parse().unwrap(), syncs: words[2].parse().unwrap() })
    };
    lines.map(parse).collect()
}

/// Splits the trace of [`phases`] at its marks.
fn by_phase(trace: &str) -> BTreeMap<String, Vec<String>> {
    let phases = cut_at_marks(trace);
    assert_eq!(phases.len(), 8, "phases {:?}", phases.keys());
    phases
}

/// Splits a trace at its marks. The lines before a mark belong to the phase with the mark's name.
fn cut_at_marks(trace: &str) -> BTreeMap<String, Vec<String>> {
    let (mut phases, mut current) = (BTreeMap::new(), Vec::new());
    for line in trace.lines() {
        match line.split_once(MARK) {
            Some((_, rest)) => {
                let name = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned();
                phases.insert(name, std::mem::take(&mut current));
            }
            None => current.push(line.to_owned()),
        }
    }
    phases
}

fn count(lines: &[String], what: impl Fn(&str) -> bool) -> usize {
    lines.iter().filter(|line| what(line)).count()
}

fn is_sync(line: &str) -> bool {
    line.contains("fdatasync(") || line.contains("fsync(")
}

/// Whether the call writes to a segment.
fn is_segment_write(line: &str) -> bool {
    (line.contains("write(") || line.contains("pwrite64(") || line.contains("writev") || line.contains("pwritev"))
        && line.contains(".seg>")
}

fn is_record_write(line: &str) -> bool {
    is_segment_write(line) && !is_prewrite(line)
}

/// Whether the call prewrites space for later groups: strace shows the bytes 0xA5.
fn is_prewrite(line: &str) -> bool {
    line.contains(r"\245\245\245\245")
}

/// Checks the costs that do not depend on how syncs were counted.
fn assert_costs(syncs: &BTreeMap<String, usize>, counts: &BTreeMap<String, StoreCounts>) {
    println!("syncs by the kernel's count: {syncs:?}\nby the store's: {counts:?}");
    assert_eq!(syncs["buffered"], 0, "a buffered write made a sync");
    assert_eq!(syncs["written"], 0, "a written write made a sync");
    assert_eq!(syncs["read"], 0, "a read made a sync");
    for phase in ["buffered", "written", "synced", "shared", "read"] {
        assert_eq!(syncs[phase], counts[phase].syncs, "{phase}: the kernel's count and the store's");
    }
    assert_eq!(counts["buffered"], StoreCounts { groups: 0, syncs: 0 });
    assert_eq!(
        counts["synced"],
        StoreCounts { groups: 50, syncs: 50 },
        "with one writer, each write is a group with a sync"
    );
    assert!(counts["shared"].syncs <= 200 && counts["shared"].syncs >= 25, "{:?}", counts["shared"]);
    assert_eq!(counts["shared"].groups, counts["shared"].syncs);
    assert!(syncs["created"] >= 2, "the new segment's name and the first record need a sync each");
}

fn is_strace_installed() -> bool {
    let here = Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success());
    if !here {
        skip("system calls", "strace is not installed");
    }
    here
}

#[test]
fn strace_sees_a_sync_per_synced_group_and_none_at_lower_levels() {
    const NAME: &str = "syscalls::strace_sees_a_sync_per_synced_group_and_none_at_lower_levels";
    if is_child() {
        return phases();
    }
    if !is_strace_installed() {
        return;
    }
    let env = Env::new(Engine::Threads);
    let trace = env.dir.path().join("trace");
    let calls = "trace=fsync,fdatasync,sync_file_range,openat,write,pwrite64,writev,pwritev,pwritev2";
    let output = expect_success(rerun_traced(NAME, &env, &["-f", "-y", "-o", trace.to_str().unwrap(), "-e", calls]));
    let phases = by_phase(&fs::read_to_string(&trace).unwrap());
    let syncs = phases.iter().map(|(name, lines)| (name.clone(), count(lines, is_sync))).collect();
    assert_costs(&syncs, &store_counts(&output));

    let writes: BTreeMap<_, _> =
        phases.iter().map(|(name, lines)| (name.as_str(), count(lines, is_record_write))).collect();
    let prewrites = phases.values().flatten().filter(|line| is_segment_write(line) && is_prewrite(line)).count();
    println!("writes: {writes:?}, of them prewriting: {prewrites}");
    assert!(prewrites <= 5, "prewritten space must serve many groups");
    assert_eq!(writes["buffered"], 0, "a buffered write made a system call");
    assert!(
        (1..=51).contains(&writes["written"]),
        "each written write is one system call; the first also writes the buffered records"
    );
    assert_eq!(writes["synced"], 50, "a group is one contiguous write");
    assert_creation_order(&phases["created"], &env.path());
}

/// Checks that the new segment's name is durable before its first record is acknowledged.
fn assert_creation_order(lines: &[String], directory: &Path) {
    let place = |what: &dyn Fn(&str) -> bool| lines.iter().position(|line| what(line));
    let created = place(&|line| line.contains(".seg") && line.contains("O_CREAT")).expect("no segment is created");
    let of_directory = format!("<{}>", directory.canonicalize().unwrap().display());
    let named = lines[created..].iter().position(|line| line.contains("fsync(") && line.contains(&of_directory));
    let named = created + named.expect("the directory is not synced after the segment was created in it");
    let data = lines[named..].iter().position(|line| is_sync(line) && line.contains(".seg>"));
    assert!(data.is_some(), "the first record is not synced after the directory: {lines:#?}");
}

#[test]
fn strace_sees_no_system_call_in_a_buffered_write_on_the_ring() {
    const NAME: &str = "syscalls::strace_sees_no_system_call_in_a_buffered_write_on_the_ring";
    if is_child() {
        return phases();
    }
    if let Some(why) = uring_refused() {
        return skip("system calls of the ring", why);
    }
    if !is_strace_installed() {
        return;
    }
    let env = Env::new(Engine::Uring);
    let trace = env.dir.path().join("trace");
    let calls = "trace=io_uring_enter,io_uring_setup,fsync,fdatasync,write,pwrite64,pwritev,pwritev2,openat";
    let output = expect_success(rerun_traced(NAME, &env, &["-f", "-y", "-o", trace.to_str().unwrap(), "-e", calls]));
    let phases = by_phase(&fs::read_to_string(&trace).unwrap());
    let enters = |phase: &str| count(&phases[phase], |line| line.contains("io_uring_enter("));
    assert!(phases.values().flatten().any(|line| line.contains("io_uring_setup(")), "no ring was set up");
    assert_eq!(count(&phases["buffered"], is_segment_write), 0);
    assert_eq!(enters("buffered"), 0, "buffered writes entered the kernel");
    let calls = enters("synced") + count(&phases["synced"], |line| is_segment_write(line) || is_sync(line));
    let groups = store_counts(&output)["synced"].groups;
    println!("{calls} system calls for {groups} synced groups");
    assert!(calls >= groups, "each group needs at least one system call");
    assert!(calls <= 6 * groups, "{calls} system calls for {groups} groups");
}

/// A trace instance of the kernel for one child.
struct KernelTrace {
    mount: PathBuf,
    instance: PathBuf,
}

impl KernelTrace {
    fn start(env: &Env) -> Option<Self> {
        let mount = env.dir.path().join("tracefs");
        fs::create_dir(&mount).unwrap();
        let mounted = Command::new("mount").args(["-t", "tracefs", "tracefs"]).arg(&mount).output();
        if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
            skip("kernel trace", &format!("tracefs cannot be mounted: {mounted:?}"));
            return None;
        }
        let instance = mount.join(format!("instances/ringcask-{}", std::process::id()));
        let trace = Self { mount, instance };
        if let Err(error) = trace.set_up() {
            skip("kernel trace", &error.to_string());
            return None;
        }
        Some(trace)
    }

    fn set_up(&self) -> std::io::Result<()> {
        fs::create_dir(&self.instance)?;
        fs::write(self.instance.join("options/event-fork"), "1")?;
        fs::write(self.instance.join("buffer_size_kb"), "4096")?;
        fs::write(self.instance.join("events/io_uring/io_uring_submit_req/enable"), "1")?;
        // Where the kernel offers these events: the engine may sync by a plain system call.
        for call in ["fsync", "fdatasync"] {
            let _ = fs::write(self.instance.join(format!("events/syscalls/sys_enter_{call}/enable")), "1");
        }
        Ok(())
    }

    fn traces_system_calls(&self) -> bool {
        self.instance.join("events/syscalls/sys_enter_fdatasync/enable").exists()
    }

    /// Makes `command` register itself with the trace before it starts.
    fn with_tracing(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        let with_tracing = format!("echo $$ > {}/set_event_pid; exec \"$0\" \"$@\"", self.instance.display());
        shell.args(["-c", &with_tracing]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        shell.env("RINGCASK_TEST_MARKER", self.instance.join("trace_marker"));
        shell
    }

    fn read(&self) -> String {
        fs::read_to_string(self.instance.join("trace")).unwrap()
    }
}

impl Drop for KernelTrace {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.instance);
        let unmounted = Command::new("umount").arg(&self.mount).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "tracefs stays mounted");
    }
}

#[test]
fn the_kernel_and_the_store_count_the_same_syncs_on_the_ring() {
    const NAME: &str = "syscalls::the_kernel_and_the_store_count_the_same_syncs_on_the_ring";
    if is_child() {
        return phases();
    }
    if let Some(why) = uring_refused() {
        return skip("syncs of the ring", why);
    }
    let env = Env::new(Engine::Uring);
    let Some(trace) = KernelTrace::start(&env) else { return };
    let output = expect_success(trace.with_tracing(&rerun(NAME, &env)));
    let text = trace.read();
    let phases = by_phase(&text);
    let is_request = |line: &str| line.contains("io_uring_submit_req") && line.contains("FSYNC");
    let is_call = |line: &str| line.contains("sys_fdatasync(") || line.contains("sys_fsync(");
    let syncs: BTreeMap<_, _> = phases
        .iter()
        .map(|(name, lines)| (name.clone(), count(lines, |line| is_request(line) || is_call(line))))
        .collect();
    let requests: usize = phases.values().map(|lines| count(lines, is_request)).sum();
    println!("{requests} FSYNC requests on the ring; system calls traced: {}", trace.traces_system_calls());
    assert_costs(&syncs, &store_counts(&output));
    let written = count(&phases["buffered"], |line| line.contains("io_uring_submit_req") && line.contains("WRITE"));
    assert_eq!(written, 0, "a buffered write submitted a request");
}

/// The kernel counts at least as many bytes sent towards the disk as the store reports written and synced.
#[test]
fn reported_written_bytes_reached_the_kernel() {
    const NAME: &str = "syscalls::reported_written_bytes_reached_the_kernel";
    if is_child() {
        let (engine, path) = child_env();
        let store = open(Store::builder(&path).engine(engine));
        let dirtied = || {
            let io = fs::read_to_string("/proc/self/io").unwrap();
            let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
            line.parse::<u64>().unwrap()
        };
        let (kernel, own) = (dirtied(), store.stats().bytes_written);
        for index in 0..64_u32 {
            put(&store, index.to_le_bytes(), vec![1; 64 << 10]);
        }
        let (kernel, own) = (dirtied() - kernel, store.stats().bytes_written - own);
        println!("{kernel} bytes by the kernel's count, {own} by the store's");
        assert!(own >= 64 * (64 << 10) && kernel >= own, "{kernel}, {own}");
        return close(store);
    }
    for_each_engine(|env| drop(expect_success(rerun(NAME, env))));
}

/// A file system without support for uncached reads refuses the flag once, and is not asked again.
#[test]
fn a_file_system_is_asked_once_for_uncached_reads() {
    const NAME: &str = "syscalls::a_file_system_is_asked_once_for_uncached_reads";
    if is_child() {
        let (_, path) = child_env();
        let io = ringcask::testing::io::threads::ThreadsIo::new();
        fs::write(path.join("data"), "content").unwrap();
        let dir = io.open_dir(&path, false).unwrap();
        let file = dir.open("data", OpenMode::Read).unwrap();
        for _ in 0..20 {
            assert_eq!(block_on(file.read_once(vec![0; 7], 0, 0)).buf, b"content");
        }
        return;
    }
    if !is_strace_installed() {
        return;
    }
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return skip("uncached reads", "/dev/shm, which refuses them, does not exist");
    }
    let mut env = Env::new(Engine::Threads);
    env.dir = tempfile::tempdir_in(memory).unwrap();
    let trace = env.dir.path().join("trace");
    fs::create_dir(env.path()).unwrap();
    let options = ["-f", "-y", "-o", trace.to_str().unwrap(), "-e", "trace=pread64,preadv2"];
    expect_success(rerun_traced(NAME, &env, &options));
    let trace = fs::read_to_string(&trace).unwrap();
    let lines: Vec<String> = trace.lines().filter(|line| line.contains("data>")).map(str::to_owned).collect();
    assert_eq!(count(&lines, |line| line.contains("preadv2(") && line.contains("EOPNOTSUPP")), 1, "{lines:#?}");
    assert_eq!(count(&lines, |line| line.contains("pread64(") && line.ends_with("= 7")), 20, "{lines:#?}");
}

/// Writeback of large groups starts at once, so that the sync of a full segment does not have to write all of it.
#[test]
fn large_written_values_are_written_back_before_a_sync() {
    const NAME: &str = "syscalls::large_written_values_are_written_back_before_a_sync";
    // Few enough that the `Written` ones trigger no early sync.
    const VALUES: usize = 7;
    if is_child() {
        let (engine, path) = child_env();
        let store = open(Store::builder(&path).engine(engine).sync_interval(Duration::from_secs(60)));
        put(&store, "first", "creates the segment");
        mark("before");
        for (phase, level, len) in [
            ("small", Durability::Written, 1000),
            ("large", Durability::Written, 2 << 20),
            ("synced", Durability::Synced, 2 << 20),
        ] {
            for index in 0..VALUES as u32 {
                put_at(&store, level, index.to_le_bytes(), vec![1; len]);
            }
            mark(phase);
        }
        return close(store);
    }
    if !is_strace_installed() {
        return;
    }
    for_each_engine(|env| {
        let trace = env.dir.path().join("trace");
        let calls = "trace=sync_file_range,openat";
        expect_success(rerun_traced(NAME, env, &["-f", "-y", "-o", trace.to_str().unwrap(), "-e", calls]));
        let phases = cut_at_marks(&fs::read_to_string(&trace).unwrap());
        let writebacks = ["small", "large", "synced"]
            .map(|phase| count(&phases[phase], |line| line.contains("sync_file_range(") && line.contains(".seg>")));
        assert_eq!(
            writebacks,
            [0, VALUES, 0],
            "writeback of small groups, large groups, and large groups followed by a sync"
        );
    });
}

/// Reads that wait for the disk reach the kernel in one call, for any number of keys.
#[test]
fn multi_get_submits_its_reads_together() {
    const NAME: &str = "syscalls::multi_get_submits_its_reads_together";
    const KEYS: u32 = 48;
    // Far enough apart that no read brings in the record of the next one.
    const VALUE: usize = 1 << 20;
    if is_child() {
        let (engine, path) = child_env();
        let store = open(Store::builder(&path).engine(engine));
        for number in 0..KEYS {
            put(&store, number.to_le_bytes(), vec![number as u8; VALUE]);
        }
        let evict = || {
            for segment in files_with(&path, "seg") {
                let file = fs::File::open(segment).unwrap();
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
        };
        let from_disk = || store.stats().gets_from_disk;
        // `multi_get` first: after a few hundred misses, gets skip the page-cache probe.
        for (phase, together) in [("warm", true), ("many", true), ("single", false)] {
            evict();
            let before = from_disk();
            mark(&format!("before{phase}"));
            if together {
                let values = block_on(store.multi_get((0..KEYS).map(u32::to_le_bytes))).unwrap();
                assert!(
                    values.iter().zip(0..).all(|(value, number)| value.as_ref().unwrap()[..] == vec![number; VALUE])
                );
            } else {
                (0..KEYS).for_each(|number| assert_eq!(get(&store, number.to_le_bytes()).unwrap().len(), VALUE));
            }
            mark(phase);
            println!("PHASE {phase} {} 0", from_disk() - before);
        }
        return close(store);
    }
    if let Some(why) = uring_refused() {
        return skip("submissions of many reads", why);
    }
    if !is_strace_installed() {
        return;
    }
    let env = Env::new(Engine::Uring);
    let trace = env.dir.path().join("trace");
    let options = ["-f", "-o", trace.to_str().unwrap(), "-e", "trace=io_uring_enter,openat"];
    let counts = store_counts(&expect_success(rerun_traced(NAME, &env, &options)));
    let phases = cut_at_marks(&fs::read_to_string(&trace).unwrap());
    // The second argument is the number of submitted requests. Requests of the doorbell may add a submission.
    let submissions = |phase: &str| {
        count(&phases[phase], |line| {
            let arguments = line.split_once("io_uring_enter(").map(|(_, arguments)| arguments);
            arguments.and_then(|arguments| arguments.split(", ").nth(1)).is_some_and(|count| count != "0")
        })
    };
    let (single, many) = (submissions("single"), submissions("many"));
    let misses = [counts["single"].groups, counts["many"].groups];
    println!("{single} submissions for {} single reads, {many} for {} reads of one call", misses[0], misses[1]);
    // Single reads may be served by read-ahead.
    assert!(misses[0] > 0 && misses[1] >= KEYS as usize / 2, "the page cache answered: {misses:?}");
    assert!(single >= misses[0], "{single} submissions for {} single reads", misses[0]);
    assert!(many <= 4, "{many} submissions for {} reads", misses[1]);
}

/// The nice value of the only thread of this process named `name`.
fn nice_of_thread(name: &str) -> i32 {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    // The thread that opened the store may end during the listing.
    let is_it = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
    let named: Vec<_> = threads.filter(is_it).collect();
    let [thread] = &named[..] else { panic!("{} threads named {name}", named.len()) };
    let stat = fs::read_to_string(thread.join("stat")).unwrap();
    // The thread name before the parenthesis may contain any characters.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(16).unwrap().parse().unwrap()
}

#[test]
fn maintenance_runs_at_a_lower_priority_than_commits() {
    const NAME: &str = "syscalls::maintenance_runs_at_a_lower_priority_than_commits";
    if is_child() {
        let (engine, path) = child_env();
        let store = open(Store::builder(&path).engine(engine));
        let commit = nice_of_thread("ringcask-commit");
        assert_eq!(nice_of_thread("ringcask-maint"), (commit + 5).min(19));
        return close(store);
    }
    for_each_engine(|env| drop(expect_success(rerun(NAME, env))));
}

#[test]
fn a_refused_ring_falls_back_to_threads_or_fails_an_explicit_choice() {
    const NAME: &str = "syscalls::a_refused_ring_falls_back_to_threads_or_fails_an_explicit_choice";
    if is_child() {
        return run_without_a_ring();
    }
    if !is_strace_installed() {
        return;
    }
    // A container's default profile refuses the call with EPERM, an old kernel with ENOSYS.
    for errno in ["EPERM", "ENOSYS"] {
        let env = Env::new(Engine::Auto);
        let inject = format!("inject=io_uring_setup:error={errno}");
        let trace = env.dir.path().join("trace");
        let options = ["-f", "-o", trace.to_str().unwrap(), "-e", "trace=io_uring_setup", "-e", &inject];
        expect_success(rerun_traced(NAME, &env, &options));
        let trace = fs::read_to_string(&trace).unwrap();
        assert!(trace.contains("(INJECTED)"), "the store did not try to set up a ring: {trace}");
    }
}

fn run_without_a_ring() {
    let (engine, path) = child_env();
    assert_eq!(engine, Engine::Auto);
    let store = open(Store::builder(&path));
    let stats = store.stats();
    assert_eq!(stats.engine, ActiveEngine::Threads);
    let reason = stats.engine_fallback.expect("no reason for the fallback");
    assert!(reason.contains("io_uring") || reason.contains("os error"), "{reason}");
    for level in crate::helpers::LEVELS {
        put_at(&store, level, level.to_string(), "value");
    }
    close(store);
    let error = block_on(Store::builder(&path).engine(Engine::Uring).open()).map(drop).unwrap_err();
    assert_eq!(error.kind(), ringcask::ErrorKind::Unsupported, "{error:?}");
    assert!(error.os_error().is_some_and(|code| code == libc::EPERM || code == libc::ENOSYS), "{error:?}");
    let store = open(Store::builder(&path).engine(Engine::Threads));
    assert_eq!((store.len(), store.stats().engine_fallback), (3, None), "no fallback was needed");
    close(store);
    println!("{reason}");
}
