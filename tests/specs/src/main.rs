//! `make specs`: checks every specification, holds each to refusing its mutants and reaching its
//! witnesses, and ties `capability` to the code. Prints a line for each, and a table at the end.
#![allow(clippy::print_stdout, reason = "the table is what this program is for")]
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use distos_specs::checks::{Line, Spec};
use distos_specs::faults;
use distos_specs::replay::{Report, bounds, explore, replay};
use distos_specs::root;
use distos_specs::second::Second;
use distos_specs::tlc::Tlc;

/// Checks the TLA+ specifications in specs/.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  distos-specs                          everything, about a quarter of an hour on two processors
  distos-specs --quick                  the part that `make test` does too
  distos-specs --only audit --only gpu  two specifications

Exit codes: 0 all holds, 1 something does not, 2 wrong arguments.")]
struct Args {
    /// Only small bounds, without mutants and witnesses
    #[arg(long)]
    quick: bool,
    /// Only this specification; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

type Job<'a> = Box<dyn Fn() -> Line + Send + Sync + 'a>;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("distos-specs: {why}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<bool, String> {
    let root = root();
    let tlc = Tlc::find(&root)?;
    let second = if args.quick { None } else { Some(Second::find(&root)?) };
    let names = Spec::names(&root)?;
    if let Some(unknown) = args.only.iter().find(|name| !names.contains(name)) {
        let names = names.join(" ");
        return Err(format!("there is no specification {unknown}; there are: {names}"));
    }
    let asked = names.iter().filter(|name| args.only.is_empty() || args.only.contains(name));
    let specs = asked.map(|name| Spec::read(&root.join("specs").join(name)));
    let specs = specs.collect::<Result<Vec<_>, String>>()?;
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for spec in &specs {
        if spec.name == "capability" {
            jobs.extend(tied(&tlc, spec, args.quick));
        }
        for check in spec.checks.iter().filter(|check| check.quick || !args.quick) {
            jobs.push(Box::new(|| spec.check(&tlc, check)));
            if let (Some(second), Some(asked)) = (&second, check.second) {
                jobs.push(Box::new(move || spec.check_again(second, check, asked)));
            }
        }
        if !args.quick {
            jobs.extend(
                spec.mutants.iter().map(|m| -> Job<'_> { Box::new(|| spec.refuse(&tlc, m)) }),
            );
            jobs.extend(
                spec.witnesses.iter().map(|w| -> Job<'_> { Box::new(|| spec.reach(&tlc, w)) }),
            );
        }
    }
    let started = Instant::now();
    let mut lines = at_once(&jobs);
    if !args.quick && specs.iter().any(|spec| spec.name == "capability") {
        // Each builds a copy of the kernel's crates, in one place: one after the other.
        lines.extend(faults::run(&root)?.into_iter().map(|fault| {
            let what = format!("the code with {}: {}", fault.name, fault.by());
            let (spec, failure, took) = ("capability".to_owned(), fault.failure, fault.took);
            let line = Line { spec, what, states: 0, depth: 0, took, failure };
            println!("{}", told(&line));
            line
        }));
    }
    summary(&lines, started.elapsed());
    Ok(lines.iter().all(|line| line.failure.is_none()))
}

/// What holds the model of capabilities and `distos-core` together.
fn tied<'a>(tlc: &'a Tlc, spec: &'a Spec, quick: bool) -> Vec<Job<'a>> {
    let config = if quick { "replay-quick.cfg" } else { "replay-full.cfg" };
    let line = move |what: &str, outcome: Result<Report, String>| {
        let spec = spec.name.clone();
        match outcome {
            Ok(Report { states, transitions, depth, took, .. }) => {
                let what = format!("{what}, {transitions} transitions");
                Line { spec, what, states, depth, took, failure: None }
            }
            Err(failure) => {
                let (what, took, failure) = (what.to_owned(), Duration::ZERO, Some(failure));
                Line { spec, what, states: 0, depth: 0, took, failure }
            }
        }
    };
    let explored = move |folder: &Path| {
        let bounds = bounds(&folder.join(config))?;
        thread::scope(|scope| scope.spawn(|| explore(bounds)).join())
            .map_err(|_| "the code breaks a promise: see above".to_owned())
    };
    vec![Box::new(move || {
        // The counts of both must be the same: a state that only one has is a difference.
        let both = replay(tlc, spec.folder(), config).and_then(|replayed| {
            let explored = explored(spec.folder())?;
            let counts = |r: &Report| (r.states, r.transitions, r.refused);
            if counts(&explored) == counts(&replayed) {
                return Ok(replayed);
            }
            let (model, code) = (counts(&replayed), counts(&explored));
            Err(format!("states, transitions, refusals: {model:?} of TLC, {code:?} explored"))
        });
        line(&format!("{config}: replayed and explored in the code"), both)
    })]
}

/// Runs the jobs, as many at a time as there are processors, and tells each when it is done.
fn at_once(jobs: &[Job<'_>]) -> Vec<Line> {
    let next = Mutex::new(0..jobs.len());
    let done = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let take = || next.lock().ok()?.next();
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(at) = take() {
                    let line = jobs[at]();
                    if let Ok(mut done) = done.lock() {
                        println!("[{:>3}/{}] {}", done.len() + 1, jobs.len(), told(&line));
                        done.push((at, line));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, line)| line).collect()
}

fn told(line: &Line) -> String {
    let result = if line.failure.is_none() { "ok" } else { "FAILED" };
    let count = |n: u64| if n == 0 { String::new() } else { n.to_string() };
    format!(
        "{:<12} {:>9} {:>5} {:>6.1} s  {:<6}  {}",
        line.spec,
        count(line.states),
        count(line.depth),
        line.took.as_secs_f64(),
        result,
        line.what
    )
}

fn summary(lines: &[Line], took: Duration) {
    println!(
        "\n{:<12} {:>9} {:>5} {:>8}  {:<6}  what",
        "spec", "states", "depth", "time", "result"
    );
    lines.iter().for_each(|line| println!("{}", told(line)));
    for line in lines {
        if let Some(failure) = &line.failure {
            println!("\n{}: {}\n{failure}", line.spec, line.what);
        }
    }
    let failed = lines.iter().filter(|line| line.failure.is_some()).count();
    println!("\n{} of {} hold, in {:.0} s", lines.len() - failed, lines.len(), took.as_secs_f64());
}
