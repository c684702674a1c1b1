//! Turns runs into a table of medians and ratios.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::peers::{PEERS, Peer};

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// Position in the table.
    pub place: usize,
    pub work: String,
    pub clients: usize,
}

/// One run of one store.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub peer: &'static str,
    pub work: String,
    pub clients: usize,
    /// `threads`, `service` or `tasks`.
    pub called: &'static str,
    pub round: usize,
    pub per_second: f64,
    pub p50_micros: f64,
    pub p99_micros: f64,
    pub p999_micros: f64,
}

pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// For each row and store, the median throughput of the fastest way of calling it, with its p99.
fn best(
    runs: &[Run],
    place_of: &dyn Fn(&str) -> usize,
) -> BTreeMap<Row, BTreeMap<&'static str, (f64, f64, &'static str)>> {
    let mut by_way: BTreeMap<(Row, &'static str, &'static str), Vec<&Run>> = BTreeMap::new();
    for run in runs {
        let row = Row { place: place_of(&run.work), work: run.work.clone(), clients: run.clients };
        by_way.entry((row, run.peer, run.called)).or_default().push(run);
    }
    let mut rows: BTreeMap<Row, BTreeMap<_, _>> = BTreeMap::new();
    for ((row, peer, called), runs) in by_way {
        let of = |figure: fn(&Run) -> f64| median(&runs.iter().map(|run| figure(run)).collect::<Vec<_>>());
        let (per_second, p99) = (of(|run| run.per_second), of(|run| run.p99_micros));
        let entry = rows.entry(row).or_default().entry(peer).or_insert((0.0, 0.0, called));
        if per_second > entry.0 {
            *entry = (per_second, p99, called);
        }
    }
    rows
}

pub fn thousands(per_second: f64) -> String {
    if per_second >= 1e6 {
        format!("{:.2} M", per_second / 1e6)
    } else if per_second >= 1e4 {
        format!("{:.0} k", per_second / 1e3)
    } else {
        format!("{:.1} k", per_second / 1e3)
    }
}

/// A Markdown table with a row per workload and number of clients and a column per store. The last columns compare
/// ringcask with its fastest rival.
pub fn table(runs: &[Run], peers: &[Peer], place_of: &dyn Fn(&str) -> usize) -> String {
    let mut text = String::from("| per second | clients |");
    for peer in peers {
        let _ = write!(text, " {} |", peer.name());
    }
    text.push_str(" ratio to the best peer | p99, ringcask and peer |\n|---|---|");
    text.push_str(&"---|".repeat(peers.len() + 2));
    text.push('\n');
    for (row, figures) in best(runs, place_of) {
        let _ = write!(text, "| {} | {} |", row.work, row.clients);
        for peer in peers {
            match figures.get(peer.name()) {
                Some((per_second, _, called)) => {
                    let way = if *called == "service" { " (service)" } else { "" };
                    let _ = write!(text, " {}{way} |", thousands(*per_second));
                }
                None => text.push_str(" – |"),
            }
        }
        let is_rival = |peer: &&Peer| peer.is_rival() && (row.work != "fillsync" || peer.syncs());
        let rivals = PEERS.iter().filter(is_rival).filter_map(|peer| Some((peer.name(), figures.get(peer.name())?)));
        let rival = rivals.max_by(|a, b| a.1.0.total_cmp(&b.1.0));
        match (figures.get("ringcask"), rival) {
            (Some(ours), Some((name, theirs))) => {
                let ratio = ours.0 / theirs.0;
                let _ = writeln!(text, " **{ratio:.2}×** {name} | {:.0} µs, {:.0} µs |", ours.1, theirs.1);
            }
            _ => text.push_str(" – | – |\n"),
        }
    }
    text
}
