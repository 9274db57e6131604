//! `specs/NAME/checks.toml`: what is checked of a specification, which states it must be able to
//! reach, and which bugs it must refuse.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml_edit::{ArrayOfTables, DocumentMut, Table};

use crate::second::{Asked, Second};
use crate::sections;
use crate::tlc::{Folder, Outcome, Tlc, Verdict, story};

/// One specification.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its folder's name.
    pub name: String,
    folder: PathBuf,
    /// What is checked.
    pub checks: Vec<Check>,
    /// Bugs that must be refused.
    pub mutants: Vec<Mutant>,
    /// States that must be reached.
    pub witnesses: Vec<Witness>,
}

/// A model within bounds.
#[derive(Clone, Debug)]
pub struct Check {
    /// The module that the bounds belong to.
    pub module: String,
    /// The file with the bounds and the properties.
    pub config: String,
    /// Whether it is part of `make test`.
    pub quick: bool,
    /// How many distinct states there are: what README says. Another number is a finding.
    pub states: u64,
    /// What the second checker is asked too; `None` where it cannot, or takes too long.
    pub second: Option<Asked>,
}

/// A bug in the model.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// A short name.
    pub name: String,
    /// What somebody would have done wrong.
    pub bug: String,
    file: String,
    find: String,
    replace: String,
    module: String,
    config: String,
    /// The property that it breaks.
    pub violates: String,
}

/// A state that must be reachable, or the checks say nothing.
#[derive(Clone, Debug)]
pub struct Witness {
    /// What it is.
    pub name: String,
    config: String,
    reaches: String,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    /// The specification.
    pub spec: String,
    /// What was done.
    pub what: String,
    /// Distinct states; 0 where that says nothing.
    pub states: u64,
    /// Depth likewise.
    pub depth: u64,
    /// How long it took.
    pub took: Duration,
    /// What is wrong, if anything is.
    pub failure: Option<String>,
}

impl Spec {
    /// Reads `checks.toml` of a folder.
    ///
    /// # Errors
    /// It is missing, is not TOML, or lacks something.
    pub fn read(folder: &Path) -> Result<Spec, String> {
        let path = folder.join("checks.toml");
        let told = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = fs::read_to_string(&path).map_err(|e| told(&e))?;
        let document: DocumentMut = text.parse().map_err(|e| told(&e))?;
        let empty = ArrayOfTables::new();
        let tables = |name: &str| {
            document.get(name).and_then(|item| item.as_array_of_tables()).unwrap_or(&empty).iter()
        };
        let word = |table: &Table, key: &str| {
            let text = |key| table.get(key).and_then(|item| item.as_str()).map(str::to_owned);
            let of = || text("name").or_else(|| text("config")).unwrap_or_default();
            text(key).ok_or_else(|| told(&format!("`{key}` is missing in the entry '{}'", of())))
        };
        let config = |table: &Table| {
            let config = word(table, "config")?;
            match folder.join(&config).is_file() {
                true => Ok(config),
                false => Err(told(&format!("there is no {config}"))),
            }
        };
        let module = |table: &Table| word(table, "module").unwrap_or_else(|_| "MC".to_owned());
        let flag = |table: &Table, key: &str| {
            table.get(key).and_then(|item| item.as_bool()).unwrap_or_default()
        };
        let checks = tables("check").map(|table| {
            let states = table.get("states").and_then(|item| item.as_integer());
            Ok(Check {
                module: module(table),
                config: config(table)?,
                quick: flag(table, "quick"),
                states: states
                    .and_then(|n| u64::try_from(n).ok())
                    .ok_or_else(|| told(&"`states`"))?,
                second: match table.get("second").and_then(|item| item.as_str()) {
                    None => None,
                    Some(word) => Some(Asked::parse(word).ok_or_else(|| told(&"`second`"))?),
                },
            })
        });
        let mutants = tables("mutant").map(|table| {
            Ok(Mutant {
                name: word(table, "name")?,
                bug: word(table, "bug")?,
                file: word(table, "file")?,
                find: word(table, "find")?,
                replace: word(table, "replace")?,
                module: module(table),
                config: config(table)?,
                violates: word(table, "violates")?,
            })
        });
        let witnesses = tables("witness").map(|table| {
            let (name, reaches) = (word(table, "name")?, word(table, "reaches")?);
            Ok(Witness { name, config: config(table)?, reaches })
        });
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Spec {
            name: name.unwrap_or_default(),
            folder: folder.to_owned(),
            checks: checks.collect::<Result<_, String>>()?,
            mutants: mutants.collect::<Result<_, String>>()?,
            witnesses: witnesses.collect::<Result<_, String>>()?,
        })
    }

    /// The names of the specifications below `specs/`.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn names(root: &Path) -> Result<Vec<String>, String> {
        let specs = root.join("specs");
        let entries = fs::read_dir(&specs).map_err(|e| format!("{}: {e}", specs.display()))?;
        let folders = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|p| p.is_dir());
        let mut names: Vec<_> =
            folders.filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect();
        names.sort();
        Ok(names)
    }

    /// Where it stands.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The temporal properties of a configuration, by name.
    fn properties(&self, config: &str) -> Vec<String> {
        let text = fs::read_to_string(self.folder.join(config)).unwrap_or_default();
        sections::properties(&text)
    }

    fn line(&self, what: String, outcome: Result<(Outcome, Option<String>), String>) -> Line {
        let spec = self.name.clone();
        match outcome {
            Ok((outcome, failure)) => Line {
                spec,
                what,
                states: outcome.states,
                depth: outcome.depth,
                took: outcome.took,
                failure,
            },
            Err(failure) => {
                let (states, depth, took) = (0, 0, Duration::ZERO);
                Line { spec, what, states, depth, took, failure: Some(failure) }
            }
        }
    }

    /// Checks a model within its bounds.
    pub fn check(&self, tlc: &Tlc, check: &Check) -> Line {
        let run = || {
            let folder = Folder::of(&self.folder)?;
            let outcome = tlc.run(&folder, &check.module, &check.config, &mut |_| {})?;
            let failure = match &outcome.verdict {
                Verdict::Holds if outcome.states == check.states => None,
                Verdict::Holds => {
                    let (found, said) = (outcome.states, check.states);
                    Some(format!("{found} distinct states, and checks.toml says {said}"))
                }
                other => Some(format!("{other}:\n{}", story(&outcome.steps))),
            };
            Ok((outcome, failure))
        };
        self.line(check.config.clone(), run())
    }

    /// Checks the same with the second checker, which has to find as many states.
    pub fn check_again(&self, second: &Second, check: &Check, asked: Asked) -> Line {
        let (spec, mut what) = (self.name.clone(), format!("{}, by tla-checker", check.config));
        if asked == Asked::Invariants && !self.properties(&check.config).is_empty() {
            what.push_str(": invariants");
        }
        let found = Folder::of(&self.folder)
            .and_then(|folder| second.run(&folder, &check.module, &check.config, asked));
        match found {
            Ok(found) => {
                let failure = (found.states != check.states).then(|| {
                    format!("{} distinct states, and TLC finds {}", found.states, check.states)
                });
                Line { spec, what, states: found.states, depth: 0, took: found.took, failure }
            }
            Err(failure) => {
                let (states, depth, took) = (0, 0, Duration::ZERO);
                Line { spec, what, states, depth, took, failure: Some(failure) }
            }
        }
    }

    /// Holds a bug to being refused, by the property that it breaks.
    pub fn refuse(&self, tlc: &Tlc, mutant: &Mutant) -> Line {
        let run = || {
            let folder = Folder::of(&self.folder)?;
            folder.replace(&mutant.file, &mutant.find, &mutant.replace)?;
            let outcome = tlc.run(&folder, &mutant.module, &mutant.config, &mut |_| {})?;
            let by = match &outcome.verdict {
                Verdict::Holds => None,
                Verdict::Invariant(name) | Verdict::Action(name) => Some(name.clone()),
                // TLC does not say which: it is one of the configuration's.
                Verdict::Temporal => {
                    let names = self.properties(&mutant.config);
                    names.into_iter().find(|name| *name == mutant.violates)
                }
            };
            let failure = (by.as_deref() != Some(&mutant.violates)).then(|| {
                let (verdict, bug) = (&outcome.verdict, &mutant.bug);
                format!("{bug}: {} should be violated, but: {verdict}", mutant.violates)
            });
            Ok((outcome, failure))
        };
        self.line(format!("refuses {}", mutant.name), run())
    }

    /// Holds the model to reaching a state.
    pub fn reach(&self, tlc: &Tlc, witness: &Witness) -> Line {
        let run = || {
            let folder = Folder::of(&self.folder)?;
            let config = fs::read_to_string(folder.path().join(&witness.config));
            let config = config.map_err(|e| format!("{}: {e}", witness.config))?;
            // Only the state matters here: everything that the configuration asks for is left out.
            let kept = sections::without_questions(&config);
            folder.write("Witness.cfg", &format!("{kept}\nINVARIANT Unreached\n"))?;
            let module = format!(
                "---- MODULE Witness ----\nEXTENDS MC\nUnreached == ~({})\n====\n",
                witness.reaches
            );
            folder.write("Witness.tla", &module)?;
            let outcome = tlc.run(&folder, "Witness", "Witness.cfg", &mut |_| {})?;
            let reached = outcome.verdict == Verdict::Invariant("Unreached".to_owned());
            let failure = (!reached).then(|| format!("{} is never reached", witness.reaches));
            Ok((outcome, failure))
        };
        self.line(format!("reaches: {}", witness.name), run())
    }
}
