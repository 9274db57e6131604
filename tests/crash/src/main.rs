//! `distos-crash work STORE DIR SEED first|later` is what strace records; `distos-crash check STORE
//! KEPT` recovers once more what a failed test has kept.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use distos_crash::explore::{Ledger, Workload, lay_out};
use distos_crash::say;
use distos_crash::workload::{audit::Audit, journal::Journal, memory::Memory};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [verb, Journal::NAME, ref rest @ ..] => run::<Journal>(verb, rest),
        [verb, Audit::NAME, ref rest @ ..] => run::<Audit>(verb, rest),
        [verb, Memory::NAME, ref rest @ ..] => run::<Memory>(verb, rest),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    say(format_args!("usage: distos-crash work STORE DIR SEED first|later, or check STORE KEPT"));
    ExitCode::from(2)
}

fn run<W: Workload>(verb: &str, rest: &[&str]) -> ExitCode {
    match (verb, rest) {
        ("work", [dir, seed, life]) => {
            let Ok(seed) = seed.parse() else { return usage() };
            W::work(Path::new(dir), seed, *life == "first");
            ExitCode::SUCCESS
        }
        ("check", [kept]) => match check::<W>(Path::new(kept)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                say(format_args!("{why}"));
                ExitCode::FAILURE
            }
        },
        _ => usage(),
    }
}

/// Works on a copy, so that it can be done again.
fn check<W: Workload>(kept: &Path) -> Result<(), String> {
    let said = std::fs::read_to_string(kept.join("said")).map_err(|e| e.to_string())?;
    let mut ledger = W::Ledger::default();
    said.lines().for_each(|line| ledger.hear(line));
    let tree = distos_crash::explore::tree(&kept.join("disk"))?;
    let copy = kept.join("recovered");
    lay_out(&copy, &tree)?;
    ledger.check(&copy)
}
