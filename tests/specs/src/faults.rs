//! Hand-made faults in `distos-core` (`specs/capability/faults.toml`). Each is put into a copy of
//! the kernel crates, and the comparison of `compare.rs`, built with that copy, must find it: a
//! comparison that finds no fault proves nothing.
//!
//! The copies stand in `target/faults`. Nothing else is built there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use toml_edit::{DocumentMut, Table};

use crate::compare::Difference;
use crate::replay::record;
use crate::sections;
use crate::tlc::Tlc;

/// What is compared: parts of the model that are near the empty forest, where faults show
/// themselves soon.
const CONFIGS: [&str; 2] = ["near-all.cfg", "near-links.cfg"];
/// The modules of this crate that the comparison needs. They have no dependency but the kernel's.
const MODULES: [&str; 3] = ["compare", "value", "world"];
/// The program that is built with each fault.
const MAIN: &str = r#"//! Compares `distos-core` with recordings.
use std::process::ExitCode;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    for file in std::env::args_os().skip(1) {
        match distos_specs::compare::levels(file.as_ref()) {
            Ok(Ok(report)) => println!("{report}"),
            Ok(Err(difference)) => {
                println!("{difference}");
                return ExitCode::from(1);
            }
            Err(why) => {
                println!("{why}");
                return ExitCode::from(2);
            }
        }
    }
    ExitCode::SUCCESS
}
"#;

/// What somebody might have got wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    /// A short name.
    pub name: String,
    /// What it is.
    pub bug: String,
    /// A path below `kernel/`.
    file: String,
    find: String,
    replace: String,
}

/// What came of a fault.
#[derive(Clone, Debug)]
pub struct FaultLine {
    /// Its name.
    pub name: String,
    /// What it is.
    pub bug: String,
    /// How it was found.
    pub difference: Difference,
    /// How long the build and the comparison took.
    pub took: Duration,
    /// What is wrong: it was not found, or it is no Rust.
    pub failure: Option<String>,
}

impl FaultLine {
    /// Which ways of comparing found it.
    pub fn by(&self) -> &'static str {
        match (&self.difference.explored, &self.difference.replayed) {
            (Some(_), Some(_)) => "explored, replayed",
            (Some(_), None) => "explored",
            (None, Some(_)) => "replayed",
            (None, None) => "nothing",
        }
    }
}

impl Fault {
    /// Reads the list of faults.
    ///
    /// # Errors
    /// It is missing, is not TOML, or lacks something.
    pub fn all(root: &Path) -> Result<Vec<Fault>, String> {
        let path = root.join("specs/capability/faults.toml");
        let told = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = fs::read_to_string(&path).map_err(|e| told(&e))?;
        let document: DocumentMut = text.parse().map_err(|e| told(&e))?;
        let tables = document.get("fault").and_then(|item| item.as_array_of_tables());
        let word = |table: &Table, key: &str| {
            let text = table.get(key).and_then(|item| item.as_str()).map(str::to_owned);
            text.ok_or_else(|| told(&format!("`{key}` is missing in a fault")))
        };
        let fault = |table| {
            Ok(Fault {
                name: word(table, "name")?,
                bug: word(table, "bug")?,
                file: word(table, "file")?,
                find: word(table, "find")?,
                replace: word(table, "replace")?,
            })
        };
        tables.ok_or_else(|| told(&"there is no fault"))?.iter().map(fault).collect()
    }

    /// The file with the fault in it.
    fn put(&self, root: &Path) -> Result<String, String> {
        let Fault { name, file, find, replace, .. } = self;
        let text = read(&root.join("kernel").join(file))?;
        match text.matches(find.as_str()).count() {
            1 => Ok(text.replacen(find, replace, 1)),
            n => Err(format!("{name}: kernel/{file} has {n} places like this, not one:\n{find}")),
        }
    }
}

/// Holds the comparison to finding every fault, and to finding nothing where there is none. Takes
/// minutes.
///
/// # Errors
/// TLC or cargo does not run, or the comparison finds something in the code as it is.
pub fn run(root: &Path) -> Result<Vec<FaultLine>, String> {
    let faults = Fault::all(root)?;
    let tlc = Tlc::find(root)?;
    let tree = Tree::of(root)?;
    for config in CONFIGS {
        record(&tlc, &root.join("specs/capability"), config, &tree.recording(config))?;
    }
    match tree.compare()? {
        Compared::Same => {}
        Compared::Found(difference) => {
            return Err(format!("without any fault, the code differs:\n{difference}"));
        }
        Compared::Unbuilt(why) => return Err(format!("the copy cannot be built:\n{why}")),
    }
    Ok(faults.iter().map(|fault| tree.find(root, fault)).collect())
}

/// What a build of the comparison found.
enum Compared {
    Same,
    Found(Difference),
    /// The compiler refuses it.
    Unbuilt(String),
}

/// A copy of the sources that the comparison is built from.
struct Tree {
    /// `target/faults`; nobody else works there while this is open.
    at: PathBuf,
    _lock: File,
}

impl Tree {
    fn of(root: &Path) -> Result<Tree, String> {
        let at = root.join("target/faults");
        let told = |e: std::io::Error| format!("{}: {e}", at.display());
        fs::create_dir_all(&at).map_err(told)?;
        let lock = File::create(at.join("lock")).map_err(told)?;
        lock.lock().map_err(told)?;
        let tree = Tree { at, _lock: lock };
        for folder in ["kernel/abi/src", "kernel/core/src"] {
            tree.copy(root, Path::new(folder))?;
        }
        let path = |name: &str| format!("tests/specs/src/{name}.rs");
        for module in MODULES.map(path) {
            tree.write(Path::new(&module), &read(&root.join(&module))?)?;
        }
        let is_needed = |line: &str| {
            let module = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';'));
            module.is_none_or(|module| MODULES.contains(&module))
        };
        let text = read(&root.join(path("lib")))?;
        let kept = sections::kept(&text, |_| None, |_, line| is_needed(line));
        tree.write(Path::new(&path("lib")), &kept)?;
        tree.write(Path::new(&path("main")), MAIN)?;
        tree.manifests(root)?;
        Ok(tree)
    }

    /// Those of the workspace and its crates, without what the comparison does not need.
    fn manifests(&self, root: &Path) -> Result<(), String> {
        let workspace = read(&root.join("Cargo.toml"))?;
        let workspace = sections::kept(&workspace, sections::toml, |section, line| match section {
            "workspace.package" | "workspace.dependencies" | "profile.dev" => true,
            "profile.dev.package.distos-specs" | "profile.dev.package.distos-core" => true,
            _ => section.starts_with("workspace.lints") || line.is_empty(),
        });
        let members = "[workspace]\nresolver = \"3\"\nmembers = [\"kernel/*\", \"tests/specs\"]\n";
        self.write(Path::new("Cargo.toml"), &format!("{members}\n{workspace}"))?;
        for krate in ["kernel/abi", "kernel/core", "tests/specs"] {
            let path = Path::new(krate).join("Cargo.toml");
            let text = read(&root.join(&path))?;
            let text = sections::kept(&text, sections::toml, |section, line| match section {
                "dev-dependencies" => false,
                "dependencies" if krate == "tests/specs" => {
                    ["[", "distos-abi", "distos-core"].iter().any(|kept| line.starts_with(kept))
                }
                _ => true,
            });
            self.write(&path, &text)?;
        }
        self.write(Path::new("Cargo.lock"), &read(&root.join("Cargo.lock"))?)
    }

    fn copy(&self, root: &Path, folder: &Path) -> Result<(), String> {
        let told = |e: std::io::Error| format!("{}: {e}", folder.display());
        for entry in fs::read_dir(root.join(folder)).map_err(told)? {
            let entry = entry.map_err(told)?;
            let path = folder.join(entry.file_name());
            if entry.file_type().map_err(told)?.is_dir() {
                self.copy(root, &path)?;
            } else {
                self.write(&path, &read(&entry.path())?)?;
            }
        }
        Ok(())
    }

    /// Writes a file, unless it is there: cargo builds anew what is newer.
    fn write(&self, path: &Path, text: &str) -> Result<(), String> {
        let path = self.at.join("tree").join(path);
        let told = |e: std::io::Error| format!("{}: {e}", path.display());
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(told)?;
        fs::write(&path, text).map_err(told)
    }

    fn recording(&self, config: &str) -> PathBuf {
        self.at.join(config).with_extension("transitions")
    }

    /// Puts a fault in, compares, and takes it out.
    fn find(&self, root: &Path, fault: &Fault) -> FaultLine {
        let started = Instant::now();
        let file = Path::new("kernel").join(&fault.file);
        let compare = || {
            self.write(&file, &fault.put(root)?)?;
            let compared = self.compare();
            self.write(&file, &read(&root.join(&file))?)?;
            match compared? {
                Compared::Found(difference) => Ok(difference),
                Compared::Same => Err("nothing finds it".to_owned()),
                Compared::Unbuilt(why) => Err(format!("it cannot be built:\n{why}")),
            }
        };
        let (difference, failure) = match compare() {
            Ok(difference) => (difference, None),
            Err(why) => (Difference::default(), Some(format!("{}: {why}", fault.bug))),
        };
        let (name, bug, took) = (fault.name.clone(), fault.bug.clone(), started.elapsed());
        FaultLine { name, bug, difference, took, failure }
    }

    /// Builds the comparison from the sources as they are in the copy, and runs it.
    fn compare(&self) -> Result<Compared, String> {
        let target = self.at.join("target");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--offline", "--package", "distos-specs"]);
        build.arg("--target-dir").arg(&target).current_dir(self.at.join("tree"));
        let (built, told) = output(&mut build)?;
        if !built.success() {
            return Ok(Compared::Unbuilt(told));
        }
        let mut compare = Command::new(target.join("debug/distos-specs"));
        let (status, told) = output(compare.args(CONFIGS.map(|config| self.recording(config))))?;
        match status.code() {
            Some(0) => Ok(Compared::Same),
            Some(1) => Ok(Compared::Found(told.parse()?)),
            _ => Err(format!("the comparison ended with {status}: {told}")),
        }
    }
}

/// Runs a program, and gives what it printed; what it complained of, if it failed to print.
fn output(command: &mut Command) -> Result<(ExitStatus, String), String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    let printed = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Ok((output.status, String::from_utf8_lossy(&printed).into_owned()))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever changes the kernel would otherwise learn minutes later that a fault went missing.
    #[test]
    fn each_fault_has_its_one_place_in_the_kernel() {
        let faults = Fault::all(&crate::root()).expect("the list can be read");
        assert!(faults.len() >= 12, "{} faults say little", faults.len());
        for fault in &faults {
            let faulty = fault.put(&crate::root()).unwrap_or_else(|why| panic!("{why}"));
            assert!(faulty.contains(&fault.replace), "{}", fault.name);
        }
    }
}
