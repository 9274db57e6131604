//! `make sim`: many fleets in simulated time, small ones and some of 1,024 nodes.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its report")]
#![forbid(unsafe_code)]

use std::panic::UnwindSafe;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use distos_sim::fleet::evidence::{self, Troubles};
use distos_sim::fleet::{Plan, Report, joining, run};
use indicatif::{ProgressBar, ProgressStyle};

/// Runs fleets of nodes in simulated time, and looks whether any promise is broken
#[derive(Parser)]
#[command(
    name = "distos-fleet",
    after_help = "\
Examples:
  distos-fleet                                  1,000 small fleets and 20 of 1,024 nodes
  distos-fleet --seeds 100 --large 0            100 small ones
  distos-fleet --seed 7 --nodes 5 --seconds 60  one again
  distos-fleet --seed 7 --nodes 5 --joining     one of those in which nodes join and leave
  distos-fleet --seed 7 --nodes 8 --evidence several --seconds 300
                                                one of those in which nodes are verified

Exit codes: 0 no promise was broken, 1 one was, 2 wrong arguments."
)]
struct Args {
    /// How many small fleets, of 3 to 8 nodes
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// How many fleets of 1,024 nodes
    #[arg(long, default_value_t = 20)]
    large: u64,
    /// Runs this seed alone
    #[arg(long)]
    seed: Option<u64>,
    /// How many nodes that one has
    #[arg(long, default_value_t = 5, requires = "seed")]
    nodes: usize,
    /// How long it lasts, in simulated seconds
    #[arg(long, default_value_t = SMALL_S, requires = "seed")]
    seconds: u64,
    /// Nothing goes wrong in it
    #[arg(long, requires = "seed")]
    calm: bool,
    /// Every node of it holds one and the same capability, which is revoked halfway
    #[arg(long, requires = "seed")]
    shared: bool,
    /// Nodes join it and are put out, and do nothing else
    #[arg(long, requires = "seed", conflicts_with_all = ["shared", "seconds"])]
    joining: bool,
    /// Its nodes are verified, and do nothing else; what goes wrong meanwhile
    #[arg(long, requires = "seed", conflicts_with_all = ["shared", "calm", "joining"])]
    evidence: Option<Troubles>,
}

const SMALL_S: u64 = 60;
const LARGE: usize = 1024;
const LARGE_S: u64 = 20;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(seed) = args.seed {
        let (nodes, seconds) = (args.nodes.max(2), args.seconds);
        let (troubles, shared) = (!args.calm, args.shared);
        let report = match (args.joining, args.evidence) {
            (true, _) => one_joining(joining::Plan { nodes: nodes.max(4), seed, troubles })
                .map(|report| println!("{}", joining_text(&[report]))),
            (false, Some(troubles)) => {
                one_verified(evidence::Plan { nodes, seed, seconds, troubles })
                    .map(|report| println!("{report}"))
            }
            (false, None) => one(Plan { nodes, seed, seconds, troubles, shared })
                .map(|report| println!("{report}")),
        };
        return report.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let begun = Instant::now();
    let small = (0..args.seeds).map(|seed| {
        let nodes = 3 + seed as usize % 6;
        Plan { nodes, seed, seconds: SMALL_S, troubles: true, shared: false }
    });
    let large = |troubles: bool, shared: bool| {
        move |seed| Plan { nodes: LARGE, seed, seconds: LARGE_S, troubles, shared }
    };
    let all = [
        ("small fleets", small.collect::<Vec<_>>()),
        ("fleets of 1,024 nodes", (0..args.large).map(large(true, false)).collect()),
        ("one capability on 1,024 nodes", (0..args.large.min(1)).map(large(false, true)).collect()),
        ("the same while things go wrong", (0..args.large.min(3)).map(large(true, true)).collect()),
    ];
    for (what, plans) in all {
        let Some(reports) = many(what, &plans, one, runs_text) else { return ExitCode::FAILURE };
        for (plan, report) in plans.iter().zip(&reports).filter(|(plan, _)| plan.shared) {
            match report.shared {
                Some(_) => println!("  {report}"),
                None => {
                    println!("  seed {}: its home was down when it was to be revoked", plan.seed)
                }
            }
        }
    }
    let small = (0..args.seeds).map(|seed| {
        let nodes = 4 + seed as usize % 5;
        joining::Plan { nodes, seed, troubles: true }
    });
    let large = (0..args.large).map(|seed| joining::Plan { nodes: 64, seed, troubles: true });
    let calm =
        (0..args.large.min(1)).map(|seed| joining::Plan { nodes: LARGE, seed, troubles: false });
    let all = [
        ("who joins and leaves", small.collect::<Vec<_>>()),
        ("the same of 64 nodes", large.collect()),
        ("1,024 nodes join, one is put out", calm.collect()),
    ];
    for (what, plans) in all {
        if many(what, &plans, one_joining, joining_text).is_none() {
            return ExitCode::FAILURE;
        }
    }
    let plan =
        |nodes, seconds, troubles| move |seed| evidence::Plan { nodes, seed, seconds, troubles };
    let several = Troubles::Several;
    let all = [
        ("small fleets that are verified", (0..args.seeds).map(plan(8, 3_000, several)).collect()),
        ("1,024 nodes", (0..args.large).map(plan(LARGE, 600, several)).collect::<Vec<_>>()),
        ("and a verifier dies", (0..args.large).map(plan(LARGE, 600, Troubles::Death)).collect()),
        ("and nothing", (0..args.large.min(1)).map(plan(LARGE, 600, Troubles::None)).collect()),
    ];
    for (what, plans) in all {
        if many(what, &plans, one_verified, verified_text).is_none() {
            return ExitCode::FAILURE;
        }
    }
    println!("no promise was broken, in {:.0} s", begun.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}

/// One run; says what to do if a promise is broken.
fn one(plan: Plan) -> Option<Report> {
    let Plan { nodes, seed, seconds, troubles, shared } = plan;
    let calm = if troubles { "" } else { " --calm" };
    let shared = if shared { " --shared" } else { "" };
    let again = format!("--seed {seed} --nodes {nodes} --seconds {seconds}{calm}{shared}");
    told(&again, || run(plan).map_err(|violation| violation.to_string()))
}

fn one_joining(plan: joining::Plan) -> Option<joining::Report> {
    let joining::Plan { nodes, seed, troubles } = plan;
    let calm = if troubles { "" } else { " --calm" };
    let again = format!("--seed {seed} --nodes {nodes} --joining{calm}");
    told(&again, || joining::run(plan).map_err(|violation| violation.to_string()))
}

fn one_verified(plan: evidence::Plan) -> Option<evidence::Report> {
    let evidence::Plan { nodes, seed, seconds, troubles } = plan;
    let again = format!("--seed {seed} --nodes {nodes} --seconds {seconds} --evidence {troubles}");
    told(&again, || evidence::run(plan).map_err(|violation| violation.to_string()))
}

fn told<R>(again: &str, run: impl Fn() -> Result<R, String> + UnwindSafe) -> Option<R> {
    // A panic is a finding like any other.
    match std::panic::catch_unwind(run).unwrap_or_else(|_| Err("by a panic".to_owned())) {
        Ok(report) => Some(report),
        Err(violation) => {
            eprintln!("a promise is broken {violation}");
            eprintln!("again: cargo run --release -p distos-sim --bin distos-fleet -- {again}");
            None
        }
    }
}

/// All of these, on two threads.
fn many<P: Copy + Sync, R: Send>(
    what: &str,
    plans: &[P],
    one: fn(P) -> Option<R>,
    text: fn(&[R]) -> String,
) -> Option<Vec<R>> {
    if plans.is_empty() {
        return Some(Vec::new());
    }
    let bar = ProgressBar::new(plans.len() as u64);
    let style =
        ProgressStyle::with_template("{msg:32} {bar:30} {pos}/{len}  {elapsed}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_secs(1));
    let begun = Instant::now();
    let (one_half, other_half) = plans.split_at(plans.len() / 2);
    let work = |plans: &[P]| -> Option<Vec<R>> {
        let ran = plans.iter().map(|plan| {
            let report = one(*plan);
            bar.inc(1);
            report
        });
        ran.collect()
    };
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| work(one_half));
        let second = work(other_half);
        // A run that panics is a defect of the simulation, and ends it.
        (first.join().ok().flatten(), second)
    });
    bar.finish_and_clear();
    let reports: Vec<R> = first?.into_iter().chain(second?).collect();
    let (runs, s) = (reports.len(), begun.elapsed().as_secs_f64());
    println!("{what}: {runs} runs in {s:.0} s; {}", text(&reports));
    Some(reports)
}

fn runs_text(reports: &[Report]) -> String {
    let sum = |count: fn(&Report) -> u64| reports.iter().map(count).sum::<u64>();
    format!(
        "{} messages, {} leases, {} uses, {} of {} revocations returned, \
         {} gifts, {} statements heard and {} refused, {} crashes",
        sum(|r| r.messages),
        sum(|r| r.loans),
        sum(|r| r.uses),
        sum(|r| r.returned),
        sum(|r| r.revoked),
        sum(|r| r.gifts),
        sum(|r| r.heard),
        sum(|r| r.refused),
        sum(|r| r.crashes),
    )
}

fn joining_text(reports: &[joining::Report]) -> String {
    let sum = |count: fn(&joining::Report) -> u64| reports.iter().map(count).sum::<u64>();
    let mut text = format!(
        "{} messages, {} configurations, {} votes cast, {} heard and {} refused, {} crashes",
        sum(|r| r.messages),
        sum(|r| r.configurations),
        sum(|r| r.cast),
        sum(|r| r.taken),
        sum(|r| r.refused),
        sum(|r| r.crashes),
    );
    for report in reports {
        for (what, step) in [("all have joined", report.joined), ("one is out", report.removed)] {
            if let Some(step) = step {
                text += &format!("\n  {what} after {step}");
            }
        }
    }
    text
}

fn verified_text(reports: &[evidence::Report]) -> String {
    if let [report] = reports {
        return report.to_string();
    }
    let sum = |count: fn(&evidence::Report) -> u64| reports.iter().map(count).sum::<u64>();
    let share = reports.iter().map(evidence::Report::fresh_share).fold(1.0, f64::min);
    format!(
        "{} questions, {} answers good and {} bad, {} machines tampered with, {} crashes, \
         {} clocks set, {} reboots; {:.3} % fresh at least",
        sum(|r| r.asked),
        sum(|r| r.good),
        sum(|r| r.bad),
        sum(|r| r.tampered),
        sum(|r| r.crashes),
        sum(|r| r.set),
        sum(|r| r.reboots),
        share * 100.0,
    )
}
