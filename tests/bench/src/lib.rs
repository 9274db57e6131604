//! Measures DistOS beside its peers: the same work in the same run, so that a busy or a slow
//! machine changes the times and not the ratios. docs/bench.md says what each figure means.
//!
//! What it does not do: it does not judge a change by itself. A figure that is not reached is
//! reported as it is, and is no failure of the program.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its report")]

pub mod bulk;
pub mod figures;
pub mod lessee;
pub mod node;
pub mod peers;
pub mod processors;
pub mod remote;
pub mod report;
pub mod sample;
pub mod vats;

/// What null.capnp says, generated.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::unimplemented,
    clippy::unwrap_used,
    rust_2018_idioms
)]
pub mod null_capnp {
    include!(concat!(env!("OUT_DIR"), "/null_capnp.rs"));
}

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use figures::{ALL, Measurement};

/// Measures DistOS beside its peers and writes target/bench/figures.json
#[derive(Parser)]
#[command(name = "distos-bench")]
struct Args {
    /// Measure only this; may be given several times
    #[arg(long, value_name = "NAME", value_parser = name)]
    only: Vec<&'static str>,
    /// List the names
    #[arg(long)]
    list: bool,
    /// The file that the figures are put into
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn name(word: &str) -> Result<&'static str, String> {
    let found = ALL.iter().find(|measurement| measurement.name == word);
    found.map(|measurement| measurement.name).ok_or_else(|| {
        let names: Vec<_> = ALL.iter().map(|measurement| measurement.name).collect();
        format!("there is no such figure; there are {}", names.join(", "))
    })
}

/// The program, whichever of its faces it was started as.
pub fn main() -> ExitCode {
    // The other faces come first: a vat must find the process as it was started.
    let mut words = std::env::args_os().skip(1);
    match words.next().as_deref().and_then(|word| word.to_str()) {
        Some(vats::COMMAND) => return vats::main(),
        Some(peers::grpc::COMMAND) => {
            return peers::grpc::main(&PathBuf::from(words.next().unwrap_or_default()));
        }
        Some(peers::tls::COMMAND) => {
            return peers::tls::main(&PathBuf::from(words.next().unwrap_or_default()));
        }
        Some(bulk::COMMAND) => {
            return bulk::main(&PathBuf::from(words.next().unwrap_or_default()));
        }
        Some(bulk::BARE) => return bulk::bare(),
        Some(remote::GIVER) => {
            let (dir, home) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            return remote::giver(&PathBuf::from(dir), &home.to_string_lossy());
        }
        Some(remote::COMMAND) => {
            let (dir, slots) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            return remote::main(&PathBuf::from(dir), &slots.to_string_lossy());
        }
        Some(lessee::COMMAND) => {
            let words: Vec<String> =
                words.map(|word| word.to_string_lossy().into_owned()).collect();
            return lessee::main(&words);
        }
        _ => {}
    }
    let args = Args::parse();
    if args.list {
        ALL.iter().for_each(|m| println!("{:16} {}", m.name, m.about));
        return ExitCode::SUCCESS;
    }
    if cfg!(debug_assertions) {
        eprintln!("figures of a build without optimisation mean nothing: run `make bench`");
        return ExitCode::FAILURE;
    }
    measure(&args)
}

fn measure(args: &Args) -> ExitCode {
    let target = distos_e2e::repository().join("target/bench");
    let file = args.out.clone().unwrap_or_else(|| target.join("figures.json"));
    let wanted = |m: &&Measurement| args.only.is_empty() || args.only.contains(&m.name);
    let (mut lines, mut failed) = (Vec::new(), false);
    for measurement in ALL.iter().filter(wanted) {
        println!("── {}: {}", measurement.name, measurement.about);
        let scratch = target.join(measurement.name);
        let outcome = std::fs::create_dir_all(&scratch)
            .map_err(Into::into)
            .and_then(|()| (measurement.run)(&scratch))
            .and_then(|figures| {
                let rows: Vec<_> = figures.iter().map(report::Figure::row).collect();
                report::merge(&file, &rows)?;
                Ok(figures)
            });
        match outcome {
            Ok(figures) => {
                for figure in &figures {
                    let text = report::text(figure);
                    println!("{text}");
                    lines.push(text);
                }
            }
            Err(error) => {
                failed = true;
                println!("could not be measured: {error}");
                lines.push(format!("FAILED   {}: {error}", measurement.name));
            }
        }
    }
    println!("\n── ratios: ours ÷ the peer's, in one run; less is better");
    lines.iter().for_each(|line| println!("{line}"));
    println!("\n{} holds them for machines", file.display());
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
