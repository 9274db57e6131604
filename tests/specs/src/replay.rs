//! Has TLC write the transitions of the bounded model, for `distos-core` to be compared with.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::Instant;

use crate::compare::{Recorded, Replayed};
pub use crate::compare::{Report, bounds, explore};
use crate::tlc::{Folder, Outcome, Tlc, Verdict};
use crate::value::Value;

/// The module whose transitions are replayed.
const MODULE: &str = "Replay";

/// Has TLC write every transition of the bounded model, and gives each command to the code in the
/// state where the model has it. Answer and next state must be the model's.
///
/// # Errors
/// They are not, or TLC does not run; says where.
pub fn replay(tlc: &Tlc, spec: &Path, config: &str) -> Result<Report, String> {
    let started = Instant::now();
    let mut replayed = Replayed::new(bounds(&spec.join(config))?);
    // TLC goes breadth first, so a state is reached before it is left.
    let mut transition = |from: &Value, last: &Value, to: &Value| {
        replayed.transition(from, last, to);
    };
    let outcome = transitions(tlc, &Folder::of(spec)?, MODULE, config, &mut transition);
    let report = replayed.report()?;
    let outcome = outcome?;
    if outcome.states != report.states {
        let (model, code) = (outcome.states, report.states);
        return Err(format!("TLC has {model} distinct states, and the code came to {code}"));
    }
    Ok(Report { depth: outcome.depth, took: started.elapsed(), ..report })
}

/// Has TLC write the transitions of a part of the bounded model to `file`: those that `Near.tla`
/// and the configuration say.
///
/// # Errors
/// TLC does not run, or the file cannot be written.
pub fn record(tlc: &Tlc, spec: &Path, config: &str, file: &Path) -> Result<(), String> {
    let told = |e: std::io::Error| format!("{}: {e}", file.display());
    let out = BufWriter::new(File::create(file).map_err(told)?);
    let mut recorded = Recorded::new(out, bounds(&spec.join(config))?).map_err(told)?;
    let mut written = Ok(());
    let mut transition = |from: &Value, last: &Value, to: &Value| {
        if written.is_ok() {
            written = recorded.transition(from, last, to);
        }
    };
    transitions(tlc, &Folder::of(spec)?, "Near", config, &mut transition)?;
    written.and_then(|()| recorded.close()).map_err(told)
}

/// Gives each transition that TLC writes to `take`: the state before, the command and its answer,
/// the state after.
fn transitions(
    tlc: &Tlc,
    folder: &Folder,
    module: &str,
    config: &str,
    take: &mut dyn FnMut(&Value, &Value, &Value),
) -> Result<Outcome, String> {
    let mut transition = |printed: Value| {
        let parts = printed.items();
        let [_, from, last, to] = parts[..] else { panic!("not a transition: {printed}") };
        take(from, last, to);
    };
    let outcome = tlc.run(folder, module, config, &mut transition)?;
    match outcome.verdict {
        Verdict::Holds => Ok(outcome),
        verdict => Err(format!("{verdict}:\n{}", crate::tlc::story(&outcome.steps))),
    }
}
