//! Figures: what was measured beside which peer, and whether the bound is met. Printed for people,
//! and kept in `target/bench/figures.json` for machines.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// A smaller ratio.
    Lower,
}

/// One row of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Which part of DistOS it is about.
    pub area: String,
    /// What was measured; with the area, what the row is known by.
    pub name: String,
    /// Ours over the peer's, of one run.
    pub ratio: f64,
    /// What the ratio has to keep to; `None` where it is only reported.
    pub bound: Option<f64>,
    /// Which way is better.
    pub better: Better,
    /// What it was measured beside.
    pub peer: String,
    /// Whether the bound is kept; `None` where there is none.
    pub met: Option<bool>,
}

/// A figure as it is measured.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Which part of DistOS it is about.
    pub area: &'static str,
    /// What was measured.
    pub name: String,
    /// What it was measured beside.
    pub peer: String,
    /// Ours, in nanoseconds.
    pub ours_ns: f64,
    /// The peer's, in nanoseconds.
    pub peer_ns: f64,
    /// Ours over the peer's.
    pub ratio: f64,
    /// 95 of 100 repetitions of the run would find the ratio in here.
    pub interval: Option<(f64, f64)>,
    /// What the ratio has to keep to.
    pub bound: Option<f64>,
    /// Further things that a reader has to know.
    pub note: Option<String>,
}

impl Figure {
    /// A figure of two numbers, without an interval.
    pub fn of(area: &'static str, name: impl Into<String>, ours_ns: f64, peer_ns: f64) -> Figure {
        Figure {
            area,
            name: name.into(),
            peer: String::new(),
            ours_ns,
            peer_ns,
            ratio: ours_ns / peer_ns,
            interval: None,
            bound: None,
            note: None,
        }
    }

    /// Names the peer.
    pub fn beside(self, peer: &str) -> Figure {
        Figure { peer: peer.to_owned(), ..self }
    }

    /// Sets the bound.
    pub fn at_most(self, bound: f64) -> Figure {
        Figure { bound: Some(bound), ..self }
    }

    /// Sets the interval.
    pub fn within(self, interval: (f64, f64)) -> Figure {
        Figure { interval: Some(interval), ..self }
    }

    /// Adds a note.
    pub fn noting(self, note: impl Into<String>) -> Figure {
        Figure { note: Some(note.into()), ..self }
    }

    /// The figure as a row of the file.
    pub fn row(&self) -> Row {
        Row {
            area: self.area.to_owned(),
            name: self.name.clone(),
            ratio: self.ratio,
            bound: self.bound,
            better: Better::Lower,
            peer: self.peer.clone(),
            met: self.bound.map(|bound| self.ratio <= bound),
        }
    }
}

/// A time as people read it.
pub fn time(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.1} ns"),
        ns if ns < 1e6 => format!("{:.2} µs", ns / 1e3),
        ns if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

/// The line of a figure, and the line below it.
pub fn text(figure: &Figure) -> String {
    let verdict = match figure.row().met {
        Some(true) => "met",
        Some(false) => "NOT MET",
        None => "reported",
    };
    let bound = figure.bound.map_or(String::new(), |bound| format!(" ≤ {bound}"));
    let interval =
        figure.interval.map_or(String::new(), |(low, high)| format!(" [{low:.3}, {high:.3}]"));
    let mut text = format!(
        "{verdict:8} {:.3}{interval}{bound}  {}: {}\n         {} ÷ {} ({})",
        figure.ratio,
        figure.area,
        figure.name,
        time(figure.ours_ns),
        time(figure.peer_ns),
        figure.peer,
    );
    for line in figure.note.iter().flat_map(|note| note.lines()) {
        text += &format!("\n         {line}");
    }
    text
}

/// Puts rows into the file, each in place of the row of the same area and name.
///
/// # Errors
/// The file cannot be read or written, or is no list of rows.
pub fn merge(path: &Path, rows: &[Row]) -> io::Result<()> {
    let mut all: Vec<serde_json::Value> = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
            io::Error::other(format!("{} is no list of figures: {e}", path.display()))
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    for row in rows {
        let new = serde_json::to_value(row)?;
        let same =
            |old: &&mut serde_json::Value| old["area"] == new["area"] && old["name"] == new["name"];
        match all.iter_mut().find(same) {
            Some(old) => *old = new,
            None => all.push(new),
        }
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // Renamed into place, so that a reader never sees half a list.
    let draft = path.with_extension("new");
    fs::write(&draft, serde_json::to_vec_pretty(&all)?)?;
    fs::rename(draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, ours: f64) -> Figure {
        Figure::of("check", name, ours, 10.0).beside("peer").at_most(0.75)
    }

    #[test]
    fn a_figure_past_its_bound_is_never_reported_as_met() {
        assert_eq!(figure("a", 7.5).row().met, Some(true));
        assert_eq!(figure("a", 7.6).row().met, Some(false));
        assert!(text(&figure("a", 7.6)).starts_with("NOT MET"));
        let reported = Figure { bound: None, ..figure("a", 99.0) };
        assert_eq!(reported.row().met, None);
    }

    #[test]
    fn a_new_run_replaces_its_own_rows_and_keeps_those_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bench/figures.json");
        merge(&path, &[figure("a", 1.0).row(), figure("b", 2.0).row()]).unwrap();
        let other = r#"{"area":"gateway","name":"x","ratio":1.0,"unknown":true}"#;
        let mut text = fs::read_to_string(&path).unwrap();
        text = text.trim_end().trim_end_matches(']').to_owned() + "," + other + "]";
        fs::write(&path, text).unwrap();
        merge(&path, &[figure("b", 9.0).row()]).unwrap();
        let all: Vec<serde_json::Value> =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let ratios: Vec<_> = all.iter().map(|row| row["ratio"].as_f64().unwrap()).collect();
        assert_eq!(ratios, [0.1, 0.9, 1.0]);
        assert_eq!(all[2]["unknown"], true, "another program's row is left as it is");
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("figures.json");
        fs::write(&path, "no json").unwrap();
        assert!(merge(&path, &[figure("a", 1.0).row()]).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "no json");
    }
}
