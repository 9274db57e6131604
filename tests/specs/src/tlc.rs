//! Runs TLC on a specification and reads what it says.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::value::{self, Value};

/// Memory for the checker's heap.
const HEAP: &str = "-Xmx3g";
/// The longest output of TLC that is kept, in bytes; transitions are not kept.
const MAX_OUTPUT: usize = 4 << 20;

/// Where TLC is.
#[derive(Clone, Debug)]
pub struct Tlc {
    jar: PathBuf,
}

/// A specification's folder, copied, because TLC litters and mutants change it.
pub struct Folder(TempDir);

impl Folder {
    /// Copies `specs/NAME`.
    ///
    /// # Errors
    /// It cannot be read or copied.
    pub fn of(spec: &Path) -> Result<Folder, String> {
        let told = |e: std::io::Error| format!("{}: {e}", spec.display());
        let copy = tempfile::Builder::new().prefix("distos-spec-").tempdir().map_err(told)?;
        for entry in fs::read_dir(spec).map_err(told)? {
            let path = entry.map_err(told)?.path();
            let kept = path.extension().is_some_and(|e| e == "tla" || e == "cfg");
            if let (true, Some(name)) = (kept, path.file_name()) {
                fs::copy(&path, copy.path().join(name)).map_err(told)?;
            }
        }
        Ok(Folder(copy))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Replaces the only occurrence of `find` in a file.
    ///
    /// # Errors
    /// There is not exactly one: the file has changed since this was written.
    pub fn replace(&self, file: &str, find: &str, replace: &str) -> Result<(), String> {
        let path = self.path().join(file);
        let text = fs::read_to_string(&path).map_err(|e| format!("{file}: {e}"))?;
        match text.matches(find).count() {
            1 => fs::write(&path, text.replacen(find, replace, 1))
                .map_err(|e| format!("{file}: {e}")),
            n => Err(format!("{file} has {n} places like this, and must have one:\n{find}")),
        }
    }

    /// Writes a file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, file: &str, text: &str) -> Result<(), String> {
        fs::write(self.path().join(file), text).map_err(|e| format!("{file}: {e}"))
    }
}

/// What TLC found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that was asked holds.
    Holds,
    /// This invariant does not.
    Invariant(String),
    /// A temporal property does not; TLC does not say which.
    Temporal,
    /// An action that a property of the form `[][A]_v` forbids.
    Action(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Holds => f.write_str("holds"),
            Verdict::Invariant(name) | Verdict::Action(name) => write!(f, "{name} is violated"),
            Verdict::Temporal => f.write_str("a temporal property is violated"),
        }
    }
}

/// A step of a counterexample.
#[derive(Clone, Debug)]
pub struct Step {
    /// The action.
    pub action: String,
    /// Variables, as TLC writes them.
    pub state: BTreeMap<String, String>,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What TLC found.
    pub verdict: Verdict,
    /// Distinct states.
    pub states: u64,
    /// Steps from an initial state to the farthest one.
    pub depth: u64,
    /// How long it took.
    pub took: Duration,
    /// How a violation comes about.
    pub steps: Vec<Step>,
}

impl Tlc {
    /// Finds TLC in `target/tlc`, and Java.
    ///
    /// # Errors
    /// One of them is missing; says how to get it.
    pub fn find(root: &Path) -> Result<Tlc, String> {
        let jar = root.join("target/tlc/tla2tools.jar");
        if !jar.is_file() {
            return Err("TLC is missing: run `specs/setup.sh`, which fetches it".to_owned());
        }
        let java = Command::new("java").arg("-version").output();
        if !java.is_ok_and(|output| output.status.success()) {
            return Err("Java is missing: install Debian's default-jre-headless".to_owned());
        }
        Ok(Tlc { jar })
    }

    /// Checks `module` with `config`. Each value that the model prints goes to `print`.
    ///
    /// # Errors
    /// TLC did not come to a verdict; says what it said.
    pub fn run(
        &self,
        folder: &Folder,
        module: &str,
        config: &str,
        print: &mut dyn FnMut(Value),
    ) -> Result<Outcome, String> {
        let started = Instant::now();
        let meta = tempfile::Builder::new().prefix("distos-tlc-").tempdir();
        let meta = meta.map_err(|e| format!("a directory for TLC: {e}"))?;
        let mut command = Command::new("java");
        // TLC unpacks its modules there; two that share a directory can meet half of one.
        command.arg(format!("-Djava.io.tmpdir={}", meta.path().display()));
        command.args(["-XX:+UseParallelGC", HEAP, "-cp"]).arg(&self.jar).arg("tlc2.TLC");
        command.args(["-deadlock", "-workers", "1", "-metadir"]).arg(meta.path());
        command.args(["-config", config, module]).current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|e| format!("java: {e}"))?;
        let output = child.stdout.take().map(BufReader::new).ok_or("TLC has no output")?;
        let text = read(output, print).map_err(|e| format!("TLC's output: {e}"))?;
        let status = child.wait().map_err(|e| format!("java: {e}"))?;
        let Some(verdict) = verdict(&text, status.code()) else {
            return Err(format!("TLC came to no verdict ({status}):\n{}", tail(&text)));
        };
        let took = started.elapsed();
        let states = number_before(&text, " distinct states found");
        let depth = text
            .lines()
            .find_map(|line| line.strip_prefix("The depth of the complete state graph search is "))
            .and_then(|rest| rest.trim_end_matches('.').parse().ok());
        Ok(Outcome {
            verdict,
            states: states.unwrap_or(0),
            depth: depth.unwrap_or(0),
            took,
            steps: steps(&text),
        })
    }
}

/// Values that the model prints begin with `<<` at the start of a line.
fn read(output: impl BufRead, print: &mut dyn FnMut(Value)) -> std::io::Result<String> {
    let mut text = String::new();
    let mut value = String::new();
    for line in output.lines() {
        let line = line?;
        if value.is_empty() && !line.starts_with("<<") {
            if text.len() < MAX_OUTPUT {
                text.push_str(&line);
                text.push('\n');
            }
            continue;
        }
        value.push_str(&line);
        value.push('\n');
        // A value is parsed once it may be whole: its own `>>` ends the line.
        if line.ends_with(">>")
            && let Some((whole, _)) = value::parse(&value)
        {
            print(whole);
            value.clear();
        }
    }
    text.push_str(&value);
    Ok(text)
}

fn verdict(text: &str, code: Option<i32>) -> Option<Verdict> {
    match code {
        Some(0) => text.contains("No error has been found").then_some(Verdict::Holds),
        Some(12) => named(text, "Error: Invariant ").map(Verdict::Invariant),
        Some(13) => {
            let action = named(text, "Error: Action property ").map(Verdict::Action);
            Some(action.unwrap_or(Verdict::Temporal))
        }
        _ => None,
    }
}

fn named(text: &str, begin: &str) -> Option<String> {
    let name =
        |line: &str| Some(line.strip_prefix(begin)?.split_once(" is violated")?.0.to_owned());
    text.lines().find_map(name)
}

/// The last of the lines with `after` tells a total.
fn number_before(text: &str, after: &str) -> Option<u64> {
    let (before, _) = text.rsplit_once(after)?;
    let digits = before.rsplit(|c: char| !(c.is_ascii_digit() || c == ',')).next()?;
    digits.replace(',', "").parse().ok()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> =
        text.lines().filter(|l| !l.starts_with("Parsing") && !l.starts_with("Semantic")).collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// `State 2: <Revoke line 1, col 2 to line 3, col 4 of module M>`, then `/\ variable = value`.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut variable = String::new();
    for line in text.lines() {
        if let Some((number, action)) = line.strip_prefix("State ").and_then(|l| l.split_once(": "))
        {
            if number.parse::<u64>().is_ok() {
                let action = action.trim_start_matches('<').split(" line ").next().unwrap_or("");
                let action = action.trim_end_matches('>').to_owned();
                steps.push(Step { action, state: BTreeMap::new() });
                variable.clear();
            }
            continue;
        }
        let Some(step) = steps.last_mut() else { continue };
        if let Some((name, value)) = line.strip_prefix("/\\ ").and_then(|l| l.split_once(" = ")) {
            variable = name.to_owned();
            step.state.insert(variable.clone(), value.to_owned());
        } else if line.starts_with(' ') && !variable.is_empty() {
            if let Some(value) = step.state.get_mut(&variable) {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else {
            variable.clear();
        }
    }
    steps
}

/// A counterexample for people: each action, and what it changed.
pub fn story(steps: &[Step]) -> String {
    let mut told = String::new();
    let mut before: Option<&Step> = None;
    for (i, step) in steps.iter().enumerate() {
        told.push_str(&format!("  {:>3}  {}\n", i, step.action));
        for (name, value) in &step.state {
            if before.and_then(|b| b.state.get(name)) != Some(value) {
                told.push_str(&format!("         {name} = {value}\n"));
            }
        }
        before = Some(step);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIOLATED: &str = "\
Error: Invariant C2_Dead is violated.
Error: The behavior up to this point is:
State 1: <Initial predicate>
/\\ a = 1
/\\ b = << 1,
   2 >>

State 2: <Revoke line 1, col 2 to line 3, col 4 of module M>
/\\ a = 2
/\\ b = << 1, 2 >>

7 states generated, 1,234 distinct states found, 3 states left on queue.
";

    #[test]
    fn a_counterexample_reads_as_actions_and_what_they_changed() {
        assert_eq!(verdict(VIOLATED, Some(12)), Some(Verdict::Invariant("C2_Dead".to_owned())));
        assert_eq!(number_before(VIOLATED, " distinct states found"), Some(1234));
        let steps = steps(VIOLATED);
        assert_eq!(steps[1].action, "Revoke");
        let story = story(&steps);
        assert!(story.contains("1  Revoke\n         a = 2\n"), "{story}");
    }

    #[test]
    fn a_run_that_ended_in_some_other_way_is_no_verdict() {
        assert_eq!(verdict("No error has been found", Some(75)), None);
        assert_eq!(verdict("nothing", Some(0)), None);
        assert_eq!(verdict(VIOLATED, None), None);
    }

    #[test]
    fn what_a_model_prints_is_told_from_what_tlc_says() {
        let output = "Starting...\n<< \"t\",\n  <<1, 2>>,\n  {3} >>\nFinished\n";
        let mut printed = Vec::new();
        let text = read(output.as_bytes(), &mut |value| printed.push(value.to_string()));
        assert_eq!(text.expect("it can be read"), "Starting...\nFinished\n");
        assert_eq!(printed, ["<<\"t\", <<1, 2>>, {3}>>"]);
    }
}
