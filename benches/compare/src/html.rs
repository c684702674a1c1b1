//! Writes the comparison as a self-contained HTML file, with an SVG chart and a table for each workload.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::report::{Row, Run, median, thousands};

const STYLE: &str = "body{font:14px/1.4 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}\
    h2{margin-top:2em}table{border-collapse:collapse}td,th{padding:.1em .8em;text-align:right}\
    td:first-child,th:first-child{text-align:left}.ours{fill:#c33}.others{fill:#69c}";

/// Width of the bar of the fastest store, and height of a line, in pixels.
const WIDTH: f64 = 480.0;
const LINE: usize = 22;
const NAMES: f64 = 200.0;

/// The runs of one store with one way of calling it, under one workload.
struct Bar<'a> {
    name: String,
    is_ours: bool,
    runs: Vec<&'a Run>,
}

impl Bar<'_> {
    fn of(&self, figure: fn(&Run) -> f64) -> f64 {
        median(&self.runs.iter().map(|run| figure(run)).collect::<Vec<_>>())
    }

    fn range(&self) -> (f64, f64) {
        let figures = || self.runs.iter().map(|run| run.per_second);
        (figures().fold(f64::INFINITY, f64::min), figures().fold(0.0, f64::max))
    }
}

/// The whole page. `about` describes the runs and the machine.
pub fn page(runs: &[Run], about: &str, place_of: &dyn Fn(&str) -> usize) -> String {
    let mut loads: BTreeMap<Row, BTreeMap<String, Bar<'_>>> = BTreeMap::new();
    for run in runs {
        let row = Row { place: place_of(&run.work), work: run.work.clone(), clients: run.clients };
        let name = format!("{} ({})", run.peer, run.called);
        let is_ours = run.peer.starts_with("ringcask");
        let bars = loads.entry(row).or_default();
        bars.entry(name.clone()).or_insert(Bar { name, is_ours, runs: Vec::new() }).runs.push(run);
    }
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>ringcask compared with other stores</title><style>{STYLE}</style>\
         <h1>ringcask compared with other stores</h1><p>{}</p><p>Operations per second. Bars show medians, lines the range from the \
         lowest to the highest run.</p>",
        escape(about)
    );
    for (row, bars) in loads {
        let mut bars: Vec<_> = bars.into_values().collect();
        bars.sort_by(|one, other| other.of(|run| run.per_second).total_cmp(&one.of(|run| run.per_second)));
        let _ = write!(page, "<h2>{}, {} clients</h2>", escape(&row.work), row.clients);
        chart(&mut page, &bars);
        table(&mut page, &bars);
    }
    page.push_str("</html>\n");
    page
}

fn chart(page: &mut String, bars: &[Bar<'_>]) {
    let most = bars.iter().map(|bar| bar.range().1).fold(1.0, f64::max);
    let (width, height) = (NAMES + WIDTH + 80.0, bars.len() * LINE + 4);
    let _ = write!(page, "<svg width={width} height={height} font-size=13>");
    for (index, bar) in bars.iter().enumerate() {
        let per_second = bar.of(|run| run.per_second);
        let (low, high) = bar.range();
        let x = |figure: f64| NAMES + figure / most * WIDTH;
        let (y, class) = (index * LINE, if bar.is_ours { "ours" } else { "others" });
        let _ = write!(
            page,
            "<text x={} y={} text-anchor=end>{}</text>\
             <rect class={class} x={NAMES} y={} width={:.1} height={}></rect>\
             <line x1={:.1} x2={:.1} y1={middle} y2={middle} stroke=#222></line><text x={:.1} y={}>{}</text>",
            NAMES - 8.0,
            y + 15,
            escape(&bar.name),
            y + 3,
            x(per_second) - NAMES,
            LINE - 6,
            x(low),
            x(high),
            x(high) + 6.0,
            y + 15,
            thousands(per_second),
            middle = y + LINE / 2,
        );
    }
    page.push_str("</svg>");
}

fn table(page: &mut String, bars: &[Bar<'_>]) {
    page.push_str("<table><tr><th>store<th>per second<th>p50 µs<th>p99 µs<th>p99.9 µs<th>runs</tr>");
    for bar in bars {
        let _ = write!(
            page,
            "<tr><td>{}<td>{:.0}<td>{:.1}<td>{:.1}<td>{:.1}<td>{}</tr>",
            escape(&bar.name),
            bar.of(|run| run.per_second),
            bar.of(|run| run.p50_micros),
            bar.of(|run| run.p99_micros),
            bar.of(|run| run.p999_micros),
            bar.runs.len()
        );
    }
    page.push_str("</table>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
