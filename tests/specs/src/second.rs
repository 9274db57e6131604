//! The second model checker, `tla-checker`: written by others in another language, it has to find
//! as many states in a model as TLC does, and to find what is asked for there.
//!
//! What it cannot do: views and action constraints, so what is replayed in the code is TLC's alone;
//! most liveness properties. It takes tens of times as long as TLC.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::sections;
use crate::tlc::Folder;

/// More than any model here has; the checker's own bound is lower.
const MOST_STATES: &str = "20000000";
const MOST_DEPTH: &str = "100000";

/// What is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Invariants, and how many states there are.
    Invariants,
    /// The temporal properties too.
    All,
}

impl Asked {
    /// As `checks.toml` says it.
    pub fn parse(word: &str) -> Option<Asked> {
        match word {
            "invariants" => Some(Asked::Invariants),
            "all" => Some(Asked::All),
            _ => None,
        }
    }
}

/// The checker.
pub struct Second {
    program: PathBuf,
}

/// What it found: everything that was asked holds.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Distinct states.
    pub states: u64,
    /// How long it took.
    pub took: Duration,
}

impl Second {
    /// The checker that `specs/setup.sh second` has installed.
    ///
    /// # Errors
    /// It is not there.
    pub fn find(root: &Path) -> Result<Second, String> {
        let program = root.join("target/tlc/bin/tla");
        match program.is_file() {
            true => Ok(Second { program }),
            false => Err(format!(
                "there is no {}: run `make specs`, or `specs/setup.sh second`",
                program.display()
            )),
        }
    }

    /// Checks `module` within the bounds of `config`.
    ///
    /// # Errors
    /// What does not hold, in the checker's words, with the steps that lead there.
    pub fn run(
        &self,
        folder: &Folder,
        module: &str,
        config: &str,
        asked: Asked,
    ) -> Result<Found, String> {
        let path = folder.path().join(config);
        let text = std::fs::read_to_string(path).map_err(|e| format!("{config}: {e}"))?;
        let text = match asked {
            Asked::Invariants => sections::without_properties(&text),
            Asked::All => text,
        };
        folder.write("Second.cfg", &text)?;
        let mut command = Command::new(&self.program);
        command.current_dir(folder.path()).arg(format!("{module}.tla"));
        // As TLC is told: a model may come to its end, and what an action leaves out stays.
        command.args(["--config", "Second.cfg", "--allow-deadlock", "--allow-unassigned-stutter"]);
        command.args(["--max-states", MOST_STATES, "--max-depth", MOST_DEPTH]);
        if asked == Asked::All {
            command.arg("--check-liveness");
        }
        let started = Instant::now();
        let output = command.output().map_err(|e| format!("{}: {e}", self.program.display()))?;
        let took = started.elapsed();
        let text = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        let text = text.concat();
        // What it warns of, it has not checked as it was asked to.
        let warned = text.lines().any(|line| line.starts_with("Warning") && !is_advice(line));
        match (output.status.success() && !warned, number_after(&text, "Reachable states:")) {
            (true, Some(states)) => Ok(Found { states, took }),
            _ => Err(format!("tla-checker ended with {}:\n{}", output.status, told(&text))),
        }
    }
}

fn number_after(text: &str, what: &str) -> Option<u64> {
    text.lines().find_map(|line| line.trim().strip_prefix(what)?.trim().parse().ok())
}

/// It tells of definitions that look like invariants and are not asked for.
fn is_advice(warning: &str) -> bool {
    warning.contains("look like boolean predicates")
}

/// What it printed, without its progress.
fn told(text: &str) -> String {
    let is_progress = |line: &&str| line.contains("states explored");
    text.lines().filter(|line| !is_progress(line)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_report_is_read() {
        let text = "  1000 states explored | 9/s\nModel checking complete. No errors found.\n\n  \
                    Reachable states: 4052\n  Transitions: 34085\n  Max depth: 15\n";
        assert_eq!(number_after(text, "Reachable states:"), Some(4052));
        assert_eq!(number_after("error: no", "Reachable states:"), None);
        assert!(!told(text).contains("explored"));
    }
}
